"""What the processes of ``test_interrupts.py`` do until they get a real ``SIGINT``."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memstate_core import (
    AsyncMemoryStore,
    AsyncSQLiteStorage,
    Change,
    Fact,
    InMemoryStorage,
    MemoryStore,
    SQLiteStorage,
)
from tests.faults import inspection
from tests.faults.indexes import FileIndex, Index
from tests.faults.model import register
from tests.faults.races import check_history


def _before(here: Path) -> None:
    # A server's children ignore or inherit what it did; Python's own handler is what is tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert not (here / "memory.db").exists()


def interrupted_in_a_slow_hook(directory: str, step: str) -> None:
    """Carry on when interrupted, as a notebook does, and look at what is left."""
    here = Path(directory)
    _before(here)
    index = Index()
    store = MemoryStore(SQLiteStorage(here / "memory.db"), [Index("first"), index])
    register(store)
    store.commit(Fact("note", {"text": "one"}, id="one"), session_id="a")
    before = inspection.dump(here / "memory.db")

    def be_slow(now: str, changes: Sequence[Change]) -> None:
        if now == step:
            index.fault = None
            (here / "slow").touch()
            # Not in one sleep: a signal that comes as it begins does not end it.
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                time.sleep(0.01)

    index.fault = be_slow
    try:
        with store.transaction(session_id="a") as tx:
            tx.update("one", {"text": "changed"})
            tx.commit(Fact("note", {"text": "two"}, id="two"))
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("it was not interrupted")
    assert inspection.dump(here / "memory.db") == before
    assert index.content() == {"one": (1, {"text": "one", "number": 0})}
    assert [entry.operation for entry in store.rollback("a")] == ["COMMIT"]
    assert index.content() == {}


def interrupted_again_and_again(directory: str, kind: str, times: int, seed: int) -> None:
    """Be interrupted by a real signal at any instruction; each time all or nothing was done, and the store works.

    The signal is a timer's, so that a process gets hundreds; its handler raises what that of ``SIGINT`` raises.
    """
    here = Path(directory)
    rng = random.Random(seed)
    index = Index()
    storage = InMemoryStorage() if kind == "memory" else SQLiteStorage(here / "memory.db")
    store = MemoryStore(storage, [Index("first"), index], claim_timeout=5)
    register(store)
    armed = False

    def interrupt(*_: object) -> None:
        if armed:
            raise KeyboardInterrupt

    def write() -> None:
        if turn % 4 == 3:
            store.rollback("a", on_conflict="keep")
            return
        with store.transaction(session_id="a") as tx:
            for number in rng.sample(range(4), 3):
                tx.commit(Fact("note", {"text": "pair", "number": turn}, id=f"note {number}"))

    signal.signal(signal.SIGALRM, interrupt)
    interrupted = turn = 0
    while interrupted < times:
        turn += 1
        before, journal = facts_of(store), journal_of(store)
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 0.003))
            write()
            armed = False
        except KeyboardInterrupt:
            armed = False
            interrupted += 1
        after, entries = facts_of(store), journal_of(store)
        assert entries in (journal, journal + 1)
        assert (entries > journal) or after == before
        store.recover()
        assert not any(store.verify())
        assert index.scan() == {id_: version for id_, (version, _) in facts_of(store).items()}
        if entries > journal and turn % 4 != 3:
            changed = [id_ for id_ in after if after[id_] != before.get(id_)]
            assert len(changed) == 3
            assert {after[id_][1]["number"] for id_ in changed} == {turn}
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(60)
    check_history(store)
    if kind == "sqlite":
        inspection.read_state(here / "memory.db")
        assert inspection.claims(here / "memory.db") == []


def journal_of(store: MemoryStore) -> int:
    """How many transactions there are."""
    return next((transaction.seq for transaction in store.history(limit=1)), 0)


def facts_of(store: MemoryStore) -> dict[str, Any]:
    return {fact["id"]: (fact["version"], fact["payload"]) for fact in store.query()}


def asyncio_interrupted(directory: str) -> None:
    """Ctrl-C in ``asyncio.run`` with many commits in flight; then a new loop on the same file."""
    here = Path(directory)
    _before(here)
    index = FileIndex(here / "index.db")

    async def write(store: AsyncMemoryStore, number: int) -> None:
        for turn in range(1000):
            async with store.transaction(session_id=f"session {number}") as tx:
                for half in range(2):
                    await tx.commit(Fact("note", {"text": "half", "number": turn}, id=f"{number} {half}"))

    async def main() -> None:
        async with AsyncSQLiteStorage(here / "memory.db") as storage:
            store = AsyncMemoryStore(storage, [SlowIndex(index)])
            register(store)
            await store.count()
            (here / "slow").touch()
            await asyncio.gather(*[write(store, number) for number in range(5)])

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("it was not interrupted")
    store = MemoryStore(SQLiteStorage(here / "memory.db"), [index])
    register(store)
    store.recover()
    check_halves(here, store, index)


def check_halves(here: Path, store: MemoryStore, index: Index) -> None:
    facts = {fact["id"]: fact["payload"]["number"] for fact in store.query()}
    for number in {fact_id.split()[0] for fact_id in facts}:
        assert facts[f"{number} 0"] == facts[f"{number} 1"]
    state = inspection.read_state(here / "memory.db")
    assert inspection.claims(here / "memory.db") == []
    assert not any(store.verify())
    assert index.content() == {id_: (fact.version, fact.payload) for id_, fact in state.facts.items()}


class SlowIndex:
    """An asynchronous index that takes its time at every step."""

    def __init__(self, index: Index, seconds: float = 0.003) -> None:
        self.index = index
        self.name = index.name
        self.seconds = seconds

    async def prepare(self, changes: Sequence[Change]) -> Sequence[Change]:
        await asyncio.sleep(self.seconds)
        return changes

    async def apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            await asyncio.sleep(self.seconds)
            self.index.apply([change])
        await asyncio.sleep(self.seconds)

    async def scan(self) -> dict[str, int]:
        return self.index.scan()
