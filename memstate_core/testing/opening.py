"""Opening and closing: what a restart keeps, and what is closed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from memstate_core import (
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    ClosedError,
    Fact,
    InMemoryStorage,
    MemoryStore,
    NotFoundError,
    Storage,
)
from memstate_core.testing.face import Face
from memstate_core.testing.factories import StorageFactory, Stores, StoreTests
from memstate_core.testing.index import AsyncIndexHook, Index, IndexHook, index_hook
from memstate_core.testing.models import Title, User

CALLS: dict[str, tuple[Any, ...]] = {
    "commit": (Fact("note", {}),),
    "commit_model": (User(),),
    "update": ("n", {}),
    "delete": ("n",),
    "promote_session": ("s",),
    "discard_session": ("s",),
    "migrate_facts": (),
    "rollback": ("s",),
    "redo": ("s",),
    "checkout": ("s", None),
    "savepoint": ("s", "name"),
    "history": (),
    "get": ("n",),
    "get_model": ("n",),
    "query": (),
    "count": (),
    "search": ("text",),
    "put_record": ("c", "k", b""),
    "delete_record": ("c", "k"),
    "get_record": ("c", "k"),
    "scan_records": ("c",),
    "recover": (),
    "verify": (),
    "repair": (),
    "reindex": (),
}


class TestReopening(StoreTests):
    """What was returned is there after a restart, and goes on as before."""

    async def test_everything_is_there(self, stores: Stores) -> None:
        store = stores.open()
        await store.commit(Fact("note", {"rank": 1}, id="n", session_id="s", source="x"), actor="a", reason="r")
        await store.commit_model(User(email="a"), "u")
        await store.commit_model(Title(name="t"), "t")
        await store.put_record("c", "k", b"v")
        await store.update("n", {"rank": 2})
        await store.savepoint("s", "here")
        await store.update("n", {"rank": 3})
        await store.rollback("s")
        before = await store.everything()
        store = await stores.reopen(store)
        assert await store.everything() == before
        assert await store.get_record("c", "k") == b"v"
        assert await store.ids("note", {"rank": 2}) == ["n"]
        assert len(await store.redo("s")) == 1
        assert len(await store.rollback("s", to="here")) == 1
        store = await stores.reopen(store)
        assert len(await store.rollback("s", 9)) == 2
        assert len(await store.redo("s", 9)) == 3
        assert await store.commit_model(User(email="a", name="new")) == "u"
        assert (await store.get("n"))["version"] == 3
        store = await stores.reopen(store)
        await store.update("n", {"rank": 4})
        seqs = [one.seq for one in await store.history()]
        assert seqs == sorted(seqs, reverse=True)
        assert len(set(seqs)) == len(seqs)
        assert (await store.get("n"))["version"] == 4

    async def test_constraints_are_there_before_anything_is_registered(self, stores: Stores) -> None:
        store = stores.open()
        await store.commit_model(User(email="a"), "u")
        store = await stores.reopen(store, models=False, allow_unregistered=True)
        assert await store.commit(Fact("user", {"email": "a"})) == "u"
        assert await store.ids("user", {"role": "user"}) == []
        assert await store.ids("user", {"email": "a"}) == ["u"]

    async def test_an_index_goes_on(self, stores: Stores) -> None:
        storage = stores.storages.new()
        index = Index()
        store = stores.open([index_hook(index, storage.is_async)], storage=storage)
        await store.commit(Fact("note", {"text": "green tea"}, id="n"))
        store = await stores.reopen(store, [index_hook(index, storage.is_async)])
        assert [len(drift) for drift in await store.verify()] == [0]
        assert [found.fact.id for found in await store.search("tea")] == ["n"]
        await store.rollback(None)
        assert index.versions() == {}

    async def test_two_stores_on_one_storage_see_each_other(self, stores: Stores, storages: StorageFactory) -> None:
        one = stores.open()
        two = stores.open(storage=one.storage)
        three = stores.open(storage=storages.again(one.storage))
        await one.commit(Fact("note", {"text": "1"}, id="n", session_id="s"))
        await two.update("n", {"text": "2"})
        await three.update("n", {"text": "3"})
        for store in (one, two, three):
            assert (await store.get("n"))["version"] == 3
            assert await store.journal("s") == ["UPDATE", "UPDATE", "COMMIT"]
        await two.rollback("s")
        await three.rollback("s")
        assert (await one.get("n"))["payload"]["text"] == "1"
        assert len(await one.redo("s", 5)) == 2
        assert await three.commit_model(User(email="a"), "u") == "u"
        assert await one.commit_model(User(email="a")) == "u"

    async def test_an_empty_storage_answers(self, store: Face) -> None:
        assert await store.everything() == {"facts": [], "journal": [], "lines": {}, "claims": []}
        assert await store.count() == 0
        assert await store.get_record("c", "k") is None
        assert await store.rollback("s") == await store.redo("s") == []
        assert (await store.recover(), await store.verify(), await store.repair()) == (((), (), ()), [], [])
        assert await store.reindex() == 0
        with pytest.raises(NotFoundError):
            await store.rollback("s", to="nothing")


class _Suspending(InMemoryStorage):
    """Says that it is a sync storage, and waits."""

    async def read(self, *arguments: Any, **options: Any) -> Any:
        await asyncio.sleep(0)


class TestClosing(StoreTests):
    """What is closed says so, and closes only what it opened."""

    @pytest.mark.parametrize("what", ["store", "storage"])
    async def test_every_call_says_that_it_is_closed(self, stores: Stores, what: str) -> None:
        storage = stores.storages.new()
        store = stores.open([index_hook(Index(), storage.is_async)], storage=storage)
        await store.commit(Fact("note", {"text": "x"}, id="n", session_id="s"))
        if what == "store":
            await store.close()
            await store.close()
        else:
            await storage.aclose()
            await storage.aclose()
        for name, arguments in CALLS.items():
            with pytest.raises(ClosedError, match="closed"):
                await getattr(store, name)(*arguments)
        with pytest.raises(ClosedError, match="closed"):
            async with store.transaction() as tx:
                await tx.commit(Fact("note", {}))
        if what == "store":
            other = stores.open(storage=storage)
            assert await other.ids() == ["n"]
            other.store.register_schema("note", User)
            with pytest.raises(ClosedError):
                store.store.register_schema("note", User)

    async def test_stores_and_storages_are_context_managers(self, stores: Stores) -> None:
        storage: Any = stores.storages.new()
        async with contextlib.AsyncExitStack() as stack:
            store = stores.open(storage=storage)
            if storage.is_async:
                assert await stack.enter_async_context(storage) is storage
                assert await stack.enter_async_context(store.store) is store.store  # type: ignore[arg-type]
            else:
                assert stack.enter_context(storage) is storage
                assert stack.enter_context(store.store) is store.store  # type: ignore[arg-type]
            await store.commit(Fact("note", {}))
        with pytest.raises(ClosedError):
            await store.count()
        with pytest.raises(ClosedError):
            await stores.open(storage=storage).count()

    async def test_opening_is_explicit_or_happens_by_itself(self, stores: Stores) -> None:
        storage: Any = stores.storages.new()
        for _ in range(2):
            await storage.open()
        for name in ("connect", "create_tables"):
            if storage.is_async:
                await getattr(storage, name)()
        assert isinstance(storage, Storage)
        assert await stores.open(storage=storage).count() == 0
        await storage.aclose()
        with pytest.raises(ClosedError):
            await storage.open()

    async def test_flavours_do_not_mix(self, stores: Stores) -> None:
        storage: Any = stores.storages.new()
        wrong: Any = MemoryStore if storage.is_async else AsyncMemoryStore
        with pytest.raises(TypeError, match=type(storage).__name__):
            wrong(storage)
        with pytest.raises(TypeError, match="object"):
            wrong(object())
        with pytest.raises(TypeError, match="asynchronous"):
            MemoryStore(InMemoryStorage(), [AsyncIndexHook(Index())])
        with pytest.raises(RuntimeError, match="AsyncMemoryStore"):
            MemoryStore(_Suspending()).count()
        with pytest.raises(TypeError, match="no hook"):
            MemoryStore(InMemoryStorage(), [object()])

    async def test_an_async_store_takes_sync_hooks(self) -> None:
        index = Index()
        store = AsyncMemoryStore(AsyncInMemoryStorage(), [IndexHook(index)], allow_unregistered=True)
        await store.commit(Fact("note", {"text": "tea"}, id="n"))
        assert index.versions() == {"n": 1}
        assert [found.fact.id for found in await store.search("tea")] == ["n"]
        await store.rollback(None)
        assert index.versions() == {}
        await store.close()


__all__ = ["TestClosing", "TestReopening"]
