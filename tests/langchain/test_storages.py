"""What is kept for LangChain, on every storage; what it means is tried in memory."""

from __future__ import annotations

from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage

from memstate_core.testing.face import Face
from memstate_langchain import MemStateByteStore, MemStateChatMessageHistory, MemStateStore, MemStateVectorStore


async def test_they_are_kept_and_undone_everywhere(store: Any) -> None:
    face = Face(store)
    cache = MemStateByteStore(store)
    notes = MemStateStore(store, session_id="t")
    chat = MemStateChatMessageHistory(store, "t")
    documents = MemStateVectorStore(store, session_id="t")

    await cache.amset([("é1", b"\0\xff"), ("é2", b""), ("f", b"3")])
    await notes.amset([("a", {"x": [1, None, "\0"]}), ("b", 2)])
    await chat.aadd_messages([HumanMessage("hello"), AIMessage("hi")])
    await documents.aadd_documents([Document("green tea", id="tea", metadata={"year": 2026})])
    await face.savepoint("t", "here")

    await notes.amset([("a", 0)])
    await notes.amdelete(["b"])
    await chat.aclear()
    await documents.aadd_texts(["black coffee", "white tea"], ids=["coffee", "tea"])
    assert await notes.amget(["a", "b"]) == [0, None]
    assert [one.page_content for one in await documents.asimilarity_search("tea", 1)] == ["white tea"]

    await face.rollback("t", to="here")
    assert await notes.amget(["a", "b", "c"]) == [{"x": [1, None, "\0"]}, 2, None]
    assert [key async for key in notes.ayield_keys()] == ["a", "b"]
    assert [message.content for message in await chat.aget_messages()] == ["hello", "hi"]
    found = await documents.asimilarity_search("tea", filter={"year": {"$gt": 2000}})
    assert found == [Document("green tea", id="tea", metadata={"year": 2026})]
    assert await cache.amget(["f", "é1"]) == [b"3", b"\0\xff"]
    assert [key async for key in cache.ayield_keys(prefix="é")] == ["é1", "é2"]
    assert not (await face.verify()).drift
