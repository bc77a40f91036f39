"""MemState for LangGraph. This release has nothing in it yet."""
