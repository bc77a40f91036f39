"""Thread, namespace and checkpoint: what a config says of where to look."""

from __future__ import annotations

from langchain_core.runnables import RunnableConfig

from memstate_core.errors import ValidationFailed
from memstate_langgraph import _keys as keys


class Place:
    """Thread, namespace and checkpoint of a config."""

    __slots__ = ("checkpoint_id", "checkpoint_ns", "thread_id")

    def __init__(self, config: RunnableConfig) -> None:
        if not isinstance(config, dict):
            raise ValidationFailed(
                "expected a config, such as the .config of what graph.get_state() returns, "
                f"not a {type(config).__name__}"
            )
        configurable = config.get("configurable") or {}
        if "thread_id" not in configurable:
            raise ValidationFailed(
                "the config names no thread; a graph with a checkpointer needs {'configurable': {'thread_id': …}}"
            )
        self.thread_id = keys.check_thread_id(configurable["thread_id"])
        self.checkpoint_ns: str = configurable.get("checkpoint_ns") or ""
        self.checkpoint_id: str | None = configurable.get("checkpoint_id") or None


def config_of(thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id}}
