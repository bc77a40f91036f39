"""MemState for LangChain; needs the extra ``memstate[langchain]``."""

from memstate_langchain import AsyncVectorStoreHook, VectorStoreHook

__all__ = ["AsyncVectorStoreHook", "VectorStoreHook"]
