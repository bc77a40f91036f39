"""Verify finds exactly what differs, beside whoever writes, and repair mends it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

import pytest

from memstate_core import Fact, HookError, paging, verification
from memstate_core.testing.acts import Gate
from memstate_core.testing.face import Face
from memstate_core.testing.factories import Stores, StoreTests
from memstate_core.testing.faults import Fault, FaultyHook, raising
from memstate_core.testing.index import AsyncIndexHook, AsyncListingHook, Entry, Index, IndexHook, ListingHook

_KINDS = {"scanned": (IndexHook, AsyncIndexHook), "listed": (ListingHook, AsyncListingHook)}


class Steps:
    """A progress callback that checks what it is told."""

    def __init__(self) -> None:
        self.last: dict[str, tuple[int, int]] = {}

    def __call__(self, hook: str, done: int, total: int) -> None:
        assert 0 <= self.last.get(hook, (0, 0))[0] <= done <= total
        self.last[hook] = done, total

    def check(self, *hooks: str) -> None:
        """Each was told of to its end."""
        assert set(self.last) == set(hooks)
        assert all(done == total for done, total in self.last.values())


class _Base(StoreTests):
    @pytest.fixture(autouse=True)
    def small_pages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Many pages of few facts."""
        monkeypatch.setattr(paging, "PAGE", 3)
        monkeypatch.setattr(verification, "_CHUNK", 2)
        monkeypatch.setattr(verification, "_CHUNK_SCANNED", 4)

    @pytest.fixture(params=_KINDS)
    def kind(self, request: pytest.FixtureRequest) -> tuple[Any, Any]:
        return _KINDS[request.param]

    def hook(self, kind: tuple[Any, Any], is_async: bool, index: Index, **options: Any) -> Any:
        return kind[is_async](index, **options)

    async def filled(self, stores: Stores, hooks: Iterable[Any], storage: Any) -> Face:
        store = stores.open(list(hooks), storage=storage)
        async with store.transaction() as tx:
            for number in range(11):
                typename = ("note", "memo", "note", "user")[number % 4]
                payload: dict[str, Any] = {"email": f"{number}"} if typename == "user" else {"text": f"text {number}"}
                await tx.commit(Fact(typename, payload, id=f"{number}"))
        await store.update("4", {"text": "another text"})
        return store


def damage(index: Index) -> None:
    """Take three of each kind away from what :meth:`_Base.filled` has made."""
    for id_ in ("0", "2", "9"):
        del index.entries[id_]
    for id_ in ("1", "4", "5"):
        index.entries[id_] = index.entries[id_]._replace(version=index.entries[id_].version + 7)
    for id_ in ("3", "ghost", "spectre"):  # "3" is a user, without a text
        index.entries[id_] = Entry(1, "boo", "note", None)


class TestVerify(_Base):
    """Both directions, page by page."""

    async def test_what_differs_is_found_and_mended(self, stores: Stores, kind: tuple[Any, Any]) -> None:
        storage, index, notes = stores.storages.new(), Index(), Index()
        hooks = [
            self.hook(kind, storage.is_async, index, target_types={"note", "memo"}),
            self.hook(kind, storage.is_async, notes, target_types={"note"}, name="notes"),
        ]
        store = await self.filled(stores, hooks, storage)
        clean = await store.verify()
        assert not any(clean)
        assert [(one.facts, one.entries) for one in clean] == [(9, 9), (6, 6)]
        assert (clean.drift, clean.unlisted) == (0, ())
        whole = index.versions()
        damage(index)
        steps = Steps()
        found, other = await store.verify(progress=steps)
        steps.check("index", "notes")
        assert not other
        assert sorted(found.missing) == ["0", "2", "9"]
        assert sorted(found.stale) == ["1", "4", "5"]
        assert sorted(found.orphaned) == ["3", "ghost", "spectre"]
        assert (found.facts, found.entries) == (9, 9)
        assert str(found) == "index: 3 missing, 3 stale, 3 orphaned (9 facts and 9 entries compared)"
        assert await store.claims() == []
        steps = Steps()
        mended = await store.repair(progress=steps)
        steps.check("index", "notes")
        assert (mended, mended.drift) == ([found, other], 9)
        assert index.versions() == whole
        assert await store.claims() == []
        batches = len(index.batches)
        again = await store.repair()
        assert (again.drift, len(index.batches)) == (0, batches)
        assert str(again) == (
            "index: no drift (9 facts and 9 entries compared)\nnotes: no drift (6 facts and 6 entries compared)"
        )

    async def test_what_cannot_be_listed_is_named(self, stores: Stores) -> None:
        store = stores.open([lambda operation, fact_id, fact: None, IndexHook(Index())])
        report = await store.verify()
        assert [drift.hook for drift in report] == ["index"]
        (name,) = report.unlisted
        assert name.endswith("<lambda>")
        assert f"{name}: cannot be listed, so not compared" in str(report)
        assert (await store.repair()).unlisted == (name,)

    @pytest.mark.parametrize("operation", ["scan", "lookup"])
    async def test_a_hook_that_fails_is_named(self, stores: Stores, operation: str) -> None:
        storage, index = stores.storages.new(), Index()
        faulty = FaultyHook(self.hook(_KINDS["listed"], storage.is_async, index))
        store = await self.filled(stores, [faulty], storage)
        damage(index)
        # The second look-up of those below is made while facts are claimed.
        for at in (1,) if operation == "scan" else (1, 5):
            faulty.faults[operation] = [Fault(at, "before", raising(OSError("the index is away")))]
            for call in (store.verify, store.repair):
                with pytest.raises(HookError, match=r"'index'.*the index is away") as caught:
                    await call()
                assert (caught.value.hook, caught.value.operation) == ("index", operation)
                assert await store.claims() == []
                faulty.faults[operation] = [Fault(at, "before", raising(OSError("the index is away")))]
        faulty.faults.clear()
        assert (await store.repair()).drift == 9


class TestVerifyBesideWriters(_Base):
    """What is being changed is no drift; what else differs is, whoever writes meanwhile."""

    async def test_an_undone_write_that_was_seen_is_no_drift(self, stores: Stores, kind: tuple[Any, Any]) -> None:
        """The index shows what is not committed while it is walked, and no claim is left to tell."""
        storage, index, gate, walked = stores.storages.new(), Index(), Gate(), Gate()
        store = await self.filled(stores, [self.hook(kind, storage.is_async, index)], storage)
        # What waits at a gate must do so in a thread.
        writing, looking = FaultyHook(kind[0](index)), FaultyHook(kind[0](index))
        writer, looker = stores.open([writing], storage=storage), stores.open([looking], storage=storage)
        writing.faults["apply"] = [Fault(1, "after", gate), Fault(1, "after", raising(OSError("refused")))]
        update = writer.beside(lambda: writer.update("0", {"text": "never committed"}))
        await gate.reached()
        looking.faults["scan"] = [Fault(1, "after", walked)]
        assert index.versions()["0"] == 2
        verify = looker.beside(looker.verify)
        await walked.reached()
        gate.open()
        with pytest.raises(HookError):
            await update
        walked.open()
        (drift,) = await verify
        assert not drift
        assert index.versions()["0"] == 1
        assert not any(await store.verify())

    async def test_nothing_of_what_is_being_written_is_reported(self, stores: Stores, kind: tuple[Any, Any]) -> None:
        storage, index = stores.storages.new(), Index()
        store = await self.filled(stores, [self.hook(kind, storage.is_async, index)], storage)
        again = stores.storages.again(storage)
        faulty = FaultyHook(self.hook(kind, storage.is_async, index))
        writer = stores.open([faulty], storage=again)
        index.entries.pop("10")
        ended = False

        async def write() -> None:
            number = 0
            while not ended:
                number += 1
                await writer.commit(Fact("note", {"text": f"new {number}"}, id=f"new {number % 5}"))
                await writer.update("0", {"text": f"changed {number}"})
                faulty.faults["apply"] = [Fault(1, "after", raising(OSError("refused")))]
                with contextlib.suppress(HookError):
                    await writer.update("1", {"text": f"refused {number}"})
                faulty.faults.clear()
                await writer.delete(f"new {number % 5}")
                await writer.rollback()

        writing = writer.beside(write)
        try:
            for _ in range(4):
                (drift,) = await store.verify()
                assert (drift.missing, drift.stale, drift.orphaned) == (("10",), (), ())
                await asyncio.sleep(0.01)
        finally:
            ended = True
            await writing
        assert (await store.repair()).drift == 1
        assert not any(await store.verify())

    async def test_what_is_still_to_be_delivered_is_no_drift(self, stores: Stores, kind: tuple[Any, Any]) -> None:
        storage, index = stores.storages.new(), Index()
        store = stores.open([self.hook(kind, storage.is_async, index)], storage=storage, delivery="deferred")
        for number in range(7):
            await store.commit(Fact("note", {"text": f"{number}"}, id=f"{number}"))
        assert not any(await store.verify())
        await store.deliver(4)
        assert not any(await store.verify())
        await store.deliver()
        await store.update("0", {"text": "changed"})
        await store.delete("1")
        del index.entries["2"]
        (drift,) = await store.verify()
        assert (drift.missing, drift.stale, drift.orphaned) == (("2",), (), ())
        await store.deliver()
        assert (await store.repair()).drift == 1
        assert index.versions() == {"0": 2} | {f"{number}": 1 for number in range(2, 7)}


__all__ = ["TestVerify", "TestVerifyBesideWriters"]
