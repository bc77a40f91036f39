"""Faults on purpose: a storage and a hook that fail when they are told to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from memstate_core.errors import UnavailableError
from memstate_core.protocols import StorageTransaction, Work

T = TypeVar("T")

When = Literal["before", "inside", "after"]


def outage() -> None:
    """What a database does that is not there."""
    raise UnavailableError("the database is away (a fault on purpose)")


@dataclass(slots=True)
class Fault:
    """Something that happens at the ``at``-th call.

    ``when`` it is ``"before"``, nothing has happened yet; ``"inside"``, the work is done but not committed (for a hook:
    half of the batch is done); ``"after"``, it took effect but the reply is lost. ``act`` raises, or does what it
    likes. ``lasting``: at every later call too.
    """

    at: int
    when: When = "before"
    act: Callable[[], None] = outage
    lasting: bool = False
    calls: int = field(default=0, init=False)
    fired: bool = field(default=False, init=False)
    _due: bool = field(default=False, init=False)

    def next_call(self) -> None:
        self.calls += 1
        self._due = self.calls == self.at or (self.lasting and self.calls > self.at)

    def point(self, when: When) -> None:
        """Act, if this is where it is due; a lasting fault's later calls fail before anything happens."""
        if self._due and when == (self.when if self.calls == self.at else "before"):
            self.fired = True
            self.act()


class FaultyStorage:
    """A storage with a :class:`Fault` in its ``read`` and ``write``."""

    def __init__(self, storage: Any) -> None:
        self.inner = storage
        self.is_async: bool = storage.is_async
        self.fault: Fault | None = None

    async def open(self) -> None:
        await self.inner.open()

    async def aclose(self) -> None:
        await self.inner.aclose()

    async def namespaces(self) -> list[str]:
        names: list[str] = await self.inner.namespaces()
        return names

    async def read(self, namespace: str, work: Work[T], *, snapshot: bool = False) -> T:
        return await self._with_fault(work, lambda work: self.inner.read(namespace, work, snapshot=snapshot))

    async def write(self, namespace: str, work: Work[T]) -> T:
        return await self._with_fault(work, lambda work: self.inner.write(namespace, work))

    async def _with_fault(self, work: Work[T], call: Callable[[Work[T]], Coroutine[Any, Any, T]]) -> T:
        fault = self.fault
        if fault is None:
            return await call(work)

        async def faulty(tx: StorageTransaction) -> T:
            result = await work(tx)
            fault.point("inside")
            return result

        fault.next_call()
        fault.point("before")
        result = await call(faulty)
        fault.point("after")
        return result


class FaultyHook:
    """A hook with :class:`Fault` in what it can do, by the operation's name: ``faults["apply"]``."""

    def __init__(self, hook: Any) -> None:
        self.inner = hook
        self.faults: dict[str, list[Fault]] = {}
        self.name = getattr(hook, "name", type(hook).__name__)
        self.target_types = getattr(hook, "target_types", None)
        for name in ("prepare", "apply", "search", "scan", "lookup", "similarity", "beside", "swap"):
            if (function := getattr(hook, name, None)) is not None:
                setattr(self, name, self._wrapped(name, function))
        if (indexes := getattr(hook, "indexes", None)) is not None:
            self.indexes = indexes
        self.native_filters = getattr(hook, "native_filters", ())

    def for_namespace(self, namespace: str) -> FaultyHook:
        """The hook for a store of this namespace, with the same faults."""
        if not hasattr(self.inner, "for_namespace"):
            return self
        hook = FaultyHook(self.inner.for_namespace(namespace))
        hook.faults = self.faults
        return hook

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            async def call_async(*arguments: Any) -> Any:
                faults = self._started(name)
                if _halved(faults, arguments):
                    await function(_half(arguments[0]))
                    _all_at("inside", faults)
                result = await function(*arguments)
                _all_at("after", faults)
                return result

            return call_async

        def call(*arguments: Any) -> Any:
            faults = self._started(name)
            if _halved(faults, arguments):
                function(_half(arguments[0]))
                _all_at("inside", faults)
            result = function(*arguments)
            _all_at("after", faults)
            return result

        return call

    def _started(self, name: str) -> list[Fault]:
        faults = self.faults.get(name, [])
        for fault in faults:
            fault.next_call()
        _all_at("before", faults)
        return faults


def _all_at(when: When, faults: Sequence[Fault]) -> None:
    for fault in faults:
        fault.point(when)


def _halved(faults: Sequence[Fault], arguments: Sequence[Any]) -> bool:
    return any(fault.when == "inside" for fault in faults) and isinstance(arguments[0], list)


def _half(batch: list[Any]) -> list[Any]:
    return batch[: (len(batch) + 1) // 2]


def raising(error: BaseException | type[BaseException]) -> Callable[[], None]:
    """An ``act`` that raises."""

    def act() -> None:
        raise error

    return act
