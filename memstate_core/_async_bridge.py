"""How asyncio drives the engine's coroutines; by itself, since a program without a loop need not import asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final, NoReturn, TypeVar

from memstate_core._bridge import Critical, Interruption, Renew

T = TypeVar("T")


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

    async def take(self, items: Any, count: int) -> list[Any]:
        if not hasattr(items, "__aiter__"):
            return await asyncio.to_thread(lambda: list(islice(items, count)))
        taken: list[Any] = []
        async for item in items:
            taken.append(item)
            if len(taken) == count:
                break
        return taken

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
        ended = renewing = False

        async def renew_until_ended() -> None:
            nonlocal renewing
            while not ended:
                await asyncio.sleep(interval)
                renewing = True
                with contextlib.suppress(Exception):
                    await renew()
                renewing = False

        task = asyncio.create_task(renew_until_ended())
        try:
            yield
        finally:
            ended = True
            if renewing:
                # Cancelled in the midst of a statement, a driver would give up its connection, and complain.
                _last_renewals.add(task)
                task.add_done_callback(_last_renewals.discard)
            else:
                task.cancel()


# Nobody else holds on to these tasks, and a loop does so only weakly.
_last_renewals: Final[set[asyncio.Task[None]]] = set()


def _finish(task: asyncio.Future[Any], interruption: BaseException) -> NoReturn:
    """Raise the cancellation; a failure of the shielded steps is attached to it."""
    error = None if task.cancelled() else task.exception()
    if error is not None and error is not interruption:
        interruption.add_note(f"while it was being undone: {error!r}")
        raise interruption from error
    raise interruption
