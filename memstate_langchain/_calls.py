"""What is done with a store is written once, as coroutines; here they are driven for stores of both flavours."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from langchain_core.runnables.config import run_in_executor

from memstate_core._bridge import run
from memstate_core.async_store import AsyncMemoryStore
from memstate_core.store import MemoryStore

T = TypeVar("T")

Store = MemoryStore | AsyncMemoryStore


class Face:
    """A store, or a transaction of one, whose methods are awaited whether they wait or not."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self.target, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            return await result if inspect.isawaitable(result) else result

        return call

    @contextlib.asynccontextmanager
    async def transaction(self, **options: Any) -> AsyncIterator[Face]:
        block = self.target.transaction(**options)
        if isinstance(self.target, AsyncMemoryStore):
            async with block as tx:
                yield Face(tx)
        else:
            with block as tx:
                yield Face(tx)


Work = Callable[[Face], Awaitable[T]]


def now(store: Store, work: Work[T]) -> T:
    """Do it in the caller's thread.

    :raises TypeError: the store is an asynchronous one.
    """
    if isinstance(store, AsyncMemoryStore):
        raise TypeError("an AsyncMemoryStore is awaited: call the asynchronous method, or use a MemoryStore")
    return run(_done(store, work))


async def later(store: Store, work: Work[T]) -> T:
    """The same, awaited; a sync store is used in a thread, with the caller's context."""
    if isinstance(store, AsyncMemoryStore):
        return await work(Face(store))
    return await run_in_executor(None, now, store, work)


async def _done(store: Store, work: Work[T]) -> T:
    return await work(Face(store))


def checked_store(store: Any) -> Store:
    """
    :raises TypeError: it is no store.
    """
    if not isinstance(store, MemoryStore | AsyncMemoryStore):
        raise TypeError(f"a MemoryStore or an AsyncMemoryStore is needed, not {store!r}")
    return store
