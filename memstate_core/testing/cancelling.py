"""Cancellation of async calls, at every await: all or nothing, and nothing left over."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest

from memstate_core import Fact, HookError
from memstate_core.testing.acts import ACTS, Gate, World, world
from memstate_core.testing.factories import Stores, StoreTests
from memstate_core.testing.faults import Fault, FaultyHook, FaultyStorage
from memstate_core.testing.index import Index, IndexHook


class _CancelledAt:
    """Awaits something, and cancels its own task at the ``at``-th time that it waits."""

    def __init__(self, work: Awaitable[Any], at: int) -> None:
        self._work = work
        self._at = at
        self.waited = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._work.__await__()
        task = asyncio.current_task()
        assert task is not None
        step: Callable[[], Any] = lambda: inner.send(None)  # noqa: E731
        while True:
            try:
                waiting = step()
            except StopIteration as done:
                return done.value
            self.waited += 1
            if self.waited == self._at:
                task.cancel()
            try:
                sent = yield waiting
            except BaseException as error:
                step = lambda error=error: inner.throw(error)  # type: ignore[misc]  # noqa: E731
            else:
                step = lambda sent=sent: inner.send(sent)  # type: ignore[misc]  # noqa: E731


class TestCancelling(StoreTests):
    """A call that was cancelled has happened wholly, or not at all."""

    @pytest.fixture(autouse=True)
    def _async_only(self, stores: Stores) -> None:
        if not stores.storages.new().is_async:
            pytest.skip("only what waits can be cancelled")

    @pytest.mark.parametrize("hooks", [False, True], ids=["plain", "hooks"])
    @pytest.mark.parametrize("act", ACTS)
    async def test_at_every_await(self, stores: Stores, act: str, hooks: bool) -> None:
        storage = stores.storages.new()

        def new(namespace: str) -> Awaitable[World]:
            return world(stores, act, storage=storage, namespace=namespace, hooks=hooks)

        a_world = await new("n")
        for at in itertools.count(1):
            awaited = _CancelledAt(a_world.act(), at)
            task = asyncio.create_task(_awaited(awaited))
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert task.cancelled() == (awaited.waited >= at), "the cancellation was swallowed"
            await a_world.store.settle()
            if not task.cancelled():
                break
            if not await a_world.is_as_before():
                a_world = await new(f"n{at}")
        await a_world.expect(a_world.after)
        await a_world.goes_on()

    @pytest.mark.parametrize("act", ACTS)
    async def test_at_every_call_of_storage_and_hooks(self, stores: Stores, act: str) -> None:
        storage = FaultyStorage(stores.storages.new())

        def new(namespace: str) -> Awaitable[World]:
            return world(stores, act, storage=storage, namespace=namespace)

        for where, when in itertools.product(("storage", "prepare", "apply"), ("before", "after")):
            a_world = await new(f"{where} {when}")
            for at in itertools.count(1):
                assert a_world.hook is not None
                task = asyncio.create_task(_awaited(a_world.act()))
                fault = Fault(at, when, act=task.cancel)  # type: ignore[arg-type]
                if where == "storage":
                    storage.fault = fault
                else:
                    a_world.hook.faults[where] = [fault]
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                storage.fault = None
                a_world.hook.faults.clear()
                await a_world.store.settle()
                if not fault.fired:
                    break
                if not await a_world.is_as_before():
                    a_world = await new(f"{where} {when} {at}")
            assert at > 1
            await a_world.expect(a_world.after)
            await a_world.goes_on()

    async def test_while_a_sync_hook_works_in_its_thread(self, stores: Stores) -> None:
        storage = stores.storages.new()
        index, gate = Index(), Gate()
        faulty = FaultyHook(IndexHook(index))
        store = stores.open([faulty], storage=storage)
        await store.commit(Fact("note", {"text": "old"}, id="n"))
        faulty.faults["apply"] = [Fault(1, "before", gate)]
        task = asyncio.create_task(store.update("n", {"text": "new"}))
        await gate.reached()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.01)
        assert not task.done()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await store.get("n"))["payload"]["text"] == "old"
        assert index.versions() == {"n": 1}
        assert await store.claims() == []

    async def test_a_failure_while_being_cancelled_is_told_with_it(self, stores: Stores) -> None:
        storage = stores.storages.new()
        index, gate = Index(), Gate()
        faulty = FaultyHook(IndexHook(index))
        store = stores.open([faulty], storage=storage)
        await store.commit(Fact("note", {"text": "old"}, id="n"))
        faulty.faults["apply"] = [Fault(1, "before", gate), Fault(1, "after"), Fault(2, "before")]
        task = asyncio.create_task(store.update("n", {"text": "new"}))
        await gate.reached()
        task.cancel()
        await asyncio.sleep(0.01)
        gate.open()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert isinstance(caught.value.__cause__, HookError)
        assert caught.value.__cause__.in_doubt == ("n",)
        await store.settle()
        assert index.versions() == {"n": 1}

    @pytest.mark.parametrize("call", ["recover", "reindex", "repair", "update"])
    async def test_healing_is_not_overtaken_by_what_it_left_behind(self, stores: Stores, call: str) -> None:
        """A cancelled healing lets the facts go only when its hook has ended, or that writes old texts."""
        storage = stores.storages.new()
        index, gate = Index(), Gate()
        faulty = FaultyHook(IndexHook(index))
        store = stores.open([faulty], storage=storage)
        other = stores.open([IndexHook(index)], storage=storage, claim_timeout=5)
        await store.commit(Fact("note", {"text": "old"}, id="n"))
        if call in ("recover", "update"):
            faulty.faults["apply"] = [Fault(1, "after"), Fault(2, "before")]
            with pytest.raises(HookError):
                await store.update("n", {"text": "new"})
        else:
            index.entries.clear()
        faulty.faults["apply"] = [Fault(1, "before", gate)]
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "recover": store.recover,
            "reindex": store.reindex,
            "repair": store.repair,
            "update": lambda: store.update("n", {"label": 1}),
        }
        task = asyncio.create_task(_awaited(calls[call]()))
        await gate.reached()
        task.cancel()
        await asyncio.sleep(0.02)
        update = asyncio.create_task(other.update("n", {"text": "newer"}))
        await asyncio.sleep(0.05)
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await task
        await update
        await asyncio.sleep(0.05)
        await store.settle()
        fact = await store.get("n")
        assert index.versions() == {"n": fact["version"]}
        assert index.entries["n"].text == fact["payload"]["text"] == "newer"

    async def test_a_call_cancelled_inside_a_block_was_made_or_not(self, stores: Stores) -> None:
        """What the block shows afterwards is what it commits; a thread may go on with what was cancelled."""
        storage = stores.storages.new()
        for at, turn in ((number // 4 + 1, number % 4) for number in itertools.count()):
            store = stores.open(storage=storage, namespace=f"n{at} {turn}")
            await store.commit(Fact("note", {"text": "old"}, id="n"))
            async with store.transaction() as tx:
                await tx.commit(Fact("note", {}, id="first"))
                awaited = _CancelledAt(tx.update("n", {"text": "cancelled"}), at)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.create_task(_awaited(awaited))
                await asyncio.sleep(0.001 * turn)
                inside = (await tx.get("n"))["payload"]["text"]
            assert (await store.get("n"))["payload"]["text"] == inside
            assert await store.ids() == ["n", "first"]
            if awaited.waited < at:
                break


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


__all__ = ["TestCancelling"]
