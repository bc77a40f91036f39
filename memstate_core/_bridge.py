"""How the engine's coroutines are driven: at once and without a loop, or by asyncio (in ``_async_bridge``).

The engine awaits storages, hooks and sleeps through a *runtime*; nothing else in it knows which flavour it serves.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar

from memstate_core.errors import HookError

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, and return what it returns.

    :raises RuntimeError: it suspended: something asynchronous was given to a sync store.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("something asynchronous was awaited in a sync store; use AsyncMemoryStore for it")


# So long does the renewal thread sleep with nothing to do, in seconds; what is due before it would wake wakes it.
_NAP: Final = 1.0
# After so long with nothing to do it ends, in seconds.
_IDLE: Final = 10.0


class Interruption:
    """A cancellation that waits until the steps it must not break are over."""

    def __init__(self) -> None:
        self.pending: BaseException | None = None

    def check(self) -> None:
        if self.pending is not None:
            raise self.pending


Critical = Callable[[Interruption], Coroutine[Any, Any, T]]
Renew = Callable[[], Coroutine[Any, Any, None]]


class Runtime(Protocol):
    """What differs between the flavours."""

    is_async: bool

    async def sleep(self, seconds: float) -> None: ...

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a hook's function, plain or (in the async flavour) a coroutine function."""
        ...

    async def take(self, items: Any, count: int) -> list[Any]:
        """The next ``count`` of what a hook iterates over; in the async flavour that may be an async iterator."""
        ...

    async def shielded(self, critical: Critical[T]) -> T:
        """Run to the end even when cancelled; the cancellation is raised afterwards, or by ``Interruption.check``."""
        ...

    def keep_alive(self, renew: Renew, interval: float) -> contextlib.AbstractContextManager[None]:
        """Call ``renew`` every ``interval`` seconds as long as the block runs."""
        ...


@dataclass(slots=True)
class _Renewal:
    renew: Renew
    interval: float
    since: float

    def renew_if_due(self) -> None:
        if time.monotonic() - self.since < self.interval:
            return
        # A renewal that fails is tried again; the lease's end is the judge.
        with contextlib.suppress(Exception):
            run(self.renew())
        self.since = time.monotonic()


class _LeaseKeeper:
    """One thread for the whole process that renews the leases of sync stores, and ends when there are none."""

    def __init__(self) -> None:
        self._renewals: dict[object, _Renewal] = {}
        self._guard = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._asleep_for = _NAP

    def add(self, key: object, renew: Renew, interval: float) -> None:
        with self._guard:
            self._renewals[key] = _Renewal(renew, interval, time.monotonic())
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew_all, name="memstate-leases", daemon=True)
                self._thread.start()
        if interval / 2 < self._asleep_for:
            self._wake.set()

    def remove(self, key: object) -> None:
        self._renewals.pop(key, None)

    def _renew_all(self) -> None:
        idle_since = time.monotonic()
        while True:
            self._asleep_for = self._nap()
            self._wake.wait(self._asleep_for)
            self._wake.clear()
            self._renew_due()
            if self._renewals:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > _IDLE:
                with self._guard:
                    if not self._renewals:
                        self._thread = None
                        return

    # These two hold on to nothing while the thread sleeps: what has ended is garbage at once.

    def _nap(self) -> float:
        return min([renewal.interval / 2 for renewal in list(self._renewals.values())], default=_NAP)

    def _renew_due(self) -> None:
        for key, renewal in list(self._renewals.items()):
            if key in self._renewals:
                renewal.renew_if_due()

    def start_anew(self) -> None:
        """In a forked child: neither the thread nor what the parent's threads were renewing came along."""
        self.__init__()  # type: ignore[misc]


_leases: Final = _LeaseKeeper()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leases.start_anew)


class _KeptAlive:
    """A renewal for as long as a block runs."""

    __slots__ = ("_interval", "_renew")

    def __init__(self, renew: Renew, interval: float) -> None:
        self._renew = renew
        self._interval = interval

    def __enter__(self) -> None:
        try:
            _leases.add(self, self._renew, self._interval)
        except BaseException:
            _leases.remove(self)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _leases.remove(self)


class SyncRuntime:
    """Everything at once, in the caller's thread; leases are renewed by one background thread of the process."""

    is_async = False

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        result = function(*arguments)
        if hasattr(result, "__await__"):
            if inspect.iscoroutine(result):
                result.close()
            raise HookError(f"{function!r} is asynchronous; a MemoryStore takes sync hooks: use AsyncMemoryStore")
        return result

    async def take(self, items: Any, count: int) -> list[Any]:
        if hasattr(items, "__aiter__"):
            raise HookError(f"{items!r} is asynchronous; a MemoryStore takes sync hooks: use AsyncMemoryStore")
        return list(islice(items, count))

    async def shielded(self, critical: Critical[T]) -> T:
        return await critical(Interruption())

    def keep_alive(self, renew: Renew, interval: float) -> contextlib.AbstractContextManager[None]:
        return _KeptAlive(renew, interval)
