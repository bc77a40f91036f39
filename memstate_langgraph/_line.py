"""What a thread's line of memory comes to: which transactions are in effect on it since some place.

The line is the session's in the journal. A transaction of it is in effect unless a *replay* after it left it out: that
is a transaction of the line too, which says in a record from where on it began anew, and what it kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import ormsgpack

from memstate_core.facts import Entry
from memstate_core.protocols import RecordWrite, StorageTransaction
from memstate_langgraph import _keys as keys
from memstate_langgraph._tags import Tag, tag_of

_CHUNK: Final = 32
_STATE: Final = "state"
# With what a checkpoint's record begins when a position is in front of it; no record begins so by itself.
_PLACED: Final = b"\x03"


class Standing(NamedTuple):
    """The line on which the memory of a thread stands, and the number of the next new one."""

    line: int
    following: int


class RootPosition(NamedTuple):
    """Where the memory stood at a checkpoint of the root: a place in the journal, and the line it is on.

    It is kept in front of the checkpoint's own record, or in a record of its own where another saver keeps that one.
    """

    seq: int
    line: int

    def before(self, record: bytes) -> bytes:
        """A checkpoint's record with this in front."""
        packed = ormsgpack.packb(list(self))
        return _PLACED + bytes((len(packed),)) + packed + record


def divided(record: bytes) -> tuple[RootPosition | None, bytes]:
    """What is in front of a checkpoint's record, and the rest of it."""
    if record[:1] != _PLACED:
        return None, record
    end = 2 + record[1]
    return RootPosition._make(ormsgpack.unpackb(record[2:end])), record[end:]


class Span(NamedTuple):
    """The transactions in effect above ``base``, oldest first."""

    base: int
    entries: Sequence[Entry]

    @property
    def seqs(self) -> list[int]:
        return [entry.seq for entry in self.entries]


def tag(entry: Entry) -> Tag | None:
    return tag_of(entry.mark)


class Line:
    """Reads and writes what is kept of a thread's memory, in one storage transaction."""

    def __init__(self, tx: StorageTransaction, thread_id: str) -> None:
        self._tx = tx
        self._thread_id = thread_id
        self._checkpoints = keys.checkpoints(thread_id)
        self._positions = keys.positions(thread_id)
        self._lines = keys.lines(thread_id)
        self._finished = keys.finished(thread_id)

    # Records

    @staticmethod
    def records(thread_id: str, checkpoint_id: str | None) -> list[tuple[str, str]]:
        """Where the standing of a thread is kept, and the position of a checkpoint of its root."""
        standing = keys.lines(thread_id), _STATE
        if checkpoint_id is None:
            return [standing]
        key = keys.checkpoint("", checkpoint_id)
        return [standing, (keys.checkpoints(thread_id), key), (keys.positions(thread_id), key)]

    async def standing(self) -> Standing:
        record = await self._tx.record(self._lines, _STATE)
        return Standing(0, 1) if record is None else Standing._make(ormsgpack.unpackb(record))

    def stand(self, standing: Standing) -> RecordWrite:
        return RecordWrite(self._lines, _STATE, ormsgpack.packb(list(standing)))

    async def tip(self, line: int) -> int | None:
        """Where the memory stood when the line was left."""
        record = await self._tx.record(self._lines, f"tip/{line}")
        return None if record is None else ormsgpack.unpackb(record)

    def leave(self, line: int, head: int) -> RecordWrite:
        return RecordWrite(self._lines, f"tip/{line}", ormsgpack.packb(head))

    async def position(self, checkpoint_id: str) -> RootPosition | None:
        """Where the memory stood at a checkpoint of the root; None: nobody has noted it."""
        key = keys.checkpoint("", checkpoint_id)
        checkpoint = await self._tx.record(self._checkpoints, key)
        position = divided(checkpoint)[0] if checkpoint is not None else None
        if position is None and (record := await self._tx.record(self._positions, key)) is not None:
            position = RootPosition._make(ormsgpack.unpackb(record))
        return position

    def place(self, checkpoint_id: str, position: RootPosition) -> RecordWrite:
        return RecordWrite(self._positions, keys.checkpoint("", checkpoint_id), ormsgpack.packb(list(position)))

    async def content(self, checkpoint_ns: str, checkpoint_id: str | None) -> list[int]:
        """The transactions that a checkpoint of a nested graph comes to (None: its latest)."""
        if checkpoint_id is not None:
            record = await self._tx.record(self._positions, keys.checkpoint(checkpoint_ns, checkpoint_id))
            return [] if record is None else ormsgpack.unpackb(record)
        start, end = keys.namespace_range(checkpoint_ns)
        found = await self._tx.scan(self._positions, start=start, end=end, limit=1, reverse=True)
        return ormsgpack.unpackb(found[0].value) if found else []

    def contain(self, checkpoint_ns: str, checkpoint_id: str, content: Sequence[int]) -> RecordWrite:
        return RecordWrite(
            self._positions, keys.checkpoint(checkpoint_ns, checkpoint_id), ormsgpack.packb(list(content))
        )

    async def finished(self, checkpoint_ns: str, checkpoint_id: str) -> dict[str, list[int]]:
        """The transactions of the finished tasks of a checkpoint, by task id; those without any may be missing."""
        start, end = keys.task_range(checkpoint_ns, checkpoint_id)
        found = await self._tx.scan(self._finished, start=start, end=end)
        return {key.rpartition("/")[2]: ormsgpack.unpackb(record) for key, record in found}

    async def made_by(self, checkpoint_ns: str, checkpoint_id: str, task_id: str) -> list[int] | None:
        """The transactions of a task for which :meth:`finish` was written; None: it was not."""
        record = await self._tx.record(self._finished, keys.task(checkpoint_ns, checkpoint_id, task_id))
        return None if record is None else ormsgpack.unpackb(record)

    def finish(self, checkpoint_ns: str, checkpoint_id: str, task_id: str, made: Sequence[int]) -> RecordWrite:
        return RecordWrite(
            self._finished, keys.task(checkpoint_ns, checkpoint_id, task_id), ormsgpack.packb(list(made))
        )

    def replayed(self, name: str, base: int, kept: Sequence[int], failed: str) -> RecordWrite:
        """What a replay began from and kept; ``failed`` is the namespace of the task for whose failure it was."""
        return RecordWrite(self._lines, f"replay/{name}", ormsgpack.packb([base, list(kept), failed]))

    # The journal

    async def above(self, head: int, base: int) -> Span:
        """What is in effect on the line of ``head`` since ``base``."""
        found: list[Entry] = []
        at = head
        while at > base:
            for entry in await self._tx.line(at, above=base, limit=_CHUNK):
                one = tag(entry)
                if one is not None and one.replay is not None:
                    at, kept, _ = await self._replay(one.replay, entry)
                    found += reversed(kept)
                    break
                found.append(entry)
                at = entry.parent
        return Span(base, found[::-1])

    async def since(self, head: int, root: str, *, within: str = "") -> Span:
        """What is in effect of what was made since a checkpoint of the root ran, and of what came between.

        ``within``: also what was only taken back because a task failed in whose graph, of this namespace, it was made.
        """
        found: list[Entry] = []
        outside: list[Entry] = []  # counts only when something of the run lies before it
        at = base = head
        while at:
            for entry in await self._tx.line(at, limit=_CHUNK):
                one = tag(entry)
                if one is None:
                    outside.append(entry)
                    at = entry.parent
                    continue
                if one.root < root:
                    return Span(base, found[::-1])
                found += outside
                outside = []
                if one.replay is not None:
                    base, kept, failed = await self._replay(one.replay, entry)
                    if failed and (within == failed or within.startswith(f"{failed}|")):
                        at = base = entry.parent
                        continue
                    at = base
                    found += reversed(kept)
                    break
                found.append(entry)
                at = base = entry.parent
        return Span(base, found[::-1])

    async def _replay(self, name: str, entry: Entry) -> tuple[int, list[Entry], str]:
        record: Any = await self._tx.record(self._lines, f"replay/{name}")
        if record is None:
            return entry.parent, [], ""
        base, seqs, failed = ormsgpack.unpackb(record)
        entries = await self._tx.entries(seqs)
        return base, [entries[seq] for seq in seqs], failed

    async def before(self, head: int, above: int, checkpoint_id: str) -> int:
        """The place on the line of ``head`` before all that ran from a checkpoint of the root or from a later one."""
        at = place = head
        while at > above:
            for entry in await self._tx.line(at, above=above, limit=_CHUNK):
                one = tag(entry)
                if one is not None:
                    if one.root < checkpoint_id:
                        return place
                    place = entry.parent
                at = entry.parent
        return place
