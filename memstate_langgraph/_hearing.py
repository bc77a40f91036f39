"""What LangGraph tells nobody, and what is therefore remembered from one of its calls to the next."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextvars import ContextVar
from typing import Any, Final, NamedTuple
from uuid import UUID

from langgraph.checkpoint.base import WRITES_IDX_MAP, CheckpointTuple


class Given(NamedTuple):
    """What the graph that was started last was given."""

    run_id: UUID
    thread_id: str | None
    value: Any


class Look(NamedTuple):
    """A checkpoint of a thread's root that was looked at outside of any run.

    ``is_latest``: no id was asked for. ``seen`` are the versions that the nodes had seen there, and ``finished`` the
    tasks that have.
    """

    thread_id: str
    is_latest: bool
    checkpoint_id: str
    parent_id: str | None
    seen: Mapping[str, Mapping[str, Any]]
    finished: Collection[str]


given_input: Final[ContextVar[Given | None]] = ContextVar("memstate_langgraph_input", default=None)
# The last two, the newest last: update_state looks at what it updates, and then perhaps at what is the latest.
last_looks: Final[ContextVar[tuple[Look, ...]]] = ContextVar("memstate_langgraph_looks", default=())


def look_at(thread_id: str, *, is_latest: bool, found: CheckpointTuple | None) -> None:
    """Remember a look."""
    if found is None:
        last_looks.set(())
        return
    parent = found.parent_config["configurable"]["checkpoint_id"] if found.parent_config is not None else None
    look = Look(
        thread_id, is_latest, found.checkpoint["id"], parent, found.checkpoint["versions_seen"], finished_tasks(found)
    )
    last_looks.set((*last_looks.get()[-1:], look))


def finished_tasks(found: CheckpointTuple) -> set[str]:
    """The tasks of a checkpoint that have written more than errors and interrupts."""
    return {task_id for task_id, channel, _ in found.pending_writes or () if channel not in WRITES_IDX_MAP}
