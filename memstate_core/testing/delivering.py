"""Deferred delivery: commits that do not wait for an index, and an index that follows all the same."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from memstate_core import delivery
from memstate_core._bridge import run
from memstate_core.errors import HookError, UnavailableError
from memstate_core.facts import Change, Fact, Operation, StoredFact
from memstate_core.protocols import lane_of
from memstate_core.testing.acts import ACTS, build
from memstate_core.testing.face import Face
from memstate_core.testing.factories import StorageFactory, Stores, StoreTests
from memstate_core.testing.faults import Fault, FaultyHook, FaultyStorage, raising
from memstate_core.testing.index import Index, index_hook


class Away(Exception):
    """What the hook of these tests fails with."""


class TestDelivery(StoreTests):
    """``delivery="deferred"``: the outbox is written with the facts, and workers empty it."""

    def open(self, stores: Stores, index: Index, **options: Any) -> tuple[Face, FaultyHook]:
        storage = options.pop("storage", None) or stores.storages.new()
        hook = FaultyHook(index_hook(index, storage.is_async))
        return stores.open([hook], storage=storage, delivery="deferred", **options), hook

    async def settled(self, store: Face, index: Index) -> None:
        """Everything is delivered, and the index is what storage says."""
        await store.deliver()
        assert [lag.pending for lag in await store.lag()] == [0]
        facts = await store.query()
        assert index.versions() == {fact["id"]: fact["version"] for fact in facts if fact["payload"].get("text")}
        assert not any(await store.verify())

    async def test_a_commit_does_not_tell_the_hook(self, stores: Stores) -> None:
        index = Index()
        store, _ = self.open(stores, index)
        await store.commit(Fact("note", {"text": "later"}, id="n"))
        assert index.batches == []
        assert await store.claims() == []
        (lag,) = await store.lag()
        assert (lag.hook, lag.pending, lag.failing, lag.error) == ("index", 1, 0, None)
        assert lag.oldest >= 0
        assert await store.deliver() == 1
        assert [found.fact.id for found in await store.search("later")] == ["n"]
        await self.settled(store, index)

    @pytest.mark.parametrize("act", ACTS)
    async def test_whatever_is_done(self, stores: Stores, act: str) -> None:
        index = Index()
        store, _ = self.open(stores, index)
        await build(store)
        if act in ("commit", "block"):
            await store.deliver()
        await ACTS[act](store)
        await self.settled(store, index)
        await store.rollback("s", on_conflict="keep")
        await self.settled(store, index)

    async def test_a_hook_that_is_down_stops_no_commit(self, stores: Stores) -> None:
        index = Index()
        store, hook = self.open(stores, index)
        hook.faults["apply"] = [Fault(1, act=raising(Away("gone fishing")), lasting=True)]
        for number in range(10):
            await store.commit(Fact("note", {"text": f"{number}"}, id=f"n{number}"))
        assert await store.deliver() == 0
        (lag,) = await store.lag()
        assert (lag.pending, lag.failing) == (10, 10)
        assert lag.error == "Away: gone fishing"
        assert await store.deliver() == 0  # nothing is due yet
        assert index.entries == {}

    async def test_it_is_tried_again(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(delivery, "_FIRST_PAUSE", 0.0)
        index = Index()
        store, hook = self.open(stores, index)
        hook.faults["apply"] = [Fault(number, act=raising(Away())) for number in range(1, 9)]
        for number in range(6):
            await store.commit(Fact("note", {"text": f"{number}"}, id=f"n{number}"))
        await store.update("n3", {"text": "changed"})
        await self.settled(store, index)

    async def test_one_fact_that_cannot_be_told_holds_up_no_other(self, stores: Stores) -> None:
        index = Index()
        store, hook = self.open(stores, index)
        told: list[str] = []

        def refuse(changes: Sequence[Change]) -> None:
            if any(change.fact_id == "poison" for change in changes):
                raise Away
            told.extend(change.fact_id for change in changes)

        inner = hook.prepare  # type: ignore[attr-defined]

        def prepare(changes: Sequence[Change]) -> Any:
            refuse(changes)
            return inner(changes)

        store.store._engine.deliverer.hooks[0].prepare = prepare
        async with store.transaction() as tx:
            for number in range(40):
                await tx.commit(Fact("note", {"text": "x"}, id=f"n{number}"))
            await tx.commit(Fact("note", {"text": "x"}, id="poison"))
        await store.update("poison", {"text": "y"})
        await store.update("n1", {"text": "y"})
        await store.deliver()
        (lag,) = await store.lag()
        assert (lag.pending, lag.failing) == (2, 1)
        assert set(told) == {f"n{number}" for number in range(40)}
        assert index.versions() == {f"n{number}": 1 + (number == 1) for number in range(40)}
        assert not any(await store.verify())  # what is still to come is no drift

    async def test_what_waits_holds_up_nothing_that_comes_after_it(self, stores: Stores) -> None:
        """Though it is more than is delivered at a time."""
        index = Index()
        store, hook = self.open(stores, index)
        hook.faults["apply"] = [Fault(1, act=raising(Away()), lasting=True)]
        same_lane = [id_ for id_ in map(str, range(500)) if lane_of("index", id_) == lane_of("index", "0")][:12]
        await self.commit_each(store, same_lane[:9])
        assert await store.deliver() == 0
        del hook.faults["apply"]
        await store.update(same_lane[0], {"text": "waits, too"})
        await self.commit_each(store, same_lane[9:])
        step = store.store._engine.deliverer.step
        assert [await step(2) for _ in range(3)] == [("index", 2, 1), ("index", 1, 0), None]
        assert index.versions() == dict.fromkeys(same_lane[9:], 1)
        assert [lag.pending for lag in await store.lag()] == [10]

    async def commit_each(self, store: Face, ids: Sequence[str]) -> None:
        for id_ in ids:
            await store.commit(Fact("note", {"text": "x"}, id=id_))

    async def test_a_version_that_cannot_be_read_holds_up_nothing_but_its_fact(self, stores: Stores) -> None:
        """Its schema's ``migrate`` fails on it, say."""
        index = Index()
        store, _ = self.open(stores, index)
        deliverer = store.store._engine.deliverer
        decode = deliverer.decode

        def fail_on_one(stored: StoredFact) -> dict[str, Any]:
            if stored.id == "old":
                raise Away("too old")
            return decode(stored)

        deliverer.decode = fail_on_one
        await self.commit_each(store, ["old", "n"])
        assert await store.deliver() == 1
        assert index.versions() == {"n": 1}
        (lag,) = await store.lag()
        assert (lag.pending, lag.failing, lag.error) == (1, 1, "Away: too old")

    async def test_an_error_may_say_anything(self, stores: Stores) -> None:
        index = Index()
        store, hook = self.open(stores, index)
        hook.faults["apply"] = [Fault(1, act=raising(Away("\0'%\udcff\U0001f600" + "x" * 10**6)), lasting=True)]
        await store.commit(Fact("note", {"text": "x"}, id="n"))
        assert await store.deliver() == 0
        (lag,) = await store.lag()
        assert lag.error is not None
        assert lag.error.startswith("Away: ?'%?\U0001f600xxx")
        assert len(lag.error) == 1000

    async def test_a_function_is_told_of_every_change_in_order(self, stores: Stores) -> None:
        told: dict[str, list[tuple[Operation, Any]]] = defaultdict(list)
        storage = stores.storages.new()

        def hook(operation: Operation, fact_id: str, fact: Fact | None) -> None:
            told[fact_id].append((operation, fact and (fact.version, fact.payload["text"])))

        async def async_hook(operation: Operation, fact_id: str, fact: Fact | None) -> None:
            hook(operation, fact_id, fact)

        store = stores.open([async_hook if storage.is_async else hook], storage=storage, delivery="deferred")
        for id_ in ("a", "b"):
            await store.commit(Fact("note", {"text": "1"}, id=id_))
            await store.update(id_, {"text": "2"})
        await store.delete("a")
        await store.rollback()
        await store.rollback(to=(await store.history(fact_id="b"))[-1].id)
        await store.deliver()
        first = [(Operation.COMMIT, (1, "1")), (Operation.UPDATE, (2, "2"))]
        assert told["a"] == [*first, (Operation.DELETE, None), (Operation.COMMIT, (2, "2"))]
        assert told["b"] == [*first, (Operation.UPDATE, (1, "1"))]

    async def test_no_change_overtakes_one_that_failed(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
        index = Index()
        store, hook = self.open(stores, index)
        await store.commit(Fact("note", {"text": "1"}, id="n"))
        hook.faults["apply"] = [Fault(1, act=raising(Away()))]
        assert await store.deliver() == 0
        await store.update("n", {"text": "2"})
        assert await store.deliver() == 0
        assert (index.entries, [lag.pending for lag in await store.lag()]) == ({}, [2])
        monkeypatch.setattr("time.time", lambda now=time.time: now() + 3)
        assert await store.deliver() == 2
        await self.settled(store, index)

    async def test_changes_of_one_fact_are_delivered_as_one(self, stores: Stores) -> None:
        index = Index()
        store, _ = self.open(stores, index)
        await store.commit(Fact("note", {"text": "0"}, id="n"))
        for number in range(1, 5):
            await store.update("n", {"text": f"{number}"})
        assert await store.deliver() == 5
        ((change,),) = index.batches
        assert (change.before, change.after and change.after.version) == (None, 5)
        await self.settled(store, index)

    async def test_hooks_in_the_commit_beside_deferred_ones(self, stores: Stores) -> None:
        now, later = Index(), Index()
        storage = stores.storages.new()
        at_once = FaultyHook(index_hook(now, storage.is_async, name="now"))
        store = stores.open([at_once], storage=storage)
        store.store.add_hook(index_hook(later, storage.is_async, name="later"), delivery="deferred")
        await store.commit(Fact("note", {"text": "x"}, id="n"))
        assert (set(now.entries), set(later.entries)) == ({"n"}, set())
        await store.deliver()
        assert set(later.entries) == {"n"}
        at_once.faults["apply"] = [Fault(1, act=raising(Away()))]
        with pytest.raises(HookError, match="Away"):
            await store.update("n", {"text": "y"})
        assert [lag.pending for lag in await store.lag()] == [0]

    async def test_only_the_types_that_the_hook_wants(self, stores: Stores) -> None:
        index = Index()
        storage = stores.storages.new()
        hook = index_hook(index, storage.is_async, target_types={"memo"})
        store = stores.open([hook], storage=storage, delivery="deferred")
        await store.commit(Fact("note", {"text": "x"}))
        await store.commit(Fact("memo", {"text": "x"}, id="m"))
        assert await store.deliver() == 1
        assert set(index.entries) == {"m"}

    async def test_search_never_shows_what_is_not_there_any_more(self, stores: Stores) -> None:
        index = Index()
        store, _ = self.open(stores, index)
        for id_ in ("stays", "goes", "changes"):
            await store.commit(Fact("note", {"text": "red fox"}, id=id_))
        await store.deliver()
        await store.delete("goes")
        await store.update("changes", {"text": "blue whale"})
        found = await store.search("red fox", limit=10, score_threshold=0.5)
        assert [(one.fact.id, one.fact.payload["text"]) for one in found] == [("stays", "red fox")]
        scored = {one.fact.id: one.score for one in await store.search("red fox", limit=10)}
        assert scored == {"stays": 1.0, "changes": 0.0}

    async def test_another_process_delivers(self, stores: Stores) -> None:
        index = Index()
        store, _ = self.open(stores, index)
        await store.commit(Fact("note", {"text": "from here"}, id="n"))
        twin, _ = self.open(stores, index, storage=stores.storages.again(store.storage))
        assert await twin.deliver() == 1
        await self.settled(store, index)

    async def test_an_unknown_hook_waits_for_somebody_who_has_it(self, stores: Stores) -> None:
        index = Index()
        store, _ = self.open(stores, index)
        await store.commit(Fact("note", {"text": "x"}, id="n"))
        other = Index()
        storage = stores.storages.again(store.storage)
        twin = stores.open([index_hook(other, storage.is_async, name="other")], storage=storage, delivery="deferred")
        assert await twin.deliver() == 0
        assert {lag.hook: lag.pending for lag in await twin.lag()} == {"other": 0, "index": 1}
        await self.settled(store, index)

    async def test_many_workers_at_once(self, stores: Stores, storages: StorageFactory) -> None:
        """Every change once (nobody fails here), and those of a fact in order."""
        told: dict[str, list[int]] = defaultdict(list)
        storage = stores.storages.new()

        def hook(operation: Operation, fact_id: str, fact: Fact | None) -> None:
            assert fact is not None
            told[fact_id].append(fact.version)

        async def async_hook(operation: Operation, fact_id: str, fact: Fact | None) -> None:
            await asyncio.sleep(0)
            hook(operation, fact_id, fact)

        def open_one(storage: Any) -> Face:
            return stores.open([async_hook if storage.is_async else hook], storage=storage, delivery="deferred")

        store = open_one(storage)
        workers = [open_one(storages.again(storage)) for _ in range(3)]

        async def write() -> None:
            for number in range(60):
                await store.commit(Fact("note", {"text": f"{number}"}, id=f"n{number % 7}"))

        async def work(worker: Face) -> None:
            while sum(map(len, told.values())) < 60:
                await worker.deliver(5)
                await worker.store._engine.runtime.sleep(0.001)

        await asyncio.gather(store.beside(write), *(worker.beside(partial(work, worker)) for worker in workers))
        for number in range(7):
            count = len(range(number, 60, 7))
            assert told[f"n{number}"] == list(range(1, count + 1))

    @pytest.mark.parametrize("when", ["before", "inside", "after"])
    async def test_storage_that_fails_while_delivering(self, stores: Stores, when: Any) -> None:
        inner = stores.storages.new()
        for at in itertools.count(1):
            index = Index()
            storage = FaultyStorage(inner)
            store, _ = self.open(stores, index, storage=storage, namespace=f"n{at}", lease=0.2)
            await store.commit(Fact("note", {"text": "x"}, id="n"))
            await store.update("n", {"text": "y"})
            await store.lag()
            fault = storage.fault = Fault(at, when)
            with contextlib.suppress(UnavailableError):
                await store.deliver()
            storage.fault = None
            await self.eventually_settled(store, index)
            if not fault.fired:
                break
        assert at > 2

    async def eventually_settled(self, store: Face, index: Index) -> None:
        for _ in range(400):
            await store.deliver()
            if [lag.pending for lag in await store.lag()] == [0]:
                break
            await asyncio.sleep(0.01)
        await self.settled(store, index)

    async def test_a_worker_that_lost_its_lane_mends_what_it_did(self, stores: Stores) -> None:
        """Its lease ended while the hook was busy, and another worker has delivered something newer since."""
        index = Index()
        store, _ = self.open(stores, index, lease=0.05)
        await store.commit(Fact("note", {"text": "old"}, id="n"))
        twin, _ = self.open(stores, index, storage=stores.storages.again(store.storage))
        adapter = store.store._engine.deliverer.hooks[0]
        apply = adapter.apply

        async def meanwhile() -> None:
            adapter.apply = apply
            await twin.update("n", {"text": "new"})
            take = lambda tx: tx.take_lane(["index"], "thief", 1e12, 2e12)  # noqa: E731
            assert await twin.storage.write(twin.store.namespace, take)

        async def late_async(changes: Sequence[Change]) -> None:
            await meanwhile()
            await apply(changes)

        def late(changes: Sequence[Change]) -> None:
            run(meanwhile())
            apply(changes)

        adapter.apply = late_async if store.is_async else late
        await store.deliver()
        assert [change.after and change.after.version for batch in index.batches for change in batch] == [1, 2]
        assert index.versions() == {"n": 2}
        assert [lag.pending for lag in await store.lag()] == [2]


__all__ = ["TestDelivery"]
