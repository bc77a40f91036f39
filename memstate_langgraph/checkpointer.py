"""The checkpointers: LangGraph's ``BaseCheckpointSaver`` over a store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from memstate_core._bridge import run
from memstate_core.async_store import AsyncMemoryStore
from memstate_core.facts import Change, Moved
from memstate_core.store import MemoryStore
from memstate_core.views import AsyncMemoryView, MemoryView

try:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import (
        BaseCheckpointSaver,
        ChannelVersions,
        Checkpoint,
        CheckpointMetadata,
        CheckpointTuple,
        DeltaChannelHistory,
    )
    from langgraph.checkpoint.serde.base import SerializerProtocol

    from memstate_langgraph._checkpointer import Checkpointer, OnDelete
    from memstate_langgraph._serde import TypeName
    from memstate_langgraph.rewind import Rewinding
except ImportError as error:
    raise ImportError('the checkpointers need langgraph: pip install "memstate[langgraph]"') from error

T = TypeVar("T")


class MemStateCheckpointer(Checkpointer):
    """LangGraph checkpoints in a :class:`~memstate_core.MemoryStore`, beside its facts and in their transactions.

    :param memory: the store; its storage keeps the checkpoints too.
    :param serde: default: plain data, LangChain's and LangGraph's types, and what ``allow`` names; an
        ``EncryptedSerializer`` encrypts all that is stored.
    :param allow: types of the graph's state that may be stored, as classes or ``(module, name)``.
    :param rewind: ``"auto"``: whatever a graph runs from, the memory is what it was there; ``"manual"``: only
        :meth:`rewind` goes back; ``"off"``: the memory has nothing to do with checkpoints.
    :param on_delete_thread: whether the facts of a thread's session go with it (``"discard"``) or stay (``"keep"``).
    :param inner: a saver of another kind that keeps the checkpoints, as before; the store then only keeps where its
        memory stood at them. The other saver's transactions are its own.
    :param run_timeout: seconds for which a run waits for another one of its thread, before :class:`BusyError`.

    May be used by threads, and by graphs that are run asynchronously: its storage is then used in a thread.
    """

    def __init__(
        self,
        memory: MemoryStore,
        *,
        serde: SerializerProtocol | None = None,
        allow: Collection[type | TypeName] = (),
        rewind: Rewinding = "auto",
        run_timeout: float = 10.0,
        inner: BaseCheckpointSaver[Any] | None = None,
        on_delete_thread: OnDelete = "keep",
    ) -> None:
        if not isinstance(memory, MemoryStore):
            raise TypeError(
                f"MemStateCheckpointer takes a MemoryStore, not {memory!r}; for others there is "
                "AsyncMemStateCheckpointer"
            )
        super().__init__(memory, serde, allow, rewind, run_timeout, inner, on_delete_thread)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._looked(config, run(self._saver.get_tuple(self._codec, config)))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        listing = self._saver.listing(self._codec, config, filter, before, limit)
        while (page := run(listing.page())) is not None:
            yield from page

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return run(self._saver.put(self._codec, config, checkpoint, metadata, new_versions))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        run(self._saver.put_writes(self._codec, config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        if self.discards:
            self.memory.discard_session(str(thread_id), reason="the thread is deleted")
        run(self._saver.delete_thread(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        run(self._saver.delete_for_runs(self._codec, run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        run(self._saver.copy_thread(self._codec, source_thread_id, target_thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        run(self._saver.prune(self._codec, thread_ids, strategy))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return run(self._saver.delta_history(self._codec, config, channels))

    def rewind(self, config: RunnableConfig) -> Moved:
        """Make the memory of a thread what it was at one of its checkpoints; returns what was undone and done again.

        The graph's own state is not touched: run it with the same config to go on from there.

        :raises NotFoundError: the checkpoint is not known, or has no position of the memory.
        """
        return run(self._saver.rewinder.rewind(config))

    def at(self, config: RunnableConfig) -> MemoryView:
        """The memory as it was at a checkpoint, to read from; also ``memory.at(config)``."""
        view: MemoryView = self.memory.at(config)
        return view

    def diff(self, before: RunnableConfig, after: RunnableConfig) -> Sequence[Change]:
        """What became of each fact between two checkpoints of a thread; without an id, its head is meant."""
        return run(self._difference(before, after))

    # The same for graphs that are run asynchronously

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._looked(config, await asyncio.to_thread(self.get_tuple, config))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        found = self.list(config, filter=filter, before=before, limit=limit)
        while (one := await asyncio.to_thread(next, found, None)) is not None:
            yield one

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return await asyncio.to_thread(self.put, config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await asyncio.to_thread(self.put_writes, config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        await asyncio.to_thread(self.delete_thread, thread_id)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        await asyncio.to_thread(self.delete_for_runs, run_ids)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        await asyncio.to_thread(self.copy_thread, source_thread_id, target_thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        await asyncio.to_thread(lambda: self.prune(thread_ids, strategy=strategy))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return await asyncio.to_thread(lambda: self.get_delta_channel_history(config=config, channels=channels))


class AsyncMemStateCheckpointer(Checkpointer):
    """The same over an :class:`~memstate_core.AsyncMemoryStore`, awaited.

    Its plain methods are for other threads than that of the event loop it is used on, where a graph's own state may be
    looked at from; on the loop's own thread they would wait for themselves, and raise.
    """

    def __init__(
        self,
        memory: AsyncMemoryStore,
        *,
        serde: SerializerProtocol | None = None,
        allow: Collection[type | TypeName] = (),
        rewind: Rewinding = "auto",
        run_timeout: float = 10.0,
        inner: BaseCheckpointSaver[Any] | None = None,
        on_delete_thread: OnDelete = "keep",
    ) -> None:
        if not isinstance(memory, AsyncMemoryStore):
            raise TypeError(
                f"AsyncMemStateCheckpointer takes an AsyncMemoryStore, not {memory!r}; for others there is "
                "MemStateCheckpointer"
            )
        super().__init__(memory, serde, allow, rewind, run_timeout, inner, on_delete_thread)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def _on_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        self._loop = asyncio.get_running_loop()
        return await coroutine

    def _from_thread(self, coroutine: Coroutine[Any, Any, T], name: str) -> T:
        """Run on the event loop that the checkpointer is used on, from another thread."""
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        loop = self._loop
        if running is not None or loop is None or loop.is_closed() or not loop.is_running():
            coroutine.close()
            raise RuntimeError(
                f"AsyncMemStateCheckpointer.{name}() was called on an event loop's own thread, or before there was a "
                f"loop; await a{name}() (graph.ainvoke, graph.aget_state, …), or use MemStateCheckpointer"
            )
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._looked(config, await self._on_loop(self._saver.get_tuple(self._codec, config)))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        self._loop = asyncio.get_running_loop()
        listing = self._saver.listing(self._codec, config, filter, before, limit)
        while (page := await listing.page()) is not None:
            for one in page:
                yield one

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return await self._on_loop(self._saver.put(self._codec, config, checkpoint, metadata, new_versions))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await self._on_loop(self._saver.put_writes(self._codec, config, writes, task_id, task_path))

    async def adelete_thread(self, thread_id: str) -> None:
        if self.discards:
            await self.memory.discard_session(str(thread_id), reason="the thread is deleted")
        await self._on_loop(self._saver.delete_thread(thread_id))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        await self._on_loop(self._saver.delete_for_runs(self._codec, run_ids))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        await self._on_loop(self._saver.copy_thread(self._codec, source_thread_id, target_thread_id))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        await self._on_loop(self._saver.prune(self._codec, thread_ids, strategy))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return await self._on_loop(self._saver.delta_history(self._codec, config, channels))

    async def rewind(self, config: RunnableConfig) -> Moved:
        """Same as :meth:`MemStateCheckpointer.rewind`, awaited."""
        return await self._on_loop(self._saver.rewinder.rewind(config))

    def at(self, config: RunnableConfig) -> AsyncMemoryView:
        """Same as :meth:`MemStateCheckpointer.at`; its view's methods are awaited."""
        view: AsyncMemoryView = self.memory.at(config)
        return view

    async def diff(self, before: RunnableConfig, after: RunnableConfig) -> Sequence[Change]:
        """Same as :meth:`MemStateCheckpointer.diff`, awaited."""
        return await self._on_loop(self._difference(before, after))

    # The same from other threads

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._from_thread(self.aget_tuple(config), "get_tuple")

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        listing = self._saver.listing(self._codec, config, filter, before, limit)
        while (page := self._from_thread(listing.page(), "list")) is not None:
            yield from page

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return self._from_thread(self.aput(config, checkpoint, metadata, new_versions), "put")

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        self._from_thread(self.aput_writes(config, writes, task_id, task_path), "put_writes")

    def delete_thread(self, thread_id: str) -> None:
        self._from_thread(self.adelete_thread(thread_id), "delete_thread")

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        self._from_thread(self.adelete_for_runs(run_ids), "delete_for_runs")

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        self._from_thread(self.acopy_thread(source_thread_id, target_thread_id), "copy_thread")

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        self._from_thread(self.aprune(thread_ids, strategy=strategy), "prune")

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return self._from_thread(
            self.aget_delta_channel_history(config=config, channels=channels), "get_delta_channel_history"
        )
