"""The rows of the fault matrix: what is broken, and how."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

from benchmarks.contenders import settled
from benchmarks.injection import CancelledAt, Fault, Interrupted, NowAndThen, fail, interrupt, time_out
from benchmarks.trials import ACTS, OF_SEVERAL, SESSION, Counts, Trials, build, in_another_process, total

# None: the contender has no such thing.
Try = Callable[[Trials, str], Counts | None]


class Row(NamedTuple):
    """A fault, and the calls that it is tried on; an empty name stands for what is no single call."""

    title: str
    attempt: Try
    acts: tuple[str, ...] = tuple(ACTS)


def _without(trials: Trials, name: str) -> Counts:
    return trials.known(name).counts


def _index_fails(trials: Trials, name: str, when: str) -> Counts:
    """When: ``"before"`` it did anything, ``"half"``-way through a batch, or ``"after"``: the reply is lost."""
    return trials.broken(name, trials.index_fault(name, when))


def _index_times_out(trials: Trials, name: str) -> Counts:
    return total(trials.broken(name, trials.index_fault(name, when, act=time_out)) for when in ("before", "after"))


def _index_stays_away(trials: Trials, name: str) -> Counts:
    """It fails in what is done to put things right, too, and is back when the contender recovers."""
    whens = ("before", "half", "after") if name in OF_SEVERAL else ("before", "after")
    return total(trials.broken(name, trials.index_fault(name, when, lasting=True)) for when in whens)


def _second_index_fails(trials: Trials, name: str) -> Counts:
    both = ("first", "second")
    return total(
        trials.broken(name, trials.index_fault(name, when, index="second"), indexes=both)
        for when in ("before", "after")
    )


def _storage_fails(trials: Trials, name: str, reply_lost: bool) -> Counts | None:
    """Every call to storage in turn fails before it takes effect, or afterwards."""

    def counts(step: str) -> bool:
        return step.startswith("storage: ") and (step == "storage: after") == reply_lost

    count = sum(map(counts, trials.known(name).steps))
    if not count:
        return None
    return total(trials.broken(name, Fault(fail, at, counts), either=reply_lost) for at in trials.some(count))


def _killed(trials: Trials, name: str) -> Counts | None:
    """By SIGKILL; another process goes on with what is left."""
    if not trials.candidate.outlives:
        return None
    known = trials.known(name)

    def attempt(at: int) -> tuple[Counts, int]:
        directory = trials.directory()
        with trials.reopened(directory) as stage:
            build(stage.contender)
        steps = in_another_process(trials.candidate, directory, name, at)
        with trials.reopened(directory) as stage:
            return stage.counts(*([known.before, known.after] if at else [known.after])), steps

    return _at_every_step(trials, attempt)


def _interrupted(trials: Trials, name: str) -> Counts:
    count = len(trials.known(name).steps)
    return total(trials.broken(name, Fault(interrupt, at), either=True) for at in trials.some(count))


def _cancelled(trials: Trials, name: str) -> Counts | None:
    """Of the async store, whose task is cancelled while it waits."""
    awaited = trials.asynchronous
    if awaited is None:
        return None
    known = awaited.known(name)

    def attempt(at: int) -> tuple[Counts, int]:
        with awaited.stage() as stage:
            build(stage.contender)
            work = CancelledAt(ACTS[name].call(stage.contender), at)
            ends = [known.after]
            try:
                settled(work)
            except (Exception, asyncio.CancelledError):
                ends.append(known.before)
                settled(asyncio.sleep(0.01))  # a thread may go on with what was cancelled
            return stage.counts(*ends), work.waits

    return _at_every_step(awaited, attempt)


def _at_every_step(trials: Trials, attempt: Callable[[int], tuple[Counts, int]]) -> Counts:
    """Make ``attempt(0)``, which is not broken and tells how many steps there are, and then one for each."""
    counts, steps = attempt(0)
    return total([counts, *(attempt(at)[0] for at in trials.some(steps))])


def _retried(trials: Trials, name: str) -> Counts:
    return total(trials.broken(name, trials.index_fault(name, when), retried=True) for when in ("before", "after"))


def _told_twice(trials: Trials, name: str) -> Counts:
    return trials.broken(name, None, twice=True)


def _delivered_twice(trials: Trials, name: str) -> Counts | None:
    """Who tells a deferred hook is interrupted, and somebody else tells it again."""
    deferred = trials.candidate.open_deferred
    if deferred is None:
        return None
    known = trials.known(name)

    def attempt(at: int) -> tuple[Counts, int]:
        with trials.stage(opened=deferred) as stage:
            build(stage.contender)
            stage.recover()
            ACTS[name].call(stage.contender)
            with stage.steps.watched(Fault(interrupt, at)) as steps, contextlib.suppress(Interrupted):
                stage.recover()
            return stage.counts(known.after), len(steps)

    return _at_every_step(trials, attempt)


def _recovered_beside(trials: Trials, name: str) -> Counts | None:
    """Another store on the same storage recovers at a step of a call that goes on."""
    if not trials.can_recover:
        return None
    known = trials.known(name)

    def attempt(at: int) -> Counts:
        with trials.stage() as stage, trials.beside(stage) as other:
            build(stage.contender)
            failed = stage.attempt(name, Fault(other.recover, at)) is not None
            return stage.counts(known.before if failed else known.after)

    return total(attempt(at) for at in _outside_of_storage(trials, name))


def _racing(trials: Trials, name: str) -> Counts:
    """Another store on the same storage updates the same fact at a step of an update."""
    before = trials.known(name).before

    def attempt(at: int) -> Counts:
        written = []
        with trials.stage() as stage, trials.beside(stage) as other:
            build(stage.contender)

            def update() -> None:
                with contextlib.suppress(Exception):
                    other.update("b", "changed by the other")
                    written.append("changed by the other")

            if stage.attempt(name, Fault(update, at)) is None:
                written.append("changed")
            stage.recover()
            _, text = stage.contender.facts()["b"]
            entries = len(stage.contender.journal(SESSION)) - len(before.journal)
            return Counts(stage.drift(), int(text not in written), abs(entries - len(written)), 1)

    return total(attempt(at) for at in _outside_of_storage(trials, name))


def _outside_of_storage(trials: Trials, name: str) -> Iterable[int]:
    """The steps of a call at which it holds no lock of its storage."""
    outside = [at for at, step in enumerate(trials.known(name).steps, 1) if step != "storage: inside"]
    return (outside[place - 1] for place in trials.some(len(outside)))


def _many(trials: Trials, _: str, count: int) -> Counts:
    """So many facts are updated while one message in ten to the index fails; a call is tried until it returns.

    Then all the updates are rolled back.
    """
    ids = [f"fact {number}" for number in range(count)]
    with trials.stage() as stage:
        it = stage.contender

        def unlike(text: str) -> int:
            facts = it.facts()
            return sum(facts.get(fact_id) != (SESSION, text) for fact_id in ids)

        for fact_id in ids:
            settled(it.commit(fact_id, "old", SESSION))
        with stage.steps.watched(NowAndThen("first", 0.1)):
            for fact_id in ids:
                update = partial(it.update, fact_id, "new")
                any(_succeeds(update) for _ in range(_TRIES))
        stage.recover()
        drift = stage.drift()
        lost = unlike("new")
        phantom = abs(len(it.journal(SESSION)) - 2 * count)
        settled(it.rollback(SESSION, count))
        return Counts(max(drift, stage.drift()), max(lost, unlike("old")), phantom, count)


# After so many failures one time in ten, it is not the index.
_TRIES: Final = 20


def _succeeds(call: Callable[[], Any]) -> bool:
    with contextlib.suppress(Exception):
        settled(call())
        return True
    return False


def rows(many: int) -> Iterator[Row]:
    """All of them; ``many`` facts in the last one."""
    yield Row("no fault", _without)
    yield Row("the index fails before it did anything", partial(_index_fails, when="before"))
    yield Row("the index fails half-way through a batch", partial(_index_fails, when="half"), OF_SEVERAL)
    yield Row("the index did it, the reply is lost", partial(_index_fails, when="after"))
    yield Row("the index times out", _index_times_out)
    yield Row("the index stays away until recovery", _index_stays_away)
    yield Row("the second of two indexes fails", _second_index_fails)
    yield Row("storage fails, at every call", partial(_storage_fails, reply_lost=False))
    yield Row("storage did it, the reply is lost, at every call", partial(_storage_fails, reply_lost=True))
    yield Row("killed by SIGKILL at every step", _killed)
    yield Row("interrupted by Ctrl-C at every step", _interrupted)
    yield Row("cancelled at every await", _cancelled)
    yield Row("a call that failed is tried again", _retried)
    yield Row("the index gets every message twice", _told_twice)
    # How a hook is told does not depend on the call; what several facts take is seen in a batch.
    told = ("commit", "update", "delete", "batch")
    yield Row("who tells a deferred hook dies, another tells it again", _delivered_twice, told)
    yield Row("recovery at every step of a live writer", _recovered_beside)
    yield Row("two writers of one fact at once", _racing, ("update",))
    yield Row(
        f"{many:,} updates, 1 message in 10 fails, with retries; then all undone", partial(_many, count=many), ("",)
    )
