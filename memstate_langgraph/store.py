"""LangGraph's ``BaseStore`` over the facts of a memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from types import TracebackType
from typing import Any, Self

from memstate_core._bridge import run
from memstate_core.async_store import AsyncMemoryStore
from memstate_core.store import MemoryStore

try:
    from langgraph.store.base import BaseStore, Op, PutOp, Result, TTLConfig

    from memstate_langgraph._loops import Loop
    from memstate_langgraph._nodes import stranger
    from memstate_langgraph._store_batch import Items
    from memstate_langgraph._store_items import TYPENAME, fact_id, item_index
except ImportError as error:
    raise ImportError('the stores need langgraph: pip install "memstate[langgraph]"') from error

__all__ = ["AsyncMemStateStore", "MemStateStore", "item_index"]

logger = logging.getLogger("memstate")

_SWEEP_MINUTES = 5.0


class _Store(BaseStore):
    """What both stores have."""

    supports_ttl = True

    def __init__(
        self, memory: MemoryStore | AsyncMemoryStore, fields: Sequence[str], ttl: TTLConfig | None, typename: str
    ) -> None:
        super().__init__()
        self.memory: Any = memory
        self.typename = typename
        self.ttl_config = ttl
        refreshes = bool(ttl and ttl.get("refresh_on_read", False))
        self._has_warned = False
        self._items = Items(memory.engine, typename, fields, refreshes=refreshes)

    def fact_id(self, namespace: tuple[str, ...], key: str) -> str:
        """The id of an item's fact, by which the memory knows it (``memory.history(fact_id=…)``)."""
        return fact_id(self.typename, namespace, key)

    def _look(self, ops: Sequence[Op]) -> None:
        """Warn, once, of what would be found out when a graph goes back and the items do not."""
        if self._has_warned or not any(isinstance(op, PutOp) for op in ops):
            return
        node = stranger(self.memory)
        if node is not None:
            self._has_warned = True
            logger.warning(
                "node %r of thread %r puts items into another memory than its checkpointer's, so they do not go back "
                "with the graph; make both with one and the same %s",
                node.tag.name,
                node.thread_id,
                type(self.memory).__name__,
            )

    def _interval(self, minutes: float | None) -> float:
        """Between two sweeps, in seconds."""
        configured = (self.ttl_config or {}).get("sweep_interval_minutes")
        return float(minutes or configured or _SWEEP_MINUTES) * 60


class MemStateStore(_Store):
    """LangGraph's long-term memory as facts of a :class:`~memstate_core.MemoryStore`.

    A batch of puts is one transaction. What a node of a graph with a :class:`MemStateCheckpointer` on the same memory
    puts or deletes is on the history of its thread, and goes back when the graph does. The facts themselves belong to
    no session, so all threads see them.

    :param memory: the store; its hooks answer searches with a ``query``. Those for items are made with
        ``**item_index()``. Without any that can search, the query is ignored.
    :param fields: the paths into the value of an item whose texts are indexed when its put does not say (``index=``);
        ``"$"`` is the whole.
    :param ttl: as for LangGraph's stores on databases, but that what has expired is never returned, swept or not.
        Reading postpones an item's end if ``refresh_on_read`` is True, unless a call says ``refresh_ttl=False``.
    :param typename: the type of the items' facts.

    May be used by threads, and by graphs that are run asynchronously: its storage is then used in a thread.
    """

    def __init__(
        self,
        memory: MemoryStore,
        *,
        fields: Sequence[str] = ("$",),
        ttl: TTLConfig | None = None,
        typename: str = TYPENAME,
    ) -> None:
        if not isinstance(memory, MemoryStore):
            raise TypeError(
                f"MemStateStore takes a MemoryStore, not {memory!r}; for others there is AsyncMemStateStore"
            )
        super().__init__(memory, fields, ttl, typename)
        self._sweeper: tuple[threading.Thread, threading.Event, Future[None]] | None = None

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        listed = list(ops)
        self._look(listed)
        return run(self._items.batch(listed))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        return await asyncio.to_thread(self.batch, list(ops))

    def sweep_ttl(self) -> int:
        """Delete the items that have expired; returns how many. The history of the long-term line records it."""
        return run(self._items.sweep())

    def start_ttl_sweeper(self, sweep_interval_minutes: float | None = None) -> Future[None]:
        """Sweep again and again, in a thread.

        :param sweep_interval_minutes: default: that of ``ttl``, else 5.
        :returns: a future that ends with the thread; cancelling it stops the sweeper.
        """
        if self._sweeper is not None and self._sweeper[0].is_alive():
            return self._sweeper[2]
        interval = self._interval(sweep_interval_minutes)
        stopped, future = threading.Event(), Future[None]()

        def sweep() -> None:
            while not stopped.wait(interval):
                try:
                    self.sweep_ttl()
                except Exception:
                    logger.exception("the sweep of expired items failed; it is tried again")
            with contextlib.suppress(InvalidStateError):  # it was cancelled
                future.set_result(None)

        future.add_done_callback(lambda _: stopped.set())
        thread = threading.Thread(target=sweep, name="memstate-ttl-sweeper", daemon=True)
        self._sweeper = thread, stopped, future
        thread.start()
        return future

    def stop_ttl_sweeper(self, timeout: float | None = None) -> bool:
        """Stop the sweeper; returns whether it has ended within ``timeout`` seconds (None: it is waited for)."""
        if self._sweeper is None:
            return True
        thread, stopped, _ = self._sweeper
        stopped.set()
        thread.join(timeout)
        return not thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop_ttl_sweeper()


class AsyncMemStateStore(_Store):
    """The same over an :class:`~memstate_core.AsyncMemoryStore`, awaited.

    Its plain methods are for other threads than that of the event loop it is used on, such as those of plain nodes; on
    the loop's own thread they would wait for themselves, and raise.
    """

    def __init__(
        self,
        memory: AsyncMemoryStore,
        *,
        fields: Sequence[str] = ("$",),
        ttl: TTLConfig | None = None,
        typename: str = TYPENAME,
    ) -> None:
        if not isinstance(memory, AsyncMemoryStore):
            raise TypeError(
                f"AsyncMemStateStore takes an AsyncMemoryStore, not {memory!r}; for others there is MemStateStore"
            )
        super().__init__(memory, fields, ttl, typename)
        self._loop = Loop()
        self._sweeper: asyncio.Task[None] | None = None

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        self._loop.here()
        listed = list(ops)
        self._look(listed)
        return await self._items.batch(listed)

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        return self._loop.wait_for(
            self.abatch(ops),
            "a plain method of AsyncMemStateStore",
            "await its twin (aget, aput, …), or use MemStateStore",
        )

    async def sweep_ttl(self) -> int:
        """Same as :meth:`MemStateStore.sweep_ttl`, awaited."""
        self._loop.here()
        return await self._items.sweep()

    async def start_ttl_sweeper(self, sweep_interval_minutes: float | None = None) -> asyncio.Task[None]:
        """Same as :meth:`MemStateStore.start_ttl_sweeper`, in a task, which cancelling stops."""
        if self._sweeper is not None and not self._sweeper.done():
            return self._sweeper
        interval = self._interval(sweep_interval_minutes)

        async def sweep() -> None:
            while True:
                await asyncio.sleep(interval)
                try:
                    await self.sweep_ttl()
                except Exception:
                    logger.exception("the sweep of expired items failed; it is tried again")

        self._sweeper = asyncio.create_task(sweep(), name="memstate-ttl-sweeper")
        return self._sweeper

    async def stop_ttl_sweeper(self, timeout: float | None = None) -> bool:
        """Same as :meth:`MemStateStore.stop_ttl_sweeper`, awaited."""
        if self._sweeper is None:
            return True
        self._sweeper.cancel()
        await asyncio.wait([self._sweeper], timeout=timeout)
        return self._sweeper.done()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop_ttl_sweeper()
