"""Trials of a contender: one call is made and broken, it recovers as far as it can, and what is wrong is counted.

Every trial has a store of its own, with a small world of facts in it. What should be there is what the same contender
has without a fault.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import signal
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.contenders import Candidate, Contender, Facts, Open, settled
from benchmarks.injection import Fault, FileIndex, Index, Interrupted, NowAndThen, Steps, fail, kill

SESSION: Final = "s"


class Act(NamedTuple):
    """A call that is broken, and the facts that it makes of :data:`WORLD`."""

    call: Callable[[Any], Any]
    after: Facts


WORLD: Final[Facts] = {
    "a": (SESSION, "another one"),
    "b": (SESSION, "two"),
    "c": (SESSION, "three"),
    "d": (SESSION, "four"),
    "l": (None, "long"),
}


def build(contender: Contender) -> None:
    """Make :data:`WORLD`; the last three transactions of the session are two commits and an update."""
    for fact_id, text in {"a": "one", "b": "two", "c": "three", "d": "four"}.items():
        settled(contender.commit(fact_id, text, SESSION))
    settled(contender.commit("l", "long", None))
    settled(contender.update("a", "another one"))


def _with(changes: Mapping[str, tuple[str | None, str] | None]) -> Facts:
    return {fact_id: fact for fact_id, fact in {**WORLD, **changes}.items() if fact is not None}


_BATCH: Final = {"b": "changed", "c": "changed too", "m": "new", "n": "newer"}

ACTS: Final = {
    "commit": Act(lambda it: it.commit("n", "new", SESSION), _with({"n": (SESSION, "new")})),
    "update": Act(lambda it: it.update("b", "changed"), _with({"b": (SESSION, "changed")})),
    "delete": Act(lambda it: it.delete("c", SESSION), _with({"c": None})),
    "batch": Act(lambda it: it.batch(SESSION, _BATCH), _with({id_: (SESSION, text) for id_, text in _BATCH.items()})),
    "promote": Act(lambda it: it.promote(SESSION), {fact_id: (None, text) for fact_id, (_, text) in WORLD.items()}),
    "discard": Act(lambda it: it.discard(SESSION), {"l": WORLD["l"]}),
    "rollback": Act(lambda it: it.rollback(SESSION, 3), _with({"a": (SESSION, "one"), "c": None, "d": None})),
}
# These change several facts, so that there is a half of them.
OF_SEVERAL: Final = ("batch", "promote", "discard", "rollback")


class Counts(NamedTuple):
    """What is wrong after so many ``trials``.

    ``drift``: facts on which an index and storage disagree. ``lost``: facts that are not as they should be, because
    what had returned is gone, or what failed has changed them. ``phantom``: entries of the journal that no call which
    returned has made, or that are missing; else facts that no such call made; else 1 when a rollback of one step then
    changes anything but what it should.
    """

    drift: int = 0
    lost: int = 0
    phantom: int = 0
    trials: int = 0

    @property
    def wrong(self) -> int:
        return self.drift + self.lost + self.phantom


def total(counts: Iterable[Counts]) -> Counts:
    return Counts(*map(sum, zip(*counts, strict=True)))


class End(NamedTuple):
    """What a call leaves, and what the next rollback then changes."""

    facts: Facts
    journal: Sequence[Any]
    undone: Mapping[str, Any]


class Known(NamedTuple):
    """How a call is without a fault; ``steps`` are those that it passes."""

    before: End
    after: End
    counts: Counts
    steps: Sequence[str]


@dataclass
class Stage:
    """A contender with its indexes, in a directory that nobody had before."""

    directory: Path
    steps: Steps
    indexes: Sequence[Index]
    contender: Any

    def attempt(self, name: str, fault: Fault | NowAndThen | None = None) -> BaseException | None:
        """Make a call; returns what it raised."""
        with self.steps.watched(fault):
            try:
                settled(ACTS[name].call(self.contender))
            except (Exception, Interrupted) as error:
                return error
        return None

    def recover(self) -> None:
        if hasattr(self.contender, "recover"):
            self.contender.recover()

    def drift(self) -> int:
        texts = {fact_id: text for fact_id, (_, text) in self.contender.facts().items()}
        return sum(len(_changes(texts, index.texts())) for index in self.indexes)

    def end(self) -> End:
        """What is there; this rolls back a step."""
        facts, journal = self.contender.facts(), self.contender.journal(SESSION)
        try:
            settled(self.contender.rollback(SESSION, 1))
        except Exception as error:
            return End(facts, journal, {"raised": repr(error)})
        return End(facts, journal, _changes(facts, self.contender.facts()))

    def counts(self, *allowed: End) -> Counts:
        """How what is there differs from that end, of those that may be, to which it is nearest."""
        self.recover()
        drift = self.drift()
        found = self.end()
        self.recover()
        drift = max(drift, self.drift())
        return min((Counts(drift, *_difference(found, end), 1) for end in allowed), key=lambda counts: counts.wrong)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {key: after.get(key) for key in {**before, **after} if before.get(key) != after.get(key)}


def _difference(found: End, end: End) -> tuple[int, int]:
    """Facts lost, and phantoms."""
    lost = sum(found.facts.get(fact_id) != fact for fact_id, fact in end.facts.items())
    phantoms = _unequal(found.journal, end.journal) or sum(fact_id not in end.facts for fact_id in found.facts)
    return lost, phantoms or int(found.undone != end.undone)


def _unequal(found: Sequence[Any], expected: Sequence[Any]) -> int:
    """Entries too many or missing."""
    missing = list(expected)
    extra = 0
    for entry in found:
        if entry in missing:
            missing.remove(entry)
        else:
            extra += 1
    return max(extra, len(missing))


class Trials:
    """The trials of one candidate; ``most``: so many of the steps of a call at most, evenly chosen (None: all)."""

    def __init__(self, candidate: Candidate, root: Path, most: int | None = None) -> None:
        self.candidate = candidate
        self.most = most
        self._root = root
        self._known: dict[tuple[str, int], Known] = {}
        with self.stage() as stage:
            self.can_recover = hasattr(stage.contender, "recover")
            self._lacks = {name for name in ACTS if not hasattr(stage.contender, name)}

    @functools.cached_property
    def asynchronous(self) -> Trials | None:
        """The same of the candidate whose calls are awaited."""
        if self.candidate.open_async is None:
            return None
        return Trials(Candidate(self.candidate.name, self.candidate.open_async), self._root, self.most)

    def can(self, name: str) -> bool:
        return name not in self._lacks

    def is_right(self, name: str) -> bool:
        """Whether a call that nothing breaks does what it should."""
        return not self.known(name).counts.wrong

    def some(self, count: int) -> list[int]:
        """The numbers of the steps at which to try."""
        if self.most is None or count <= self.most:
            return list(range(1, count + 1))
        return [1 + (count - 1) * place // max(1, self.most - 1) for place in range(self.most)]

    def directory(self) -> Path:
        directory = self._root / f"trial-{uuid.uuid4().hex}"
        directory.mkdir()
        return directory

    @contextlib.contextmanager
    def stage(
        self, names: Sequence[str] = ("first",), *, twice: bool = False, opened: Open | None = None
    ) -> Iterator[Stage]:
        """A new one, with these indexes."""
        directory, steps = self.directory(), Steps()
        indexes = [Index(name, steps, twice=twice) for name in names]
        contender = (opened or self.candidate.open)(directory, indexes, steps)
        with contextlib.closing(contender):
            yield Stage(directory, steps, indexes, contender)

    @contextlib.contextmanager
    def reopened(self, directory: Path) -> Iterator[Stage]:
        """One whose index outlives the process."""
        steps = Steps()
        indexes = [FileIndex("first", steps, directory)]
        with contextlib.closing(self.candidate.open(directory, indexes, steps)) as contender:
            yield Stage(directory, steps, indexes, contender)

    @contextlib.contextmanager
    def beside(self, stage: Stage) -> Iterator[Any]:
        """Another contender on the same storage and index, which nothing breaks."""
        steps = Steps()
        indexes = [index.twin(steps) for index in stage.indexes]
        with contextlib.closing(self.candidate.open(stage.directory, indexes, steps)) as contender:
            yield contender

    def known(self, name: str, indexes: Sequence[str] = ("first",)) -> Known:
        """How a call is without a fault, found out once."""
        key = name, len(indexes)
        if key not in self._known:
            with self.stage(indexes) as stage:
                build(stage.contender)
                before = stage.end()
            with self.stage(indexes) as stage:
                build(stage.contender)
                with stage.steps.watched() as steps:
                    settled(ACTS[name].call(stage.contender))
                drift = stage.drift()
                after = stage.end()
            lost = len(_changes(ACTS[name].after, after.facts))
            self._known[key] = Known(before, after, Counts(drift, lost, 0, 1), steps)
        return self._known[key]

    def broken(
        self,
        name: str,
        fault: Fault | None,
        *,
        indexes: Sequence[str] = ("first",),
        either: bool = False,
        retried: bool = False,
        twice: bool = False,
    ) -> Counts:
        """Break a call. Unless it may have happened ``either`` way, a call that raised must have changed nothing."""
        known = self.known(name, indexes)
        with self.stage(indexes, twice=twice) as stage:
            build(stage.contender)
            failed = stage.attempt(name, fault) is not None
            if fault is not None and not fault.fired:
                raise RuntimeError(f"{self.candidate.name}: {name} did not come to where it was to be broken")
            if failed and retried:
                stage.attempt(name)
            if not failed or retried:
                return stage.counts(known.after)
            return stage.counts(known.before, known.after) if either else stage.counts(known.before)

    def index_fault(
        self, name: str, when: str, *, index: str = "first", act: Callable[[], object] = fail, lasting: bool = False
    ) -> Fault:
        """An index that fails before, half-way through, or after all that a call tells it; ``lasting``: for good."""
        told, wrote = f"{index}: before", f"{index}: wrote"
        count = self.known(name, ("first", "second") if index == "second" else ("first",)).steps.count(wrote)
        place, at = (told, 1) if when == "before" else (wrote, max(1, count // 2 if when == "half" else count))
        return Fault(act, at, counts=lambda step: step == place, then=lambda step: lasting and step == told)


# Forked from a process without threads.
_PROCESSES: Final = multiprocessing.get_context("forkserver")


def preload(modules: Iterable[str]) -> None:
    """Import these once for all processes that are to be killed; to be called before the first."""
    _PROCESSES.set_forkserver_preload([__name__, *modules])


def in_another_process(candidate: Candidate, directory: Path, name: str, at: int) -> int:
    """Make a call there, where the process is killed at the ``at``-th step (0: never); returns how many there were."""
    process = _PROCESSES.Process(target=_be_killed, args=(candidate, directory, name, at))
    process.start()
    process.join(60)
    expected = -signal.SIGKILL if at else 0
    if process.exitcode != expected:
        process.kill()
        raise RuntimeError(f"a process that was to end with {expected} ended with {process.exitcode}")
    return 0 if at else int((directory / "steps").read_text())


def _be_killed(candidate: Candidate, directory: Path, name: str, at: int) -> None:
    steps = Steps()
    with contextlib.closing(candidate.open(directory, [FileIndex("first", steps, directory)], steps)) as contender:
        with steps.watched(Fault(kill, at)) as passed:
            settled(ACTS[name].call(contender))
        (directory / "steps").write_text(str(len(passed)))
