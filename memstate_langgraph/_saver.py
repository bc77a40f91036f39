"""What both checkpointers do, once, as coroutines over a storage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
    get_serializable_checkpoint_metadata,
)

from memstate_core.engine import Engine
from memstate_core.errors import ValidationFailed
from memstate_core.protocols import Batch, RecordWrite, StorageTransaction
from memstate_langgraph import _keys as keys
from memstate_langgraph._ahead import read_ahead
from memstate_langgraph._cache import Cache
from memstate_langgraph._codec import Codec, StoredCheckpoint, StoredTask
from memstate_langgraph._fingerprint import fingerprint_of
from memstate_langgraph._line import RootPosition
from memstate_langgraph._listing import Listing
from memstate_langgraph._places import Place, config_of
from memstate_langgraph._reading import Reader
from memstate_langgraph._removing import all_but, everything
from memstate_langgraph._writing import Put, new_generation, ran_records
from memstate_langgraph.rewind import Rewinder


class Saver:
    """Checkpoints in the records of a store."""

    def __init__(self, engine: Engine, cache: Cache, rewinder: Rewinder) -> None:
        self._engine = engine
        self._cache = cache
        self.rewinder = rewinder

    async def _read(self, work: Callable[[StorageTransaction], Any]) -> Any:
        return await self._engine.storage.read(self._engine.namespace, work, snapshot=True)

    async def _write(self, work: Callable[[StorageTransaction], Any]) -> Any:
        return await self._engine.storage.write(self._engine.namespace, work)

    # Writing

    async def put(
        self,
        codec: Codec,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        place = Place(config)
        full = get_serializable_checkpoint_metadata(config, metadata)
        put = Put(
            codec,
            self._cache,
            place.thread_id,
            place.checkpoint_ns,
            place.checkpoint_id,
            checkpoint,
            full,
            new_versions,
        )

        async def is_latest(checkpoint_id: str) -> bool:
            return await self._is_latest(codec, place, checkpoint_id)

        await self.rewinder.updating(place, config, checkpoint, metadata, is_latest)

        places = [put.thread, *self.rewinder.asked(place)]

        async def work(tx: StorageTransaction) -> RootPosition | None:
            ahead = await read_ahead(tx, places)
            records = await put.records(ahead)
            position, of_memory = await self.rewinder.stored(ahead, place, config, checkpoint["id"], metadata)
            await tx.write(Batch(records=[put.checkpoint(position), *records, *of_memory]))
            return position

        self.rewinder.committed(place, checkpoint["id"], await self._write(work))
        put.done()
        return config_of(place.thread_id, place.checkpoint_ns, checkpoint["id"])

    async def put_writes(
        self, codec: Codec, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> None:
        place = Place(config)
        if place.checkpoint_id is None:
            raise ValidationFailed("put_writes needs the checkpoint_id of the checkpoint to which the writes belong")
        checkpoint_id = place.checkpoint_id
        new = codec.writes(writes, task_path)
        collection = keys.writes(place.thread_id)
        key = keys.task(place.checkpoint_ns, checkpoint_id, task_id)

        first = StoredTask(task_id, ()).merged(new)

        async def work(tx: StorageTransaction) -> None:
            record = await tx.record(collection, key, is_new=True)
            known = None if record is None else codec.open_task(collection, key, record)
            task = first if known is None else known.merged(new)
            records = [RecordWrite(collection, key, codec.close_task(collection, key, task))]
            before = 0 if known is None else known.finished_writes
            if task.finished_writes > before:
                # A task that was resumed writes at other places than one that was not, and then both count.
                records += await self.rewinder.finished(tx, place, config, task_id, joins=before > 0)
            await tx.write(Batch(records=records))

        await self._write(work)

    # Reading

    async def get_tuple(self, codec: Codec, config: RunnableConfig) -> CheckpointTuple | None:
        place = Place(config)
        await self.rewinder.begins(config)

        async def work(tx: StorageTransaction) -> tuple[CheckpointTuple, Reader, bytes | None] | None:
            reader = Reader(tx, codec, place.thread_id, cache=self._cache)
            one = await reader.checkpoint(place.checkpoint_ns, place.checkpoint_id)
            if one is None:
                return None
            return await reader.checkpoint_tuple(one), reader, await reader.generation()

        found = await self._read(work)
        answer: CheckpointTuple | None = None
        if found is not None:
            answer = found[0]
            self._remember(place, found[0], found[1], found[2], to_run=self.rewinder.is_run(config))
        await self._loaded(codec, place, config, answer)
        return answer

    async def _loaded(self, codec: Codec, place: Place, config: RunnableConfig, found: CheckpointTuple | None) -> None:
        """If a run has loaded this to start from it, make the memory what it was there."""
        if not self.rewinder.is_run(config):
            return

        found_id = found.checkpoint["id"] if found is not None else None
        is_latest = place.checkpoint_id is None or await self._is_latest(codec, place, found_id)
        await self.rewinder.loaded(config, found, is_latest)

    async def _is_latest(self, codec: Codec, place: Place, checkpoint_id: str | None) -> bool:
        async def work(tx: StorageTransaction) -> bool:
            latest = await Reader(tx, codec, place.thread_id).checkpoint(place.checkpoint_ns, None)
            return latest is None or latest.checkpoint_id == checkpoint_id

        found: bool = await self._read(work)
        return found

    def _remember(
        self, place: Place, found: CheckpointTuple, reader: Reader, generation: bytes | None, *, to_run: bool
    ) -> None:
        """Remember what was read, and, if a run is to change it, what it was."""
        if generation is None:
            return
        self._cache.saw(place.thread_id, generation)
        checkpoint = found.checkpoint
        self._cache.keep_versions(
            generation, place.thread_id, place.checkpoint_ns, checkpoint["id"], dict(checkpoint["channel_versions"])
        )
        for channel, version in checkpoint["channel_versions"].items():
            one = reader.known_list(place.checkpoint_ns, channel, version)
            if one is None:
                continue
            if to_run and one.fingerprint is None:
                one = one._replace(fingerprint=fingerprint_of(checkpoint["channel_values"][channel]))
            if self._cache.list_version(generation, place.thread_id, one.key) is not one:
                self._cache.keep_list(generation, place.thread_id, one)

    def listing(
        self,
        codec: Codec,
        config: RunnableConfig | None,
        filter: Mapping[str, Any] | None,  # noqa: A002
        before: RunnableConfig | None,
        limit: int | None,
    ) -> Listing:
        """What ``list`` yields, newest first."""
        return Listing(self._read, codec, config, filter, before, limit)

    async def delta_history(
        self, codec: Codec, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """See :meth:`BaseCheckpointSaver.get_delta_channel_history`."""
        place = Place(config)

        async def work(tx: StorageTransaction) -> dict[str, DeltaChannelHistory]:
            reader = Reader(tx, codec, place.thread_id)
            writes: dict[str, list[PendingWrite]] = {channel: [] for channel in channels}
            seeds: dict[str, Any] = {}
            missing = set(channels)
            one = await reader.checkpoint(place.checkpoint_ns, place.checkpoint_id) if channels else None
            while missing and one is not None and one.parent_id is not None:
                one = await reader.any_checkpoint(place.checkpoint_ns, one.parent_id)
                if one is None:
                    break
                pending = codec.pending(await reader.tasks(one.checkpoint_ns, one.checkpoint_id), missing)
                for write in reversed(pending):
                    writes[write[1]].append(write)
                seeds.update(await reader.values(one, codec.header(one), missing))
                missing -= seeds.keys()
            return {
                channel: (
                    {"writes": writes[channel][::-1], "seed": seeds[channel]}
                    if channel in seeds
                    else {"writes": writes[channel][::-1]}
                )
                for channel in channels
            }

        found: dict[str, DeltaChannelHistory] = await self._read(work)
        return found

    # Removing and copying

    async def delete_thread(self, thread_id: str) -> None:
        thread_id = keys.check_thread_id(thread_id)
        await self._remove(lambda tx: everything(tx, thread_id))

    async def delete_for_runs(self, codec: Codec, run_ids: Sequence[str]) -> None:
        gone = {str(run_id) for run_id in run_ids}
        if not gone:
            return

        def stays(found: list[StoredCheckpoint]) -> set[str]:
            return {_key(one) for one in found if str(codec.metadata(one).get("run_id")) not in gone}

        for thread_id in await self._ran_in(gone):
            await self._remove(lambda tx, thread_id=thread_id: all_but(tx, codec, thread_id, stays))  # type: ignore[misc]

    async def prune(self, codec: Codec, thread_ids: Sequence[str], strategy: str) -> None:
        if strategy not in ("keep_latest", "delete"):
            raise ValidationFailed(f"strategy is 'keep_latest' or 'delete', not {strategy!r}")

        def stays(found: list[StoredCheckpoint]) -> set[str]:
            latest: dict[str, StoredCheckpoint] = {}
            for one in found:
                if one.checkpoint_ns not in latest or one.checkpoint_id > latest[one.checkpoint_ns].checkpoint_id:
                    latest[one.checkpoint_ns] = one
            return {_key(one) for one in latest.values()}

        for thread_id in map(keys.check_thread_id, thread_ids):
            if strategy == "delete":
                await self._remove(lambda tx, thread_id=thread_id: everything(tx, thread_id))  # type: ignore[misc]
            else:
                await self._remove(lambda tx, thread_id=thread_id: all_but(tx, codec, thread_id, stays))  # type: ignore[misc]

    async def copy_thread(self, codec: Codec, source: str, target: str) -> None:
        """Everything of a thread under another name, sealed for its new place."""
        source, target = keys.check_thread_id(source), keys.check_thread_id(target)
        if source == target:
            raise ValidationFailed(f"thread {source!r} cannot be copied to itself")

        async def work(tx: StorageTransaction) -> None:
            reader = Reader(tx, codec, source)
            found = await reader.checkpoints()
            if not found:
                return
            if await tx.record(keys.THREADS, keys.thread(target)) is not None:
                raise ValidationFailed(f"thread {target!r} exists already; delete it first, or copy to another one")
            records = [new_generation(target)[1]]
            into = keys.checkpoints(target)
            for one in found:
                copied = one._replace(thread_id=target)
                records.append(RecordWrite(into, _key(one), codec.close_checkpoint(into, _key(one), copied)))
            for collection, into in (
                (keys.channels(source), keys.channels(target)),
                (keys.writes(source), keys.writes(target)),
            ):
                for key, record in await tx.scan(collection):
                    content = codec.seal.open(collection, key, record)
                    records.append(RecordWrite(into, key, codec.seal.close(into, key, content)))
            for run, _ in await tx.scan(keys.ran(source)):
                records += ran_records(target, run)
            await tx.write(Batch(records=records))

        await self._write(work)

    async def _ran_in(self, run_ids: Collection[str]) -> list[str]:
        """The threads in which runs have stored checkpoints."""

        async def work(tx: StorageTransaction) -> list[str]:
            found: dict[str, None] = {}
            for run_id in run_ids:
                start, end = keys.ran_range(keys.run(run_id))
                found.update((record.value.decode(), None) for record in await tx.scan(keys.RAN, start=start, end=end))
            return list(found)

        found: list[str] = await self._read(work)
        return found

    async def _remove(self, removals: Callable[[StorageTransaction], Any]) -> None:
        async def work(tx: StorageTransaction) -> None:
            records = await removals(tx)
            if records:
                await tx.write(Batch(records=records))

        await self._write(work)


def _key(one: StoredCheckpoint) -> str:
    return keys.checkpoint(one.checkpoint_ns, one.checkpoint_id)
