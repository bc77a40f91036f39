"""Ctrl-C, cancellation and time-outs in the midst of a commit: all or nothing, and raised as themselves."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from memstate_core import AsyncInMemoryStorage, AsyncMemoryStore, AsyncSQLiteStorage, Fact
from tests.faults import inspection
from tests.faults.indexes import Index
from tests.faults.interrupts import SlowIndex
from tests.faults.model import register
from tests.forking import ForkServer, wait_until

pytestmark = pytest.mark.waits


@pytest.mark.parametrize("step", ["prepare", "before", "half", "after"])
def test_interrupted_in_a_slow_hook(processes: ForkServer, tmp_path: Path, step: str) -> None:
    worker = processes.start("interrupts:interrupted_in_a_slow_hook", tmp_path, step)
    wait_until(lambda: (tmp_path / "slow").exists() or worker.errors, "the slow step")
    worker.signal(signal.SIGINT)
    worker.finish()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("seed", range(2))
def test_interrupted_again_and_again(processes: ForkServer, tmp_path: Path, kind: str, seed: int) -> None:
    processes.run("interrupts:interrupted_again_and_again", tmp_path, kind, 300, seed)


@pytest.mark.parametrize("seed", range(5))
def test_asyncio_run_interrupted(processes: ForkServer, tmp_path: Path, seed: int) -> None:
    worker = processes.start("interrupts:asyncio_interrupted", tmp_path)
    wait_until(lambda: (tmp_path / "slow").exists() or worker.errors, "the start")
    wait_until(lambda: inspection.claims(tmp_path / "memory.db") or worker.errors, "the first claims")
    asyncio.run(asyncio.sleep(random.Random(seed).uniform(0, 0.05)))
    worker.signal(signal.SIGINT)
    worker.finish()


# Cancellation


@pytest.fixture(params=["memory", "sqlite"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    storage = AsyncInMemoryStorage() if request.param == "memory" else AsyncSQLiteStorage(tmp_path / "memory.db")
    async with storage:
        yield storage


async def write_pair(store: AsyncMemoryStore, turn: int) -> None:
    async with store.transaction(session_id="a") as tx:
        for name in ("left", "right"):
            await tx.commit(Fact("note", {"text": name, "number": turn}, id=name))


async def facts_of(store: AsyncMemoryStore) -> dict[str, Any]:
    return {fact["id"]: (fact["version"], fact["payload"]) for fact in await store.query()}


async def check_all_or_nothing(store: AsyncMemoryStore, index: Index, before: Any, journal: int, turn: int) -> bool:
    """Whether the transaction has happened; nothing else has, in facts, journal, index or claims."""
    assert (await store.recover()) == ((), (), ()), "claims were left"
    after, entries = await facts_of(store), len(await store.history(limit=None))
    happened = entries > journal
    if happened:
        assert entries == journal + 1
        assert [payload["number"] for _, payload in after.values()] == [turn, turn]
    else:
        assert after == before
    assert index.content() == after
    assert not any(await store.verify())
    return happened


@pytest.mark.parametrize("how", ["cancel", "timeout", "wait_for", "cancel twice"])
async def test_cancelled_at_random(storage: Any, how: str, tmp_path: Path) -> None:
    rng = random.Random(how)
    index = Index()
    store = AsyncMemoryStore(storage, [SlowIndex(index)])
    register(store)
    outcomes = {True: 0, False: 0}
    cancelled = 0
    for turn in range(60):
        before, journal = await facts_of(store), len(await store.history(limit=None))
        seconds = rng.uniform(0, 0.03)
        try:
            await _stop(how, store, turn, seconds)
        except (TimeoutError, asyncio.CancelledError):
            cancelled += 1
        happened = await check_all_or_nothing(store, index, before, journal, turn)
        outcomes[happened] += 1
        assert asyncio.current_task().cancelling() == 0
    assert cancelled
    assert outcomes[False]
    # And the store works.
    await write_pair(store, 1000)
    if isinstance(storage, AsyncSQLiteStorage):
        inspection.read_state(tmp_path / "memory.db")
        assert inspection.claims(tmp_path / "memory.db") == []


async def _stop(how: str, store: AsyncMemoryStore, turn: int, seconds: float) -> None:
    if how == "timeout":
        async with asyncio.timeout(seconds):
            await write_pair(store, turn)
    elif how == "wait_for":
        await asyncio.wait_for(write_pair(store, turn), seconds)
    else:
        task = asyncio.create_task(write_pair(store, turn))
        await asyncio.sleep(seconds)
        task.cancel()
        if how == "cancel twice":
            await asyncio.sleep(0.002)
            task.cancel()
        await task


@pytest.mark.parametrize("hooked", [True, False])
async def test_what_was_cancelled_is_over(storage: Any, hooked: bool) -> None:
    """When a cancelled commit has raised, it does not happen later."""
    rng = random.Random(0)
    index = Index()
    store = AsyncMemoryStore(storage, [SlowIndex(index, 0.001)] if hooked else [])
    register(store)
    for turn in range(100):
        task = asyncio.create_task(write_pair(store, turn))
        for _ in range(rng.randint(0, 12)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        at_once = await facts_of(store)
        await asyncio.sleep(0.002)
        assert await facts_of(store) == at_once
        if not task.cancelled():
            task.result()
        if hooked:
            assert index.content() == at_once


async def test_cancelled_with_its_loop(tmp_path: Path) -> None:
    """A loop that ends cancels every task, also those that no one else can see."""
    index = Index()

    async def leave() -> None:
        store = AsyncMemoryStore(storage, [SlowIndex(index)])
        register(store)
        await store.count()
        tasks = [asyncio.create_task(write_pair(store, turn)) for turn in range(3)]
        await asyncio.sleep(random.Random(1).uniform(0, 0.02))
        del tasks

    for turn in range(20):
        storage = AsyncSQLiteStorage(tmp_path / f"{turn}.db")
        await asyncio.to_thread(asyncio.run, leave())
        store = AsyncMemoryStore(storage, [SlowIndex(index)])
        register(store)
        facts = await facts_of(store)
        assert index.content() == facts
        assert len({payload["number"] for _, payload in facts.values()}) <= 1
        assert inspection.claims(tmp_path / f"{turn}.db") == []
        assert not any(await store.verify())
        await storage.close()
        index = Index()
