"""What is stored of the memory with checkpoints and finished tasks, told by the tags on the thread's line."""

from __future__ import annotations

from typing import Final

from memstate_core.protocols import RecordWrite, StorageTransaction
from memstate_langgraph._line import Line, RootPosition, tag
from memstate_langgraph._places import Place

# The sources of checkpoints up to which no task has run.
_BEGINNINGS: Final = ("input", "fork")


async def of_root(
    tx: StorageTransaction, place: Place, checkpoint_id: str, parent: RootPosition | None
) -> RootPosition:
    """Where the memory stands at a new checkpoint of the root; ``parent``: where it stood before, if that is known."""
    head = (await tx.position(place.thread_id)).head
    line = Line(tx, place.thread_id)
    standing = await line.standing()
    if parent is None and place.checkpoint_id is not None:
        parent = await line.position(place.checkpoint_id)
    above = parent.seq if parent is not None and parent.line == standing.line else 0
    seq = await line.before(head, above, checkpoint_id) if head > above else head
    return RootPosition(seq, standing.line)


async def of_nested(
    tx: StorageTransaction, place: Place, root: str, checkpoint_id: str, source: str | None, began: str | None
) -> list[RecordWrite]:
    """What a new checkpoint of a nested graph comes to.

    ``began``: an id from when the last run of the graph began; None: that is not known.
    """
    head = (await tx.position(place.thread_id)).head
    line = Line(tx, place.thread_id)
    content = await _content(line, head, root, place, checkpoint_id, source, began)
    return [line.contain(place.checkpoint_ns, checkpoint_id, content)] if content else []


async def _content(
    line: Line, head: int, root: str, place: Place, checkpoint_id: str, source: str | None, began: str | None
) -> list[int]:
    """What the parent comes to, and what was made on the way from there.

    It may be stored so late that its graph has failed since, or that the thread is run from elsewhere, and what led to
    it is no longer on the line. What is noted of finished tasks tells then, and what this run did before it failed.
    """
    ns, parent = place.checkpoint_ns, place.checkpoint_id or ""
    content = set(await line.content(ns, parent)) if parent else set()
    if source in _BEGINNINGS:
        return sorted(content)
    made = await _made(line, head, root, ns, parent, checkpoint_id)
    finished = await line.finished(ns, parent) if parent else {}
    failed = {}
    if began is not None:
        failed = await _made(line, head, root, ns, max(parent, began), checkpoint_id, within=ns)
    return sorted(content.union(*({**failed, **finished, **made}).values()))


async def _made(
    line: Line, head: int, root: str, ns: str, start: str, end: str, within: str = ""
) -> dict[str, list[int]]:
    """By task, what of the line ran from a nested graph's checkpoints between two."""
    made: dict[str, list[int]] = {}
    for entry in (await line.since(head, root, within=within)).entries:
        step = one.step_in(ns) if (one := tag(entry)) is not None else None
        if step is not None and start <= step[0] < end:
            made.setdefault(step[1], []).append(entry.seq)
    return made


async def of_task(tx: StorageTransaction, place: Place, root: str, task_id: str, *, joins: bool = False) -> RecordWrite:
    """The transactions that a finished task has made; ``joins``: beside those of the one that finished before."""
    head = (await tx.position(place.thread_id)).head
    line = Line(tx, place.thread_id)
    made = [
        entry.seq
        for entry in (await line.since(head, root, within=place.checkpoint_ns)).entries
        if (one := tag(entry)) is not None and one.of_task(task_id)
    ]
    checkpoint_id = place.checkpoint_id or ""
    if joins:
        made = sorted({*made, *(await line.made_by(place.checkpoint_ns, checkpoint_id, task_id) or ())})
    return line.finish(place.checkpoint_ns, checkpoint_id, task_id, made)


def no_task(tx: StorageTransaction, place: Place, task_id: str) -> RecordWrite:
    """The same of a task that has made nothing of what counts."""
    return Line(tx, place.thread_id).finish(place.checkpoint_ns, place.checkpoint_id or "", task_id, ())
