"""From where in a graph a transaction was made: kept as its mark, and read from LangGraph's context.

A mark is ``lg/<root checkpoint>/<nested checkpoints>/<namespace of the task>``. The namespace of a task is that of its
graph, with ``name:task id`` for itself; nested checkpoints are ``parts:id``, where ``parts`` is how many parts of the
namespace are that of the graph they belong to.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final, NamedTuple

from langchain_core.runnables.config import var_child_runnable_config
from langgraph.runtime import ExecutionInfo, Runtime

from memstate_core.values import IDENTIFIER_LENGTH

_PREFIX: Final = "lg/"
_SEPARATOR: Final = "|"
_REPLAY: Final = "~"


class Tag(NamedTuple):
    """Where a transaction was made.

    ``root`` is the root's checkpoint that the task ran from, ``nested`` those of the graphs between, each with the
    number of the parts of its namespace, and ``ns`` the task's own namespace. ``replay`` names the record of a
    transaction that is a replay.
    """

    root: str
    nested: tuple[tuple[int, str], ...]
    ns: str
    replay: str | None = None

    def under(self, ns: str) -> bool:
        """Whether it was made by the task with this namespace, or below it."""
        return self.ns == ns or self.ns.startswith(f"{ns}{_SEPARATOR}")

    def of_task(self, task_id: str) -> bool:
        """Whether it was made by a task or below it, wherever the task stands."""
        return any(part.partition(":")[2] == task_id for part in self.ns.split(_SEPARATOR))

    def levels(self) -> Iterator[tuple[str, str, str]]:
        """The graphs on the way to the task: namespace, checkpoint, and task in it."""
        parts = self.ns.split(_SEPARATOR)
        yield "", self.root, parts[0].partition(":")[2]
        for count, checkpoint_id in self.nested:
            if count < len(parts):
                yield _SEPARATOR.join(parts[:count]), checkpoint_id, parts[count].partition(":")[2]

    def step_in(self, ns: str) -> tuple[str, str] | None:
        """Checkpoint and task of the graph with this namespace in which it was made; None: not in it.

        A ``@task`` is none of a graph that its entrypoint runs under the same namespace: it has no checkpoint but that
        of the entrypoint.
        """
        above = ""
        for known, checkpoint_id, task_id in self.levels():
            if known == ns:
                return (checkpoint_id, task_id) if checkpoint_id != above else None
            above = checkpoint_id
        return None

    @property
    def name(self) -> str:
        """The node's."""
        return self.ns.rpartition(_SEPARATOR)[2].partition(":")[0]

    def mark(self) -> str:
        """The tag as a mark; where that would be too long, that of the innermost task for which it is not."""
        ns, nested = self.ns, self.nested
        while True:
            middle = ",".join(f"{count}:{checkpoint_id}" for count, checkpoint_id in nested)
            text = f"{_PREFIX}{self.root}/{middle}/{ns}"
            if len(text) <= IDENTIFIER_LENGTH or _SEPARATOR not in ns:
                return text
            ns = ns.rpartition(_SEPARATOR)[0]
            parts = ns.count(_SEPARATOR) + 1
            nested = tuple(one for one in nested if one[0] < parts)


def replay_mark(root: str) -> tuple[str, str]:
    """The mark of a new replay, and the name of its record."""
    name = uuid.uuid4().hex
    return f"{_PREFIX}{root}/{_REPLAY}{name}/", name


@lru_cache(2048)
def tag_of(mark: str | None) -> Tag | None:
    """The tag that a mark is; None: the transaction was made outside of any run."""
    if mark is None or not mark.startswith(_PREFIX):
        return None
    root, middle, ns = mark[len(_PREFIX) :].split("/", 2)
    if middle.startswith(_REPLAY):
        return Tag(root, (), ns, middle[1:])
    nested = []
    for one in middle.split(",") if middle else ():
        count, _, checkpoint_id = one.partition(":")
        nested.append((int(count), checkpoint_id))
    return Tag(root, tuple(nested), ns)


def runtime_in(configurable: Mapping[str, Any]) -> Runtime[Any] | None:
    """LangGraph's runtime, which only what belongs to a run has."""
    for value in configurable.values():
        if isinstance(value, Runtime):
            return value
    return None


def _tag(configurable: Mapping[str, Any], info: ExecutionInfo) -> Tag:
    ns = info.checkpoint_ns
    nested: list[tuple[int, str]] = []
    root = info.checkpoint_id
    for graph, checkpoint_id in (configurable.get("checkpoint_map") or {}).items():
        if graph == "":
            root = checkpoint_id
        elif ns.startswith(f"{graph}{_SEPARATOR}"):
            nested.append((graph.count(_SEPARATOR) + 1, checkpoint_id))
    return Tag(root, tuple(sorted(nested)), ns)


class Node(NamedTuple):
    """The node in which something happens, and what was found of it in LangGraph's context."""

    thread_id: str
    tag: Tag
    configurable: Mapping[str, Any]


_given: ContextVar[Node | None] = ContextVar("memstate_langgraph_node", default=None)


def current_node() -> Node | None:
    """The node that is running here; None: it is no node of a graph with a thread."""
    given = _given.get()
    if given is not None:
        return given
    config = var_child_runnable_config.get()
    configurable = config.get("configurable") if config is not None else None
    runtime = runtime_in(configurable) if configurable else None
    info = runtime.execution_info if runtime is not None else None
    if configurable is None or info is None or info.thread_id is None or not info.checkpoint_ns:
        return None
    return Node(str(info.thread_id), _tag(configurable, info), configurable)


@contextlib.contextmanager
def acting_as(node: Node | None) -> Iterator[None]:
    """Let what is done in the block count as done by a node."""
    token = _given.set(node)
    try:
        yield
    finally:
        _given.reset(token)
