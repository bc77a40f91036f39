"""Deleting and pruning: what goes, what must stay for others, and what nobody needs any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memstate_core.protocols import RecordWrite, StorageTransaction
from memstate_langgraph import _keys as keys
from memstate_langgraph._codec import Codec, StoredCheckpoint
from memstate_langgraph._reading import Reader
from memstate_langgraph._writing import new_generation


async def everything(tx: StorageTransaction, thread_id: str) -> list[RecordWrite]:
    """The removal of all that a thread has."""
    runs = [key for key, _ in await tx.scan(keys.ran(thread_id))]
    exists = await tx.record(keys.THREADS, keys.thread(thread_id)) is not None
    writes = [
        RecordWrite(collection, key, None)
        for collection in keys.of_thread(thread_id)
        for key, _ in await tx.scan(collection)
    ]
    writes += [RecordWrite(keys.RAN, keys.ran_in(run, thread_id), None) for run in runs]
    if exists:
        writes.append(RecordWrite(keys.THREADS, keys.thread(thread_id), None))
    return writes


async def all_but(
    tx: StorageTransaction, codec: Codec, thread_id: str, stays: Callable[[list[StoredCheckpoint]], set[str]]
) -> list[RecordWrite]:
    """The removal of the checkpoints of a thread but those whose keys ``stays`` returns, and of what only they used.

    A checkpoint from which a DeltaChannel of one that stays is put together stays too, but cannot be seen any more.
    """
    reader = Reader(tx, codec, thread_id)
    if await reader.generation() is None:
        return []
    found = {keys.checkpoint(one.checkpoint_ns, one.checkpoint_id): one for one in await reader.checkpoints()}
    visible = stays([one for one in found.values() if not one.hidden])
    if all(key in visible for key, one in found.items() if not one.hidden):
        return []
    kept = visible | _needed(found, visible, codec)
    collection = keys.checkpoints(thread_id)
    removals: list[RecordWrite] = []
    for key, one in found.items():
        if key not in kept:
            removals.append(RecordWrite(collection, key, None))
        elif key not in visible and not one.hidden:
            hidden = one._replace(hidden=True)
            removals.append(RecordWrite(collection, key, codec.close_checkpoint(collection, key, hidden)))
    removals += await _orphans(tx, codec, thread_id, [found[key] for key in kept])
    for key, _ in await tx.scan(keys.writes(thread_id)):
        if keys.checkpoint_of_task(key) not in kept:
            removals.append(RecordWrite(keys.writes(thread_id), key, None))
    for key, _ in await tx.scan(keys.positions(thread_id)):
        if key not in visible:
            removals.append(RecordWrite(keys.positions(thread_id), key, None))
    for key, _ in await tx.scan(keys.finished(thread_id)):
        if keys.checkpoint_of_task(key) not in visible:
            removals.append(RecordWrite(keys.finished(thread_id), key, None))
    run_ids = {codec.metadata(found[key]).get("run_id") for key in visible}
    runs = {keys.run(str(run_id)) for run_id in run_ids if run_id is not None}
    for key, _ in await tx.scan(keys.ran(thread_id)):
        if key not in runs:
            removals.append(RecordWrite(keys.ran(thread_id), key, None))
            removals.append(RecordWrite(keys.RAN, keys.ran_in(key, thread_id), None))
    removals.append(new_generation(thread_id)[1])
    return removals


def _needed(found: Mapping[str, StoredCheckpoint], visible: set[str], codec: Codec) -> set[str]:
    """The keys of the ancestors back to which DeltaChannels of the visible checkpoints are put together."""
    needed: set[str] = set()
    for key in visible:
        one = found[key]
        counters = codec.metadata(one).get("counters_since_delta_snapshot") or {}
        channels = set(counters) - set(one.stored) - set(codec.inline(one))
        while channels and one.parent_id is not None:
            parent = keys.checkpoint(one.checkpoint_ns, one.parent_id)
            if parent not in found:
                break
            one = found[parent]
            needed.add(parent)
            channels -= set(one.stored) | set(codec.inline(one))
    return needed


async def _orphans(
    tx: StorageTransaction, codec: Codec, thread_id: str, kept: list[StoredCheckpoint]
) -> list[RecordWrite]:
    """The removal of channel values that no checkpoint uses, nor a list that one uses."""
    collection = keys.channels(thread_id)
    contents: dict[str, Any] = {
        key: codec.seal.open(collection, key, record) for key, record in await tx.scan(collection)
    }
    used: set[str] = set()
    for one in kept:
        versions = codec.header(one)["channel_versions"]
        for channel in one.stored:
            key: str | None = keys.channel(one.checkpoint_ns, channel, versions.get(channel, ""))
            while key is not None and key in contents and key not in used:
                used.add(key)
                record = codec.as_list(contents[key])
                key = record.base if record is not None else None
    return [RecordWrite(collection, key, None) for key in contents if key not in used]
