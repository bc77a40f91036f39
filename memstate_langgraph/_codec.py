"""Checkpoints, channel values and pending writes as the content of records, and back."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, Final, NamedTuple, cast

from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    Checkpoint,
    CheckpointMetadata,
    PendingWrite,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from memstate_langgraph._line import divided
from memstate_langgraph._lists import ListRecord
from memstate_langgraph._seal import Seal

# Shorter lists are written whole.
_FEW: Final = 4
_LONGEST_INLINE: Final = 200
_MSGPACK: Final = "msgpack"
_ARRAY_OF_ONE: Final = b"\x91"
_ARRAY: Final = b"\xdd"

Typed = tuple[str, bytes]


class StoredCheckpoint(NamedTuple):
    """A checkpoint without the channel values that are stored for themselves.

    ``stored`` names those channels. ``hidden`` is one that was deleted but from which a DeltaChannel of a later
    checkpoint is still put together.
    """

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_id: str | None
    hidden: bool
    header: Typed
    metadata: Typed
    inline: Typed
    stored: Sequence[str]


class StoredWrite(NamedTuple):
    place: int
    channel: str
    type: str
    data: bytes
    path: str


class StoredTask(NamedTuple):
    """What a task wrote."""

    task_id: str
    writes: Sequence[StoredWrite]

    @property
    def has_finished(self) -> bool:
        """Whether it wrote to a channel of the graph, as a task does at its end; errors and interrupts are special."""
        return self.finished_writes > 0

    @property
    def finished_writes(self) -> int:
        return sum(write.place >= 0 for write in self.writes)

    def merged(self, new: Sequence[StoredWrite]) -> StoredTask:
        """With further writes: of two at one place the first wins, but for special channels, where the last does."""
        by_place = {write.place: write for write in self.writes}
        for write in new:
            if write.place < 0 or write.place not in by_place:
                by_place[write.place] = write
        return self._replace(writes=list(by_place.values()))


class Codec:
    """Turns what LangGraph passes into records, with one serializer."""

    def __init__(self, serde: SerializerProtocol) -> None:
        self.serde = serde
        self.seal = Seal(serde)
        # Encrypted records are encrypted as a whole, by their seal.
        self.plain: SerializerProtocol = serde.serde if isinstance(serde, EncryptedSerializer) else serde
        self.splits_lists = isinstance(self.plain, JsonPlusSerializer)

    # Checkpoints

    def checkpoint(
        self,
        thread_id: str,
        checkpoint_ns: str,
        parent_id: str | None,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
    ) -> StoredCheckpoint:
        header = {key: value for key, value in checkpoint.items() if key != "channel_values"}
        inline: dict[str, Any] = {}
        stored: list[str] = []
        for channel, value in checkpoint["channel_values"].items():
            if is_inline(value):
                inline[channel] = value
            else:
                stored.append(channel)
        return StoredCheckpoint(
            thread_id,
            checkpoint_ns,
            checkpoint["id"],
            parent_id,
            False,
            self.plain.dumps_typed(header),
            self.plain.dumps_typed(metadata),
            self.plain.dumps_typed(inline),
            stored,
        )

    def close_checkpoint(self, collection: str, key: str, one: StoredCheckpoint) -> bytes:
        return self.seal.close(collection, key, list(one))

    def open_checkpoint(self, collection: str, key: str, record: bytes) -> StoredCheckpoint:
        content = self.seal.open(collection, key, divided(record)[1])
        for place in (5, 6, 7):
            content[place] = tuple(content[place])
        return StoredCheckpoint._make(content)

    def header(self, one: StoredCheckpoint) -> dict[str, Any]:
        """The checkpoint but for its channel values."""
        return cast(dict[str, Any], self.plain.loads_typed(one.header))

    def inline(self, one: StoredCheckpoint) -> dict[str, Any]:
        """The channel values that are kept in the checkpoint itself."""
        return cast(dict[str, Any], self.plain.loads_typed(one.inline))

    def metadata(self, one: StoredCheckpoint) -> CheckpointMetadata:
        return cast(CheckpointMetadata, self.plain.loads_typed(one.metadata))

    # Channel values

    def splits(self, value: Any) -> bool:
        """Whether a value is stored item by item."""
        return self.splits_lists and type(value) is list and len(value) >= _FEW

    def items(self, values: Sequence[Any]) -> tuple[bytes, ...]:
        """Each value as msgpack. Packed in a list, since what is not is not always msgpack."""
        dump = self.plain.dumps_typed
        return tuple([dump([value])[1][1:] for value in values])

    def list_of(self, items: Sequence[bytes], known: dict[bytes, Any] | None) -> list[Any]:
        """The items as values; ``known`` has those that were made before, which are used again."""
        load = self.plain.loads_typed
        if known is None:
            head = _ARRAY + len(items).to_bytes(4, "big")
            found: list[Any] = load((_MSGPACK, b"".join((head, *items))))
            return found
        values = []
        for item in items:
            if item not in known:
                known[item] = load((_MSGPACK, _ARRAY_OF_ONE + item))[0]
            values.append(known[item])
        return values

    def whole(self, value: Any) -> list[Any]:
        """The record of a value that is stored whole."""
        return ["value", *self.plain.dumps_typed(value)]

    def parts(self, record: ListRecord) -> list[Any]:
        return ["list", *record]

    def as_list(self, content: Sequence[Any]) -> ListRecord | None:
        """The record of a list that is stored in parts; None: the value is stored whole."""
        return ListRecord._make(content[1:]) if content[0] == "list" else None

    def value(self, content: Sequence[Any]) -> Any:
        return self.plain.loads_typed((content[1], content[2]))

    # Pending writes

    def writes(self, writes: Sequence[tuple[str, Any]], path: str) -> list[StoredWrite]:
        dump = self.plain.dumps_typed
        return [
            StoredWrite(WRITES_IDX_MAP.get(channel, index), channel, *dump(value), path)
            for index, (channel, value) in enumerate(writes)
        ]

    def close_task(self, collection: str, key: str, task: StoredTask) -> bytes:
        return self.seal.close(collection, key, [task.task_id, [list(one) for one in task.writes]])

    def open_task(self, collection: str, key: str, record: bytes) -> StoredTask:
        task_id, writes = self.seal.open(collection, key, record)
        return StoredTask(task_id, [StoredWrite._make(one) for one in writes])

    def pending(self, tasks: Sequence[StoredTask], channels: Container[str] | None = None) -> list[PendingWrite]:
        """The writes of a checkpoint's tasks (to some channels), in the order in which a step applies them."""
        ordered = sorted(
            (
                (task.task_id, write)
                for task in tasks
                for write in task.writes
                if channels is None or write.channel in channels
            ),
            key=lambda one: writes_sort_key(one[1].path, one[0], one[1].place),
        )
        load = self.plain.loads_typed
        return [(task_id, write.channel, load((write.type, write.data))) for task_id, write in ordered]


def is_inline(value: Any) -> bool:
    """Whether a value is kept in the checkpoint itself."""
    kind = type(value)
    return value is None or kind in (bool, int, float) or (kind is str and len(value) <= _LONGEST_INLINE)
