"""``memstate_langchain`` as a user writes it. It is never run: mypy checks that the types say what the page says."""

from __future__ import annotations

from typing import assert_type

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langchain_core.vectorstores import VectorStore
from pydantic import BaseModel

from memstate import AsyncMemoryStore, InMemoryStorage, MemoryStore, Moved, SchemaRegistry
from memstate.integrations import langchain as facade
from memstate_langchain import (
    AsyncVectorStoreHook,
    MemStateByteStore,
    MemStateChatMessageHistory,
    MemStateMiddleware,
    MemStateRetriever,
    MemStateStore,
    MemStateVectorStore,
    VectorStoreHook,
    memory_tools,
)


class Note(BaseModel):
    text: str


def user(config: RunnableConfig) -> str | None:
    return None


def hooks(vectorstore: VectorStore) -> None:
    MemoryStore(InMemoryStorage(), [VectorStoreHook(vectorstore)])
    hook = VectorStoreHook(
        vectorstore,
        target_types=["note"],
        text_field="text",
        metadata_fields=["topic"],
        similarity_fn=lambda distance: 1 - distance,
        filter_language="comparisons",
        batch_size=100,
    )
    AsyncVectorStoreHook(vectorstore, text_formatter=lambda payload: payload["text"], name="notes")
    assert_type(hook.entry_id("fact"), str)
    assert_type(hook.lookup(["fact"]), dict[str, int])
    VectorStoreHook(vectorstore, filter_language="sql")  # type: ignore[arg-type]


def tools(store: MemoryStore, later: AsyncMemoryStore, registry: SchemaRegistry) -> None:
    assert_type(memory_tools(store), list[BaseTool])
    memory_tools(later, ["note"], session="user_id", actor=None, long_term=False, destructive=True)
    memory_tools(store, session=None)
    memory_tools(store, session=user)
    memory_tools(lambda config: store, registry=registry)


async def reading(store: MemoryStore, later: AsyncMemoryStore, config: RunnableConfig) -> None:
    retriever = MemStateRetriever(store=store, k=3, session="thread_id", types=["note"], filters={"topic": "tea"})
    assert_type(retriever.invoke("tea", config), list[Document])
    assert_type(await MemStateRetriever(store=later, session_id=None, at="tx-1").ainvoke("tea"), list[Document])


async def keeping(store: MemoryStore, later: AsyncMemoryStore) -> None:
    assert_type(MemStateByteStore(store, "cache").mget(["a"]), list[bytes | None])
    assert_type(await MemStateByteStore(later).amget(["a"]), list[bytes | None])
    MemStateStore(store, session_id="s", model=Note).mset([("a", Note(text="tea"))])
    MemStateByteStore(store).mset([("a", "text")])  # type: ignore[list-item]


async def chatting(store: MemoryStore, later: AsyncMemoryStore) -> None:
    chat = MemStateChatMessageHistory(store, "s", name="chat")
    assert_type(chat.messages, list[BaseMessage])
    assert_type(chat.rollback(to="turn"), Moved)
    assert_type(await MemStateChatMessageHistory(later, "s").aget_messages(), list[BaseMessage])


async def finding(store: MemoryStore, later: AsyncMemoryStore, embedding: Embeddings) -> None:
    documents = MemStateVectorStore(store, session_id="s")
    assert_type(documents.add_texts(["tea"], [{"a": 1}], ids=["1"]), list[str])
    assert_type(documents.similarity_search_with_score("tea", filter={"a": 1}), list[tuple[Document, float]])
    assert_type(await MemStateVectorStore(later, "page").asimilarity_search("tea"), list[Document])
    assert_type(MemStateVectorStore.from_texts(["tea"], embedding), MemStateVectorStore)


async def acting(store: MemoryStore, config: RunnableConfig) -> None:
    middleware: MemStateMiddleware = facade.MemStateMiddleware(store, session=user, k=3, undo_failed_turns=True)
    with middleware.turn(config):
        ...
    async with middleware.aturn(config):
        ...


def what_there_is_not() -> None:
    print(facade.nothing)  # type: ignore[attr-defined]
