"""Every order in which several calls on one store can take their steps, with one fault at every place.

A *step* of a call is one storage transaction, or one visit to the index, with all that it computes until the next: what
happens in between concerns nobody else. Calls are coroutines that stop before each step, so that a *schedule* is a list
of choices: whose step comes next, or who fails. :func:`explore` tries all schedules. Two that lead to the same state,
in which every call knows the same, have the same future, which is explored once.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import types
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar
from unittest import mock

from memstate_core import Change, InMemoryStorage, owners
from memstate_core._bridge import Critical, Interruption, Renew
from memstate_core.engine import Engine
from memstate_core.hooks._adapter import HookAdapter
from memstate_core.protocols import Work
from memstate_core.schemas import SchemaRegistry
from tests.faults.indexes import Content

T = TypeVar("T")

Doing = Callable[[Engine], Coroutine[Any, Any, Any]]

NAMESPACE = "default"
INDEX = "index"
_FOREVER = 1e9  # seconds
_NOW = 1e9  # Unix time, whenever a call looks at the clock
_ADDRESS = re.compile(r"0x[0-9a-f]+")
# What a call has in its variables that differs each time, and changes nothing here.
_NOT_LOOKED_AT = {"self", "deadline", "pause", "now", "error"}


class Over(BaseException):
    """The schedule has ended, and with it everything that is still under way."""


class Refused(Exception):
    """An index that does not do what it is told."""


class Choice(NamedTuple):
    """What happens next: ``"step"``, ``"die"``, ``"lapse"`` or ``"fail"`` of the call with this number.

    A call that dies does nothing more, and the others can tell. When its leases lapse it goes on, but the others take
    it for dead: a process that was paused for too long. It fails when the index that it visits refuses.
    """

    what: str
    call: int


@types.coroutine
def _stop(what: str) -> Generator[str, None, None]:
    yield what


class _Runtime:
    """Steps and nothing else: no thread, no event loop, no clock."""

    is_async = False

    def __init__(self, world: World) -> None:
        self._world = world

    async def sleep(self, seconds: float) -> None:
        await self._world.stop("sleep")

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        result = function(*arguments)
        return await result if isinstance(result, Coroutine) else result

    async def shielded(self, critical: Critical[T]) -> T:
        return await critical(Interruption())

    def keep_alive(self, renew: Renew, interval: float) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class _Storage:
    """Each transaction is a step."""

    is_async = False

    def __init__(self, world: World) -> None:
        self._world = world

    async def read(self, namespace: str, work: Work[T], *, snapshot: bool = False) -> T:
        await self._world.stop("storage")
        return await self._world.memory.read(namespace, work)

    async def write(self, namespace: str, work: Work[T]) -> T:
        await self._world.stop("storage")
        return await self._world.memory.write(namespace, work)

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...


class _Hook:
    """An index in a dict, which is told of one change at a time: a batch can be half done."""

    name = INDEX

    def __init__(self, world: World) -> None:
        self._world = world

    async def apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            await self._world.stop(INDEX)
            if change.after is None:
                self._world.index.pop(change.fact_id, None)
            else:
                self._world.index[change.fact_id] = change.after.version, dict(change.after.payload)


class _PreparingHook(_Hook):
    """One for which facts are claimed by a step of its own."""

    def prepare(self, changes: Sequence[Change]) -> Sequence[Change]:
        return changes


@dataclass
class Call:
    """A call under way: whom it claimed as, and how it ended."""

    coroutine: Coroutine[Any, Any, Any]
    context: Context = field(default_factory=Context)  # as every task has its own
    owners: list[str] = field(default_factory=list)
    at: str = "start"
    dead: bool = False
    ended: bool = False
    result: Any = None
    error: Exception | None = None
    tried_on: int | None = None  # what was there when it last began to try
    where: str | None = None  # see _where(); None when it has gone on since


class World:
    """A storage, an index, and calls on them that stop before each of their steps."""

    def __init__(
        self, registry: SchemaRegistry, calls: Sequence[Doing], before: World | None = None, *, prepares: bool = False
    ) -> None:
        self._registry = registry
        self._hook = _PreparingHook if prepares else _Hook
        self.memory = InMemoryStorage()
        self.index: Content = {}
        if before is not None:
            self.memory._seq = before.memory._seq
            self.memory._namespaces[NAMESPACE] = pickle.loads(before.prepared)
            self.index = dict(before.index)
        self.faults = 0
        self.lapsed = False
        self.over = False
        self.ready = False
        self.calls = [Call(self._start(call)) for call in calls]
        for call in self.calls:
            self.ready = False
            self._go_on(call)  # to before its first step

    async def _start(self, call: Doing) -> Any:
        engine = Engine(
            _Storage(self),
            _Runtime(self),
            registry=self._registry,
            clock=lambda: datetime(2026, 1, 1, tzinfo=UTC),
            lease=_FOREVER,
            claim_timeout=_FOREVER,
        )
        engine.add_hook(HookAdapter(self._hook(self)))
        await engine.ready()
        self.ready = True
        return await call(engine)

    async def stop(self, what: str) -> None:
        if self.over:
            raise Over
        if self.ready:
            await _stop(what)

    @cached_property
    def prepared(self) -> bytes:
        """What is stored, for worlds that begin with it; of several ways to copy it this is the fastest."""
        return pickle.dumps(self.memory._namespaces[NAMESPACE])

    def finish(self, call: Call) -> None:
        """Let a call go on to its end, alone."""
        while not call.ended:
            assert call.at != "sleep", "a call waits, and nothing else is left to happen"
            self._go_on(call)

    def choices(self, faults: Sequence[str], fallible: Sequence[int]) -> list[Choice]:
        under_way = [number for number, call in enumerate(self.calls) if not call.dead and not call.ended]
        steps = [Choice("step", number) for number in under_way if not self._waits(self.calls[number])]
        if self.faults or not steps:
            return steps
        wrong = [Choice(what, number) for what in faults for number in under_way if number in fallible]
        return steps + [choice for choice in wrong if self._can(*choice)]

    def _can(self, what: str, number: int) -> bool:
        if what == "fail":
            return self.calls[number].at == INDEX
        # Only who holds claims has a lease that can lapse.
        return what == "die" or bool(self._claims_of(number))

    def take(self, choice: Choice) -> None:
        call = self.calls[choice.call]
        if choice.what == "step":
            self._go_on(call)
            return
        self.faults += 1
        if choice.what == "fail":
            self._go_on(call, Refused(INDEX))
        elif choice.what == "die":
            call.dead = True
            owners._alive.difference_update(call.owners)
        else:
            self.lapsed = True
            claims = self.memory._namespaces[NAMESPACE].claims
            for key in self._claims_of(choice.call):
                claims[key] = claims[key]._replace(expires=1.0)

    def _claims_of(self, number: int) -> list[str]:
        claims = self.memory._namespaces[NAMESPACE].claims
        return [key for key, claim in claims.items() if claim.owner in self.calls[number].owners]

    def _go_on(self, call: Call, refusal: Exception | None = None) -> None:
        known = set(owners._alive)
        call.where = None
        if call.at == "sleep":
            call.tried_on = self._shared()
        try:
            go_on = partial(call.coroutine.throw, refusal) if refusal else partial(call.coroutine.send, None)
            call.at = call.context.run(go_on)
        except StopIteration as end:
            call.ended, call.result = True, end.value
        except Exception as error:
            call.ended, call.error = True, error
        call.owners.extend(owners._alive - known)

    def _waits(self, call: Call) -> bool:
        """Whether a call would try in vain again: nothing has changed since."""
        return call.at == "sleep" and call.tried_on == self._shared()

    def _shared(self) -> int:
        data = self.memory._namespaces[NAMESPACE]
        return hash(repr((data.facts, data.heads, data.claims, self.index, self.faults)))

    def state(self) -> int:
        """What the future depends on: storage, index, and where each call stands with what it knows."""
        data = self.memory._namespaces[NAMESPACE]
        shared = (data.facts, data.heads, data.entries, data.archive, data.claims, self.index)
        for call in self.calls:
            call.where = call.where or repr(_where(call.coroutine))
        calls = [f"{call.dead} {self._waits(call)} {call.where}" for call in self.calls]
        text = "\n".join((repr(shared), *calls, str(self.faults)))
        for number, call in enumerate(self.calls):
            for nth, owner in enumerate(call.owners):
                text = text.replace(owner, f"{number} {nth}")
        return hash(_ADDRESS.sub("", text))

    def unclaimed(self) -> Iterator[str]:
        """The facts, in storage or in the index, that no transaction holds."""
        data = self.memory._namespaces[NAMESPACE]
        for fact_id in {**data.facts, **self.index}:
            if f"fact:{fact_id}" not in data.claims:
                yield fact_id

    def stored(self) -> Content:
        """The facts as the index should have them."""
        facts = self.memory._namespaces[NAMESPACE].facts.values()
        return {fact.id: (fact.version, json.loads(fact.payload)) for fact in facts}

    def recover(self) -> None:
        """What a process that comes later does."""
        call = Call(self._start(lambda engine: engine.recovery.heal_abandoned()))
        self.finish(call)
        assert call.error is None, call.error

    def end(self) -> None:
        """Clear away what is still under way."""
        self.over = True
        for call in self.calls:
            with contextlib.suppress(Over):
                call.context.run(call.coroutine.close)
            owners._alive.difference_update(call.owners)


def _where(coroutine: Any) -> list[Any]:
    """The places at which the coroutines of a call wait for each other, and their variables.

    Most of these are handed on from one to the next; who has what another has is told its number instead, as to write
    everything out once takes most of the time already.
    """
    frames: list[Any] = []
    numbers: dict[int, int] = {}
    while coroutine is not None and getattr(coroutine, "cr_frame", None) is not None:
        frame = coroutine.cr_frame
        known: list[Any] = []
        for name, value in frame.f_locals.items():
            if name not in _NOT_LOOKED_AT:
                number = numbers.setdefault(id(value), len(numbers))
                known.append((name, value) if number == len(numbers) - 1 else (name, "the same as", number))
        frames.append((frame.f_code.co_qualname, frame.f_lasti, known))
        coroutine = coroutine.cr_await
    return frames


@dataclass
class Explored:
    """How much there was: states, ways through them to an end, and the outcomes of these."""

    states: int = 0
    ends: int = 0
    outcomes: set[tuple[str, ...]] = field(default_factory=set)


@mock.patch("time.time", partial(float, _NOW))
def explore(
    make: Callable[[], World],
    *,
    faults: Sequence[str],
    fallible: Sequence[int],
    always: Callable[[World], None],
    at_the_end: Callable[[World], tuple[str, ...]],
) -> Explored:
    """Try all schedules; ``always`` is called in every state, ``at_the_end`` when no call can go on.

    :raises AssertionError: one of them found something wrong; the schedule that led there is noted on the error.
    """
    explored = Explored()
    seen: set[int] = set()
    untried: list[tuple[Choice, ...]] = [()]
    while untried:
        schedule = untried.pop()
        world = make()
        try:
            for choice in schedule:
                world.take(choice)
            while True:
                state = world.state()
                if state in seen:
                    break
                seen.add(state)
                always(world)
                choices = world.choices(faults, fallible)
                if not choices:
                    explored.ends += 1
                    explored.outcomes.add(at_the_end(world))
                    break
                untried.extend((*schedule, choice) for choice in choices[1:])
                schedule = (*schedule, choices[0])
                world.take(choices[0])
        except AssertionError as error:
            error.add_note("the schedule: " + ", ".join(f"{choice.what} {choice.call}" for choice in schedule))
            raise
        finally:
            world.end()
    explored.states = len(seen)
    return explored
