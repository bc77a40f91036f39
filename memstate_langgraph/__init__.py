"""MemState for LangGraph: checkpointers whose graphs take their memory along when they go back, and stores.

Needs the extra ``memstate[langgraph]``.
"""

from memstate_langgraph.checkpointer import AsyncMemStateCheckpointer, MemStateCheckpointer
from memstate_langgraph.store import AsyncMemStateStore, MemStateStore, item_index

__all__ = ["AsyncMemStateCheckpointer", "AsyncMemStateStore", "MemStateCheckpointer", "MemStateStore", "item_index"]
