"""Facts as documents, as they are and as they were."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError

from memstate_core import Fact
from memstate_core.testing.face import Face
from memstate_langchain import MemStateRetriever
from tests.langchain.stores import async_store, sync_store, thread


def preference(topic: str, opinion: str, **options: Any) -> Fact:
    return Fact("preference", {"topic": topic, "opinion": opinion}, id=topic, **options)


@pytest.fixture(params=[sync_store, async_store])
async def store(request: pytest.FixtureRequest) -> Face:
    store = Face(request.param())
    await store.commit(preference("tea", "likes green tea", source="chat", session_id="t"))
    await store.commit(preference("coffee", "drinks black coffee", session_id="t"))
    await store.commit(preference("water", "drinks water"))
    await store.commit(Fact("allergy", {"substance": "tea tree oil", "reaction": "mild"}, id="oil"), session_id="u")
    return store


def ids(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


async def test_what_is_similar_comes_with_its_current_text(store: Face) -> None:
    retriever = MemStateRetriever(store=store.store, k=2, text_field="opinion")
    (first, second) = await retriever.ainvoke("green tea")
    assert (first.id, first.page_content) == ("tea", "likes green tea")
    assert first.metadata["score"] > second.metadata["score"]
    fact = await store.get("tea")
    assert {key: first.metadata[key] for key in ("payload", "type", "session_id", "source", "version")} == {
        key: fact[key] for key in ("payload", "type", "session_id", "source", "version")
    }
    await store.update("tea", {"opinion": "hates green tea"})
    assert (await retriever.ainvoke("green tea"))[0].page_content == "hates green tea"


async def test_it_is_confined_to_sessions_and_types(store: Face) -> None:
    async def found(config: Any = None, /, **options: Any) -> set[str | None]:
        retriever = MemStateRetriever(store=store.store, k=9, **options)
        return set(ids(await retriever.ainvoke("tea", config)))

    assert await found() == {"tea", "coffee", "water", "oil"}
    assert await found(session_id="t") == {"tea", "coffee"}
    assert await found(session_id=None) == {"water"}
    assert await found(session_id="t", long_term=True) == {"tea", "coffee", "water"}
    assert await found(thread("u"), session="thread_id") == {"oil"}
    assert await found(thread("u"), session="thread_id", long_term=True) == {"oil", "water"}
    assert await found(thread("t"), session=lambda config: "u") == {"oil"}
    assert await found(types=["allergy"]) == {"oil"}
    assert ids(await MemStateRetriever(store=store.store, types=["allergy"] * 2).ainvoke("tea")) == ["oil"]
    assert await found(types=["allergy", "preference"], session_id="t") == {"tea", "coffee"}
    assert await found(filters={"topic": "coffee"}) == {"coffee"}
    assert await found(score_threshold=2.0) == set()
    with pytest.raises(ValueError, match="thread_id"):
        await found(session="thread_id")


async def test_a_call_may_say_otherwise(store: Face) -> None:
    retriever = MemStateRetriever(store=store.store, session="thread_id")
    assert ids(await retriever.ainvoke("tea", session_id=None)) == ["water"]
    assert ids(await retriever.ainvoke("tea", thread("t"), k=1, filters={"topic": "coffee"})) == ["coffee"]
    with pytest.raises(TypeError, match="limit"):
        await retriever.ainvoke("tea", thread("t"), limit=1)


async def test_it_finds_what_was(store: Face) -> None:
    await store.savepoint("t", "before")
    await store.update("tea", {"opinion": "hates green tea"})
    await store.delete("coffee")
    retriever = MemStateRetriever(store=store.store, session_id="t", text_field="opinion", at="before")
    found = await retriever.ainvoke("drinks black coffee")
    assert [document.page_content for document in found] == ["drinks black coffee", "likes green tea"]
    assert ids(await MemStateRetriever(store=store.store, session_id="t").ainvoke("tea")) == ["tea"]
    assert ids(await retriever.ainvoke("tea", at=None)) == []


async def test_a_text_may_be_formatted(store: Face) -> None:
    retriever = MemStateRetriever(store=store.store, text_formatter=lambda payload: payload.get("substance"))
    texts = {document.id: document.page_content for document in await retriever.ainvoke("tea")}
    assert texts["oil"] == "tea tree oil"
    assert '"topic": "water"' in texts["water"]


def test_options_are_checked() -> None:
    with pytest.raises(ValidationError, match="store"):
        MemStateRetriever(store=5)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="limit"):
        MemStateRetriever(store=sync_store(), limit=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="AsyncMemoryStore"):
        MemStateRetriever(store=async_store()).invoke("tea")


class TestStandard(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return MemStateRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        store = sync_store()
        for number in range(4):
            store.commit(preference(f"tea{number}", "likes it"))
        return {"store": store, "k": 2}

    @property
    def retriever_query_example(self) -> str:
        return "tea"
