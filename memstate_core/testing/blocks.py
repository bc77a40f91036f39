"""Transaction blocks: several calls, one unit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from memstate_core import (
    BusyError,
    ClosedError,
    ConflictError,
    Fact,
    ImmutableError,
    NotFoundError,
    TransactionContext,
    ValidationFailed,
)
from memstate_core.testing.face import Call, Face, TransactionFace, calls, case
from memstate_core.testing.factories import Stores, StoreTests
from memstate_core.testing.index import Index, index_hook
from memstate_core.testing.models import Draft, Law, Note, User


class TestBlock(StoreTests):
    """One journal entry, one batch for the hooks, one step."""

    async def test_it_is_one_transaction(self, store: Face) -> None:
        await store.commit(Fact("note", {"text": "0"}, id="old", session_id="other"))
        async with store.transaction("s", actor="bot", reason="why", mark="m") as tx:
            await tx.commit(Fact("note", {"text": "1"}, id="a"))
            await tx.commit_model(User(email="x", name="1"), "u", "source")
            await tx.update("a", {"text": "2"})
            await tx.update("old", {"text": "1"})
            await tx.commit_model(User(email="x", name="2"))
            assert tx.transaction_id is None
        newest, _ = await store.history()
        assert newest.id == tx.transaction_id
        assert (newest.operation, newest.session_id) == ("TRANSACTION", "s")
        assert (newest.actor, newest.reason, newest.mark) == ("bot", "why", "m")
        assert {change.fact_id: (change.operation, change.after.version) for change in newest.changes} == {
            "a": ("COMMIT", 1),
            "u": ("COMMIT", 1),
            "old": ("UPDATE", 2),
        }
        assert (await store.get("a"))["session_id"] == "s"
        assert (await store.get("old"))["session_id"] == "other"
        assert (await store.get("u"))["payload"]["name"] == "2"
        await store.rollback("s")
        assert [(f["id"], f["payload"]["text"]) for f in await store.query()] == [("old", "0")]

    async def test_nothing_in_it_is_nothing(self, store: Face) -> None:
        async with store.transaction("s") as tx:
            assert await tx.query() == []
        assert tx.transaction_id is None
        async with store.transaction("s") as tx:
            await tx.commit(Fact("note", {}, id="n"))
            await tx.delete("n")
        assert tx.transaction_id is None
        assert await store.history() == []
        assert (await store.commit(Fact("note", {}, id="n"), expected_version=0)) == "n"
        assert (await store.get("n"))["version"] == 1

    async def test_reads_see_its_own_writes_and_nobody_else_does(self, store: Face) -> None:
        for id_ in ("changed", "gone", "same"):
            await store.commit(Fact("note", {"text": "old", "rank": 1}, id=id_))
        async with store.transaction() as tx:
            await tx.update("changed", {"text": "new", "rank": 2})
            await tx.delete("gone")
            await tx.commit(Fact("note", {"text": "new", "rank": 2}, id="made", session_id="s"))
            assert (await tx.get("changed"))["payload"]["text"] == "new"
            assert (await tx.get("changed"))["version"] == 2
            assert await tx.get("gone") is None
            assert (await tx.get_model("made")) == Note(text="new", rank=2)
            assert [fact["id"] for fact in await tx.query()] == ["changed", "same", "made"]
            assert [fact["id"] for fact in await tx.query("note", {"rank": 2})] == ["changed", "made"]
            assert [fact["id"] for fact in await tx.query(session_id="s")] == ["made"]
            assert [fact["id"] for fact in await tx.query(limit=1, offset=1)] == ["same"]
            assert [fact["id"] for fact in await tx.query(order_by="-text", limit=2)] == ["same", "changed"]
            assert await tx.count("note") == 3
            assert await tx.count("note", {"rank": 1}) == 1
            assert await tx.count("memo") == 0
            assert await store.ids() == ["changed", "gone", "same"]
            assert (await store.get("changed"))["payload"]["text"] == "old"
            assert len(await store.history()) == 3
        assert await store.ids() == ["changed", "same", "made"]

    async def test_an_exception_undoes_everything(self, store: Face) -> None:
        await store.commit(Fact("note", {"text": "old"}, id="n"))
        before = await store.everything()
        for error in (ZeroDivisionError, KeyboardInterrupt, asyncio.CancelledError):
            with pytest.raises(error):  # noqa: PT012
                async with store.transaction() as tx:
                    await tx.update("n", {"text": "new"})
                    await tx.put_record("c", "k", b"v")
                    raise error
        assert await store.everything() == before
        assert await store.get_record("c", "k") is None

    async def test_a_call_that_fails_fails_alone(self, store: Face) -> None:
        await store.commit_model(Law(number=1), "law")
        async with store.transaction("s") as tx:
            await tx.commit_model(User(email="a"), "u")
            failing: list[tuple[Call, type[Exception]]] = [
                (lambda tx: tx.update("law", {"number": 2}), ImmutableError),
                (lambda tx: tx.update("nothing", {}), NotFoundError),
                (lambda tx: tx.commit(Fact("law", {"number": "x"})), ValidationFailed),
                (lambda tx: tx.commit(Fact("memo", {}, id="u")), ConflictError),
                (lambda tx: tx.delete("u", expected_version=7), ConflictError),
                (lambda tx: tx.get_model("nothing"), NotFoundError),
                (lambda tx: tx.query(filters={"a": {"$x": 1}}), ValueError),
            ]
            for call, error in failing:
                with pytest.raises(error):
                    await call(tx)
            await tx.update("u", {"name": "still"})
        assert (await store.get("u"))["payload"]["name"] == "still"
        assert len(await store.history("s")) == 1

    async def test_one_transaction_makes_one_version(self, store: Face) -> None:
        await store.commit(Fact("note", {"rank": 0}, id="n"))
        async with store.transaction() as tx:
            for number in range(5):
                await tx.update("n", {"rank": number})
                assert (await tx.get("n"))["version"] == 2
                await tx.update("n", {"text": str(number)}, expected_version=2)
            await tx.delete("n")
            await tx.commit(Fact("memo", {"rank": 9}, id="n"))
            await tx.commit(Fact("memo", {"rank": 10}, id="new"))
            await tx.update("new", {"rank": 11})
        assert [(f["version"], f["type"], f["payload"]["rank"]) for f in await store.query()] == [
            (2, "memo", 9),
            (1, "memo", 11),
        ]
        await store.update("n", {"rank": 1})
        assert (await store.get("n"))["version"] == 3

    async def test_facts_are_in_the_order_in_which_they_were_made(self, store: Face) -> None:
        async with store.transaction() as tx:
            assert await tx.get("b") is None
            await tx.commit(Fact("note", {}, id="a"))
            await tx.commit(Fact("note", {}, id="b"))
            await tx.commit(Fact("note", {}, id="c"))
            await tx.delete("a")
            await tx.commit(Fact("note", {}, id="a"))
            assert [fact["id"] for fact in await tx.query()] == ["b", "c", "a"]
        assert await store.ids() == ["b", "c", "a"]

    async def test_singletons_hold_inside(self, store: Face) -> None:
        async with store.transaction("s") as tx:
            one = await tx.commit_model(User(email="a", name="1"))
            assert await tx.commit_model(User(email="a", name="2")) == one
            other = await tx.commit_model(User(email="b"))
            with pytest.raises(ConflictError):
                await tx.update(other, {"email": "a"})
            await tx.update(one, {"email": "c"})
            assert await tx.commit_model(User(email="a", name="3")) not in (one, other)
            await tx.delete(one)
            third = await tx.commit_model(User(email="c"))
            assert third != one
            draft = await tx.commit_model(Draft(topic="t"))
            assert await tx.commit_model(Draft(topic="t"), session_id="t") != draft
        assert sorted(f["payload"]["email"] for f in await store.query("user")) == ["a", "b", "c"]
        assert await store.count("draft") == 2

    async def test_values_can_be_exchanged(self, store: Face) -> None:
        await store.commit_model(User(email="a"), "1")
        await store.commit_model(User(email="b"), "2")
        async with store.transaction() as tx:
            await tx.update("1", {"email": None})
            await tx.update("2", {"email": "a"})
            await tx.update("1", {"email": "b"})
        assert [f["payload"]["email"] for f in await store.query()] == ["b", "a"]
        await store.rollback(None)
        assert [f["payload"]["email"] for f in await store.query()] == ["a", "b"]
        await store.redo(None)
        assert [f["payload"]["email"] for f in await store.query()] == ["b", "a"]
        assert await store.commit_model(User(email="a")) == "2"

    async def test_sessions_are_promoted_and_discarded_inside(self, store: Face) -> None:
        for number in range(3):
            await store.commit(Fact("note", {"rank": number}, id=str(number), session_id="s"))
        await store.commit_model(Draft(topic="a"), "old")
        async with store.transaction("boss") as tx:
            await tx.commit(Fact("note", {"rank": 3}, id="3"), session_id="s")
            assert await tx.promote_session("s", {"rank": {"$gte": 2}}) == ["2", "3"]
            assert await tx.discard_session("s") == 2
            await tx.commit_model(Draft(topic="b"), "4", session_id="s")
            await tx.commit_model(Draft(topic="a"), "5", session_id="s")
            with pytest.raises(ConflictError):
                await tx.promote_session("s")
            assert (await tx.get("4"))["session_id"] == "s"
            await tx.delete("5")
        assert [(f["id"], f["session_id"]) for f in await store.query()] == [
            ("2", None),
            ("old", None),
            ("3", None),
            ("4", "s"),
        ]
        assert (await store.journal("boss"), len(await store.history("s"))) == (["TRANSACTION"], 3)
        await store.rollback("boss")
        assert await store.ids(session_id="s") == ["0", "1", "2"]

    async def test_the_hooks_get_one_batch(self, stores: Stores) -> None:
        storage = stores.storages.new()
        index = Index()
        store = stores.open([index_hook(index, storage.is_async)], storage=storage)
        async with store.transaction() as tx:
            for id_ in "abc":
                await tx.commit(Fact("note", {"text": "1"}, id=id_))
            await tx.update("b", {"text": "2"})
            await tx.delete("c")
            assert index.batches == []
        (batch,) = index.batches
        assert [(change.fact_id, change.operation) for change in batch] == [("a", "COMMIT"), ("b", "COMMIT")]
        assert index.versions() == {"a": 1, "b": 1}

    async def test_the_session_is_the_blocks_the_facts_or_the_calls(self, stores: Stores) -> None:
        store = stores.open(context=lambda: TransactionContext("context", actor="bot"))
        async with store.transaction() as tx:
            await tx.commit(Fact("note", {}, id="1"))
            await tx.commit(Fact("note", {}, id="2", session_id="fact"))
            await tx.commit(Fact("note", {}, id="3", session_id="fact"), session_id="call")
            await tx.commit(Fact("note", {}, id="4"), session_id=None)
            await tx.commit_model(User(), "5")
            await tx.commit_model(User(), "6", session_id="call")
        assert [f["session_id"] for f in await store.query()] == ["context", "fact", "call", None, "context", "call"]
        async with store.transaction(None) as tx:
            await tx.commit(Fact("note", {}, id="7"))
            with pytest.raises(ValidationFailed):
                await tx.commit(Fact("note", {}), ephemeral=True)
            await tx.commit(Fact("note", {}, id="8", session_id="fact"), ephemeral=True)
        assert [(f["session_id"], f["ephemeral"]) for f in (await store.query())[6:]] == [(None, False), ("fact", True)]
        assert [(one.session_id, one.actor) for one in await store.history()] == [(None, "bot"), ("context", "bot")]

    async def test_a_block_is_entered_once(self, store: Face) -> None:
        block: Any = store.store.transaction("s")
        face = TransactionFace(block)
        with pytest.raises(ClosedError, match="not entered"):
            await face.commit(Fact("note", {}))
        with pytest.raises(ClosedError):
            face.savepoint()
        enter, leave = ("__aenter__", "__aexit__") if store.is_async else ("__enter__", "__exit__")
        await getattr(face, enter)()
        with pytest.raises(ClosedError, match="once"):
            await getattr(face, enter)()
        savepoint = face.savepoint()
        await getattr(face, leave)(None, None, None)
        for call in calls(face.query, lambda: face.commit(Fact("note", {})), lambda: face.get("n"), face.count):
            with pytest.raises(ClosedError, match="ended"):
                await call()
        with pytest.raises(ClosedError):
            savepoint.rollback()
        with pytest.raises(ClosedError):
            await face.put_record("c", "k", b"late")
        assert await store.history() == []

    async def test_senseless_options_are_errors(self, store: Face) -> None:
        wrong: list[dict[str, Any]] = [
            {"session_id": ""},
            {"session_id": 5},
            {"actor": "nul\0"},
            {"reason": 5},
            {"mark": ""},
            {"mark": "x" * 513},
        ]
        for options in wrong:
            with case(options), pytest.raises(ValidationFailed):
                async with store.transaction(**options) as tx:
                    await tx.commit(Fact("note", {}))
        assert await store.count() == 0


class TestSavepoints(StoreTests):
    """Going back inside a block."""

    async def test_an_exception_goes_back_to_the_savepoint_and_on(self, store: Face) -> None:
        await store.commit_model(User(email="a"), "u")
        async with store.transaction("s") as tx:
            await tx.commit(Fact("note", {"text": "1"}, id="n"))
            await tx.put_record("c", "k", b"1")
            with pytest.raises(ZeroDivisionError), tx.savepoint():  # noqa: PT012
                await tx.update("n", {"text": "2"})
                await tx.update("u", {"email": "b"})
                await tx.commit_model(User(email="a"), "v")
                await tx.put_record("c", "k", b"2")
                await tx.put_record("c", "l", b"2")
                raise ZeroDivisionError
            assert (await tx.get("n"))["payload"]["text"] == "1"
            assert await tx.get("v") is None
            assert await tx.get_record("c", "k") == b"1"
            assert await tx.get_record("c", "l") is None
            assert await tx.commit_model(User(email="a", name="x")) == "u"
            async with tx.savepoint():
                await tx.commit(Fact("note", {}, id="kept"))
        assert await store.ids() == ["u", "n", "kept"]
        assert [record.key for record in await store.scanned("c")] == ["k"]
        assert (await store.get("n"))["version"] == 1

    async def test_savepoints_nest(self, store: Face) -> None:
        async with store.transaction() as tx:
            outer = tx.savepoint()
            await tx.commit(Fact("note", {}, id="1"))
            inner = tx.savepoint()
            await tx.commit(Fact("note", {}, id="2"))
            inner.rollback()
            assert await tx.count() == 1
            await tx.commit(Fact("note", {}, id="3"))
            inner.rollback()
            assert [f["id"] for f in await tx.query()] == ["1"]
            outer.rollback()
            assert await tx.count() == 0
            with pytest.raises(NotFoundError):
                inner.rollback()
            await tx.commit(Fact("note", {}, id="4"))
        assert await store.ids() == ["4"]

    async def test_a_block_that_went_back_to_its_beginning_is_nothing(self, store: Face) -> None:
        await store.commit(Fact("note", {"text": "1"}, id="n"))
        async with store.transaction() as tx:
            start = tx.savepoint()
            await tx.update("n", {"text": "2"})
            start.rollback()
        assert tx.transaction_id is None
        assert await store.journal() == ["COMMIT"]

    async def test_a_savepoint_before_anything_was_read(self, store: Face) -> None:
        async with store.transaction() as tx:
            start = tx.savepoint()
            for _ in range(2):
                await tx.commit(Fact("note", {}, id="n"))
                start.rollback()
                assert await tx.get("n") is None
            await tx.commit(Fact("note", {"text": "last"}, id="n"))
        assert (await store.get("n"))["payload"]["text"] == "last"


class TestInterference(StoreTests):
    """What others do while a block is open."""

    async def test_changes_of_other_facts_do_not_matter(self, store: Face) -> None:
        async with store.transaction("s") as tx:
            await tx.commit(Fact("note", {}, id="mine"))
            await store.commit(Fact("note", {}, id="theirs", session_id="s"))
        assert await store.journal("s") == ["TRANSACTION", "COMMIT"]
        newest, older = await store.history("s")
        assert newest.parent == older.id
        await store.rollback("s")
        assert await store.ids() == ["theirs"]

    async def test_patches_of_other_fields_both_survive(self, store: Face) -> None:
        await store.commit(Fact("note", {}, id="n"))
        async with store.transaction() as tx:
            await tx.update("n", {"text": "block"})
            await store.update("n", {"rank": "other"})
        fact = await store.get("n")
        assert (fact["payload"]["text"], fact["payload"]["rank"], fact["version"]) == ("block", "other", 3)

    async def test_a_fact_that_was_read_and_changed_must_not_have_moved(self, store: Face) -> None:
        await store.commit(Fact("note", {"rank": 1}, id="n"))
        for read in calls(lambda tx: tx.get("n"), lambda tx: tx.query("note"), lambda tx: tx.get_model("n")):
            version = (await store.get("n"))["version"]
            with pytest.raises(BusyError) as caught:  # noqa: PT012
                async with store.transaction() as tx:
                    await read(tx)
                    await store.update("n", {"text": "theirs"})
                    await tx.update("n", {"rank": 5})
            assert caught.value.fact_id == "n"
            assert (caught.value.expected_version, caught.value.actual_version) == (version, version + 1)
        assert (await store.get("n"))["payload"]["rank"] == 1

    async def test_a_fact_that_was_only_read_may_move(self, store: Face) -> None:
        await store.commit(Fact("note", {}, id="n"))
        async with store.transaction() as tx:
            await tx.get("n")
            await store.update("n", {"text": "theirs"})
            await tx.commit(Fact("note", {}, id="m"))
        assert await store.ids() == ["n", "m"]

    async def test_a_fact_that_was_not_there_must_not_have_come(self, store: Face) -> None:
        with pytest.raises(BusyError):  # noqa: PT012
            async with store.transaction() as tx:
                assert await tx.get("n") is None
                await store.commit(Fact("note", {"text": "theirs"}, id="n"))
                await tx.commit(Fact("note", {"text": "mine"}, id="n"))
        assert (await store.get("n"))["payload"]["text"] == "theirs"

    async def test_what_the_block_was_told_must_still_be_so(self, store: Face) -> None:
        with pytest.raises(BusyError, match="again"):  # noqa: PT012
            async with store.transaction() as tx:
                await tx.commit_model(User(email="a", name="mine"))
                await store.commit_model(User(email="a", name="theirs"), "first")
        assert [f["payload"]["name"] for f in await store.query()] == ["theirs"]
        await store.commit(Fact("note", {}, id="1", session_id="s"))
        with pytest.raises(BusyError):  # noqa: PT012
            async with store.transaction() as tx:
                assert await tx.discard_session("s") == 1
                await store.commit(Fact("note", {}, id="2", session_id="s"))
        assert await store.ids(session_id="s") == ["1", "2"]

    async def test_an_error_at_the_end_is_the_calls_own(self, store: Face) -> None:
        await store.commit(Fact("note", {}, id="n"))
        with pytest.raises(NotFoundError, match="'n'"):  # noqa: PT012
            async with store.transaction() as tx:
                await tx.commit(Fact("note", {}, id="m"))
                await tx.update("n", {"text": "x"})
                await store.delete("n")
        with pytest.raises(ConflictError):  # noqa: PT012
            async with store.transaction() as tx:
                await tx.commit(Fact("note", {}, id="m"), expected_version=0)
                await store.commit(Fact("note", {"text": "theirs"}, id="m"))
        assert [(f["id"], f["payload"]["text"]) for f in await store.query()] == [("m", "theirs")]

    async def test_a_savepoint_forgets_no_reads(self, store: Face) -> None:
        await store.commit(Fact("note", {"rank": 1}, id="n"))
        with pytest.raises(BusyError):  # noqa: PT012
            async with store.transaction() as tx:
                start = tx.savepoint()
                rank = (await tx.get("n"))["payload"]["rank"]
                start.rollback()
                await store.update("n", {"rank": 10})
                await tx.update("n", {"rank": rank + 1})
        assert (await store.get("n"))["payload"]["rank"] == 10

    async def test_two_blocks_at_once(self, store: Face) -> None:
        await store.commit(Fact("note", {"rank": 1}, id="n"))
        with pytest.raises(BusyError):  # noqa: PT012
            async with store.transaction("a") as one:
                await one.update("n", {"rank": (await one.get("n"))["payload"]["rank"] + 1})
                async with store.transaction("b") as two:
                    await two.update("n", {"rank": (await two.get("n"))["payload"]["rank"] + 10})
        assert (await store.get("n"))["payload"]["rank"] == 11
        assert await store.journal("a") == []


__all__ = ["TestBlock", "TestInterference", "TestSavepoints"]
