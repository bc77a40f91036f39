"""LangGraph checkpointers and stores; needs the extra ``memstate[langgraph]``."""

from memstate_langgraph import (
    AsyncMemStateCheckpointer,
    AsyncMemStateStore,
    MemStateCheckpointer,
    MemStateStore,
    item_index,
)

__all__ = ["AsyncMemStateCheckpointer", "AsyncMemStateStore", "MemStateCheckpointer", "MemStateStore", "item_index"]
