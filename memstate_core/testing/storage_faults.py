"""A database that fails at any moment: what it was asked to do is done, or not; an index follows either way."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Awaitable

import pytest

from memstate_core import Fact, HookError, ImmutableError, UnavailableError
from memstate_core.testing.acts import ACTS, World, world
from memstate_core.testing.factories import Stores, StoreTests
from memstate_core.testing.faults import Fault, FaultyStorage, When
from memstate_core.testing.models import Title

_MOMENTS: tuple[When, ...] = ("before", "inside", "after")


class TestStorageFaults(StoreTests):
    """Every call to storage that an act makes fails once, or from then on, before or after it took effect."""

    async def tried(
        self, stores: Stores, act: str, *, lasting: bool = False, hooks: bool = True, hook_fails: int = 0
    ) -> int:
        """Let the act fail at every moment, and look at what is left of it; how many moments there are.

        Unless a reply was lost, nothing must have happened. The hook fails too, in its first ``hook_fails`` calls. In
        the end the act does all that it should, however often it has failed.
        """
        storage = FaultyStorage(stores.storages.new())

        def new(namespace: str) -> Awaitable[World]:
            return world(stores, act, storage=storage, namespace=namespace, hooks=hooks)

        tried = 0
        for when in _MOMENTS:
            a_world = await new(when)
            for at in itertools.count(1):
                if a_world.hook is not None:
                    a_world.hook.faults["apply"] = [Fault(number, "after") for number in range(1, hook_fails + 1)]
                fault = storage.fault = Fault(at, when, lasting=lasting)
                error: BaseException | None = None
                try:
                    await a_world.act()
                except (UnavailableError, HookError) as caught:
                    error = caught
                storage.fault = None
                if a_world.hook is not None:
                    a_world.hook.faults.clear()
                    await a_world.store.settle()
                if not fault.fired:
                    break
                tried += 1
                assert error is not None
                if when != "after" or hook_fails:
                    await a_world.expect(a_world.before)
                elif not await a_world.is_as_before():
                    a_world = await new(f"{when} {at}")
            assert (error is not None) == (hook_fails > 0)
            await a_world.expect(a_world.before if hook_fails else a_world.after)
            await a_world.goes_on()
        return tried

    @pytest.mark.parametrize("act", ACTS)
    async def test_with_hooks(self, stores: Stores, act: str) -> None:
        assert await self.tried(stores, act) >= 6  # two calls at the least: plan and claim, decide

    @pytest.mark.parametrize("act", ["commit", "block", "rollback", "discard"])
    async def test_an_outage(self, stores: Stores, act: str) -> None:
        assert await self.tried(stores, act, lasting=True) >= 6

    @pytest.mark.parametrize("act", ACTS)
    async def test_without_hooks(self, stores: Stores, act: str) -> None:
        assert await self.tried(stores, act, hooks=False) >= 3

    @pytest.mark.parametrize(
        ("act", "lasting", "hook_fails"),
        [("block", False, 1), ("block", True, 2), ("rollback", False, 2), ("rollback", True, 1)],
    )
    async def test_when_a_hook_fails_too(self, stores: Stores, act: str, lasting: bool, hook_fails: int) -> None:
        assert await self.tried(stores, act, lasting=lasting, hook_fails=hook_fails) >= 6

    async def test_a_fault_while_healing(self, stores: Stores) -> None:
        storage = FaultyStorage(stores.storages.new())
        for when in _MOMENTS:
            a_world = await world(stores, "update", storage=storage, namespace=when)
            assert a_world.hook is not None
            for at in itertools.count(1):
                a_world.hook.faults["apply"] = [Fault(1, "after"), Fault(2, "before")]
                with pytest.raises(HookError):
                    await a_world.act()
                a_world.hook.faults.clear()
                fault = storage.fault = Fault(at, when)
                if at == 1:
                    with pytest.raises(UnavailableError):
                        await a_world.store.recover()
                with contextlib.suppress(UnavailableError):
                    await a_world.store.recover()
                storage.fault = None
                await a_world.store.settle()
                await a_world.expect(a_world.before)
                if not fault.fired:
                    break
            assert at >= 4

    async def test_readers_fail_and_go_on(self, stores: Stores) -> None:
        storage = FaultyStorage(stores.storages.new())
        store = stores.open(storage=storage)
        await store.commit(Fact("note", {"text": "x"}, id="n"))
        reads = [
            lambda: store.get("n"),
            lambda: store.query("note"),
            store.count,
            store.history,
            lambda: store.get_record("c", "k"),
            lambda: store.scan_records("c"),
        ]
        for when, read in itertools.product(_MOMENTS, reads):
            expected = await read()
            storage.fault = Fault(1, when)
            with pytest.raises(UnavailableError):
                await read()
            storage.fault = None
            assert await read() == expected

    async def test_a_fault_at_the_first_call_is_forgotten(self, stores: Stores) -> None:
        for when, at in itertools.product(_MOMENTS, range(1, 6)):
            storage = FaultyStorage(stores.storages.new())
            store = stores.open(storage=storage)
            storage.fault = Fault(at, when)
            try:
                await store.commit_model(Title(name="t"), "t")
            except UnavailableError:
                assert storage.fault.fired
            storage.fault = None
            with contextlib.suppress(ImmutableError):
                await store.commit_model(Title(name="t"))
            with pytest.raises(ImmutableError):
                await store.commit_model(Title(name="t"))


__all__ = ["TestStorageFaults"]
