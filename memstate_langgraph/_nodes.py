"""Whose writes a store's are: those made in a node belong to its thread, and say where they were made."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final, cast

from langchain_core.runnables import RunnableConfig

from memstate_core.engine import Locate
from memstate_core.facts import TransactionContext, Unset
from memstate_core.store_base import StoreBase
from memstate_langgraph._rewinders import Rewinders
from memstate_langgraph._tags import Node, current_node
from memstate_langgraph.rewind import Rewinder


class _Attribution:
    """A store's context; one that the store had before goes first."""

    def __init__(self, store: StoreBase) -> None:
        self._store = store
        self._before = store.engine.context
        self.rewinders = Rewinders()

    def __call__(self) -> TransactionContext | None:
        given = self._before() if self._before is not None else None
        node = current_node()
        if node is None or not _is_ours(node, self._store):
            return given
        for rewinder in self.rewinders.alive():
            rewinder.notes.writes(node.thread_id, node.tag.ns)
        session_id: str | None | Unset = node.thread_id
        actor: str | None = node.tag.name
        if given is not None:
            session_id = session_id if isinstance(given.session_id, Unset) else given.session_id
            actor = given.actor or actor
        return TransactionContext(session_id, node.tag.mark(), actor)


_guard: Final = threading.Lock()


def attribute(store: StoreBase, rewinder: Rewinder) -> None:
    """Let the store's writes in nodes be those of the nodes, and the rewinder be told as long as it lives.

    Once for a store, however many checkpointers it gets: there may be one for each request.
    """
    with _guard:
        context = store.engine.context
        if not isinstance(context, _Attribution):
            context = _Attribution(store)
            store.engine.context = context
            store.engine.locators.append(_locate)
    context.rewinders.add(rewinder)


def _locate(where: Any) -> tuple[str, Locate] | None:
    """What ``at()`` takes for a place in a thread's past."""
    if isinstance(where, Mapping) and "configurable" in where:
        return Rewinder.located(cast(RunnableConfig, where))
    return None


def _is_ours(node: Node, store: StoreBase) -> bool:
    """Whether the node's graph has a checkpointer on this store."""
    return any(getattr(value, "memory", None) is store for value in node.configurable.values())


def stranger(store: StoreBase) -> Node | None:
    """The node that is running here, if its graph goes back with another memory than this store.

    A memory of which no checkpointer attributes writes goes nowhere.
    """
    node = current_node()
    if node is None:
        return None
    memories = [
        one for value in node.configurable.values() if isinstance(one := getattr(value, "memory", None), StoreBase)
    ]
    return node if memories and all(one is not store and one.engine.context is not None for one in memories) else None
