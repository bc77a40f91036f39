"""Whose writes a store's are: those made in a node belong to its thread, and say where they were made."""

from __future__ import annotations

from memstate_core.facts import TransactionContext, Unset
from memstate_core.store_base import StoreBase
from memstate_langgraph._tags import Node, current_node
from memstate_langgraph.rewind import Rewinder


def attribute(store: StoreBase, rewinder: Rewinder) -> None:
    """Let the store's writes in nodes be those of the nodes; a context that the store had before goes first."""
    before = store.engine.context

    def context() -> TransactionContext | None:
        given = before() if before is not None else None
        node = current_node()
        if node is None or not _is_ours(node, store):
            return given
        rewinder.notes.writes(node.thread_id, node.tag.ns)
        session_id: str | None | Unset = node.thread_id
        actor: str | None = node.tag.name
        if given is not None:
            session_id = session_id if isinstance(given.session_id, Unset) else given.session_id
            actor = given.actor or actor
        return TransactionContext(session_id, node.tag.mark(), actor)

    store.engine.context = context


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
