"""MemState for LangChain. This release has nothing in it yet."""
