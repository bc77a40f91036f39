"""An index is rebuilt beside the one in use and takes its place, whoever writes, fails or dies meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import pytest_asyncio

from memstate_core import BusyError, Change, Fact, HookError, SearchResult, paging, rebuilding
from memstate_core.protocols import Batch, Claim, Scope
from memstate_core.recovery import index_key
from memstate_core.testing.acts import Gate
from memstate_core.testing.face import Face
from memstate_core.testing.factories import StorageFactory, Stores, StoreTests
from memstate_core.testing.faults import Fault, FaultyHook, raising
from memstate_core.testing.index import AsyncIndexHook, Index, IndexHook, ListingHook, index_hook
from memstate_core.testing.verifying import Steps

_FACTS = 11


class TestRebuilding(StoreTests):
    """``reindex(into=…)``. Hooks that stop at a gate must do so in a thread, so they are sync ones here."""

    @pytest.fixture(autouse=True)
    def small_pages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(paging, "PAGE", 3)
        monkeypatch.setattr(rebuilding, "_CHUNK", 2)

    @pytest.fixture
    def index(self) -> Index:
        return Index()

    @pytest.fixture(params=["commit", "deferred"])
    def delivery(self, request: pytest.FixtureRequest) -> str:
        given: str = request.param
        return given

    @pytest_asyncio.fixture
    async def filled(self, stores: Stores, index: Index) -> Face:
        store = stores.open([IndexHook(index)])
        async with store.transaction() as tx:
            for number in range(_FACTS):
                await tx.commit(Fact(("note", "memo")[number % 2], {"text": f"text {number}"}, id=f"{number}"))
        return store

    async def check(self, store: Face, index: Index) -> None:
        """The index in use is what storage says, and nothing is left behind."""
        assert index.versions() == {fact["id"]: fact["version"] for fact in await store.query()}
        assert not any(await store.verify())
        assert await store.claims() == []
        assert index.beside is None

    async def test_the_new_one_takes_the_place_of_the_old_one(self, filled: Face, index: Index) -> None:
        index.entries["ghost"] = index.entries.pop("3")
        before, steps = index.entries, Steps()
        assert await filled.reindex(into=ListingHook(index), progress=steps) == _FACTS
        assert index.entries is not before
        steps.check("index")
        await self.check(filled, index)
        await filled.update("3", {"text": "told to the new hook"})
        assert index.entries["3"].text == "told to the new hook"
        assert await filled.reindex("index", into=ListingHook(index, {"note"})) == _FACTS
        assert index.versions() == {f"{number}": 1 for number in range(0, _FACTS, 2)}
        assert not any(await filled.verify())
        await filled.commit(Fact("memo", {"text": "not told of"}, id="memo"))
        assert "memo" not in index.entries

    async def test_until_then_the_old_one_answers(self, filled: Face, index: Index) -> None:
        gate = Gate()
        new = FaultyHook(IndexHook(index))
        new.faults["swap"] = [Fault(1, "before", gate)]
        task = filled.beside(lambda: filled.reindex(into=new))
        await gate.reached()
        before = index.entries
        assert (await filled.search("text 4", 1))[0].fact.id == "4"
        await filled.update("4", {"text": "changed meanwhile"})
        await filled.delete("5")
        assert index.entries is before
        # Who uses the store while its hooks change places waits for that.
        waiting = filled.beside(lambda: filled.commit(Fact("note", {"text": "later"}, id="later")))
        await asyncio.sleep(0.02)
        gate.open()
        await asyncio.gather(task, waiting)
        assert index.entries is not before
        await self.check(filled, index)

    async def test_who_is_under_way_is_waited_for(self, filled: Face, index: Index, stores: Stores) -> None:
        """It has told the old index, and decides when the new one is in its place."""
        gates = [Gate(), Gate()]
        writing = [FaultyHook(IndexHook(index)) for _ in gates]
        for hook, gate in zip(writing, gates, strict=True):
            hook.faults["apply"] = [Fault(1, "after", gate)]
        writing[1].faults["apply"].append(Fault(1, "after", raising(OSError("refused"))))
        writers = [stores.open([hook], storage=filled.storage) for hook in writing]
        updates = [
            writers[0].beside(lambda: writers[0].update("0", {"text": "decided late"})),
            writers[1].beside(lambda: writers[1].update("1", {"text": "never decided"})),
        ]
        for gate in gates:
            await gate.reached()
        before = index.entries
        task = filled.beside(lambda: filled.reindex(into=IndexHook(index)))
        await until(lambda: index.entries is not before)
        await asyncio.sleep(0.05)
        assert not task.done()
        assert index.entries["0"].text == "text 0"
        gates[0].open()
        await asyncio.sleep(0.05)
        assert not task.done()
        gates[1].open()
        assert await task == _FACTS
        await updates[0]
        with pytest.raises(HookError):
            await updates[1]
        assert index.entries["0"].text == "decided late"
        await self.check(filled, index)

    @pytest.mark.parametrize("hooks", [("index",), ("index", "unknown")])
    async def test_what_a_crash_left_is_not_waited_for(
        self, filled: Face, index: Index, stores: Stores, hooks: tuple[str, ...]
    ) -> None:
        """It is healed; where that cannot be done here, who comes back finds its claims gone."""
        left = Claim("fact:2", "somebody", 0.0, hooks)
        await filled.storage.write(filled.store.namespace, lambda tx: tx.write(Batch(claims=[left])))
        assert await filled.reindex(into=IndexHook(index)) == _FACTS
        claims = await filled.claims()
        assert [(claim.key, claim.hooks) for claim in claims] == ([("fact:2", hooks)] if len(hooks) > 1 else [])
        assert all(claim.owner != "somebody" for claim in claims)
        index.entries["2"] = index.entries["2"]._replace(text="left by the crash", version=9)
        knowing = stores.open([IndexHook(index), IndexHook(Index(), name="unknown")], storage=filled.storage)
        healed = await knowing.recover()
        assert healed.healed == (("2",) if len(hooks) > 1 else ())
        if len(hooks) > 1:
            assert index.entries["2"].text == "text 2"
            await self.check(filled, index)

    async def test_beside_many_writers(
        self, index: Index, stores: Stores, storages: StorageFactory, delivery: str
    ) -> None:
        storage = storages.new()
        faces = [
            stores.open([IndexHook(index)], storage=storages.again(storage) if number else storage, delivery=delivery)
            for number in range(3)
        ]
        ended = False

        async def write(face: Face, number: int) -> int:
            count = 0
            while not ended:
                count += 1
                session = f"s{number}"
                await face.commit(Fact("note", {"text": f"{number} {count}"}, id=f"{number} {count % 7}"), session)
                if count % 3 == 0:
                    await face.rollback(session)
                if count % 5 == 0:
                    with contextlib.suppress(BusyError):
                        await face.commit(Fact("note", {"text": f"shared {count}"}, id="shared"))
                if delivery == "deferred" and count % 4 == 0:
                    await face.deliver(20)
                await face.store._engine.runtime.sleep(0.002)
            return count

        writers = [face.beside(lambda face=face, n=n: write(face, n)) for n, face in enumerate(faces)]  # type: ignore[misc]
        try:
            for number in range(4):
                await asyncio.sleep(0.02)
                before, face = index.entries, faces[number % 2]
                await face.beside(lambda face=face: face.reindex(into=IndexHook(index)))  # type: ignore[misc]
                assert index.entries is not before
        finally:
            ended = True
            counts = await asyncio.gather(*writers)
        assert min(counts) > 0
        await faces[0].deliver()
        await self.check(faces[0], index)

    @pytest.mark.parametrize("operation", ["beside", "prepare", "apply", "swap"])
    async def test_what_fails_leaves_the_old_one_in_use(self, filled: Face, index: Index, operation: str) -> None:
        before = index.entries
        new: Any = FaultyHook(IndexHook(index))
        fault = [Fault(1, "before", raising(OSError("no room")))]
        if operation in ("prepare", "apply"):
            beside = new.beside
            inner = FaultyHook(IndexHook(Index()))
            new.beside = lambda: (beside(), inner)[1]
            inner.faults[operation] = fault
        else:
            new.faults[operation] = fault
        with pytest.raises(HookError, match=r"could not be rebuilt, .*no room") as caught:
            await filled.reindex(into=new)
        assert (caught.value.hook, caught.value.operation) == ("index", operation)
        assert index.entries is before
        assert len(await filled.claims()) == (operation == "swap")
        await filled.recover()
        assert await filled.claims() == []
        await filled.update("0", {"text": "goes on"})
        assert index.entries["0"].text == "goes on"
        assert await filled.reindex(into=IndexHook(index)) == _FACTS
        await self.check(filled, index)

    async def test_only_one_rebuilds(self, filled: Face, index: Index, stores: Stores) -> None:
        gate = Gate()
        new = FaultyHook(IndexHook(index))
        new.faults["beside"] = [Fault(1, "after", gate)]
        task = filled.beside(lambda: filled.reindex(into=new))
        await gate.reached()
        other = stores.open([IndexHook(index)], storage=filled.storage, claim_timeout=0.05)
        with pytest.raises(BusyError, match="'index' is being rebuilt by someone else"):
            await other.reindex(into=IndexHook(index))
        await other.update("0", {"text": "nobody else waits"})
        gate.open()
        assert await task == _FACTS
        await self.check(filled, index)

    @pytest.mark.parametrize("operation", ["apply", "search"])
    async def test_who_uses_the_old_hook_meanwhile_goes_on_with_the_new_one(
        self, stores: Stores, index: Index, operation: str
    ) -> None:
        """The old hook fails on the new index, such as one whose embedding model is another."""
        old, gate = FaultyHook(OutdatedHook(index)), Gate()
        store = stores.open([old])
        await store.commit(Fact("note", {"text": "green tea"}, id="n"))
        old.faults[operation] = [Fault(1, "before", gate)]
        calls: dict[str, Callable[[], Any]] = {
            "apply": lambda: store.update("n", {"text": "black tea"}),
            "search": lambda: store.search("tea"),
        }
        task = store.beside(calls[operation])
        await gate.reached()
        rebuild = store.beside(lambda: store.reindex(into=OutdatedHook(index)))
        before = index.entries
        await until(lambda: index.entries is not before)
        gate.open()
        await asyncio.gather(task, rebuild)
        assert [found.fact.payload["text"] for found in await store.search("tea")] == [index.entries["n"].text]
        assert index.entries["n"].text == ("black tea" if operation == "apply" else "green tea")
        await self.check(store, index)
        assert len(await store.history()) == (2 if operation == "apply" else 1)

    async def test_what_goes_wrong_on_the_way_is_mended(self, filled: Face, index: Index) -> None:
        class Careless(IndexHook):
            def apply(self, changes: Sequence[Change]) -> None:
                super().apply([change for change in changes if change.fact_id != "3" or self.index is index])

        assert await filled.reindex(into=Careless(index)) == _FACTS
        await self.check(filled, index)

    async def test_from_inside_a_hook(self, filled: Face, index: Index, stores: Stores) -> None:
        """It would wait for the transaction that waits for the hook."""
        store = stores.open(
            [CallingHook(index) if not filled.is_async else AsyncCallingHook(index)], storage=filled.storage
        )
        store.store._engine.hooks[0].hook.store = store.store
        with pytest.raises(HookError, match=r"cannot be rebuilt from inside a hook.*call reindex when it has ended"):
            await store.update("0", {"text": "told"})
        await self.check(store, index)
        assert await store.reindex(into=index_hook(index, filled.is_async)) == _FACTS
        await self.check(store, index)

    @pytest.mark.parametrize("call", ["recover", "search", "commit", "reindex"])
    async def test_who_died_behind_the_swap_left_it_in_doubt(
        self, filled: Face, index: Index, stores: Stores, call: str
    ) -> None:
        """Whoever comes next brings the index to what has been decided since it was filled."""
        left = Claim(index_key("index"), "somebody", 0.0, ("index",))
        await filled.storage.write(filled.store.namespace, lambda tx: tx.write(Batch(claims=[left])))
        del index.entries["4"]
        index.entries["5"] = index.entries["5"]._replace(version=9)
        next_ = stores.open([IndexHook(index)], storage=filled.storage)
        if call == "reindex":
            # One that does not get as far as that leaves it in doubt.
            failing = FaultyHook(IndexHook(index))
            failing.faults["beside"] = [Fault(1, "before", raising(OSError("no room")))]
            await filled.storage.write(filled.store.namespace, lambda tx: tx.write(Batch(claims=[left])))
            with pytest.raises(HookError, match="no room"):
                await filled.reindex(into=failing)
            assert [claim.hooks for claim in await filled.claims()] == [("index",)]
            await next_.recover()
        else:
            calls: dict[str, Callable[[], Any]] = {
                "recover": next_.recover,
                "search": lambda: next_.search("text"),
                "commit": lambda: next_.commit(Fact("note", {"text": "next"}, id="next")),
            }
            await calls[call]()
        await self.check(filled, index)

    @pytest.mark.parametrize("begun", [True, False])
    async def test_who_was_stopped_for_too_long_gives_up(
        self, filled: Face, index: Index, stores: Stores, begun: bool
    ) -> None:
        gate = Gate()
        new = FaultyHook(IndexHook(index))
        new.faults["beside"] = [Fault(1, "after", gate)]
        task = filled.beside(lambda: filled.reindex(into=new))
        await gate.reached()
        (claim,) = await filled.claims()
        taken = claim._replace(owner="another", expires=0.0 if begun else 1e12)
        await filled.storage.write(filled.store.namespace, lambda tx: tx.write(Batch(claims=[taken])))
        other = stores.open([IndexHook(index)], storage=filled.storage)
        if begun:
            assert await other.reindex(into=IndexHook(index)) == _FACTS
        before = index.entries
        gate.open()
        with pytest.raises(HookError if begun else BusyError):
            await task
        assert index.entries is before
        assert await filled.claims() == ([] if begun else [taken])
        assert not any(await other.verify())

    async def test_what_cannot_be_is_refused(self, filled: Face, index: Index) -> None:
        with pytest.raises(ValueError, match="there is no hook 'other'"):
            await filled.reindex(into=IndexHook(index, name="other"))
        with pytest.raises(ValueError, match="another index than 'index'"):
            await filled.reindex("index", into=IndexHook(index, name="other"))
        with pytest.raises(TypeError, match="lacks beside, swap or scan"):
            await filled.reindex("index", into=lambda operation, fact_id, fact: None)
        assert await filled.claims() == []


class OutdatedHook(IndexHook):
    """Fails when its index is not the one any more that it knows."""

    def __init__(self, index: Index, target_types: set[str] | None = None, name: str = "index") -> None:
        super().__init__(index, target_types, name)
        self.known = index.entries

    def swap(self, beside: Any) -> None:
        super().swap(beside)
        self.known = self.index.entries

    def apply(self, changes: Sequence[Change]) -> None:
        self._look()
        super().apply(changes)

    def search(self, query: str, limit: int, scope: Scope) -> list[SearchResult]:
        self._look()
        return super().search(query, limit, scope)

    def _look(self) -> None:
        if self.index.entries is not self.known:
            raise OSError("this index has been rebuilt")


class CallingHook(IndexHook):
    """Rebuilds its own index when it is told something for the first time."""

    store: Any = None

    def apply(self, changes: Sequence[Change]) -> None:
        if (store := self.store) is not None:
            self.store = None
            store.reindex(into=IndexHook(self.index))
        super().apply(changes)


class AsyncCallingHook(AsyncIndexHook):
    """The same, as coroutines."""

    store: Any = None

    async def apply(self, changes: Sequence[Change]) -> None:
        if (store := self.store) is not None:
            self.store = None
            await store.reindex(into=AsyncIndexHook(self.index))
        await super().apply(changes)


async def until(true: Callable[[], bool]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


__all__ = ["TestRebuilding"]
