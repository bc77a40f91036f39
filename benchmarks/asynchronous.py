"""The async store against the floor as an event loop would use it: called in one thread where it blocks.

There is no target: an operation that hops to a thread and back costs that hop.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

from pydantic import BaseModel

from benchmarks.bench import Bench, say
from benchmarks.measure import AsyncSide, Row, compared, in_turn_async, summary
from benchmarks.storages import StorageKind
from benchmarks.subjects import AsyncMemStateSubject
from benchmarks.workload import PER_TOPIC, TEXT, Note, Subject, fresh, model_of

SECTION: Final = "Async"
TASKS: Final = 16
# What a store holds does not matter to the price of waiting.


class AsyncSubject(Protocol):
    """A :class:`~benchmarks.workload.Subject`, awaited."""

    async def commit(self, model: BaseModel, session_id: str) -> str: ...

    async def get(self, fact_id: str) -> Any: ...

    async def query(self, topic: str) -> Sequence[Any]: ...

    async def rollback(self, session_id: str, steps: int) -> Sequence[Any]: ...


class _OnThread:
    """A blocking floor on one thread of its own."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._thread = ThreadPoolExecutor(max_workers=1)

    def _there(self, function: Callable[..., Any], *arguments: Any) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def commit(self, model: BaseModel, session_id: str) -> str:
        committed: str = await self._there(self._subject.commit, model, session_id)
        return committed

    async def get(self, fact_id: str) -> Any:
        return await self._there(self._subject.get, fact_id)

    async def query(self, topic: str) -> Sequence[Any]:
        found: Sequence[Any] = await self._there(self._subject.query, topic)
        return found

    async def rollback(self, session_id: str, steps: int) -> Sequence[Any]:
        undone: Sequence[Any] = await self._there(self._subject.rollback, session_id, steps)
        return undone

    def close(self) -> None:
        self._thread.shutdown()
        self._subject.close()


class _AtOnce:
    """A floor that never waits."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    async def commit(self, model: BaseModel, session_id: str) -> str:
        return self._subject.commit(model, session_id)

    async def get(self, fact_id: str) -> Any:
        return self._subject.get(fact_id)

    async def query(self, topic: str) -> Sequence[Any]:
        return self._subject.query(topic)

    async def rollback(self, session_id: str, steps: int) -> Sequence[Any]:
        return self._subject.rollback(session_id, steps)

    def close(self) -> None:
        self._subject.close()


def rows(bench: Bench) -> Iterator[Row]:
    for kind in bench.kinds:
        yield from asyncio.run(_collect(_rows(bench, kind)))


async def _collect(found: AsyncIterator[Row]) -> list[Row]:
    return [row async for row in found]


async def _rows(bench: Bench, kind: StorageKind) -> AsyncIterator[Row]:
    plain = kind.floor(bench.directory())
    floor = _OnThread(plain) if kind.floor_needs_thread else _AtOnce(plain)
    memstate = AsyncMemStateSubject(kind.async_storage(bench.directory()))
    try:
        ids = [
            [await subject.commit(model_of(n), "loaded") for n in range(2 * bench.sizes.few_facts)]
            for subject in (floor, memstate)
        ]
        for name, calls, side in (
            ("commit, new", 10, _commit),
            ("get", 50, _get),
            ("query on a declared index", 20, _query),
            ("rollback of 1", 10, _rollback),
        ):
            say(f"{kind.name}, async: {name}")
            timing = await in_turn_async(side(floor, ids[0]), side(memstate, ids[1]), calls=calls, effort=bench.effort)
            yield compared(SECTION, name, kind.name, timing)
        say(f"{kind.name}, async: {TASKS} tasks")
        seconds = bench.sizes.writing_seconds
        times = [
            (await throughput(floor, seconds), await throughput(memstate, seconds))
            for _ in range(max(4, bench.effort.rounds // 8))
        ]
        timing = summary(times[1:])
        yield Row(
            SECTION,
            f"{TASKS} tasks that commit",
            kind.name,
            timing.first,
            timing.second,
            timing.ratio,
            timing.tolerance,
            at_least=True,
            unit="/s",
        )
    finally:
        floor.close()
        await memstate.aclose()


def _commit(subject: AsyncSubject, _: Sequence[str]) -> AsyncSide:
    session_id = fresh("commits")

    async def prepare(calls: int) -> Sequence[Any]:
        return range(calls)

    return AsyncSide(prepare, lambda number: subject.commit(Note(text=f"{TEXT} ({number})"), session_id))


def _get(subject: AsyncSubject, ids: Sequence[str]) -> AsyncSide:
    numbers = random.Random(2)

    async def prepare(calls: int) -> Sequence[Any]:
        return numbers.choices(ids, k=calls)

    return AsyncSide(prepare, subject.get)


def _query(subject: AsyncSubject, ids: Sequence[str]) -> AsyncSide:
    numbers = random.Random(3)

    async def prepare(calls: int) -> Sequence[Any]:
        return [f"topic-{numbers.randrange(max(1, len(ids) // 5 // PER_TOPIC))}" for _ in range(calls)]

    return AsyncSide(prepare, subject.query)


def _rollback(subject: AsyncSubject, _: Sequence[str]) -> AsyncSide:
    session_id = fresh("undone")

    async def prepare(calls: int) -> Sequence[Any]:
        return [await subject.commit(Note(text=TEXT), session_id) for _ in range(calls)]

    return AsyncSide(prepare, lambda _: subject.rollback(session_id, 1))


async def throughput(subject: AsyncSubject, seconds: float) -> float:
    """Commits per second of :data:`TASKS` tasks."""
    counts = [0] * TASKS
    start = time.perf_counter()

    async def write(place: int) -> None:
        session_id = fresh("writer")
        while True:  # once at the least, however late this task had its turn
            await subject.commit(Note(text=TEXT), session_id)
            counts[place] += 1
            await asyncio.sleep(0)
            if time.perf_counter() >= start + seconds:
                break

    await asyncio.gather(*(write(place) for place in range(TASKS)))
    return sum(counts) / (time.perf_counter() - start)
