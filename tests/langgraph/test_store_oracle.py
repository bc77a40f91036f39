"""Whatever is asked of a store, it answers as LangGraph's own does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import chromadb
import pytest
from chromadb.config import Settings
from hypothesis import given
from hypothesis import strategies as st
from langgraph.store.base import GetOp, ListNamespacesOp, MatchCondition, Op, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from memstate import InMemoryStorage, MemoryStore, SQLiteStorage
from memstate_core.embedding import LexicalEmbedder
from memstate_core.hooks.chroma import ChromaSyncHook
from memstate_core.testing.profiles import tries
from memstate_langgraph import MemStateStore, item_index

LABELS = st.sampled_from(["a", "b", "ab", "a b", 'a","b'])
NAMESPACES = st.lists(LABELS, min_size=1, max_size=6).map(tuple)
KEYS = st.sampled_from(["k", "l", "a", "b\0", "é"])
FIELDS = st.sampled_from(["x", "y", "x.y"])
SCALARS = st.sampled_from([None, True, False, 0, 1, 1.0, 2, -1.5, 10**20, "", "1", "2.5", "red", "Red"])
NESTED = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(FIELDS, inner, max_size=2), max_leaves=4
)
VALUES = st.dictionaries(FIELDS, NESTED, max_size=3)
OPERATORS = st.dictionaries(st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), SCALARS, min_size=1)
CONDITIONS = st.recursive(NESTED | OPERATORS, lambda inner: st.dictionaries(FIELDS, inner, max_size=2), max_leaves=3)
FILTERS = st.none() | st.dictionaries(FIELDS, CONDITIONS, max_size=2)
PREFIXES = st.lists(LABELS, max_size=5).map(tuple)
PATTERNS = st.lists(LABELS | st.just("*"), max_size=3).map(tuple)
MATCHES = st.lists(st.builds(MatchCondition, st.sampled_from(["prefix", "suffix"]), PATTERNS), max_size=2).map(tuple)

PUTS = st.builds(PutOp, NAMESPACES, KEYS, st.none() | VALUES, st.none(), st.none())
READS = (
    st.builds(GetOp, NAMESPACES, KEYS, st.booleans())
    | st.builds(SearchOp, PREFIXES, FILTERS, st.integers(0, 4), st.integers(0, 3), st.none() | st.just("query"))
    | st.builds(
        ListNamespacesOp, MATCHES, st.none() | st.integers(1, 3), limit=st.integers(0, 5), offset=st.integers(0, 2)
    )
)
BATCHES = st.lists(st.lists(PUTS | PUTS | READS, min_size=1, max_size=6), min_size=1, max_size=12)


def stores() -> Iterator[MemStateStore]:
    yield MemStateStore(MemoryStore(InMemoryStorage()))
    with SQLiteStorage(":memory:") as storage:
        yield MemStateStore(MemoryStore(storage))


def plain(items: Any) -> list[Any]:
    return [(one.namespace, one.key, one.value) for one in items]


def only_what_is_there(oracle: InMemoryStore) -> InMemoryStore:
    """LangGraph's own lists namespaces that have been looked into, too."""
    fresh = InMemoryStore()
    for one in oracle.search((), limit=10_000):
        fresh.put(one.namespace, one.key, one.value)
    return fresh


def compare(store: MemStateStore, oracle: InMemoryStore, op: Op, answer: Any) -> None:
    if isinstance(op, GetOp):
        (expected,) = oracle.batch([op])
        assert plain([answer] if answer else []) == plain([expected] if expected else [])
    elif isinstance(op, ListNamespacesOp):
        assert [answer] == only_what_is_there(oracle).batch([op])
    elif isinstance(op, SearchOp):
        everything = op._replace(limit=1000, offset=0)
        (mine,) = store.batch([everything])
        assert plain(answer) == plain(mine)[op.offset : op.offset + op.limit]
        try:
            (expected,) = oracle.batch([everything])
        except (TypeError, ValueError):  # it compares what cannot be compared
            return
        assert sorted(plain(mine), key=repr) == sorted(plain(expected), key=repr)


@tries(60, 3000)
@given(batches=BATCHES)
def test_every_answer_is_the_same(batches: list[list[Op]]) -> None:
    for store in stores():
        oracle = InMemoryStore()
        for ops in batches:
            answers = store.batch([op for op in ops if not isinstance(op, PutOp)])
            for op, answer in zip([op for op in ops if not isinstance(op, PutOp)], answers, strict=True):
                compare(store, oracle, op, answer)
            together = store.batch(ops)
            assert [one for op, one in zip(ops, together, strict=True) if not isinstance(op, PutOp)] == answers
            oracle.batch([op for op in ops if isinstance(op, PutOp)])
            assert sorted(plain(store.search((), limit=1000)), key=repr) == sorted(
                plain(oracle.search((), limit=1000)), key=repr
            )


WORDS = st.lists(st.sampled_from(["cat", "dog", "rain", "tea", "mountain"]), min_size=1, max_size=3).map(" ".join)
INDEXES = st.sampled_from([None, None, False, ["list[*]"], ["text", "list[*]"]])
TEXTS = st.dictionaries(
    st.sampled_from(["k", "l", "m", "n", "o"]), st.tuples(WORDS, st.lists(WORDS, max_size=3), INDEXES), max_size=5
)


@pytest.fixture(scope="module")
def hook() -> ChromaSyncHook:
    client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
    return ChromaSyncHook(client, "items-of-the-oracle", LexicalEmbedder(), **item_index())


@tries(15, 300)
@given(texts=TEXTS, query=WORDS, limit=st.integers(1, 6))
def test_every_search_finds_the_same(
    hook: ChromaSyncHook, texts: dict[str, tuple[str, list[str], Any]], query: str, limit: int
) -> None:
    store = MemStateStore(MemoryStore(InMemoryStorage(), hooks=[hook]), fields=["text"])
    oracle = InMemoryStore(index={"dims": 512, "embed": LexicalEmbedder(), "fields": ["text"]})
    for one in (store, oracle):
        for key, (text, more, index) in texts.items():
            # Texts of an item differ, since LangGraph's own does not take one twice.
            value = {"text": f"{text} tree", "list": [f"{words} number{n}" for n, words in enumerate(more)]}
            one.put(("a", "b"), key, value, index=index)
        one.put(("ab",), "other", {"text": query, "list": [f"{query} rain"]}, index=["text", "list[*]"])
    mine, expected = (one.search(("a",), query=query, limit=limit) for one in (store, oracle))
    assert [one.score for one in mine if one.score is not None] == pytest.approx(
        [one.score for one in expected if one.score is not None], abs=1e-3
    )
    assert len(mine) == len(expected)
    if limit > len(texts):
        assert {one.key: one.score is None for one in mine} == {one.key: one.score is None for one in expected}
    store.batch([PutOp(one.namespace, one.key, None) for one in store.search((), limit=100)])
