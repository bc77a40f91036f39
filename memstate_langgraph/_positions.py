"""What is stored of the memory with checkpoints and finished tasks, told by the tags on the thread's line."""

from __future__ import annotations

from memstate_core.protocols import RecordWrite, StorageTransaction
from memstate_langgraph._line import Line, RootPosition, tag
from memstate_langgraph._places import Place


async def of_checkpoint(tx: StorageTransaction, place: Place, root: str, checkpoint_id: str) -> list[RecordWrite]:
    """Where the memory stands at a new checkpoint; of a nested graph's, what it comes to."""
    head = (await tx.position(place.thread_id)).head
    line = Line(tx, place.thread_id)
    if place.checkpoint_ns:
        return await _content(line, head, root, place.checkpoint_ns, checkpoint_id)
    standing = await line.standing()
    parent = await line.position(place.checkpoint_id) if place.checkpoint_id is not None else None
    above = parent.seq if parent is not None and parent.line == standing.line else 0
    seq = await line.before(head, above, checkpoint_id) if head > above else head
    return [line.place(checkpoint_id, RootPosition(seq, standing.line))]


async def _content(line: Line, head: int, root: str, ns: str, checkpoint_id: str) -> list[RecordWrite]:
    if not head:
        return []
    count = ns.count("|") + 1
    content = [
        entry.seq
        for entry in (await line.since(head, root)).entries
        if (one := tag(entry)) is not None
        and one.under(ns)
        and any(parts == count and earlier < checkpoint_id for parts, earlier in one.nested)
    ]
    return [line.contain(ns, checkpoint_id, content)] if content else []


async def of_task(tx: StorageTransaction, place: Place, root: str, task_id: str) -> RecordWrite:
    """The transactions that a finished task has made."""
    head = (await tx.position(place.thread_id)).head
    line = Line(tx, place.thread_id)
    made = [
        entry.seq
        for entry in (await line.since(head, root, within=place.checkpoint_ns)).entries
        if (one := tag(entry)) is not None and one.of_task(task_id)
    ]
    return line.finish(place.checkpoint_ns, place.checkpoint_id or "", task_id, made)
