"""The Chroma hooks against real Chroma: embedded in memory, embedded on disk, and over HTTP, sync and async."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chromadb
import numpy as np
import pytest
from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.api.models.Collection import Collection
from chromadb.config import Settings
from chromadb.utils.embedding_functions import ONNXMiniLM_L6_V2, known_embedding_functions

from memstate_core import HookError, InMemoryStorage, LexicalEmbedder, MemoryStore, NativeFilter
from memstate_core.facts import UNSET, Change, Fact, SearchResult
from memstate_core.hooks.chroma import AsyncChromaSyncHook, ChromaSyncHook
from memstate_core.protocols import PreparingHook, ScanningHook, Scope, SearchingHook
from tests.hooks.facts import drop, fact, ids, put

if TYPE_CHECKING:
    from tests.hooks.conftest import Chroma

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "ANONYMIZED_TELEMETRY": "False"}
SPACES = ("cosine", "l2", "ip")


def without_fields(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata without the number that says which of them are fields of the payload."""
    assert metadata["memstate_fields"] in range(2**32 + 1)
    return {key: value for key, value in metadata.items() if key != "memstate_fields"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each method of any collection was called."""
    counted: Counter[str] = Counter()

    def count(kind: type, name: str) -> None:
        method = getattr(kind, name)

        def counting(*arguments: Any, **options: Any) -> Any:
            counted[name] += 1
            return method(*arguments, **options)

        monkeypatch.setattr(kind, name, counting)

    for kind in (Collection, AsyncCollection):
        for name in ("upsert", "delete", "query", "get"):
            count(kind, name)
    return counted


class TestFollowing:
    async def test_facts_are_found_changed_and_gone(self, chroma: Chroma) -> None:
        hook = chroma.hook(text_field="content")
        await hook.apply(await hook.prepare(put(fact("a", "I am vegetarian"), fact("b", "My dog is called Rex"))))
        [first, second] = await hook.search("a vegetarian user", 5)
        assert (first.fact_id, first.version, second.fact_id) == ("a", 1, "b")
        assert 1 >= first.score > second.score

        await hook.apply([Change("a", fact("a"), fact("a", "I eat meat", version=2)), *drop("b")])
        [found] = await hook.search("meat", 5)
        assert (found.fact_id, found.version) == ("a", 2)
        assert await hook.scan() == {"a": 2}

    async def test_the_entry_is_readable_in_chroma_itself(self, chroma: Chroma) -> None:
        await chroma.hook(text_field="content", metadata_fields=["role"]).apply(
            put(fact("a", "tea", session_id="s", version=4, payload={"role": "taste"}))
        )
        entry = await (await chroma.collection()).get(where={"role": "taste"})
        assert (entry["ids"], entry["documents"]) == (["a"], ["tea"])
        assert [without_fields(metadata) for metadata in entry["metadatas"]] == [
            {
                "role": "taste",
                "memstate_namespace": "default",
                "memstate_type": "note",
                "memstate_version": 4,
                "memstate_long_term": False,
                "memstate_session_id": "s",
            }
        ]

    async def test_applying_again_changes_nothing(self, chroma: Chroma) -> None:
        hook = chroma.hook()
        batch = await hook.prepare([*put(fact("a"), fact("b", "tea")), *drop("c")])
        await hook.apply(batch)
        before = await (await chroma.collection()).get(include=["metadatas", "documents", "embeddings"])
        await hook.apply(batch)
        await hook.apply([*put(fact("a"), fact("b", "tea")), *drop("c")])
        after = await (await chroma.collection()).get(include=["metadatas", "documents", "embeddings"])
        assert (after["ids"], after["documents"]) == (before["ids"], before["documents"])
        assert after["metadatas"] == before["metadatas"]
        assert np.array_equal(after["embeddings"], before["embeddings"])

    async def test_the_inverse_brings_back_what_was_there(self, chroma: Chroma) -> None:
        hook = chroma.hook(metadata_fields=["role"])
        old = fact("a", "tea", payload={"role": "taste"})
        await hook.apply(put(old))
        changes = [Change("a", old, fact("a", "coffee", version=2, session_id="s")), *put(fact("b"))]
        await hook.apply(changes)
        await hook.apply([change.inverse for change in changes])
        entry = await (await chroma.collection()).get()
        assert (entry["ids"], entry["documents"]) == (["a"], ["content: tea\nrole: taste"])
        (metadata,) = entry["metadatas"]
        assert without_fields(metadata) == {
            "role": "taste",
            "memstate_namespace": "default",
            "memstate_type": "note",
            "memstate_version": 1,
            "memstate_long_term": True,
        }

    async def test_nothing_is_visible_before_apply(self, chroma: Chroma) -> None:
        batch = await chroma.hook().prepare(put(fact("a")))
        assert batch.ids == ["a"]
        assert chroma.name not in await chroma.names()

    async def test_one_upsert_and_one_delete_per_transaction(self, chroma: Chroma, calls: Counter[str]) -> None:
        hook = chroma.hook()
        facts = [fact(f"f{number}", f"note {number}") for number in range(100)]
        await hook.apply(await hook.prepare([*put(*facts), *drop(*(f"d{number}" for number in range(100)))]))
        assert calls == {"upsert": 1, "delete": 1}

    async def test_nothing_to_do_asks_nothing_of_chroma(self, chroma: Chroma, calls: Counter[str]) -> None:
        hook = chroma.hook()
        await hook.apply(await hook.prepare([]))
        await hook.apply([])
        assert not calls
        assert chroma.name not in await chroma.names()

    async def test_the_last_of_several_changes_of_a_fact_counts(self, chroma: Chroma) -> None:
        hook = chroma.hook()
        changes = [*put(fact("a"), fact("a", "tea", version=2)), *put(fact("b")), *drop("b", "c"), *put(fact("c"))]
        batch = await hook.prepare(changes)
        assert (batch.ids, batch.deleted) == (["a", "c"], ["b"])
        await hook.apply(batch)
        assert await hook.scan() == {"a": 2, "c": 1}
        assert (await (await chroma.collection()).get(ids=["a"]))["documents"] == ["content: tea"]

    @pytest.mark.parametrize("chroma", ["persistent", "async http"], indirect=True)
    async def test_more_than_chromas_largest_batch(self, chroma: Chroma, calls: Counter[str]) -> None:
        hook = chroma.hook(embedding_fn=lambda texts: np.random.default_rng(0).normal(size=(len(texts), 2)))
        facts = [fact(f"f{number}", "x", version=number) for number in range(1, 6001)]
        await hook.apply(put(*facts))
        assert calls["upsert"] == 2
        assert await hook.scan() == {fact.id: fact.version for fact in facts}
        await hook.apply(drop(*(fact.id for fact in facts[1:])))
        assert await hook.scan() == {"f1": 1}

    async def test_a_fact_whose_text_goes_leaves_the_index(self, chroma: Chroma) -> None:
        hook = chroma.hook(text_field="content")
        for nothing in (None, "", "  \n"):
            await hook.apply(put(fact("a"), fact("b")))
            await hook.apply([Change("a", fact("a"), fact("a", nothing, version=2))])
            assert await hook.scan() == {"b": 1}

    async def test_only_the_wanted_types_are_kept(self, chroma: Chroma) -> None:
        hook = chroma.hook(target_types={"note", "task"})
        await hook.apply(put(fact("a"), fact("b", type="task"), fact("c", type="log")))
        assert await hook.scan() == {"a": 1, "b": 1}
        await hook.apply([Change("a", fact("a"), fact("a", type="log", version=2))])
        assert await hook.scan() == {"b": 1}

    async def test_metadata_that_goes_is_not_merged_back(self, chroma: Chroma) -> None:
        for options in (
            {"metadata_fields": ["role", "mood"]},
            {"metadata_formatter": lambda payload: {key: payload[key] for key in payload if key != "content"}},
        ):
            hook = chroma.hook(**options)
            await hook.apply(put(fact("a", session_id="s", payload={"role": "x", "mood": "good"}), fact("b")))
            # Nothing but the fact itself says what the entry has: after a crash no one else knows.
            await hook.apply(put(fact("a", version=2, payload={"mood": "bad"})))
            (metadata,) = (await (await chroma.collection()).get(ids=["a"]))["metadatas"]
            assert without_fields(metadata) == {
                "mood": "bad",
                "memstate_namespace": "default",
                "memstate_type": "note",
                "memstate_version": 2,
                "memstate_long_term": True,
            }
            await hook.apply(drop("a", "b"))

    async def test_odd_data(self, chroma: Chroma) -> None:
        hook = chroma.hook(metadata_fields=["extra"])
        odd = ["nul \0", "lone \ud800", "😀", "a" * 100_000, {"deep": [1, {"er": None}]}, 2**80, -(2**63), 1e300, False]
        facts = [fact(f"{number}-é'\"\0", "same words", payload={"extra": extra}) for number, extra in enumerate(odd)]
        facts = [replace(one, session_id=f"s\0{one.id}") for one in facts]
        await hook.apply(put(*facts))
        assert await hook.scan() == {one.id: 1 for one in facts}
        for one in facts:
            assert ids(await hook.search("same words", 5, Scope("note", one.session_id))) == [one.id]

    async def test_another_hook_on_the_same_collection_goes_on(self, chroma: Chroma) -> None:
        await chroma.hook().apply(put(fact("a")))
        again = chroma.hook()
        await again.apply(put(fact("b", "tea")))
        assert await again.scan() == {"a": 1, "b": 1}

    def test_what_is_on_disk_is_found_by_a_process_that_starts_later(self, tmp_path: Path) -> None:
        code = """
import os, signal, sys, chromadb
from memstate_core.hooks.chroma import ChromaSyncHook
from memstate_core.embedding import LexicalEmbedder
from tests.hooks.facts import fact, put
hook = ChromaSyncHook(chromadb.PersistentClient(sys.argv[1]), "memory", LexicalEmbedder(64))
hook.apply(put(*(fact(f"f{number}", f"note {number}") for number in range(20))))
print(*dict(hook.scan()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
        killed = subprocess.run(
            [sys.executable, "-c", code, tmp_path], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert len(killed.stdout.split()) == 20, killed.stderr
        hook = ChromaSyncHook(
            chromadb.PersistentClient(str(tmp_path), Settings(anonymized_telemetry=False)),
            "memory",
            LexicalEmbedder(64),
        )
        assert dict(hook.scan()).keys() == set(killed.stdout.split())
        assert ids(hook.search("note 7", 1)) == ["f7"]


class TestSearching:
    async def test_scope(self, chroma: Chroma) -> None:
        hook = chroma.hook()
        await hook.apply(
            put(
                fact("long", "tea"),
                fact("mine", "tea", session_id="s"),
                fact("theirs", "tea", session_id="t"),
                fact("task", "tea", session_id="s", type="task"),
            )
        )
        for scope, expected in [
            (Scope(), {"long", "mine", "theirs", "task"}),
            (Scope("note"), {"long", "mine", "theirs"}),
            (Scope("task"), {"task"}),
            (Scope(None, None), {"long"}),
            (Scope(None, "s"), {"mine", "task"}),
            (Scope("note", "s"), {"mine"}),
            (Scope("task", None), set()),
            (Scope("other", UNSET), set()),
        ]:
            assert set(ids(await hook.search("tea", 10, scope))) == expected, scope

    async def test_scope_follows_a_fact_into_long_term_memory_and_back(self, chroma: Chroma) -> None:
        hook = chroma.hook()
        for version, session_id in enumerate(["s", None, "s", None], 1):
            await hook.apply(put(fact("a", session_id=session_id, version=version)))
            [found] = await hook.search("vegetarian", 5, Scope(None, session_id))
            assert found.version == version
            assert await hook.search("vegetarian", 5, Scope(None, None if session_id else "s")) == []

    async def test_the_only_type_there_is(self, chroma: Chroma) -> None:
        hook = chroma.hook(target_types=["note"])
        await hook.apply(put(fact("a"), fact("b", session_id="s")))
        assert ids(await hook.search("vegetarian", 5, Scope("note", "s"))) == ["b"]
        assert set(ids(await hook.search("vegetarian", 5, Scope("note")))) == {"a", "b"}
        assert await hook.search("vegetarian", 5, Scope("task")) == []

    async def test_an_empty_collection(self, chroma: Chroma) -> None:
        hook = chroma.hook()
        assert await hook.search("tea", 5) == []
        assert await hook.search("tea", 5, Scope("note", None)) == []
        assert await hook.scan() == {}
        assert await hook.similarity("tea", []) == []

    @pytest.mark.parametrize("limit", [1, 2, 3, 1000])
    async def test_limit(self, chroma: Chroma, limit: int) -> None:
        hook = chroma.hook()
        await hook.apply(put(fact("a"), fact("b", "tea"), fact("c", "coffee")))
        assert len(await hook.search("tea", limit)) == min(limit, 3)
        assert (await hook.search("tea", limit))[0].fact_id == "b"

    async def test_no_limit_no_results(self, ephemeral: Chroma, calls: Counter[str]) -> None:
        hook = ephemeral.hook()
        assert [await hook.search("tea", limit) for limit in (0, -1)] == [[], []]
        assert not calls

    @pytest.mark.parametrize("space", SPACES)
    async def test_similarity_says_the_same_as_search(self, chroma: Chroma, space: str) -> None:
        def embed(texts: Sequence[str]) -> list[list[float]]:
            return [[0.5 * value for value in vector] for vector in LexicalEmbedder(64)(texts)]

        await chroma.create(configuration={"hnsw": {"space": space}})
        hook = chroma.hook(embedding_fn=embed, text_field="content")
        facts = [fact("a", "I am vegetarian"), fact("b", "My dog is called Rex"), fact("c", "I am", version=7)]
        await hook.apply(put(*facts))
        searched = await hook.search("am I vegetarian", 5)
        scored = await hook.similarity("am I vegetarian", [*facts, fact("no text", None)])
        assert ids(searched) == ids(scored) == ["a", "c", "b"]
        assert [result.version for result in searched] == [result.version for result in scored] == [1, 7, 1]
        assert [result.score for result in searched] == pytest.approx([result.score for result in scored], abs=1e-6)

    @pytest.mark.parametrize(
        ("space", "scores"), [("cosine", [1, 0, -1]), ("l2", [1, 1 / 6, 1 / 10]), ("ip", [1, 0, -2])]
    )
    async def test_scores(self, chroma: Chroma, space: str, scores: list[float]) -> None:
        vectors = {"x": [1.0, 0.0], "y": [0.0, 2.0], "-x": [-2.0, 0.0]}
        await chroma.create(configuration={"hnsw": {"space": space}})
        hook = chroma.hook(embedding_fn=lambda texts: [vectors[text] for text in texts], text_field="content")
        facts = [fact(text, text) for text in vectors]
        await hook.apply(put(*facts))
        for results in (await hook.search("x", 5), await hook.similarity("x", facts)):
            assert ids(results) == ["x", "y", "-x"]
            assert [result.score for result in results] == pytest.approx(scores)

    async def test_a_common_type_is_found_without_a_filter_and_a_rare_one_with_it(
        self, chroma: Chroma, calls: Counter[str]
    ) -> None:
        hook = chroma.hook(text_field="content")
        common = [fact(f"{number}", f"tea number {number}") for number in range(30)]
        rare = [fact(f"task {number}", f"task number {number}", type="task") for number in range(3)]
        await hook.apply(put(*common, *rare))
        for query, typename, limit, queries in (
            ("tea number 7", "note", 5, 1),
            ("task number 1", "note", 5, 1),
            ("tea number 7", "task", 2, 2),
            ("tea number 7", "task", 3, 2),
        ):
            calls.clear()
            facts = common if typename == "note" else rare
            results = await hook.search(query, limit, Scope(typename))
            exact = await hook.similarity(query, facts)
            assert [result.score for result in results] == pytest.approx([result.score for result in exact[:limit]])
            assert set(ids(results)) <= {one.id for one in facts}
            assert calls == {"query": queries}

    async def test_similarity_is_of_the_facts_as_given(self, chroma: Chroma) -> None:
        hook = chroma.hook(target_types={"note"})
        await hook.apply(put(fact("a", "tea")))
        results = await hook.similarity(
            "coffee", [fact("a", "coffee", version=2), fact("b", "tea"), fact("c", type="log")]
        )
        assert [(result.fact_id, result.version) for result in results] == [("a", 2), ("b", 1)]
        assert await hook.scan() == {"a": 1}

    async def test_zero_vectors_have_no_direction(self, chroma: Chroma) -> None:
        hook = chroma.hook(
            embedding_fn=lambda texts: [[0.0, float("x" in text)] for text in texts], text_field="content"
        )
        await hook.apply(put(fact("x", "x"), fact("zero", "0")))
        assert await hook.search("x", 5) == [SearchResult("x", 1.0, 1), SearchResult("zero", 0.0, 1)]
        assert await hook.similarity("x", [fact("zero", "0"), fact("x", "x")]) == await hook.search("x", 5)

    async def test_a_short_answer_is_completed(self, ephemeral: Chroma) -> None:
        # A graph as thin as this one leaves most of what stands beside many equal vectors out of reach.
        thin = {"space": "cosine", "max_neighbors": 2, "ef_construction": 4, "ef_search": 4}
        collection = await ephemeral.create(configuration={"hnsw": thin})
        random = np.random.default_rng(0).normal(size=(50, 8))
        vectors = {f"other {number}": list(vector) for number, vector in enumerate(random)}
        hook = ephemeral.hook(
            embedding_fn=lambda texts: [vectors.get(text, [1.0] * 8) for text in texts], text_field="content"
        )
        await hook.apply(put(*(fact(f"same {number}", "same") for number in range(1500))))
        await hook.apply(put(*(fact(text, text, type="task") for text in vectors)))

        short = await collection.query(query_embeddings=[[1.0] * 8], n_results=50, where={"memstate_type": "task"})
        assert len(short["ids"][0]) < 50
        results = await hook.search("same", 50, Scope("task"))
        exact = await hook.similarity("same", [fact(text, text, type="task") for text in vectors])
        assert ids(results) == ids(exact)
        assert len(results) == 50
        assert len(await hook.search("same", 1550)) == 1550
        assert ids(await hook.search("same", 49, Scope("task"))) == ids(exact)[:49]

    async def test_equal_texts_do_not_hide_the_others(self, ephemeral: Chroma) -> None:
        hook = ephemeral.hook(text_field="content")
        others = [f"subject {number} of its own kind" for number in range(300)]
        await hook.apply(
            put(*(fact(f"{number}", "ok") for number in range(300)), *(fact(text, text) for text in others))
        )
        found = [ids(await hook.search(text, 1)) == [text] for text in others]
        assert sum(found) >= 270

    async def test_what_others_keep_in_the_collection(self, chroma: Chroma) -> None:
        collection = await chroma.create()
        vector = LexicalEmbedder(64).embed_query("tea")
        await collection.add(ids=["x", "y"], embeddings=[vector] * 2, documents=["tea"] * 2, metadatas=[None, {"a": 1}])
        hook = chroma.hook()
        await hook.apply(put(fact("a", "tea")))
        assert await hook.scan() == {"a": 1}
        assert [(result.fact_id, result.version) for result in await hook.search("tea", 5)] == [("a", 1)]


class TestFilters:
    async def test_chromas_own(self, chroma: Chroma) -> None:
        hook = chroma.hook(metadata_formatter=lambda payload: {"length": len(payload["content"])})
        await hook.apply(put(fact("a", "tea"), fact("b", "coffee"), fact("c", "milk", session_id="s")))
        assert set(ids(await hook.search("tea", 5, Scope(native={"length": {"$gt": 3}})))) == {"b", "c"}
        assert ids(await hook.search("tea", 5, Scope(native={"length": 3}))) == ["a"]
        both = Scope(None, "s", {"content": "nothing"}, {"length": {"$gt": 3}})
        assert ids(await hook.search("tea", 5, both)) == ["c"]

    def test_they_are_passed_through_by_the_store(self, ephemeral: Chroma) -> None:
        hook = ephemeral.hook(text_field="content", metadata_formatter=lambda payload: {"by": payload["role"]}).target
        store = MemoryStore(InMemoryStorage(), hooks=[hook], allow_unregistered=True)
        for number, role in enumerate("xyx"):
            store.commit(Fact("note", {"content": f"tea {number}", "role": role}, id=str(number)))
        assert {found.fact.id for found in store.search("tea", filters=NativeFilter({"by": "x"}))} == {"0", "2"}
        assert store.search("tea", filters={"by": "x"}) == []  # a payload has no such field
        with pytest.raises(HookError, match=f"hook 'chroma:{ephemeral.name}' takes no filter of type Fact"):
            store.search("tea", filters=NativeFilter(fact("a")))
        with pytest.raises(ValueError, match="a filter must be a mapping"):
            store.search("tea", filters=["by"])  # type: ignore[arg-type]

    async def test_fields_that_a_hook_keeps_since_lately(self, chroma: Chroma) -> None:
        await chroma.hook(metadata_fields=["role"]).apply(put(fact("a", payload={"role": "x", "mood": "good"})))
        await chroma.hook().apply(put(fact("b", payload={"role": "x", "mood": "good"})))
        hook = chroma.hook(metadata_fields=["role", "mood"])
        await hook.apply(put(fact("c", payload={"role": "x", "mood": "good"}), fact("d", payload={"mood": "bad"})))
        # What an entry does not say is for the store to find out.
        assert set(ids(await hook.search("tea", 9, Scope(filters={"mood": "good"})))) == {"a", "b", "c"}

    async def test_fields_that_a_formatter_changes(self, ephemeral: Chroma) -> None:
        hook = ephemeral.hook(
            metadata_fields=["role"],
            metadata_formatter=lambda payload: {"role": "another"} if payload["role"] == "x" else {"other": 1},
        )
        await hook.apply(put(*(fact(role, payload={"role": role}) for role in "xyz")))
        assert set(ids(await hook.search("tea", 9, Scope(filters={"role": "y"})))) == {"x", "y"}
        assert set(ids(await hook.search("tea", 9, Scope(filters={"role": {"$ne": "y"}})))) == {"x", "z"}

    async def test_a_filter_is_applied_in_chroma(self, chroma: Chroma, calls: Counter[str]) -> None:
        hook = chroma.hook(metadata_fields=["role"], text_field="content")
        await hook.apply(put(*(fact(str(number), f"tea {number}", payload={"role": number}) for number in range(50))))
        calls.clear()
        assert ids(await hook.search("tea 1", 1, Scope(filters={"role": 49}))) == ["49"]
        assert calls == {"query": 1}


class TestNamespaces:
    async def test_entries_have_ids_of_their_own(self, ephemeral: Chroma) -> None:
        default = ephemeral.hook().target
        tenant = default.for_namespace("tenant")
        assert default.for_namespace("default") is default
        default.apply(put(fact("a", "tea")))
        tenant.apply(put(fact("a", "coffee", version=2)))
        collection = ephemeral.client.get_collection(ephemeral.name, embedding_function=None)
        there = collection.get()
        told = dict(zip(there["ids"], [one["memstate_namespace"] for one in there["metadatas"]], strict=True))
        assert told == {"a": "default", "tenant\0a": "tenant"}
        assert (dict(default.scan()), dict(tenant.scan())) == ({"a": 1}, {"a": 2})
        assert ids(tenant.search("tea", 5)) == ["a"]


class TestCollections:
    async def test_a_new_collection_has_cosine_space(self, chroma: Chroma) -> None:
        await chroma.hook().apply(put(fact("a")))
        configuration = (await chroma.collection()).target.configuration_json
        assert (configuration["hnsw"]["space"], configuration["hnsw"]["max_neighbors"]) == ("cosine", 32)

    @pytest.mark.parametrize("space", SPACES)
    async def test_the_space_of_an_old_collection_is_kept(self, chroma: Chroma, space: str) -> None:
        await chroma.create(metadata={"hnsw:space": space})
        hook = chroma.hook(embedding_fn=lambda texts: [[2.0, 0.0]] * len(texts))
        await hook.apply(put(fact("a")))
        [found] = await hook.search("tea", 1)
        assert found.score == pytest.approx({"cosine": 1, "l2": 1, "ip": 4}[space])

    # Chroma says on every upsert that it cannot make the function again; that is no failure.
    @pytest.mark.filterwarnings("ignore:Could not reconstruct embedding function:UserWarning")
    async def test_a_collection_that_remembers_another_embedding_function(self, chroma: Chroma) -> None:
        await chroma.create(embedding_function=LexicalEmbedder(64), metadata={"owner": "us"})
        remembered = known_embedding_functions.pop("memstate_lexical")
        try:
            for embedding_fn in (lambda texts: [[1.0, 2.0]] * len(texts), ChromasOwn()):
                hook = chroma.hook(embedding_fn=embedding_fn)
                await hook.apply(put(fact("a")))
                assert ids(await hook.search("tea", 1)) == ["a"]
        finally:
            known_embedding_functions["memstate_lexical"] = remembered
        collection = (await chroma.collection()).target
        assert collection.configuration_json["embedding_function"]["name"] == "memstate_lexical"
        assert collection.metadata == {"owner": "us"}

    async def test_a_deleted_collection_is_made_again(self, chroma: Chroma) -> None:
        hook = chroma.hook()
        for use, result in [
            (lambda: hook.search("tea", 5), []),
            (hook.scan, {}),
            (lambda: hook.apply(drop("a")), None),
            (lambda: hook.apply(put(fact("b"))), None),
        ]:
            await hook.apply(put(fact("a")))
            await chroma.delete()
            assert await use() == result
        assert await hook.scan() == {"b": 1}

    async def test_a_collection_made_anew_by_others(self, chroma: Chroma) -> None:
        hook = chroma.hook(embedding_fn=lambda texts: [[2.0, 0.0]] * len(texts))
        await hook.apply(put(fact("a")))
        await chroma.delete()
        await chroma.create(configuration={"hnsw": {"space": "ip"}})
        await hook.apply(put(fact("b")))
        assert await hook.search("tea", 5) == [SearchResult("b", 4.0, 1)]
        assert await hook.similarity("tea", [fact("c")]) == [SearchResult("c", 4.0, 1)]

    async def test_what_chroma_refuses_comes_as_it_is(self, chroma: Chroma) -> None:
        await chroma.hook().apply(put(fact("a")))
        other = chroma.hook(embedding_fn=LexicalEmbedder(32))
        with pytest.raises(chromadb.errors.InvalidArgumentError, match="dimension of 64, got 32"):
            await other.apply(put(fact("b")))
        with pytest.raises(chromadb.errors.InvalidArgumentError, match="dimension of 64, got 32"):
            await other.search("tea", 1)
        assert await other.scan() == {"a": 1}

    def test_threads_share_a_hook(self, ephemeral: Chroma) -> None:
        hook = ephemeral.hook().target
        failures: list[BaseException] = []
        start = threading.Barrier(8)

        def work(thread: int) -> None:
            try:
                start.wait()
                for number in range(10):
                    hook.apply(put(fact(f"{thread}-{number}", f"thread {thread}")))
                    assert hook.search(f"thread {thread}", 3)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=[thread]) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(dict(hook.scan())) == 80

    async def test_tasks_share_a_hook(self, async_http: Chroma) -> None:
        hook = async_http.hook()
        await asyncio.gather(*(hook.apply(put(fact(f"f{number}"))) for number in range(20)))
        assert len(await hook.scan()) == 20

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
    def test_an_embedded_client_is_refused_after_a_fork(self, tmp_path: Path) -> None:
        code = """
import os, chromadb
from memstate_core.errors import HookError
from memstate_core.hooks.chroma import ChromaSyncHook
from memstate_core.embedding import LexicalEmbedder
from tests.hooks.facts import fact, put
hook = ChromaSyncHook(chromadb.EphemeralClient(), "memory", LexicalEmbedder(64))
hook.apply(put(fact("a")))
if child := os.fork():
    _, status = os.waitpid(child, 0)
    print(status, dict(hook.scan()))
else:
    try:
        hook.apply(put(fact("b")))
    except HookError as error:
        print(error, flush=True)
    os._exit(0)
"""
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60
        )
        assert "made before this process was forked" in result.stdout
        assert result.stdout.endswith("0 {'a': 1}\n")


class ChromasOwn(chromadb.EmbeddingFunction[list[str]]):
    """An embedding function as Chroma defines them: asked with lists, for queries too."""

    def __init__(self) -> None:
        self.queries: list[list[str]] = []

    def __call__(self, input: list[str]) -> Any:  # noqa: A002
        return [np.array([1, 2], dtype=np.float32) for _ in input]

    def embed_query(self, input: list[str]) -> Any:  # noqa: A002
        assert isinstance(input, list)
        self.queries.append(input)
        return self(input)

    @staticmethod
    def name() -> str:
        return "chromas_own"

    def get_config(self) -> dict[str, Any]:
        return {}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> ChromasOwn:
        return ChromasOwn()


class LangChainLike:
    """Embeddings as LangChain defines them: lists for documents, one vector for a query."""

    def __init__(self) -> None:
        self.used: list[str] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.used.append("embed_documents")
        return [[1.0, 2.0] for _ in texts]

    def embed_query(self, text: str) -> list[float]:
        assert isinstance(text, str)
        self.used.append("embed_query")
        return [1.0, 2.0]


class AsyncLangChainLike(LangChainLike):
    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        self.used.append("aembed_documents")
        return [[1.0, 2.0] for _ in texts]

    async def aembed_query(self, text: str) -> list[float]:
        assert isinstance(text, str)
        self.used.append("aembed_query")
        return [1.0, 2.0]


class DocumentsOnly:
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[1.0, 2.0] for _ in texts]


async def embed_later(texts: list[str]) -> list[list[float]]:
    await asyncio.sleep(0)
    return [[1.0, 2.0] for _ in texts]


def apply_to(function: Any, texts: list[str]) -> Any:
    """What does not look asynchronous, but is."""
    return function(texts)


class EmbedLater:
    async def __call__(self, input: list[str]) -> list[list[float]]:  # noqa: A002
        return await embed_later(input)


class TestEmbedding:
    @pytest.mark.parametrize(
        "embedding_fn",
        [
            lambda texts: [[1, 2] for _ in texts],
            lambda texts: [(1.0, 2.0) for _ in texts],
            lambda texts: np.array([[1.0, 2.0]] * len(texts)),
            lambda texts: ([1.0, np.float64(2.0)] for _ in texts),
            ChromasOwn(),
            LangChainLike(),
            DocumentsOnly(),
        ],
        ids=["lists", "tuples", "matrix", "generator", "chroma", "langchain", "documents only"],
    )
    async def test_every_usual_interface(self, chroma: Chroma, embedding_fn: Any) -> None:
        hook = chroma.hook(embedding_fn=embedding_fn)
        await hook.apply(put(fact("a"), fact("b")))
        assert [result.score for result in await hook.search("tea", 5)] == pytest.approx([1.0, 1.0])
        assert len(await hook.similarity("tea", [fact("a")])) == 1

    async def test_queries_are_embedded_as_queries(self, chroma: Chroma) -> None:
        langchain, own = LangChainLike(), ChromasOwn()
        for embedding_fn in (langchain, own):
            hook = chroma.hook(embedding_fn=embedding_fn)
            await hook.apply(put(fact("a")))
            await hook.search("tea", 1)
        assert langchain.used == ["embed_documents", "embed_query"]
        assert own.queries == [["tea"]]

    async def test_langchains_async_methods_are_preferred_where_one_can_wait(self, chroma: Chroma) -> None:
        embeddings = AsyncLangChainLike()
        hook = chroma.hook(embedding_fn=embeddings)
        await hook.apply(put(fact("a")))
        await hook.search("tea", 1)
        prefix = "a" if chroma.is_async else ""
        assert embeddings.used == [f"{prefix}embed_documents", f"{prefix}embed_query"]

    @pytest.mark.parametrize(
        "embedding_fn", [embed_later, EmbedLater(), EmbedLater().__call__, partial(apply_to, embed_later)]
    )
    async def test_coroutine_functions(self, async_http: Chroma, ephemeral: Chroma, embedding_fn: Any) -> None:
        hook = async_http.hook(embedding_fn=embedding_fn)
        await hook.apply(put(fact("a")))
        assert ids(await hook.search("tea", 1)) == ["a"]
        with pytest.raises(HookError, match="embedding_fn is asynchronous") as caught:
            await ephemeral.hook(embedding_fn=embedding_fn).prepare(put(fact("a")))
        assert (caught.value.hook, caught.value.operation) == (f"chroma:{ephemeral.name}", "prepare")

    async def test_a_plain_function_does_not_hold_up_the_loop(self, async_http: Chroma) -> None:
        def slow(texts: list[str]) -> list[list[float]]:
            time.sleep(0.3)
            return [[1.0, 2.0] for _ in texts]

        preparing = asyncio.create_task(async_http.hook(embedding_fn=slow).prepare(put(fact("a"))))
        turns = 0
        while not preparing.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert (await preparing).ids == ["a"]
        assert turns > 5

    async def test_embedding_happens_once_and_before_apply(self, chroma: Chroma) -> None:
        asked: list[list[str]] = []

        def embed(texts: list[str]) -> list[list[float]]:
            asked.append(list(texts))
            return [[1.0, 2.0] for _ in texts]

        hook = chroma.hook(embedding_fn=embed, text_field="content")
        batch = await hook.prepare([*put(fact("a", "tea"), fact("b", "coffee"), fact("c", None)), *drop("d")])
        assert asked == [["tea", "coffee"]]
        await hook.apply(batch)
        await hook.apply(drop("a"))
        assert asked == [["tea", "coffee"]]

    @pytest.mark.parametrize(
        ("result", "message"),
        [
            ([[1.0, 2.0]], "returned 1 vectors for 2 texts"),
            ([], "returned 0 vectors for 2 texts"),
            (np.ones((3, 2)), "returned 3 vectors for 2 texts"),
            ([[1.0, 2.0], [1.0]], r"shapes \[\(1,\), \(2,\)\]"),
            ([1.0, 2.0], r"shapes \[\(\)\]"),
            ([[], []], r"shapes \[\(0,\)\]"),
            ([[1.0, float("nan")], [1.0, 2.0]], "NaN or infinity"),
            ([[1.0, 2.0], [1.0, 1e300]], "NaN or infinity"),
            ([["a"], ["b"]], "not a list of vectors"),
            (None, "NoneType, not a list of vectors"),
        ],
    )
    async def test_improper_vectors(self, chroma: Chroma, result: Any, message: str) -> None:
        hook = chroma.hook(embedding_fn=lambda _: result)
        with pytest.raises(HookError, match=message) as caught:
            await hook.apply(put(fact("a", "tea"), fact("b", "coffee")))
        assert (caught.value.hook, caught.value.operation) == (f"chroma:{chroma.name}", "prepare")
        assert chroma.name not in await chroma.names()

    async def test_improper_query_vectors(self, chroma: Chroma) -> None:
        hook = chroma.hook(embedding_fn=lambda texts: [[1.0, 2.0]] * 2)
        await hook.apply(put(fact("a", "coffee"), fact("b", "milk")))
        with pytest.raises(HookError, match="returned 2 vectors for 1 texts") as caught:
            await hook.search("tea", 1)
        assert caught.value.operation == "search"

    async def test_what_an_embedding_function_raises_comes_as_it_is(self, chroma: Chroma) -> None:
        def fail(_: list[str]) -> Any:
            raise TimeoutError("too slow")

        hook = chroma.hook(embedding_fn=fail)
        with pytest.raises(TimeoutError, match="too slow"):
            await hook.apply(put(fact("a")))
        with pytest.raises(TimeoutError, match="too slow"):
            await hook.search("tea", 1)

    def test_what_cannot_embed_is_refused(self, ephemeral: Chroma) -> None:
        with pytest.raises(TypeError, match="embedding_fn must be a callable"):
            ephemeral.hook(embedding_fn="all-MiniLM-L6-v2")


class TestDefaultEmbedding:
    @pytest.fixture(autouse=True)
    def _offline(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(ONNXMiniLM_L6_V2, "DOWNLOAD_PATH", tmp_path / "model")
        monkeypatch.setattr(ONNXMiniLM_L6_V2, "MODEL_DOWNLOAD_URL", "http://127.0.0.1:9/onnx.tar.gz")

    async def test_offline(self, chroma: Chroma) -> None:
        hook = chroma.hook(embedding_fn=None)
        started = time.monotonic()
        for operation, use in (
            ("prepare", lambda: hook.apply(put(fact("a")))),
            ("search", lambda: hook.search("tea", 1)),
        ):
            with pytest.raises(HookError, match="Offline, pass embedding_fn=") as caught:
                await use()
            assert (caught.value.hook, caught.value.operation) == (f"chroma:{chroma.name}", operation)
            assert "ConnectError" in str(caught.value)
            assert caught.value.__cause__ is not None
        assert time.monotonic() - started < 10
        await hook.apply(drop("a"))
        assert await hook.scan() == {}

    @pytest.mark.parametrize("damaged", ["onnx.tar.gz", "onnx/model.onnx"])
    async def test_half_downloaded(self, ephemeral: Chroma, tmp_path: Path, damaged: str) -> None:
        extracted = tmp_path / "model" / "onnx"
        extracted.mkdir(parents=True)
        (tmp_path / "model" / damaged).write_bytes(b"half")
        if damaged != "onnx.tar.gz":
            for name in (
                "config.json",
                "special_tokens_map.json",
                "tokenizer_config.json",
                "tokenizer.json",
                "vocab.txt",
            ):
                (extracted / name).write_text("{}")
        hook = ephemeral.hook(embedding_fn=None)
        for _ in range(2):
            with pytest.raises(HookError, match="delete that directory if it is damaged") as caught:
                await hook.prepare(put(fact("a")))
            assert str(tmp_path / "model") in str(caught.value)

    async def test_the_model_is_loaded_once(self, ephemeral: Chroma, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded: list[ONNXMiniLM_L6_V2] = []
        construct = ONNXMiniLM_L6_V2.__init__

        def load(self: ONNXMiniLM_L6_V2) -> None:
            construct(self)
            loaded.append(self)

        monkeypatch.setattr(ONNXMiniLM_L6_V2, "__init__", load)
        monkeypatch.setattr(ONNXMiniLM_L6_V2, "__call__", lambda self, texts: LexicalEmbedder(384)(texts))
        hook = ephemeral.hook(embedding_fn=None)
        assert not loaded
        await hook.apply(put(fact("a", "tea"), fact("b", "coffee")))
        assert ids(await hook.search("tea", 1)) == ["a"]
        assert len(loaded) == 1


class TestConstruction:
    def test_what_the_store_asks_of_a_hook(self, ephemeral: Chroma) -> None:
        hook = ephemeral.hook(target_types=["note"]).target
        assert (hook.name, hook.target_types) == (f"chroma:{ephemeral.name}", frozenset({"note"}))
        for protocol in (PreparingHook, SearchingHook, ScanningHook):
            assert isinstance(hook, protocol)
        assert ephemeral.hook().target.target_types is None

    def test_which_facts_belong_into_the_index(self, ephemeral: Chroma) -> None:
        hook = ephemeral.hook(target_types=["note"], text_field="content").target
        facts = [fact("a"), fact("b", " "), fact("c", type="task")]
        assert [hook.indexes(one) for one in facts] == [True, False, False]

    async def test_a_client_of_the_other_flavour(self, ephemeral: Chroma, async_http: Chroma) -> None:
        with pytest.raises(TypeError, match="a sync client: use ChromaSyncHook"):
            AsyncChromaSyncHook(ephemeral.client, "memory")
        with pytest.raises(TypeError, match="an async client: use AsyncChromaSyncHook"):
            ChromaSyncHook(async_http.client, "memory")
        with pytest.raises(TypeError, match=r"pass client=await chromadb\.AsyncHttpClient"):
            AsyncChromaSyncHook(chromadb.AsyncHttpClient(), "memory")  # type: ignore[arg-type]

    def test_options_that_cannot_mean_what_they_say(self, ephemeral: Chroma) -> None:
        for options in ({"target_types": "note"}, {"metadata_fields": "role"}, {"metadata_fields": ["memstate_type"]}):
            with pytest.raises(ValueError, match=r"note|role|memstate_type"):
                ephemeral.hook(**options)

    async def test_a_formatter_that_takes_a_reserved_key(self, chroma: Chroma) -> None:
        hook = chroma.hook(metadata_formatter=lambda _: {"memstate_session_id": "other"})
        with pytest.raises(ValueError, match="'memstate_session_id' is reserved"):
            await hook.apply(put(fact("a")))
        assert await hook.scan() == {}

    def test_importing_the_hooks_imports_no_vendor(self) -> None:
        code = "import sys, memstate_core.hooks; print([name for name in ('chromadb', 'numpy') if name in sys.modules])"
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
        )
        assert result.stdout == "[]\n"

    def test_without_chroma_the_extra_is_named(self) -> None:
        code = "import sys; sys.modules['chromadb'] = None; import memstate_core.hooks.chroma"
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        assert result.returncode == 1
        assert 'ImportError: the Chroma hooks need chromadb: pip install "memstate[chroma]"' in result.stderr
