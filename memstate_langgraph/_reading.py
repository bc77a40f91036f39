"""Reading checkpoints from the records of a thread, inside of one storage transaction."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, Final

import ormsgpack
from langgraph.checkpoint.base import Checkpoint, CheckpointTuple

from memstate_core.errors import StorageError
from memstate_core.protocols import StorageTransaction
from memstate_langgraph import _keys as keys
from memstate_langgraph._cache import Cache
from memstate_langgraph._codec import Codec, StoredCheckpoint, StoredTask
from memstate_langgraph._lists import ListVersion, version_of
from memstate_langgraph._places import config_of

# Fewer versions of a list are read one by one, more by one scan.
_FEW: Final = 2


def generation_of(record: bytes | None) -> bytes | None:
    """What changes whenever something is removed from a thread; None: there is no such thread."""
    if record is None:
        return None
    generation: bytes = ormsgpack.unpackb(record)[0]
    return generation


def thread_id_of(record: bytes) -> str:
    thread_id: str = ormsgpack.unpackb(record)[1]
    return thread_id


class Reader:
    """Reads one thread; what it has read of lists it knows, for further checkpoints and for the cache.

    What a ``cache`` has of the thread's generation is not read again.
    """

    def __init__(
        self,
        tx: StorageTransaction,
        codec: Codec,
        thread_id: str,
        *,
        share: bool = False,
        cache: Cache | None = None,
    ) -> None:
        self.tx = tx
        self._codec = codec
        self._thread_id = thread_id
        self._checkpoints = keys.checkpoints(thread_id)
        self._channels = keys.channels(thread_id)
        self._writes = keys.writes(thread_id)
        self.lists: dict[str, ListVersion] = {}
        self._contents: dict[str, list[Any]] = {}
        # Items that several checkpoints of one answer have in common are made once.
        self._made: dict[bytes, Any] | None = {} if share else None
        self._values: dict[str, Any] = {}
        self._cache = cache
        self._generation: bytes | None = None

    async def generation(self) -> bytes | None:
        if self._generation is None:
            self._generation = generation_of(await self.tx.record(keys.THREADS, keys.thread(self._thread_id)))
        return self._generation

    # Checkpoints

    async def checkpoint(self, checkpoint_ns: str, checkpoint_id: str | None) -> StoredCheckpoint | None:
        """A checkpoint that can be seen; without an id the latest one of the namespace."""
        if checkpoint_id is not None:
            found = await self.any_checkpoint(checkpoint_ns, checkpoint_id)
            return None if found is None or found.hidden else found
        end: str | None = None
        while True:
            start, last = keys.namespace_range(checkpoint_ns, end)
            records = await self.tx.scan(self._checkpoints, start=start, end=last, limit=1, reverse=True)
            if not records:
                return None
            found = self._codec.open_checkpoint(self._checkpoints, *records[0])
            if not found.hidden:
                return found
            end = found.checkpoint_id

    async def any_checkpoint(self, checkpoint_ns: str, checkpoint_id: str) -> StoredCheckpoint | None:
        """A checkpoint, also one that was deleted and is kept for others."""
        key = keys.checkpoint(checkpoint_ns, checkpoint_id)
        record = await self.tx.record(self._checkpoints, key)
        return None if record is None else self._codec.open_checkpoint(self._checkpoints, key, record)

    async def checkpoints(
        self, checkpoint_ns: str | None = None, before: str | None = None, limit: int | None = None
    ) -> list[StoredCheckpoint]:
        """The checkpoints of a namespace (None: of all), newest first."""
        start, end = keys.namespace_range(checkpoint_ns, before) if checkpoint_ns is not None else (None, None)
        records = await self.tx.scan(self._checkpoints, start=start, end=end, limit=limit, reverse=True)
        return [self._codec.open_checkpoint(self._checkpoints, *record) for record in records]

    # What a checkpoint is made of

    async def checkpoint_tuple(self, one: StoredCheckpoint) -> CheckpointTuple:
        header = self._codec.header(one)
        return CheckpointTuple(
            config_of(one.thread_id, one.checkpoint_ns, one.checkpoint_id),
            Checkpoint(**{**header, "channel_values": await self.values(one, header)}),  # type: ignore[typeddict-item]
            self._codec.metadata(one),
            config_of(one.thread_id, one.checkpoint_ns, one.parent_id) if one.parent_id else None,
            self._codec.pending(await self.tasks(one.checkpoint_ns, one.checkpoint_id)),
        )

    async def values(
        self, one: StoredCheckpoint, header: Mapping[str, Any], only: Container[str] | None = None
    ) -> dict[str, Any]:
        """The values of the channels that have one: of all, or of some."""
        values = self._codec.inline(one)
        if only is not None:
            values = {channel: value for channel, value in values.items() if channel in only}
        versions = header["channel_versions"]
        wanted = {
            channel: keys.channel(one.checkpoint_ns, channel, versions[channel])
            for channel in one.stored
            if channel in versions and (only is None or channel in only)
        }
        await self._read_all([key for key in wanted.values() if key not in self._contents and key not in self.lists])
        for channel, key in wanted.items():
            if key in self.lists:
                values[channel] = self._codec.list_of(self.lists[key].items, self._made)
                continue
            content = await self._content(key)
            if content is not None:
                values[channel] = await self._value(key, content)
        return values

    async def _read_all(self, wanted: Sequence[str]) -> None:
        """Read channels in one go, but for the lists that the cache has; whether it may be used is asked along."""
        thread = keys.THREADS, keys.thread(self._thread_id)
        guess = self._cache.generation(self._thread_id) if self._cache is not None else None
        lists: dict[str, ListVersion] = {}
        if self._cache is not None and guess is not None:
            found = [self._cache.list_version(guess, self._thread_id, key) for key in wanted]
            lists = {one.key: one for one in found if one is not None}
        places = [(self._channels, key) for key in wanted if key not in lists]
        if self._cache is not None:
            places.append(thread)
        records = await self.tx.records(places)
        if thread in records:
            self._generation = generation_of(records.pop(thread))
        if self._generation is not None and self._generation == guess:
            self.lists.update(lists)
        for (_, key), record in records.items():
            self._contents[key] = self._codec.seal.open(self._channels, key, record)

    async def _value(self, key: str, content: Sequence[Any]) -> Any:
        if self._codec.as_list(content) is not None:
            return self._codec.list_of((await self.list_version(key)).items, self._made)
        if self._made is None:
            return self._codec.value(content)
        if key not in self._values:
            self._values[key] = self._codec.value(content)
        return self._values[key]

    async def tasks(self, checkpoint_ns: str, checkpoint_id: str) -> list[StoredTask]:
        start, end = keys.task_range(checkpoint_ns, checkpoint_id)
        records = await self.tx.scan(self._writes, start=start, end=end)
        return [self._codec.open_task(self._writes, *record) for record in records]

    # Lists

    async def _content(self, key: str) -> list[Any] | None:
        if key not in self._contents:
            record = await self.tx.record(self._channels, key)
            if record is None:
                return None
            self._contents[key] = self._codec.seal.open(self._channels, key, record)
        return self._contents[key]

    async def list_version(self, key: str) -> ListVersion:
        """A version of a list, with those that it is put together from.

        :raises StorageError: one of them is missing.
        """
        behind: list[str] = []
        at: str | None = key
        while at is not None and at not in self.lists:
            content = await self._content(at)
            record = self._codec.as_list(content) if content is not None else None
            if record is None:
                raise StorageError(
                    f"thread {self._thread_id!r} has no record {at!r} of {self._channels!r}, from which a list is put "
                    "together; was it deleted by hand?"
                )
            if at == key and record.depth > _FEW:
                await self._read_between(record.lowest, key)
            behind.append(at)
            at = record.base
        for one in reversed(behind):
            record = self._codec.as_list(self._contents[one])
            assert record is not None
            self.lists[one] = version_of(one, record, self.lists[record.base] if record.base is not None else None)
        return self.lists[key]

    async def _read_between(self, lowest: str, key: str) -> None:
        for found, record in await self.tx.scan(self._channels, start=lowest, end=key):
            if found not in self._contents:
                self._contents[found] = self._codec.seal.open(self._channels, found, record)

    def known_list(self, checkpoint_ns: str, channel: str, version: Any) -> ListVersion | None:
        """A version of a list, if it has been read."""
        return self.lists.get(keys.channel(checkpoint_ns, channel, version))

    async def base(self, checkpoint_ns: str, parent_id: str | None, channel: str) -> ListVersion | None:
        """The version of a list that a checkpoint had; None: it had none that is stored in parts."""
        parent = await self.any_checkpoint(checkpoint_ns, parent_id) if parent_id else None
        version = self._codec.header(parent)["channel_versions"].get(channel) if parent is not None else None
        if version is None:
            return None
        key = keys.channel(checkpoint_ns, channel, version)
        content = await self._content(key)
        return (
            await self.list_version(key) if content is not None and self._codec.as_list(content) is not None else None
        )
