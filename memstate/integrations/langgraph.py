"""LangGraph checkpointers; needs the extra ``memstate[langgraph]``."""

from memstate_langgraph import AsyncMemStateCheckpointer, MemStateCheckpointer

__all__ = ["AsyncMemStateCheckpointer", "MemStateCheckpointer"]
