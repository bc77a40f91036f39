"""Timing two things in turn, and what comes of it.

On a shared machine an absolute time means little, so everything is a ratio of two times taken in turn (A B B A A B …):
a round times a few calls of the one and of the other, short enough to be undisturbed most of the time, and the result
is the median of the rounds' ratios. What those scatter, by quartiles, gives the median's own tolerance.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

Call = Callable[[Any], object]
AsyncCall = Callable[[Any], Awaitable[object]]
Clock = Callable[[], int]

_LEAST_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: ``rounds`` of everything, but no longer than ``seconds`` for one figure."""

    rounds: int = 80
    seconds: float = 10.0
    clock: Clock = time.perf_counter_ns


@dataclass(frozen=True, slots=True)
class Side:
    """One of two things to be compared: ``prepare`` makes the arguments of some calls, untimed; ``call`` is timed."""

    prepare: Callable[[int], Sequence[Any]]
    call: Call


@dataclass(frozen=True, slots=True)
class AsyncSide:
    """The same for a coroutine function."""

    prepare: Callable[[int], Awaitable[Sequence[Any]]]
    call: AsyncCall


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds per call of either side (medians of the rounds), and the ratio of the second to the first."""

    first: float
    second: float
    ratio: float
    tolerance: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report.

    ``value`` is judged: at most ``target``, or at least when ``at_least``; without a target it is only told. ``floor``
    and ``measured`` are what it comes from, in ``unit``.
    """

    section: str
    operation: str
    storage: str
    floor: float
    measured: float
    value: float
    tolerance: float = 0.0
    target: float | None = None
    at_least: bool = False
    unit: str = "µs"
    value_unit: str = "×"

    @property
    def missed(self) -> bool:
        """Whether the target is missed by more than the measurement's own tolerance."""
        if self.target is None:
            return False
        if self.at_least:
            return self.value + self.tolerance < self.target
        return self.value - self.tolerance > self.target

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return ("UNDER" if self.at_least else "OVER") if self.missed else "ok"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def compared(section: str, operation: str, storage: str, timing: Timing, target: float | None = None) -> Row:
    """The row of a timing whose first side is the floor."""
    return Row(section, operation, storage, timing.first, timing.second, timing.ratio, timing.tolerance, target=target)


def in_turn(first: Side, second: Side, *, calls: int, effort: Effort) -> Timing:
    """Time ``calls`` calls of either side in every round, the first of which is thrown away."""
    clock = effort.clock

    def timed(side: Side) -> float:
        arguments, call = side.prepare(calls), side.call
        start = clock()
        for argument in arguments:
            call(argument)
        return (clock() - start) / len(arguments) / 1000

    times: list[tuple[float, float]] = []
    end = time.monotonic() + effort.seconds
    for number in range(effort.rounds + 1):
        times.append((timed(first), timed(second)) if number % 2 else (timed(second), timed(first))[::-1])
        if number >= _LEAST_ROUNDS and time.monotonic() > end:
            break
    return summary(times[1:])


async def in_turn_async(first: AsyncSide, second: AsyncSide, *, calls: int, effort: Effort) -> Timing:
    """Same as :func:`in_turn`, awaited."""
    clock = effort.clock

    async def timed(side: AsyncSide) -> float:
        arguments, call = await side.prepare(calls), side.call
        start = clock()
        for argument in arguments:
            await call(argument)
        return (clock() - start) / len(arguments) / 1000

    times: list[tuple[float, float]] = []
    end = time.monotonic() + effort.seconds
    for number in range(effort.rounds + 1):
        times.append(
            (await timed(first), await timed(second)) if number % 2 else (await timed(second), await timed(first))[::-1]
        )
        if number >= _LEAST_ROUNDS and time.monotonic() > end:
            break
    return summary(times[1:])


def summary(times: Iterable[tuple[float, float]]) -> Timing:
    """What rounds of (first, second) come to."""
    pairs = list(times)
    ratios = [second / first for first, second in pairs]
    return Timing(
        statistics.median(first for first, _ in pairs),
        statistics.median(second for _, second in pairs),
        statistics.median(ratios),
        tolerance_of(ratios),
    )


def tolerance_of(values: Sequence[float]) -> float:
    """How far the median of such values may be off: twice its standard error, as the quartiles give it."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    # 0.93 of the interquartile range over √n is the standard error of a normal sample's median.
    return 2 * 0.93 * (high - low) / math.sqrt(len(values))


def settle() -> None:
    """Keep the garbage collector from walking what was loaded, so that neither side pays for the other's data."""
    gc.collect()
    gc.freeze()
