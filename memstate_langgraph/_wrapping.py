"""A saver of another kind keeps the checkpoints; here is only kept where the memory stood at them.

The two cannot share a transaction. What is noted of the memory is therefore written first, and counts only for
checkpoints and writes that the other saver has: without them it is never asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)

from memstate_core.engine import Engine
from memstate_core.protocols import Batch, StorageTransaction
from memstate_langgraph import _keys as keys
from memstate_langgraph._ahead import read_ahead
from memstate_langgraph._codec import Codec
from memstate_langgraph._line import Line, RootPosition
from memstate_langgraph._places import Place
from memstate_langgraph._removing import everything
from memstate_langgraph.rewind import Rewinder


class Wrapped:
    """Has the methods of :class:`~memstate_langgraph._saver.Saver`, for checkpoints that another saver keeps."""

    def __init__(self, engine: Engine, inner: BaseCheckpointSaver[Any], rewinder: Rewinder) -> None:
        self._engine = engine
        self.inner = inner
        self.rewinder = rewinder

    async def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        if not self._engine.runtime.is_async:
            return getattr(self.inner, name)(*arguments, **options)
        result = getattr(self.inner, f"a{name}")(*arguments, **options)
        return await result if inspect.isawaitable(result) else result

    async def get_tuple(self, codec: Codec, config: RunnableConfig) -> CheckpointTuple | None:
        place = Place(config)
        await self.rewinder.begins(config)
        found: CheckpointTuple | None = await self._call("get_tuple", config)
        if self.rewinder.is_run(config):
            found_id = found.checkpoint["id"] if found is not None else None
            is_latest = place.checkpoint_id is None or await self._is_latest(place, found_id)
            await self.rewinder.loaded(config, found, is_latest)
        return found

    async def _is_latest(self, place: Place, checkpoint_id: str | None) -> bool:
        latest: CheckpointTuple | None = await self._call("get_tuple", _without_id(place))
        return latest is None or latest.checkpoint["id"] == checkpoint_id

    def listing(
        self,
        codec: Codec,
        config: RunnableConfig | None,
        filter: Mapping[str, Any] | None,  # noqa: A002
        before: RunnableConfig | None,
        limit: int | None,
    ) -> _Pages:
        name = "alist" if self._engine.runtime.is_async else "list"
        return _Pages(getattr(self.inner, name)(config, filter=filter, before=before, limit=limit))

    async def put(
        self,
        codec: Codec,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        place = Place(config)

        async def is_latest(checkpoint_id: str) -> bool:
            return await self._is_latest(place, checkpoint_id)

        await self.rewinder.updating(place, config, checkpoint, metadata, is_latest)
        asked = self.rewinder.asked(place)

        async def work(tx: StorageTransaction) -> RootPosition | None:
            ahead = await read_ahead(tx, asked)
            position, records = await self.rewinder.stored(ahead, place, config, checkpoint["id"], metadata)
            if position is not None:
                records.append(Line(tx, place.thread_id).place(checkpoint["id"], position))
            if records:
                await tx.write(Batch(records=records))
            return position

        self.rewinder.committed(place, checkpoint["id"], await self._write(work))
        stored: RunnableConfig = await self._call("put", config, checkpoint, metadata, new_versions)
        return stored

    async def put_writes(
        self, codec: Codec, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> None:
        if all(channel in WRITES_IDX_MAP for channel, _ in writes):
            await self._call("put_writes", config, writes, task_id, task_path)
            return
        place = Place(config)

        async def is_known(tx: StorageTransaction) -> bool:
            made = await Line(tx, place.thread_id).made_by(place.checkpoint_ns, place.checkpoint_id or "", task_id)
            return made is not None

        # Of two that finish one task the first counts, if it came as far as its writes.
        before = 0
        if await self._engine.storage.read(self._engine.namespace, is_known):
            before = await self._finished_writes(place, task_id)
        if not before:
            await self._finish(place, config, task_id)
        await self._call("put_writes", config, writes, task_id, task_path)
        # A task that was resumed writes at other places than one that was not, and then both count.
        if before and await self._finished_writes(place, task_id) > before:
            await self._finish(place, config, task_id, joins=True)

    async def _finished_writes(self, place: Place, task_id: str) -> int:
        """How many writes of a finished task are stored."""
        stored = await self._call("get_tuple", {"configurable": _configurable(place)})
        writes = (stored.pending_writes if stored is not None else None) or ()
        return sum(one == task_id and channel not in WRITES_IDX_MAP for one, channel, _ in writes)

    async def _finish(self, place: Place, config: RunnableConfig, task_id: str, *, joins: bool = False) -> None:
        async def work(tx: StorageTransaction) -> None:
            records = await self.rewinder.finished(tx, place, config, task_id, always=True, joins=joins)
            if records:
                await tx.write(Batch(records=records))

        await self._write(work)

    async def delta_history(
        self, codec: Codec, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        found: Mapping[str, DeltaChannelHistory] = await self._call(
            "get_delta_channel_history", config=config, channels=channels
        )
        return found

    async def delete_thread(self, thread_id: str) -> None:
        await self._call("delete_thread", thread_id)
        await self._forget(keys.check_thread_id(thread_id))

    async def delete_for_runs(self, codec: Codec, run_ids: Sequence[str]) -> None:
        await self._call("delete_for_runs", run_ids)

    async def prune(self, codec: Codec, thread_ids: Sequence[str], strategy: str) -> None:
        await self._call("prune", thread_ids, strategy=strategy)
        if strategy == "delete":
            for thread_id in thread_ids:
                await self._forget(keys.check_thread_id(thread_id))

    async def copy_thread(self, codec: Codec, source: str, target: str) -> None:
        await self._call("copy_thread", source, target)

    async def _forget(self, thread_id: str) -> None:
        async def work(tx: StorageTransaction) -> None:
            records = await everything(tx, thread_id)
            if records:
                await tx.write(Batch(records=records))

        await self._write(work)

    async def _write(self, work: Any) -> Any:
        return await self._engine.storage.write(self._engine.namespace, work)


class _Pages:
    """Another saver's list, one checkpoint a page."""

    def __init__(self, found: Any) -> None:
        self._found = found

    async def page(self) -> list[CheckpointTuple] | None:
        if inspect.isasyncgen(self._found) or hasattr(self._found, "__anext__"):
            one = await anext(self._found, None)
        else:
            one = next(self._found, None)
        return None if one is None else [one]


def _configurable(place: Place) -> dict[str, Any]:
    return {
        "thread_id": place.thread_id,
        "checkpoint_ns": place.checkpoint_ns,
        "checkpoint_id": place.checkpoint_id,
    }


def _without_id(place: Place) -> RunnableConfig:
    return {"configurable": {**_configurable(place), "checkpoint_id": None}}
