"""MemState for LangGraph: checkpointers whose graphs take their memory along when they go back.

Needs the extra ``memstate[langgraph]``.
"""

from memstate_langgraph.checkpointer import AsyncMemStateCheckpointer, MemStateCheckpointer

__all__ = ["AsyncMemStateCheckpointer", "MemStateCheckpointer"]
