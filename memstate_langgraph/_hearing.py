"""What LangGraph tells nobody, and what is therefore remembered from one of its calls to the next."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextvars import ContextVar
from typing import Any, Final, NamedTuple
from uuid import UUID

from langgraph.checkpoint.base import WRITES_IDX_MAP, Checkpoint, CheckpointMetadata, CheckpointTuple


class Given(NamedTuple):
    """What the graph that was started last was given."""

    run_id: UUID
    thread_id: str | None
    value: Any


class Look(NamedTuple):
    """A checkpoint of a thread's root that was looked at outside of any run.

    ``seen`` are the versions that the nodes had seen there, and ``finished`` the tasks that have.
    """

    thread_id: str
    checkpoint_id: str
    parent_id: str | None
    seen: Mapping[str, Mapping[str, Any]]
    finished: Collection[str]


class Update(NamedTuple):
    """From where ``update_state`` goes on: a checkpoint, and the tasks that had finished."""

    checkpoint_id: str
    finished: Collection[str]


given_input: Final[ContextVar[Given | None]] = ContextVar("memstate_langgraph_input", default=None)
# The last two, the newest last: update_state looks at what it updates, and then perhaps at what is the latest.
last_looks: Final[ContextVar[tuple[Look, ...]]] = ContextVar("memstate_langgraph_looks", default=())


def look_at(thread_id: str, found: CheckpointTuple | None) -> None:
    """Remember a look."""
    if found is None:
        last_looks.set(())
        return
    parent = found.parent_config["configurable"]["checkpoint_id"] if found.parent_config is not None else None
    look = Look(thread_id, found.checkpoint["id"], parent, found.checkpoint["versions_seen"], finished_tasks(found))
    last_looks.set((*last_looks.get()[-1:], look))


def finished_tasks(found: CheckpointTuple) -> set[str]:
    """The tasks of a checkpoint that have written more than errors and interrupts."""
    return {task_id for task_id, channel, _ in found.pending_writes or () if channel not in WRITES_IDX_MAP}


def updated_from(
    thread_id: str, parent_id: str | None, checkpoint: Checkpoint, metadata: CheckpointMetadata
) -> Update | None:
    """What ``update_state`` updates when it stores a checkpoint, told from what it has looked at; None: nothing."""
    looks = [look for look in last_looks.get() if look.thread_id == thread_id]
    copies = metadata.get("source") == "fork"  # its parent is that of the checkpoint that is copied
    updated = next(
        (
            look
            for look in (looks if copies else reversed(looks))
            if (look.parent_id if copies else look.checkpoint_id) == parent_id
        ),
        None,
    )
    source = updated.checkpoint_id if updated is not None else parent_id
    if source is None:
        return None
    # An update that ends the step applies what its finished tasks wrote, so their triggers count as seen.
    applies = (
        metadata.get("source") == "update"
        and updated is not None
        and _without_empty(updated.seen) != _without_empty(checkpoint["versions_seen"])
    )
    finished = updated.finished if applies and updated is not None else ()
    return Update(source, finished)


def _without_empty(seen: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {node: versions for node, versions in seen.items() if versions}
