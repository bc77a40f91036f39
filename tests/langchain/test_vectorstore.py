"""Documents as facts."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from pydantic import BaseModel

from memstate_core import (
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    ConflictError,
    Fact,
    InMemoryStorage,
    MemoryStore,
    ValidationFailed,
)
from memstate_core.testing.face import Face
from memstate_langchain import AsyncVectorStoreHook, MemStateVectorStore, VectorStoreHook
from tests.langchain.words import Words


def sync_store(embedding: Any = None) -> MemoryStore:
    return MemoryStore(
        InMemoryStorage(), [VectorStoreHook(InMemoryVectorStore(embedding or Words()), text_field="text")]
    )


def async_store(embedding: Any = None) -> AsyncMemoryStore:
    hook = AsyncVectorStoreHook(InMemoryVectorStore(embedding or Words()), text_field="text")
    return AsyncMemoryStore(AsyncInMemoryStorage(), [hook])


class TestStandard(VectorStoreIntegrationTests):
    @pytest.fixture(params=[None, "t"])
    def vectorstore(self, request: pytest.FixtureRequest) -> VectorStore:
        return MemStateVectorStore(sync_store(self.get_embeddings()), session_id=request.param)


class TestStandardAsync(VectorStoreIntegrationTests):
    """Of an asynchronous store, for which the sync tests of the suite are left out: see conftest.py."""

    @pytest.fixture
    def vectorstore(self) -> VectorStore:
        return MemStateVectorStore(async_store(self.get_embeddings()))

    leaves_out_sync = True


@pytest.fixture(params=[sync_store, async_store])
def store(request: pytest.FixtureRequest) -> Any:
    return request.param()


async def test_a_call_is_one_transaction_that_can_be_undone(store: Any) -> None:
    face = Face(store)
    vectorstore = MemStateVectorStore(store, session_id="t")
    await vectorstore.aadd_texts(["green tea", "black coffee"], ids=["tea", "coffee"])
    await vectorstore.aadd_documents([Document("white tea", metadata={"year": 2026}, id="tea")])
    await vectorstore.adelete(["coffee", "nothing"])
    assert len(await face.history("t")) == 3
    ((found, score),) = await vectorstore.asimilarity_search_with_score("white tea")
    assert found == Document("white tea", metadata={"year": 2026}, id="tea")
    assert score == pytest.approx(1.0)
    await face.rollback("t", 2)
    assert await vectorstore.aget_by_ids(["coffee", "nothing", "tea"]) == [
        Document("black coffee", id="coffee"),
        Document("green tea", id="tea"),
    ]
    assert not (await face.verify()).drift


async def test_filters_are_on_metadata(store: Any) -> None:
    vectorstore = MemStateVectorStore(store)
    metadatas = [{"year": year, "author": {"name": "ann" if year % 2 else "bob"}} for year in (2020, 2021, 2022)]
    await vectorstore.aadd_texts(["a tea", "b tea", "c tea"], metadatas, ids=["0", "1", "2"])
    for filters, expected in (
        ({"year": 2021}, {"1"}),
        ({"year": {"$gt": 2020}, "author.name": "bob"}, {"2"}),
        ({"$or": [{"year": 2020}, {"$not": {"author.name": "bob"}}]}, {"0", "1"}),
        (None, {"0", "1", "2"}),
    ):
        found = await vectorstore.asimilarity_search("tea", 9, filter=filters)
        assert {document.id for document in found} == expected
    with pytest.raises(ValueError, match=r"\$near"):
        await vectorstore.asimilarity_search("tea", filter={"$near": 1})


async def test_other_facts_are_out_of_reach(store: Any) -> None:
    class Note(BaseModel):
        text: str

    store.register_schema("note", Note)
    face = Face(store)
    await face.commit(Fact("note", {"text": "green tea"}, id="note"))
    mine, theirs = (MemStateVectorStore(store, session_id=name) for name in ("t", "u"))
    await theirs.aadd_texts(["green tea"], ids=["theirs"])
    assert await mine.asimilarity_search("green tea") == []
    assert await mine.aget_by_ids(["note", "theirs"]) == []
    await mine.adelete(["note", "theirs"])
    for id_ in ("note", "theirs"):
        with pytest.raises(ConflictError, match=id_):
            await mine.aadd_texts(["new", "black tea"], ids=[None, id_])
    assert len(await face.query()) == 2
    with pytest.raises(ValidationFailed, match="Note"):
        MemStateVectorStore(store, "note")


async def test_a_retriever_of_it(store: Any) -> None:
    vectorstore = await MemStateVectorStore.afrom_texts(["green tea", "black coffee"], store=store)
    options = {"search_type": "similarity_score_threshold", "search_kwargs": {"score_threshold": 0.9}}
    found = await vectorstore.as_retriever(**options).ainvoke("green tea")
    assert [document.page_content for document in found] == ["green tea"]


def test_one_made_of_texts_and_an_embedding() -> None:
    vectorstore = MemStateVectorStore.from_texts(["green tea", "black coffee"], Words(), [{"a": 1}, {}])
    assert vectorstore.similarity_search("tea", 1)[0].metadata == {"a": 1}
    for wrong in ({}, {"store": sync_store(), "embedding": Words()}):
        with pytest.raises(ValueError, match="store="):
            MemStateVectorStore.from_texts(["a"], **wrong)
    with pytest.raises(ValueError, match="metadatas"):
        vectorstore.add_texts(["a"], [{}, {}])
    with pytest.raises(ValueError, match="ids"):
        vectorstore.delete()
    with pytest.raises(TypeError, match="AsyncMemoryStore"):
        MemStateVectorStore(async_store()).similarity_search("a")
