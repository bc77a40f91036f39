"""Putting checkpoints and writes: what is encoded before the storage transaction, and what is decided in it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

import ormsgpack
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata

from memstate_core.protocols import RecordWrite, StorageTransaction
from memstate_langgraph import _keys as keys
from memstate_langgraph._cache import Cache
from memstate_langgraph._codec import Codec
from memstate_langgraph._fingerprint import Fingerprint, fingerprint_of
from memstate_langgraph._line import RootPosition
from memstate_langgraph._lists import ListVersion, next_version
from memstate_langgraph._reading import Reader, generation_of


def new_generation(thread_id: str) -> tuple[bytes, RecordWrite]:
    generation = os.urandom(8)
    return generation, thread_record(thread_id, generation, "")


def thread_record(thread_id: str, generation: bytes, checkpoint_id: str) -> RecordWrite:
    """The record by which puts and removals see each other.

    Both read it and both change it, so that of two at once one is done again: a put must not build on what is being
    removed, and a removal must know of all that is built on. Where transactions take turns, reading is enough.
    """
    record = ormsgpack.packb((generation, thread_id, checkpoint_id))
    return RecordWrite(keys.THREADS, keys.thread(thread_id), record)


def ran_records(thread_id: str, run: str) -> list[RecordWrite]:
    """What says that a run (its key) has stored checkpoints in a thread, to be found by either."""
    return [
        RecordWrite(keys.RAN, keys.ran_in(run, thread_id), thread_id.encode()),
        RecordWrite(keys.ran(thread_id), run, b""),
    ]


class Put:
    """One ``put``. Values are encoded as soon as it is made, so that nothing that changes them later is stored."""

    def __init__(
        self,
        codec: Codec,
        cache: Cache,
        thread_id: str,
        checkpoint_ns: str,
        parent_id: str | None,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> None:
        self._codec = codec
        self._cache = cache
        self._thread_id = thread_id
        self._checkpoint_ns = checkpoint_ns
        self._parent_id = parent_id
        self._versions: Mapping[str, Any] = dict(checkpoint["channel_versions"])
        self._checkpoint_id = checkpoint["id"]
        self._channels = keys.channels(thread_id)
        run_id = metadata.get("run_id")
        self._run = None if run_id is None else keys.run(str(run_id))
        self.thread: Final = keys.thread_place(thread_id)
        one = codec.checkpoint(thread_id, checkpoint_ns, parent_id, checkpoint, metadata)
        self._records: list[RecordWrite] = []
        self._lists: dict[str, tuple[str, tuple[bytes, ...], Fingerprint | None]] = {}
        new = [channel for channel in one.stored if channel in new_versions]
        # What the lists were encoded with is also what they build on, if nothing was removed meanwhile.
        self._known = self._cache.generation(thread_id)
        self._bases: dict[str, ListVersion | None] = {}
        for channel in new:
            key = keys.channel(checkpoint_ns, channel, new_versions[channel])
            value = checkpoint["channel_values"][channel]
            # A version that others than get_next_version made may be put twice, with different values.
            if codec.splits(value) and isinstance(new_versions[channel], str):
                base = self._bases[channel] = self._remembered(self._known, channel)
                self._lists[channel] = (key, *self._items(value, base))
            else:
                self._records.append(self._record(key, codec.whole(value)))
        collection = keys.checkpoints(thread_id)
        key = keys.checkpoint(checkpoint_ns, self._checkpoint_id)
        self._checkpoint = collection, key, codec.close_checkpoint(collection, key, one)
        # With each version the key of the one that it goes on from.
        self._made: tuple[bytes, list[tuple[ListVersion, str | None]]] | None = None

    def _record(self, key: str, content: Sequence[Any]) -> RecordWrite:
        return RecordWrite(self._channels, key, self._codec.seal.close(self._channels, key, content))

    def _items(self, values: list[Any], base: ListVersion | None) -> tuple[tuple[bytes, ...], Fingerprint | None]:
        """The values as stored, and their fingerprint; those that are as the base has them are not encoded again."""
        known = base.fingerprint if base is not None else None
        if base is None or known is None:
            fingerprint = fingerprint_of(values)
            return self._codec.items(values), fingerprint
        if known.fits(values):
            new = values[len(base.items) :]
            if not new:
                return base.items, known
            fingerprint = fingerprint_of(new)
            return base.items + self._codec.items(new), known.joined(fingerprint) if fingerprint is not None else None
        fingerprint = fingerprint_of(values)
        unchanged = known.unchanged(values)
        changed = iter(self._codec.items([value for value, is_same in zip_longest(values, unchanged) if not is_same]))
        items = [item if is_same else next(changed) for item, is_same in zip(base.items, unchanged, strict=False)]
        return (*items, *changed), fingerprint

    def _remembered(self, generation: bytes | None, channel: str) -> ListVersion | None:
        """The version that the parent had, if this process knows it."""
        if generation is None or self._parent_id is None:
            return None
        versions = self._cache.versions(generation, self._thread_id, self._checkpoint_ns, self._parent_id)
        version = versions.get(channel) if versions is not None else None
        if version is None:
            return None
        return self._cache.list_version(
            generation, self._thread_id, keys.channel(self._checkpoint_ns, channel, version)
        )

    def checkpoint(self, position: RootPosition | None) -> RecordWrite:
        """The checkpoint's own record."""
        collection, key, record = self._checkpoint
        return RecordWrite(collection, key, record if position is None else position.before(record))

    async def records(self, tx: StorageTransaction) -> list[RecordWrite]:
        """What is to be written beside, on what is there now."""
        records = list(self._records)
        generation = generation_of(await tx.record(*self.thread))
        if generation is None or not tx.is_serial:
            generation = generation or new_generation(self._thread_id)[0]
            records.append(thread_record(self._thread_id, generation, self._checkpoint_id))
        if self._run is not None and not self._cache.has_run(generation, self._thread_id, self._run):
            records += ran_records(self._thread_id, self._run)
        reader: Reader | None = None
        versions: list[tuple[ListVersion, str | None]] = []
        for channel, (key, items, fingerprint) in self._lists.items():
            base = self._bases[channel] if generation == self._known else self._remembered(generation, channel)
            if base is None:
                reader = reader or Reader(tx, self._codec, self._thread_id)
                base = await reader.base(self._checkpoint_ns, self._parent_id, channel)
            version, parts = next_version(key, items, base, fingerprint)
            versions.append((version, base.key if base is not None else None))
            records.append(self._record(key, self._codec.parts(parts)))
        self._made = generation, versions
        return records

    def done(self) -> None:
        """It has been committed: remember what the next put will build on."""
        assert self._made is not None
        generation, versions = self._made
        if generation != self._known:
            self._cache.saw(self._thread_id, generation)
        if self._run is not None:
            self._cache.keep_run(generation, self._thread_id, self._run)
        self._cache.keep_versions(generation, self._thread_id, self._checkpoint_ns, self._checkpoint_id, self._versions)
        for version, base in versions:
            self._cache.keep_list(generation, self._thread_id, version, base)
