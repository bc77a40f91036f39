"""MemState for LangChain: memory tools, stores, a retriever, chat histories, and any vector store as a hook.

Needs the extra ``memstate[langchain]``. The middleware for agents is imported when it is asked for, since what it needs
takes long to import.
"""

from typing import TYPE_CHECKING, Any

try:
    import langchain_core as _langchain_core  # noqa: F401
except ImportError as error:
    raise ImportError('MemState for LangChain needs langchain-core: pip install "memstate[langchain]"') from error

from memstate_langchain.chat_history import MemStateChatMessageHistory
from memstate_langchain.retriever import MemStateRetriever
from memstate_langchain.store import MemStateByteStore, MemStateStore
from memstate_langchain.tools import MemoryTool, memory_tools
from memstate_langchain.vectorstore import MemStateVectorStore, StoredDocument
from memstate_langchain.vectorstore_hook import AsyncVectorStoreHook, VectorStoreHook

if TYPE_CHECKING:
    from memstate_langchain.middleware import MemStateMiddleware as MemStateMiddleware

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

if not TYPE_CHECKING:  # or any name would do

    def __getattr__(name: str) -> Any:
        if name == "MemStateMiddleware":
            from memstate_langchain.middleware import MemStateMiddleware

            return MemStateMiddleware
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
