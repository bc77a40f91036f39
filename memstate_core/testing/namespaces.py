"""Namespaces: nothing of one is seen in another."""

from __future__ import annotations

from typing import Any

import pytest

from memstate_core import Constraint, Fact, NotFoundError, ValidationFailed
from memstate_core.testing.face import calls, case
from memstate_core.testing.factories import Stores, StoreTests
from memstate_core.testing.index import Index, index_hook
from memstate_core.testing.models import Law, User


class TestNamespaces(StoreTests):
    """Two tenants on one storage."""

    async def test_nothing_crosses(self, stores: Stores) -> None:
        storage = stores.storages.new()
        one, two = (stores.open(storage=storage, namespace=name) for name in ("one", "two"))
        assert (one.store.namespace, two.store.namespace) == ("one", "two")
        for store, text in ((one, "1"), (two, "2")):
            async with store.transaction("s", mark="m") as tx:
                await tx.commit(Fact("note", {"text": text, "rank": 1}, id="n"))
                await tx.commit_model(User(email="a", name=text), f"u{text}")
                await tx.put_record("c", "k", text.encode())
            await store.savepoint("s", "here")
        await one.update("n", {"text": "1b"})
        assert [f["payload"].get("text", "") for f in await two.query()] == ["2", ""]
        assert await two.ids("note", {"rank": 1}, "s") == ["n"]
        assert await one.count() == await two.count() == 2
        assert await two.get("u1") is None
        assert [len(await store.history("s")) for store in (one, two)] == [2, 1]
        assert [len(await store.history(fact_id="n")) for store in (one, two)] == [2, 1]
        assert [len(await store.history(mark="m")) for store in (one, two)] == [1, 1]
        assert (await two.get("n"))["version"] == 1
        assert [await store.get_record("c", "k") for store in (one, two)] == [b"1", b"2"]
        newest = (await one.history("s"))[0]
        for call in calls(two.checkout, lambda session, to: two.rollback(session, to=to)):
            with pytest.raises(NotFoundError):
                await call("s", newest.id)
        await one.rollback("s", to="here")
        await one.rollback("s")
        assert await one.count() == 0
        assert await two.count() == 2
        assert await two.redo("s") == []
        assert await two.commit_model(User(email="a", name="new")) == "u2"
        await two.discard_session("s")
        assert len(await one.redo("s", 9)) == 2
        await two.delete_record("c", "k")
        assert await one.scanned("c") == [("k", b"1")]

    async def test_schemas_belong_to_their_namespace(self, stores: Stores) -> None:
        storage = stores.storages.new()
        one, two = (stores.open(storage=storage, models=False, namespace=name) for name in ("one", "two"))
        one.store.register_schema("law", Law, Constraint(immutable=True))
        two.store.register_schema("law", Law)
        for store in (one, two):
            await store.commit_model(Law(number=1), "law")
        await two.update("law", {"number": 2})
        assert [(await store.get("law"))["payload"]["number"] for store in (one, two)] == [1, 2]

    async def test_claims_and_recovery_belong_to_their_namespace(self, stores: Stores) -> None:
        storage = stores.storages.new()
        indexes = Index(), Index()
        one, two = (
            stores.open([index_hook(index, storage.is_async)], storage=storage, namespace=name)
            for index, name in zip(indexes, ("one", "two"), strict=True)
        )
        await one.commit(Fact("note", {"text": "1"}, id="n"))
        await two.commit(Fact("note", {"text": "2"}, id="m"))
        assert (indexes[0].versions(), indexes[1].versions()) == ({"n": 1}, {"m": 1})
        assert await two.reindex() == 1
        assert [len(drift) for drift in [*await one.verify(), *await two.verify()]] == [0, 0]

    async def test_a_namespace_is_an_identifier(self, stores: Stores) -> None:
        wrong: Any
        for wrong in ("", "nul\0", "lone \ud800", "x" * 513, 5, None):
            with case(wrong), pytest.raises(ValidationFailed, match="namespace"):
                stores.open(namespace=wrong)

    async def test_names_that_look_alike_differ(self, stores: Stores) -> None:
        storage = stores.storages.new()
        names = ["a", "A", "a ", "a:b", "a:", "á", "a\u0301", "a/b", "a*", "a?", "[a]", "{a}", "%", "_", "'", "é" * 512]
        for name in names:
            store = stores.open(storage=storage, namespace=name)
            await store.commit(Fact("note", {"text": name}, id="n", session_id="s"))
            await store.put_record("c", "k", name.encode())
        for name in names:
            store = stores.open(storage=storage, namespace=name)
            assert [f["payload"]["text"] for f in await store.query()] == [name]
            assert await store.get_record("c", "k") == name.encode()
            assert len(await store.history()) == 1

    async def test_parts_of_keys_do_not_run_together(self, stores: Stores) -> None:
        storage = stores.storages.new()
        left = stores.open(storage=storage, namespace="a")
        right = stores.open(storage=storage, namespace="a:b")
        for store, session_id, id_ in ((left, "b:c", "d"), (right, "c", "d"), (left, "b", "c:d")):
            await store.commit(Fact("note", {}, id=id_, session_id=session_id))
            await store.put_record(session_id, id_, b"")
        assert (await left.ids(), await right.ids()) == (["d", "c:d"], ["d"])
        assert (await left.ids(session_id="b"), await left.ids(session_id="b:c")) == (["c:d"], ["d"])
        assert [record.key for record in await left.scanned("b")] == ["c:d"]


__all__ = ["TestNamespaces"]
