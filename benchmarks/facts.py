"""The operations on facts, each against its floor, and many threads that commit at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.bench import Bench, say
from benchmarks.measure import Row, compared, in_turn, summary
from benchmarks.storages import StorageKind
from benchmarks.workload import OPERATIONS, TEXT, Note, Subject, fresh

SECTION: Final = "Facts"
WRITERS: Final = 16


def rows(bench: Bench) -> Iterator[Row]:
    for kind in bench.kinds:
        floor, memstate = bench.floor(kind, bench.sizes.facts), bench.memstate(kind, bench.sizes.facts)
        for operation in OPERATIONS:
            say(f"{kind.name}: {operation.name}")
            timing = in_turn(
                operation.side(floor), operation.side(memstate), calls=operation.calls, effort=bench.effort
            )
            yield compared(SECTION, operation.name, kind.name, timing, kind.targets.get(operation.name))
        yield writers(bench, kind)


def writers(bench: Bench, kind: StorageKind) -> Row:
    """Commits per second of 16 threads, by the clock on the wall: what waits, waits."""
    name = f"{WRITERS} writers"
    say(f"{kind.name}: {name}")
    floor, memstate = bench.floor(kind, bench.sizes.facts), bench.memstate(kind, bench.sizes.facts)
    seconds, times = bench.sizes.writing_seconds, []
    for number in range(max(4, bench.effort.rounds // 8)):
        first, second = (floor, memstate) if number % 2 else (memstate, floor)
        one, other = throughput(first.subject, seconds), throughput(second.subject, seconds)
        times.append((one, other) if number % 2 else (other, one))
    timing = summary(times[1:])
    return Row(
        SECTION,
        name,
        kind.name,
        timing.first,
        timing.second,
        timing.ratio,
        timing.tolerance,
        target=kind.targets.get(name),
        at_least=True,
        unit="/s",
    )


def throughput(subject: Subject, seconds: float) -> float:
    """Commits per second of :data:`WRITERS` threads, each in a session of its own."""
    ready = threading.Barrier(WRITERS + 1)
    counts = [0] * WRITERS
    failures: list[BaseException] = []
    end = 0.0

    def write(place: int) -> None:
        session_id = fresh("writer")
        ready.wait()
        try:
            while True:  # once at the least, however late this thread had its turn
                subject.commit(Note(text=TEXT), session_id)
                counts[place] += 1
                if time.perf_counter() >= end:
                    break
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(place,)) for place in range(WRITERS)]
    for thread in threads:
        thread.start()
    start = time.perf_counter()
    end = start + seconds
    ready.wait()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return sum(counts) / (time.perf_counter() - start)
