"""What the processes of ``test_outages.py`` do while their server is killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memstate_core import AsyncMemoryStore, Change, ConflictError, Fact, MemoryStore, NotFoundError, TransientError
from memstate_core.testing import Face
from memstate_core.worker import work, work_async
from tests.faults.indexes import FileIndex
from tests.faults.model import register
from tests.faults.places import Place
from tests.forking import Log

# How long what a dead server has left behind is in the way.
LEASE = 1.0
# Of a client between two calls: without it they wait for a processor, not for the server.
PAUSE = 0.005
COUNTERS = ["counter 0", "counter 1"]
NO_INDEX = "no index"
DELIVERIES = [NO_INDEX, "commit", "deferred"]


class ToldIndex(FileIndex):
    """An index that also keeps what it was told, in order: fact id, and the versions before and after (0: none)."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._execute("CREATE TABLE IF NOT EXISTS told (id TEXT, before INTEGER, after INTEGER)")

    def told(self) -> list[tuple[str, int, int]]:
        return [tuple(row) for row in self._execute("SELECT id, before, after FROM told ORDER BY rowid")]

    def _make(self, changes: Sequence[Change]) -> None:
        for change in changes:
            super()._make([change])
            versions = [fact.version if fact else 0 for fact in (change.before, change.after)]
            self._execute("INSERT INTO told VALUES (?, ?, ?)", change.fact_id, *versions)


def index_of(directory: str | Path, delivery: str) -> ToldIndex:
    return ToldIndex(Path(directory) / f"index-{delivery}.db")


def place_of(directory: str | Path, delivery: str) -> Place:
    return replace(Place.of(directory), namespace=delivery)


def open_store(directory: str | Path, delivery: str, *, is_async: bool = False) -> Any:
    """A store in the namespace of its delivery."""
    place = place_of(directory, delivery)
    hooks = [index_of(directory, delivery)] if delivery != NO_INDEX else []
    options: dict[str, Any] = {"namespace": place.namespace, "lease": LEASE, "claim_timeout": 30}
    if delivery == "deferred":
        options["delivery"] = delivery
    store: Any = (
        AsyncMemoryStore(place.async_storage(10), [hook.asynchronous() for hook in hooks], **options)
        if is_async
        else MemoryStore(place.storage(10), hooks, **options)
    )
    register(store)
    return store


def log_of(directory: str | Path, number: int) -> Path:
    return Path(directory) / f"client-{number}.jsonl"


def be_a_client(directory: str, number: int, delivery: str, is_async: bool) -> None:
    """Write until told to end; every attempt has its own reason, which is logged when it returned."""
    logging.disable(logging.WARNING)  # that facts are in doubt while the server is away is said, and no error
    asyncio.run(_be_a_client(directory, number, delivery, is_async))


async def _be_a_client(directory: str, number: int, delivery: str, is_async: bool) -> None:
    log = Log(log_of(directory, number))
    rng = random.Random(number)
    store = Face(open_store(directory, delivery, is_async=is_async))
    calls = CALLS if delivery != "deferred" else CALLS[:4]
    for turn in itertools.count():
        if (Path(directory) / "enough").exists():
            break
        reason = f"{number} {turn}"
        try:
            if await rng.choice(calls)(store, rng, f"session {number}", reason):
                log.write(reason)
        except (ConflictError, NotFoundError):
            pass  # others were faster; a BusyError is among these
        except TransientError as error:
            log.write({"error": str(error)})
            await asyncio.sleep(0.01)
        await asyncio.sleep(PAUSE)


async def _count(store: Face, rng: random.Random, session: str, reason: str) -> bool:
    counter = rng.choice(COUNTERS)
    fact = await store.get(counter)
    new = {"number": fact["payload"]["number"] + 1}
    await store.update(counter, new, reason=reason, expected_version=fact["version"])
    return True


async def _note(store: Face, rng: random.Random, session: str, reason: str) -> bool:
    fact = Fact("note", {"text": reason}, id=f"{session} {rng.randrange(3)}")
    await store.commit(fact, session_id=session, reason=reason)
    return True


async def _block(store: Face, rng: random.Random, session: str, reason: str) -> bool:
    async with store.transaction(session_id=session, reason=reason) as tx:
        for place in range(3):
            await tx.commit(Fact("note", {"text": reason}, id=f"{session} {place}"))
    return True


async def _rollback(store: Face, rng: random.Random, session: str, reason: str) -> bool:
    undone = await store.rollback(session, rng.randint(1, 2), on_conflict="keep", reason=reason)
    return bool(undone)


async def _delete(store: Face, rng: random.Random, session: str, reason: str) -> bool:
    await store.delete(f"{session} {rng.randrange(3)}", session_id=session, reason=reason)
    return True


async def _promote(store: Face, rng: random.Random, session: str, reason: str) -> bool:
    return bool(await store.promote_session(session, reason=reason))


Call = Callable[[Face, random.Random, str, str], Awaitable[bool]]
CALLS: list[Call] = [_count, _note, _block, _rollback, _delete, _promote]


def be_a_worker(directory: str, is_async: bool) -> None:
    """Deliver for ever."""
    store = open_store(directory, "deferred", is_async=is_async)
    if is_async:
        asyncio.run(work_async(store, stop=lambda: False, poll=0.01))
    else:
        work(store, stop=lambda: False, poll=0.01)


def check_order(told: Sequence[tuple[str, int, int]]) -> None:
    """No change of a fact was told before the one that it builds on; what was told may be told again."""
    known: dict[str, set[int]] = defaultdict(lambda: {0})
    for fact_id, before, after in told:
        assert before in known[fact_id], f"{fact_id} went from {before} to {after}, and was never told to be {before}"
        known[fact_id].add(after)


def deliver_the_rest(store: MemoryStore) -> None:
    """Workers are gone; what they held is free when its lease has ended."""
    deadline = time.monotonic() + 30
    while any(lag.pending for lag in store.lag()):
        with contextlib.suppress(TransientError):
            store.deliver()
        assert time.monotonic() < deadline, store.lag()
        time.sleep(0.02)
