"""How the engine's coroutines are driven: at once and without a loop, or by asyncio.

The engine awaits storages, hooks and sleeps through a *runtime*; nothing else in it knows which flavour it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, NoReturn, Protocol, TypeVar

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


# So long does an idle renewal thread sleep, in seconds; shorter leases wake it.
_NAP: Final = 1.0


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

    async def shielded(self, critical: Critical[T]) -> T:
        """Run to the end even when cancelled; the cancellation is raised afterwards, or by ``Interruption.check``."""
        ...

    def keep_alive(self, renew: Renew, interval: float) -> contextlib.AbstractContextManager[None]:
        """Call ``renew`` every ``interval`` seconds as long as the block runs."""
        ...

    def close(self) -> None: ...


class SyncRuntime:
    """Everything at once, in the caller's thread; leases are renewed by one background thread."""

    is_async = False

    def __init__(self) -> None:
        self._renewals: dict[object, tuple[Renew, float, float]] = {}
        self._wake = threading.Event()
        self._stopped = False
        self._pid = 0
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        result = function(*arguments)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise HookError(f"{function!r} is asynchronous; a MemoryStore takes sync hooks: use AsyncMemoryStore")
        return result

    async def shielded(self, critical: Critical[T]) -> T:
        return await critical(Interruption())

    @contextlib.contextmanager
    def keep_alive(self, renew: Renew, interval: float) -> Iterator[None]:
        key = object()
        self._ensure_thread()
        self._renewals[key] = (renew, interval, time.monotonic())
        if interval < _NAP:
            self._wake.set()
        try:
            yield
        finally:
            self._renewals.pop(key, None)

    def close(self) -> None:
        self._stopped = True
        self._pid = 0
        self._wake.set()

    def _ensure_thread(self) -> None:
        if self._pid == os.getpid():
            return
        with self._guard:
            if self._pid == os.getpid():
                return
            if self._pid:  # a fork brings along what other threads of the parent were renewing, but not this thread
                self._renewals = {}
            self._pid = os.getpid()
            self._stopped = False
            self._wake = threading.Event()
            self._thread = threading.Thread(
                target=self._renew_all, args=(self._wake,), name="memstate-leases", daemon=True
            )
            self._thread.start()

    def _renew_all(self, wake: threading.Event) -> None:
        while True:
            wake.wait(min([interval / 2 for _, interval, _ in list(self._renewals.values())], default=_NAP))
            wake.clear()
            if self._stopped or wake is not self._wake:
                return
            for key, (renew, interval, since) in list(self._renewals.items()):
                if time.monotonic() - since < interval:
                    continue
                # A renewal that fails is tried again; the lease's end is the judge.
                with contextlib.suppress(Exception):
                    run(renew())
                if key in self._renewals:
                    self._renewals[key] = (renew, interval, time.monotonic())


class AsyncRuntime:
    """On the running event loop; sync hooks go to a thread, so that they hold up nobody."""

    is_async = True

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):
            return await function(*arguments)
        result = await asyncio.to_thread(function, *arguments)
        return await result if inspect.isawaitable(result) else result

    async def shielded(self, critical: Critical[T]) -> T:
        interruption = Interruption()
        task = asyncio.ensure_future(critical(interruption))
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as cancelled:
                if task.cancelled():
                    raise
                interruption.pending = interruption.pending or cancelled
            except BaseException:
                if not task.done():
                    raise
        if interruption.pending is not None:
            _finish(task, interruption.pending)
        return task.result()

    @contextlib.contextmanager
    def keep_alive(self, renew: Renew, interval: float) -> Iterator[None]:
        async def renew_forever() -> None:
            while True:
                await asyncio.sleep(interval)
                with contextlib.suppress(Exception):
                    await renew()

        task = asyncio.create_task(renew_forever())
        try:
            yield
        finally:
            task.cancel()

    def close(self) -> None:
        """Nothing to close: what runs belongs to the transactions that run."""


def _finish(task: asyncio.Future[Any], interruption: BaseException) -> NoReturn:
    """Raise the cancellation; a failure of the shielded steps is attached to it."""
    error = None if task.cancelled() else task.exception()
    if error is not None and error is not interruption:
        interruption.add_note(f"while it was being undone: {error!r}")
        raise interruption from error
    raise interruption
