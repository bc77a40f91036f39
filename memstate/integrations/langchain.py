"""MemState for LangChain; needs the extra ``memstate[langchain]``."""

from typing import TYPE_CHECKING

from memstate_langchain import (
    AsyncVectorStoreHook,
    MemoryTool,
    MemStateByteStore,
    MemStateChatMessageHistory,
    MemStateRetriever,
    MemStateStore,
    MemStateVectorStore,
    StoredDocument,
    VectorStoreHook,
    memory_tools,
)

if TYPE_CHECKING:  # imported when it is asked for
    from memstate_langchain import MemStateMiddleware as MemStateMiddleware  # noqa: PLC0414
else:  # for types, any name would do
    from memstate_langchain import __getattr__ as __getattr__  # noqa: PLC0414

__all__ = [
    "AsyncVectorStoreHook",
    "MemStateByteStore",
    "MemStateChatMessageHistory",
    "MemStateRetriever",
    "MemStateStore",
    "MemStateVectorStore",
    "MemoryTool",
    "StoredDocument",
    "VectorStoreHook",
    "memory_tools",
]
