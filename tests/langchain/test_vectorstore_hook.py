"""What is particular to vector stores: how they score, filter and delete, and what they do not have."""

from __future__ import annotations

import math
from typing import Any

import chromadb
import pytest
import sqlalchemy as sa
from chromadb.config import Settings
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_postgres import PGVector
from langchain_postgres.vectorstores import DistanceStrategy
from qdrant_client import models

from memstate_core import Fact, HookError, InMemoryStorage, MemoryStore, NativeFilter
from memstate_core.facts import Change
from memstate_core.protocols import Scope
from memstate_langchain import VectorStoreHook
from memstate_langchain._scores import cosine_of, rising_line
from tests.langchain.conftest import MakeVectorStore
from tests.langchain.words import Words


class Strict(VectorStore):
    """Keeps what is added twice, refuses to delete what is not there, and says as little of itself as it may."""

    def __init__(self) -> None:
        self.added: list[tuple[str, Document, list[float]]] = []
        self.calls: list[str] = []
        self.deletes = True
        self.most = math.inf

    def add_texts(self, texts: Any, metadatas: Any = None, *, ids: Any = None, **_: Any) -> list[str]:
        self.calls.append("add")
        assert len(ids) <= self.most
        vectors = Words().embed_documents(list(texts))
        documents = [Document(text, metadata=data) for text, data in zip(texts, metadatas, strict=True)]
        self.added += zip(ids, documents, vectors, strict=True)
        return list(ids)

    def delete(self, ids: Any = None, **_: Any) -> bool | None:
        self.calls.append("delete")
        missing = set(ids) - {one for one, _, _ in self.added}
        if missing:
            raise KeyError(missing)
        if self.deletes:
            self.added = [one for one in self.added if one[0] not in ids]
        return self.deletes

    def get_by_ids(self, ids: Any, /) -> list[Document]:
        return [document for one, document, _ in self.added if one in ids]

    def similarity_search(self, query: str, k: int = 4, **_: Any) -> list[Document]:
        return [document for document, _ in self.similarity_search_with_score(query, k)]

    def similarity_search_with_score(self, query: str, k: int = 4, **options: Any) -> list[tuple[Document, float]]:
        assert not options
        vector = Words().embed_query(query)
        scored = [(document, math.dist(vector, other)) for _, document, other in self.added]
        return sorted(scored, key=lambda pair: pair[1])[:k]

    @classmethod
    def from_texts(cls, texts: Any, embedding: Any, metadatas: Any = None, **_: Any) -> Any:
        raise NotImplementedError


def strict_hook(vectorstore: Strict, **options: Any) -> VectorStoreHook:
    return VectorStoreHook(vectorstore, text_field="text", similarity_fn=lambda away: 1 - away / 2, **options)


def opened(hook: VectorStoreHook) -> MemoryStore:
    return MemoryStore(InMemoryStorage(), [hook], allow_unregistered=True)


def test_a_vector_store_that_says_little_takes_part_all_the_same() -> None:
    vectorstore = Strict()
    store = opened(strict_hook(vectorstore))
    for number in range(30):
        store.commit(Fact("note", {"text": f"green tea {number}", "rank": number}, id=str(number), session_id="s"))
    store.update("7", {"text": "black coffee"})
    store.commit(Fact("memo", {"text": "green tea with lemon"}, id="memo"))
    assert len(vectorstore.added) == 31
    found = store.search("black coffee", limit=3)
    assert (found[0].fact.id, found[0].score) == ("7", pytest.approx(1.0))
    assert found[0].score > found[1].score
    # Without filters, a search asks for more until enough of it matches.
    assert [one.fact.id for one in store.search("black coffee", limit=2, typename="memo")] == ["memo"]
    assert len(store.search("green tea", limit=3, filters={"rank": {"$gt": 26}})) == 3
    store.rollback("s", 31)
    assert [document.page_content for _, document, _ in vectorstore.added] == ["green tea with lemon"]
    assert store.verify().unlisted == ("Strict",)


def test_what_scores_mean_must_be_known() -> None:
    with pytest.raises(TypeError, match="similarity_fn"):
        VectorStoreHook(Strict())
    with pytest.raises(TypeError, match="VectorStore"):
        VectorStoreHook(object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="filter_language"):
        VectorStoreHook(InMemoryVectorStore(Words()), filter_language="sql")  # type: ignore[arg-type]


def test_a_transaction_is_one_request() -> None:
    vectorstore = Strict()
    store = opened(strict_hook(vectorstore))
    with store.transaction() as tx:
        for number in range(100):
            tx.commit(Fact("note", {"text": f"number {number}"}))
    assert vectorstore.calls == ["add"]
    vectorstore.most = 30
    small = strict_hook(vectorstore, batch_size=30)
    small.apply([Change(str(n), None, Fact("note", {"text": str(n)}, id=str(n))) for n in range(70)])
    assert vectorstore.calls == ["add"] * 4


def test_a_deletion_that_did_not_happen_is_an_error() -> None:
    vectorstore = Strict()
    store = opened(strict_hook(vectorstore))
    store.commit(Fact("note", {"text": "green tea"}, id="1"))
    vectorstore.deletes = False
    with pytest.raises(HookError, match="delete"):
        store.delete("1")
    assert store.get("1") is not None


def test_what_cannot_be_looked_up_is_deleted_unasked() -> None:
    class Unasked(Strict):
        def get_by_ids(self, ids: Any, /) -> list[Document]:
            raise NotImplementedError

        def delete(self, ids: Any = None, **_: Any) -> None:
            self.added = [one for one in self.added if one[0] not in ids]

    vectorstore = Unasked()
    hook = strict_hook(vectorstore)
    for version in (1, 2):
        hook.apply([Change("1", None, Fact("note", {"text": "tea"}, id="1", version=version))])
    assert len(vectorstore.added) == 1


def test_entries_can_be_listed_by_a_function() -> None:
    vectorstore = Strict()
    hook = strict_hook(vectorstore, list_metadata=lambda: [document.metadata for _, document, _ in vectorstore.added])
    store = opened(hook)
    store.commit(Fact("note", {"text": "green tea"}, id="1"))
    vectorstore.added.clear()
    (drift,) = store.repair()
    assert drift.missing == ("1",)
    assert len(vectorstore.added) == 1


def test_facts_keep_ids_that_nobody_else_can_have() -> None:
    hook = VectorStoreHook(InMemoryVectorStore(Words()))
    fact = Fact("note", {"text": "tea"})
    assert hook.entry_id(fact.id) == fact.id
    others = {
        hook.entry_id("tea"),
        hook.for_namespace("two").entry_id(fact.id),
        hook.for_namespace("two").entry_id("tea"),
    }
    assert len(others - {fact.id}) == 3


def test_what_was_put_there_otherwise_is_never_found_and_stays() -> None:
    vectorstore = InMemoryVectorStore(Words())
    vectorstore.add_texts(["green tea"], [{"author": "somebody"}], ids=["theirs"])
    store = opened(VectorStoreHook(vectorstore))
    store.commit(Fact("note", {"text": "black tea"}, id="ours"))
    assert [one.fact.id for one in store.search("green tea")] == ["ours"]
    assert not store.repair().drift
    assert "theirs" in vectorstore.store


def test_a_vector_store_without_filters_may_be_shared() -> None:
    vectorstore = Strict()
    vectorstore.add_texts([f"green tea {number}" for number in range(9)], [{}] * 9, ids=[str(n) for n in range(9)])
    storage = InMemoryStorage()
    hook = strict_hook(vectorstore)
    one, two = (MemoryStore(storage, [hook], namespace=name, allow_unregistered=True) for name in ("default", "two"))
    for number in range(9):
        one.commit(Fact("note", {"text": f"green tea {number}"}, id=str(number)))
    two.commit(Fact("note", {"text": "black coffee"}, id="1"))
    assert [found.fact.payload["text"] for found in two.search("green tea", limit=1)] == ["black coffee"]
    assert [result.fact_id for result in hook.for_namespace("two").search("green tea", 3)] == ["1"]
    assert len(one.search("green tea", limit=20)) == 9


@pytest.mark.parametrize("space", ["cosine", "l2", "ip"])
def test_scores_are_similarities_on_chroma(space: str) -> None:
    client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
    configuration: Any = {"hnsw": {"space": space}}
    vectorstore = Chroma(f"scores-{space}", Words(), client=client, collection_configuration=configuration)
    check_scores(VectorStoreHook(vectorstore, text_field="text"))


@pytest.mark.parametrize("strategy", [DistanceStrategy.EUCLIDEAN, DistanceStrategy.MAX_INNER_PRODUCT])
def test_scores_are_similarities_on_pgvector(strategy: DistanceStrategy, pgvector_url: str) -> None:
    engine = sa.create_engine(pgvector_url)
    vectorstore = PGVector(Words(), connection=engine, collection_name=strategy.value, distance_strategy=strategy)
    # Lengths of differences are not in proportion to cosines.
    check_scores(
        VectorStoreHook(vectorstore, text_field="text"), 0.3 if strategy is DistanceStrategy.EUCLIDEAN else 1e-3
    )
    engine.dispose()


@pytest.mark.parametrize("vectorstores", ["qdrant", "memory"], indirect=True)
def test_scores_are_similarities(vectorstores: MakeVectorStore) -> None:
    check_scores(VectorStoreHook(vectorstores("scores"), text_field="text"))


def test_the_order_of_the_index_holds() -> None:
    """Whatever its relevance is: LangChain's own for inner products rises where they become negative."""

    class Inner(Strict):
        def _select_relevance_score_fn(self) -> Any:
            return lambda away: 0.5 if away < 0.1 else away

    hook = VectorStoreHook(Inner(), text_field="text")
    facts = [Fact("note", {"text": text}, id=text) for text in ("black coffee", "green tea", "green coffee")]
    hook.apply([Change(fact.id, None, fact) for fact in facts])
    found = hook.search("green tea", 3)
    assert [one.fact_id for one in found] == ["green tea", "green coffee", "black coffee"]
    assert [one.score for one in found] == [0.5] * 3


def check_scores(hook: VectorStoreHook, tolerance: float = 1e-3) -> None:
    texts = ["green tea with lemon", "green tea", "black coffee", "green coffee", "a train to Vienna"]
    facts = [Fact("note", {"text": text}, id=str(number), version=1) for number, text in enumerate(texts)]
    hook.apply([Change(fact.id, None, fact) for fact in facts])
    found = hook.search("green tea", 5)
    scores = [one.score for one in found]
    assert [one.fact_id for one in found][:2] == ["1", "0"]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(1.0, abs=1e-3)
    assert scores[-1] < 0.6
    # What a fact in doubt is scored by is on the same scale.
    assert hook.similarity is not None
    computed = {one.fact_id: one.score for one in hook.similarity("green tea", facts)}
    for one in found:
        assert computed[one.fact_id] == pytest.approx(one.score, abs=tolerance)
    assert max(computed, key=lambda fact_id: computed[fact_id]) == "1"


def test_one_table_of_all_collections(pgvector_url: str) -> None:
    engine = sa.create_engine(pgvector_url)
    hooks = [VectorStoreHook(PGVector(Words(), connection=engine, collection_name=name)) for name in ("one", "other")]
    store = MemoryStore(InMemoryStorage(), hooks, allow_unregistered=True)
    fact_id = store.commit(Fact("note", {"text": "green tea"}))
    assert [dict(hook.scan()) for hook in hooks if hook.scan is not None] == [{fact_id: 1}, {fact_id: 1}]
    assert not store.verify().drift
    engine.dispose()


NATIVE: dict[str, Any] = {
    "memory": lambda document: document.metadata["rank"] > 1,
    "chroma": {"rank": {"$gt": 1}},
    "pgvector": {"rank": {"$gt": 1}},
    "qdrant": models.Filter(must=[models.FieldCondition(key="metadata.rank", range=models.Range(gt=1))]),
}


@pytest.mark.parametrize(("vectorstores", "native"), NATIVE.items(), indirect=["vectorstores"], ids=list(NATIVE))
def test_filters_of_the_vector_store_itself(vectorstores: MakeVectorStore, native: Any) -> None:
    store = opened(VectorStoreHook(vectorstores("native"), text_field="text", metadata_fields=["rank"]))
    for rank in range(4):
        store.commit(Fact("note", {"text": f"tea {rank}", "rank": rank}, id=str(rank)))
    found = store.search("tea", filters=NativeFilter(native), session_id=None)
    assert {one.fact.id for one in found} == {"2", "3"}


@pytest.mark.parametrize("vectorstores", ["chroma", "pgvector", "qdrant"], indirect=True)
def test_filters_narrow_in_the_vector_store(vectorstores: MakeVectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request finds what is far away, instead of ever larger ones."""
    hook = VectorStoreHook(vectorstores("narrow"), text_field="text", metadata_fields=["rank", "label"])
    facts = [
        Fact("note", {"text": f"tea {n}", "rank": n, "label": "ab"[n % 2]}, id=str(n), version=1) for n in range(40)
    ]
    hook.apply([Change(fact.id, None, fact) for fact in facts])
    asked: list[int] = []
    nearest = hook._nearest

    async def counting(query: str, limit: int, written: Any) -> Any:
        answer = await nearest(query, limit, written)
        asked.append(len(answer))
        return answer

    monkeypatch.setattr(hook, "_nearest", counting)
    for filters, expected in (
        ({"rank": 39}, {"39"}),
        ({"rank": {"$gt": 37}}, {"38", "39"}),
        ({"rank": {"$in": [3, 5]}, "label": "b"}, {"3", "5"}),
        ({"$or": [{"rank": 1}, {"$and": [{"rank": {"$lt": 4}}, {"label": "a"}]}]}, {"0", "1", "2"}),
    ):
        asked.clear()
        found = hook.search("tea", len(expected), Scope(filters=filters))
        assert {one.fact_id for one in found} == expected, filters
        assert asked == [len(expected)], filters


def test_how_an_index_scores_is_told_by_its_entries() -> None:
    half = (0.5, 0.5)  # the relevance of Qdrant: half the cosine, and a half
    assert rising_line([(1.0, 1.0), (0.0, 0.5), (-1.0, 0.0)]) == pytest.approx(half)
    assert rising_line([(0.2, 0.6)]) == pytest.approx(half)
    assert rising_line([]) == (1.0, 0.0)
    assert rising_line([(1.0, 1.0)]) == pytest.approx((1.0, 0.0))
    assert rising_line([(0.9, 0.1), (0.1, 0.9)])[0] == 1.0  # no similarity falls
    assert cosine_of([0.0, 0.0], [1.0, 0.0]) == 0.0
    assert cosine_of([3.0, 0.0], [2.0, 0.0]) == pytest.approx(1.0)
