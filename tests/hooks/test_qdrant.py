"""The Qdrant hooks against Qdrant: in memory, on disk, and its engine over HTTP, sync and async."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import BaseModel
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from memstate_core import HookError, InMemoryStorage, LexicalEmbedder, MemoryStore, NativeFilter, SQLiteStorage
from memstate_core.facts import Fact, SearchResult
from memstate_core.hooks.qdrant import AsyncQdrantSyncHook, QdrantSyncHook
from memstate_core.protocols import PreparingHook, ScanningHook, Scope, SearchingHook
from tests.hooks.facts import drop, fact, ids, put
from tests.hooks.test_chroma import LangChainLike, embed_later

if TYPE_CHECKING:
    from tests.hooks.conftest import Qdrant

ROOT = Path(__file__).parents[2]
DISTANCES = ("Cosine", "Dot", "Euclid", "Manhattan")


class Note(BaseModel):
    content: str
    role: str = ""


def like(*vector: float) -> Any:
    """An embedding function that returns the same vector for every text."""
    return lambda texts: [list(vector)] * len(texts)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each method of any client was called that goes to Qdrant."""
    counted: Counter[str] = Counter()

    def count(kind: type, name: str) -> None:
        method = getattr(kind, name)

        def counting(*arguments: Any, **options: Any) -> Any:
            counted[name] += 1
            return method(*arguments, **options)

        async def counting_async(*arguments: Any, **options: Any) -> Any:
            counted[name] += 1
            return await method(*arguments, **options)

        monkeypatch.setattr(kind, name, counting_async if kind is AsyncQdrantClient else counting)

    for kind in (QdrantClient, AsyncQdrantClient):
        for name in ("batch_update_points", "query_points", "scroll", "create_collection", "create_payload_index"):
            count(kind, name)
    return counted


class TestFollowing:
    async def test_the_entry_is_readable_in_qdrant_itself(self, qdrant: Qdrant) -> None:
        payload = {"role": "taste", "tags": ["a", "b"], "address": {"city": "Rome"}}
        hook = qdrant.hook(text_field="content", metadata_fields=["role", "tags", "address", "address.city"])
        await hook.apply(put(fact("a", "tea", session_id="s", version=4, payload=payload)))
        (kept,) = (await qdrant.payloads()).values()
        assert kept.pop("memstate_fields") in range(2**32 + 1)
        assert kept == {
            "role": "taste",
            "tags": ["a", "b"],
            "address": '{"city": "Rome"}',
            "address.city": "Rome",
            "memstate_text": "tea",
            "memstate_fact_id": "a",
            "memstate_namespace": "default",
            "memstate_type": "note",
            "memstate_version": 4,
            "memstate_long_term": False,
            "memstate_session_id": "s",
            "memstate_lists": ["tags"],
        }

    async def test_points_have_ids_of_namespace_and_fact(self, qdrant: Qdrant) -> None:
        for namespace in ("default", "tenant"):
            hook = qdrant.hook().target.for_namespace(namespace)
            batch = hook.prepare(put(fact("a"), fact(str(uuid.uuid4()))))
            await applied(hook, batch)
        points, _ = await qdrant.asked.scroll(qdrant.name)
        assert len({uuid.UUID(str(point.id)) for point in points}) == 4

    async def test_an_entry_is_replaced_whole(self, qdrant: Qdrant) -> None:
        hook = qdrant.hook(metadata_fields=["role", "mood"])
        await hook.apply(put(fact("a", session_id="s", payload={"role": "x", "mood": ["good"]})))
        await hook.apply(put(fact("a", version=2, payload={"mood": "bad"})))
        kept = (await qdrant.payloads())["a"]
        assert {"role", "memstate_session_id", "memstate_lists"}.isdisjoint(kept)
        assert (kept["mood"], kept["memstate_version"]) == ("bad", 2)

    async def test_nothing_is_visible_before_apply(self, qdrant: Qdrant) -> None:
        batch = await qdrant.hook().prepare(put(fact("a")))
        assert batch.ids == ["a"]
        assert not await qdrant.asked.collection_exists(qdrant.name)

    async def test_one_request_per_transaction(self, qdrant: Qdrant, calls: Counter[str]) -> None:
        hook = qdrant.hook()
        await hook.apply(put(fact("d")))
        calls.clear()
        facts = [fact(f"f{number}", f"note {number}") for number in range(100)]
        await hook.apply(await hook.prepare([*put(*facts), *drop(*(f"d{number}" for number in range(100)), "d")]))
        assert calls == {"batch_update_points": 1}
        assert await hook.scan() == {fact.id: 1 for fact in facts}

    async def test_large_transactions_are_several_requests(self, in_memory: Qdrant, calls: Counter[str]) -> None:
        rng = np.random.default_rng(0)
        hook = in_memory.hook(embedding_fn=lambda texts: rng.normal(size=(len(texts), 3072)), text_field="content")
        await hook.apply(put(*(fact(str(number), f"{number}") for number in range(300)), fact("long", "x" * 9_000_000)))
        assert calls["batch_update_points"] == 4
        assert len(await hook.scan()) == 301

    async def test_nothing_to_do_asks_nothing_of_qdrant(self, qdrant: Qdrant, calls: Counter[str]) -> None:
        hook = qdrant.hook()
        await hook.apply(await hook.prepare([]))
        await hook.apply(drop("a"))
        assert await hook.scan() == {}
        assert await hook.search("tea", 5) == []
        assert not calls
        assert not await qdrant.asked.collection_exists(qdrant.name)

    async def test_odd_data(self, qdrant: Qdrant) -> None:
        hook = qdrant.hook(metadata_fields=["extra", 'odd "key"', "a.b", "tags[]"])
        odd = ["nul \0", "lone \ud800", "😀", "a" * 100_000, {"deep": [1, {"er": None}]}, 2**80, -(2**63), 1e300, False]
        facts = [
            fact(f"{number}-é'\"\0", "same", payload={"extra": extra, 'odd "key"': extra, "tags[]": extra})
            for number, extra in enumerate(odd)
        ]
        await hook.apply(put(*facts))
        assert await hook.scan() == {one.id: 1 for one in facts}
        for filters in ({'odd "key"': "x"}, {"tags[]": "x"}, {"extra": "nul \0"}):
            found = set(ids(await hook.search("same", 20, Scope(filters=filters))))
            assert found >= ({facts[0].id} if "extra" in filters else set())

    def test_what_is_on_disk_is_found_by_a_process_that_starts_later(self, tmp_path: Path) -> None:
        code = """
import os, signal, sys
from qdrant_client import QdrantClient
from memstate_core.embedding import LexicalEmbedder
from memstate_core.hooks.qdrant import QdrantSyncHook
from tests.hooks.facts import fact, put
hook = QdrantSyncHook(QdrantClient(path=sys.argv[1]), "memory", LexicalEmbedder(64))
hook.apply(put(*(fact(f"f{number}", f"note {number}") for number in range(20))))
print(*dict(hook.scan()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
        killed = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
        assert len(killed.stdout.split()) == 20, killed.stderr
        client = QdrantClient(path=str(tmp_path))
        hook = QdrantSyncHook(client, "memory", LexicalEmbedder(64))
        assert dict(hook.scan()).keys() == set(killed.stdout.split())
        assert ids(hook.search("note 7", 1)) == ["f7"]
        client.close()


class TestCrashes:
    @pytest.mark.parametrize("written", ["all", "half"])
    def test_what_a_process_left_that_was_killed_in_a_commit_is_undone(self, tmp_path: Path, written: str) -> None:
        code = """
import os, signal, sys
from qdrant_client import QdrantClient
from memstate_core import Fact, LexicalEmbedder, MemoryStore, SQLiteStorage
from memstate_core.hooks._vector_hook import VectorBatch
from memstate_core.hooks.qdrant import QdrantSyncHook

class Dying(QdrantSyncHook):
    def apply(self, batch):
        if len(batch.ids) > 1 and sys.argv[2] == "half":
            batch = VectorBatch(batch.ids[:1], batch.texts[:1], batch.vectors[:1], batch.metadatas[:1], [])
        super().apply(batch)
        if dict(self.scan()) not in ({"a": 1}, {"a": 1, "b": 1}):
            os.kill(os.getpid(), signal.SIGKILL)

client = QdrantClient(path=os.path.join(sys.argv[1], "qdrant"))
hook = Dying(client, "memory", LexicalEmbedder(64), text_field="content")
store = MemoryStore(SQLiteStorage(os.path.join(sys.argv[1], "memory.db")), hooks=[hook], allow_unregistered=True)
store.commit(Fact("note", {"content": "green tea"}, id="a"))
store.commit(Fact("note", {"content": "black coffee"}, id="b"))
with store.transaction() as tx:
    tx.commit(Fact("note", {"content": "never said"}, id="c"))
    tx.update("a", {"content": "never said either"})
    tx.delete("b")
"""
        killed = subprocess.run(
            [sys.executable, "-c", code, tmp_path, written], cwd=ROOT, capture_output=True, text=True
        )
        assert killed.returncode == -9, killed.stderr
        client = QdrantClient(path=str(tmp_path / "qdrant"))
        hook = QdrantSyncHook(client, "memory", LexicalEmbedder(64), text_field="content")
        assert dict(hook.scan()) != {"a": 1, "b": 1}
        with SQLiteStorage(tmp_path / "memory.db") as storage:
            store = MemoryStore(storage, hooks=[hook], allow_unregistered=True)
            found = store.search("never said", limit=9)
            assert {one.fact.payload["content"] for one in found} == {"green tea", "black coffee"}
            store.recover()
            assert [len(drift) for drift in store.verify()] == [0]
        assert dict(hook.scan()) == {"a": 1, "b": 1}
        client.close()


async def applied(hook: Any, batch: Any) -> None:
    """Apply what a hook of either flavour prepared."""
    if isinstance(hook, AsyncQdrantSyncHook):
        await hook.apply(await batch)
    else:
        hook.apply(batch)


class TestSearching:
    @pytest.mark.parametrize(
        ("distance", "scores"),
        [
            ("Cosine", [1, 0, -1]),
            ("Dot", [1, 0, -2]),
            ("Euclid", [1, 1 / 6, 1 / 10]),
            ("Manhattan", [1, 1 / 4, 1 / 4]),
        ],
    )
    async def test_scores(self, qdrant: Qdrant, distance: str, scores: list[float]) -> None:
        vectors = {"x": [1.0, 0.0], "y": [0.0, 2.0], "-x": [-2.0, 0.0]}
        hook = qdrant.hook(
            embedding_fn=lambda texts: [vectors[text] for text in texts], text_field="content", distance=distance
        )
        facts = [fact(text, text) for text in vectors]
        await hook.apply(put(*facts))
        for results in (await hook.search("x", 5), await hook.similarity("x", facts)):
            assert [result.score for result in results] == pytest.approx(scores)
            assert results[0].fact_id == "x"

    @pytest.mark.parametrize("distance", DISTANCES)
    async def test_similarity_says_the_same_as_search(self, in_memory: Qdrant, distance: str) -> None:
        def embed(texts: Sequence[str]) -> list[list[float]]:
            return [[0.5 * value for value in vector] for vector in LexicalEmbedder(64)(texts)]

        hook = in_memory.hook(embedding_fn=embed, text_field="content", distance=distance)
        facts = [fact("a", "I am vegetarian"), fact("b", "My dog is called Rex"), fact("c", "I am", version=7)]
        await hook.apply(put(*facts))
        searched = await hook.search("am I vegetarian", 5)
        scored = await hook.similarity("am I vegetarian", [*facts, fact("no text", None)])
        assert ids(searched) == ids(scored) == ["a", "c", "b"]
        assert [result.version for result in searched] == [result.version for result in scored] == [1, 7, 1]
        assert [result.score for result in searched] == pytest.approx([result.score for result in scored], abs=1e-6)

    async def test_zero_vectors_have_no_direction(self, qdrant: Qdrant) -> None:
        hook = qdrant.hook(
            embedding_fn=lambda texts: [[0.0, float("x" in text)] for text in texts], text_field="content"
        )
        await hook.apply(put(fact("x", "x"), fact("zero", "0")))
        assert await hook.search("x", 5) == [SearchResult("x", 1.0, 1), SearchResult("zero", 0.0, 1)]
        assert await hook.similarity("x", [fact("zero", "0"), fact("x", "x")]) == await hook.search("x", 5)

    async def test_what_others_keep_in_the_collection(self, qdrant: Qdrant) -> None:
        hook = qdrant.hook()
        await hook.apply(put(fact("a", "tea")))
        vector = LexicalEmbedder(64).embed_query("tea")
        await qdrant.asked.upsert(qdrant.name, [models.PointStruct(id=1, vector=vector, payload={"a": 1})])
        assert await hook.scan() == {"a": 1}
        assert ids(await hook.search("tea", 5)) == ["a"]

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """The filters of the searches in Qdrant."""
        asked: list[Any] = []
        query_points = QdrantClient.query_points

        def query(*arguments: Any, **options: Any) -> Any:
            asked.append(options["query_filter"])
            return query_points(*arguments, **options)

        monkeypatch.setattr(QdrantClient, "query_points", query)
        return asked

    def test_within_the_process_what_common_facts_fulfil_is_no_filter(
        self, in_memory: Qdrant, asked: list[Any]
    ) -> None:
        hook = in_memory.hook(text_field="content", metadata_fields=["role"]).target
        store = MemoryStore(InMemoryStorage(), hooks=[hook], allow_unregistered=True)
        with store.transaction() as tx:
            for number in range(100):
                payload = {"content": f"tea {number}", "role": "rare" if number == 99 else "xy"[number % 2]}
                tx.commit(Fact("note", payload, id=str(number)))
        assert len(store.search("tea 7", filters={"role": "x"})) == 5
        assert asked == [None]
        asked.clear()
        assert [found.fact.id for found in store.search("tea 7", filters={"role": "rare"})] == ["99"]
        assert [one is None for one in asked] == [True, False]

    def test_a_server_filters_at_once(self, qdrant_url: str, asked: list[Any]) -> None:
        client = QdrantClient(qdrant_url)
        hook = QdrantSyncHook(
            client, uuid.uuid4().hex, LexicalEmbedder(64), text_field="content", metadata_fields=["n"]
        )
        store = MemoryStore(InMemoryStorage(), hooks=[hook], allow_unregistered=True)
        with store.transaction() as tx:
            for number in range(50):
                tx.commit(Fact("note", {"content": f"tea {number}", "n": number}, id=str(number)))
        assert {found.fact.id for found in store.search("tea 7", filters={"n": {"$gte": 30}}, limit=20)} == {
            str(number) for number in range(30, 50)
        }
        assert None not in asked
        client.close()

    async def test_within_the_process_a_common_type_is_found_without_a_filter(
        self, in_memory: Qdrant, asked: list[Any]
    ) -> None:
        hook = in_memory.hook(text_field="content")
        await hook.apply(put(*(fact(str(number), f"tea {number}") for number in range(30)), fact("t", type="task")))
        assert len(await hook.search("tea 7", 5, Scope("note"))) == 5
        assert asked == [None]
        assert ids(await hook.search("tea 7", 5, Scope("task"))) == ["t"]
        assert [one is None for one in asked] == [True, True, False]

    async def test_a_graph_is_searched_to_the_end(self, qdrant_url: str) -> None:
        rng = np.random.default_rng(0)
        vectors = {f"other {number}": list(vector) for number, vector in enumerate(rng.normal(size=(50, 8)))}
        client = QdrantClient(qdrant_url)
        name = uuid.uuid4().hex
        # A graph as thin as this one leaves most of what stands beside many equal vectors out of reach.
        client.create_collection(
            name,
            models.VectorParams(size=8, distance=models.Distance.COSINE),
            hnsw_config=models.HnswConfigDiff(m=2, ef_construct=4, full_scan_threshold=10),
        )
        hook = QdrantSyncHook(
            client,
            name,
            lambda texts: [vectors.get(text, [1.0] * 8) for text in texts],
            text_field="content",
        )
        hook.apply(put(*(fact(f"same {number}", "same", session_id=f"{number % 9}") for number in range(1500))))
        hook.apply(put(*(fact(text, text, type="task", session_id="s") for text in vectors)))
        client.update_collection(name, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=1))
        assert client.get_collection(name).indexed_vectors_count
        vector = [1.0] * 8
        assert len(client.query_points(name, query=vector, limit=1550).points) < 1550
        for scope in (Scope("task"), Scope(None, "s"), Scope("task", "s")):
            results = hook.search("same", 50, scope)
            exact = hook.similarity("same", [fact(text, text, type="task") for text in vectors])
            assert ids(results) == ids(exact)
        assert len(hook.search("same", 1550)) == 1550
        client.close()


class TestCollections:
    @pytest.mark.parametrize("distance", [*DISTANCES, "euclid", models.Distance.DOT, None])
    async def test_it_is_made_as_said(self, in_memory: Qdrant, distance: Any) -> None:
        await in_memory.hook(embedding_fn=like(1, 2, 3), distance=distance).apply(put(fact("a")))
        params = in_memory.client.get_collection(in_memory.name).config.params.vectors
        assert (params.size, params.distance.value) == (3, getattr(distance, "value", distance or "Cosine").title())

    @pytest.mark.parametrize("distance", DISTANCES)
    async def test_one_that_is_there_keeps_its_distance(self, qdrant: Qdrant, distance: str) -> None:
        params = models.VectorParams(size=2, distance=models.Distance(distance))
        await qdrant.asked.create_collection(qdrant.name, vectors_config=params)
        hook = qdrant.hook(embedding_fn=like(2, 0))
        await hook.apply(put(fact("a")))
        [found] = await hook.search("tea", 1)
        assert found.score == pytest.approx({"Dot": 4}.get(distance, 1))
        other = next(one for one in DISTANCES if one != distance)
        message = f"measures by distance='{distance}', not by '{other}': leave distance out"
        for use in (lambda hook: hook.prepare(put(fact("b"))), lambda hook: hook.search("tea", 1)):
            with pytest.raises(HookError, match=message):
                await use(qdrant.hook(embedding_fn=like(2, 0), distance=other))

    async def test_vectors_of_another_length(self, qdrant: Qdrant) -> None:
        await qdrant.hook().apply(put(fact("a")))
        other = qdrant.hook(embedding_fn=LexicalEmbedder(32))
        message = (
            f"'{qdrant.name}' has vectors of 64 dimensions, and embedding_fn returned 32: pass the embedding function"
        )
        for operation, use in (
            ("prepare", lambda: other.prepare(put(fact("b")))),
            ("prepare", lambda: other.apply(put(fact("b")))),
            ("search", lambda: other.search("tea", 1)),
        ):
            with pytest.raises(HookError, match=message) as caught:
                await use()
            assert (caught.value.hook, caught.value.operation) == (f"qdrant:{qdrant.name}", operation)
        assert await other.scan() == {"a": 1}

    async def test_an_embedding_function_that_changes_its_mind(self, in_memory: Qdrant) -> None:
        size = 4
        hook = in_memory.hook(embedding_fn=lambda texts: [[1.0] * size] * len(texts)).target
        store = MemoryStore(InMemoryStorage(), hooks=[hook])
        store.register_schema("note", Note)
        fact_id = store.commit_model(Note(content="tea"))
        size = 5
        with pytest.raises(HookError, match="has vectors of 4 dimensions, and embedding_fn returned 5") as caught:
            store.update(fact_id, {"content": "coffee"})
        assert caught.value.in_doubt == ()
        assert store.get(fact_id)["payload"]["content"] == "tea"
        assert [len(drift) for drift in store.verify()] == [0]

    async def test_vectors_that_have_names(self, qdrant: Qdrant) -> None:
        params = models.VectorParams(size=64, distance=models.Distance.COSINE)
        await qdrant.asked.create_collection(qdrant.name, vectors_config={"a": params})
        with pytest.raises(HookError, match="named, sparse or multiple vectors; a hook needs one with a single vector"):
            await qdrant.hook().prepare(put(fact("a")))

    async def test_a_deleted_collection_is_made_again(self, qdrant: Qdrant) -> None:
        hook = qdrant.hook()
        for use, result in [
            (lambda: hook.search("tea", 5), []),
            (hook.scan, {}),
            (lambda: hook.apply(drop("a")), None),
            (lambda: hook.apply(put(fact("b"))), None),
        ]:
            await hook.apply(put(fact("a")))
            await qdrant.asked.delete_collection(qdrant.name)
            assert await use() == result
        assert await hook.scan() == {"b": 1}

    async def test_a_collection_made_anew_by_others(self, qdrant: Qdrant) -> None:
        vector = [2.0, 0.0]
        hook = qdrant.hook(embedding_fn=lambda texts: [vector] * len(texts), embedding_cache=0)
        await hook.apply(put(fact("a")))
        await qdrant.asked.delete_collection(qdrant.name)
        params = models.VectorParams(size=3, distance=models.Distance.DOT)
        await qdrant.asked.create_collection(qdrant.name, vectors_config=params)
        await qdrant.asked.upsert(qdrant.name, [models.PointStruct(id=1, vector=[1.0, 0.0, 0.0], payload={})])
        for use in (lambda: hook.search("tea", 1), lambda: hook.apply(put(fact("b")))):
            with pytest.raises(HookError, match="vectors of 3 dimensions, and embedding_fn returned 2"):
                await use()
        vector = [2.0, 0.0, 0.0]
        await hook.apply(put(fact("b")))
        assert await hook.search("tea", 5) == [SearchResult("b", 4.0, 1)]
        assert await hook.similarity("tea", [fact("c")]) == [SearchResult("c", 4.0, 1)]

    async def test_a_collection_that_somebody_else_makes_just_now(
        self, qdrant: Qdrant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await qdrant.hook().apply(put(fact("a")))
        late = qdrant.hook()
        kind = type(qdrant.client)
        exists, answers = kind.collection_exists, [False, False]

        async def too_early(*arguments: Any, **options: Any) -> Any:
            answer = exists(*arguments, **options)
            answer = await answer if qdrant.is_async else answer
            return answers.pop() if answers else answer

        def too_early_sync(*arguments: Any, **options: Any) -> Any:
            return answers.pop() if answers else exists(*arguments, **options)

        monkeypatch.setattr(kind, "collection_exists", too_early if qdrant.is_async else too_early_sync)
        await late.apply(put(fact("b")))
        assert not answers
        assert await late.scan() == {"a": 1, "b": 1}

    async def test_what_qdrant_raises_comes_as_it_is(self, qdrant: Qdrant) -> None:
        hook = qdrant.hook()
        await hook.apply(put(fact("a")))
        wrong = models.Filter(must=[models.FieldCondition(key="a[", match=models.MatchValue(value=1))])
        with pytest.raises(Exception, match=r"(?i)path|Unexpected") as caught:
            await hook.search("tea", 5, Scope(native=wrong))
        assert not isinstance(caught.value, HookError)
        assert ids(await hook.search("tea", 5)) == ["a"]

    def test_threads_share_a_client(self, in_memory: Qdrant) -> None:
        hooks = [in_memory.hook().target for _ in range(2)]
        failures: list[BaseException] = []
        start = threading.Barrier(8)

        def work(thread: int) -> None:
            hook = hooks[thread % 2]
            try:
                start.wait()
                for number in range(20):
                    hook.apply(put(fact(f"{thread}-{number}", f"thread {thread} {number}")))
                    assert hook.search(f"thread {thread}", 3)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=[thread]) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(dict(hooks[0].scan())) == 160

    @pytest.mark.parametrize("flavour", ["http", "memory"])
    async def test_tasks_share_a_hook(self, flavour: str, qdrant_url: str) -> None:
        client = AsyncQdrantClient(":memory:") if flavour == "memory" else AsyncQdrantClient(qdrant_url)
        hook = AsyncQdrantSyncHook(client, uuid.uuid4().hex, LexicalEmbedder(64))
        await asyncio.gather(*(hook.apply(put(fact(f"f{number}"))) for number in range(20)))
        assert len([entry async for entry in hook.scan()]) == 20
        await client.close()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
    def test_a_client_with_the_index_in_it_is_refused_after_a_fork(self) -> None:
        code = """
import os
from qdrant_client import QdrantClient
from memstate_core.embedding import LexicalEmbedder
from memstate_core.errors import HookError
from memstate_core.hooks.qdrant import QdrantSyncHook
from tests.hooks.facts import fact, put
hook = QdrantSyncHook(QdrantClient(":memory:"), "memory", LexicalEmbedder(64))
hook.apply(put(fact("a")))
if child := os.fork():
    _, status = os.waitpid(child, 0)
    print(status, dict(hook.scan()))
else:
    for use in (lambda: hook.apply(put(fact("b"))), lambda: hook.search("tea", 1), lambda: list(hook.scan())):
        try:
            use()
        except HookError as error:
            print(error, flush=True)
    os._exit(0)
"""
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert result.stdout.count("made before this process was forked") == 3, result.stderr
        assert result.stdout.endswith("0 {'a': 1}\n")


class TestPayloadIndexes:
    @pytest.fixture
    def client(self, qdrant_url: str) -> Iterator[QdrantClient]:
        client = QdrantClient(qdrant_url)
        yield client
        client.close()

    def schema(self, client: QdrantClient, name: str) -> dict[str, str]:
        return {key: info.data_type.value for key, info in client.get_collection(name).payload_schema.items()}

    def test_on_a_server_what_searches_ask_for_is_indexed(self, client: QdrantClient) -> None:
        name, fields = uuid.uuid4().hex, ["role", "rank", "done", "tags", "weight", "none", "a.b", 'odd "key"']
        hook = QdrantSyncHook(client, name, LexicalEmbedder(64), text_field="content", metadata_fields=fields)
        payload = {"role": "x", "rank": 1, "done": True, "tags": ["a"], "none": None, "a": {"b": "c"}, 'odd "key"': 1}
        hook.apply(put(fact("a", payload=payload)))
        ours = {
            "memstate_namespace": "keyword",
            "memstate_type": "keyword",
            "memstate_session_id": "keyword",
            "memstate_long_term": "bool",
            "memstate_fields": "float",
            "memstate_lists": "keyword",
        }
        theirs = {"role": "keyword", "rank": "float", "done": "bool", "tags": "keyword", '"a.b"': "keyword"}
        assert self.schema(client, name) == ours | theirs
        info = client.get_collection(name).payload_schema["memstate_namespace"]
        assert info.params is not None
        assert info.params.is_tenant
        hook.apply(put(fact("b", payload={"weight": 1.5, "tags": []})))
        assert self.schema(client, name) == ours | theirs | {"weight": "float"}

    def test_what_is_indexed_is_not_indexed_again(self, client: QdrantClient, calls: Counter[str]) -> None:
        name = uuid.uuid4().hex
        for _ in range(2):
            hook = QdrantSyncHook(client, name, LexicalEmbedder(64), metadata_fields=["role"])
            for _ in range(2):
                hook.apply(put(fact("a", payload={"role": "x"})))
        assert calls["create_payload_index"] == 7

    def test_a_collection_without_them_gets_them(self, client: QdrantClient) -> None:
        name = uuid.uuid4().hex
        client.create_collection(name, models.VectorParams(size=64, distance=models.Distance.COSINE))
        assert QdrantSyncHook(client, name, LexicalEmbedder(64)).search("tea", 5) == []
        assert "memstate_namespace" in self.schema(client, name)

    def test_an_index_that_cannot_be_made_is_no_failure(
        self, client: QdrantClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError("read only")

        monkeypatch.setattr(QdrantClient, "create_payload_index", refuse)
        hook = QdrantSyncHook(client, uuid.uuid4().hex, LexicalEmbedder(64))
        with caplog.at_level(logging.WARNING, "memstate"):
            hook.apply(put(fact("a"), fact("b", session_id="s")))
            hook.apply(put(fact("c")))
        assert len(caplog.records) == 6
        assert "could not index the field 'memstate_namespace' in Qdrant: PermissionError('read only')" in caplog.text
        assert ids(hook.search("tea", 5, Scope(None, "s"))) == ["b"]


class TestFilters:
    async def test_qdrants_own(self, qdrant: Qdrant) -> None:
        hook = qdrant.hook(metadata_formatter=lambda payload: {"length": len(payload["content"]), "tags": ["a", "b"]})
        await hook.apply(put(fact("a", "tea"), fact("b", "coffee"), fact("c", "milk", session_id="s")))

        def native(**condition: Any) -> Scope:
            return Scope(native=models.Filter(must=[models.FieldCondition(**condition)]))

        assert set(ids(await hook.search("tea", 5, native(key="length", range=models.Range(gt=3))))) == {"b", "c"}
        assert ids(await hook.search("tea", 5, native(key="length", match=models.MatchValue(value=3)))) == ["a"]
        assert len(await hook.search("tea", 5, native(key="tags", match=models.MatchAny(any=["b", "x"])))) == 3
        both = native(key="length", range=models.Range(gt=3))._replace(session_id="s", filters={"content": "nothing"})
        assert ids(await hook.search("tea", 5, both)) == ["c"]

    def test_they_are_passed_through_by_the_store(self, in_memory: Qdrant) -> None:
        hook = in_memory.hook(text_field="content", metadata_fields=["role"]).target
        store = MemoryStore(InMemoryStorage(), hooks=[hook], allow_unregistered=True)
        for number, role in enumerate("xyx"):
            store.commit(Fact("note", {"content": f"tea {number}", "role": role}, id=str(number)))
        native = models.Filter(must=[models.FieldCondition(key="role", match=models.MatchValue(value="x"))])
        for filters in (native, NativeFilter(native), {"role": "x"}):
            assert {found.fact.id for found in store.search("tea", filters=filters)} == {"0", "2"}
        assert len(store.search("tea", limit=1, filters=native)) == 1
        with pytest.raises(HookError, match=f"hook 'qdrant:{in_memory.name}' takes no filter of type dict"):
            store.search("tea", filters=NativeFilter({"role": "x"}))

    def test_a_drifted_entry_is_not_believed(self, in_memory: Qdrant) -> None:
        hook = in_memory.hook(text_field="content", metadata_fields=["role"]).target
        storage = InMemoryStorage()
        store = MemoryStore(storage, hooks=[hook], allow_unregistered=True)
        store.commit(Fact("note", {"content": "tea", "role": "x"}, id="a"))
        MemoryStore(storage, allow_unregistered=True).update("a", {"role": "y"})
        native = models.Filter(must=[models.FieldCondition(key="role", match=models.MatchValue(value="x"))])
        assert store.search("tea", filters=native) == []
        assert [drift.stale for drift in store.repair()] == [("a",)]
        assert store.search("tea", filters=native) == []
        assert len(store.search("tea", filters={"role": "y"})) == 1

    async def test_fields_that_a_hook_keeps_since_lately(self, qdrant: Qdrant) -> None:
        await qdrant.hook(metadata_fields=["role"]).apply(put(fact("a", payload={"role": "x", "mood": "good"})))
        await qdrant.hook().apply(put(fact("b", payload={"role": "x", "mood": "good"})))
        hook = qdrant.hook(metadata_fields=["role", "mood"])
        await hook.apply(put(fact("c", payload={"role": "x", "mood": "good"}), fact("d", payload={"mood": "bad"})))
        # What an entry does not say is for the store to find out.
        assert set(ids(await hook.search("tea", 9, Scope(filters={"mood": "good"})))) == {"a", "b", "c"}

    async def test_fields_that_a_formatter_changes(self, qdrant: Qdrant) -> None:
        hook = qdrant.hook(
            metadata_fields=["role"],
            metadata_formatter=lambda payload: {"role": "another"} if payload["role"] == "x" else {"other": 1},
        )
        await hook.apply(put(*(fact(role, payload={"role": role}) for role in "xyz")))
        assert set(ids(await hook.search("tea", 9, Scope(filters={"role": "y"})))) == {"x", "y"}
        assert set(ids(await hook.search("tea", 9, Scope(filters={"role": {"$ne": "y"}})))) >= {"x", "z"}

    def test_on_a_server_what_must_not_hold_narrows_too(self, qdrant_url: str) -> None:
        client = QdrantClient(qdrant_url)
        hook = QdrantSyncHook(client, uuid.uuid4().hex, LexicalEmbedder(64), metadata_fields=["role"])
        hook.apply(put(*(fact(role, payload={"role": role}) for role in "xyz"), fact("l", payload={"role": ["y"]})))
        for filters in ({"role": {"$ne": "y"}}, {"$not": {"role": {"$in": ["y", 1]}}}, {"role": {"$nin": ["y"]}}):
            assert set(ids(hook.search("tea", 9, Scope(filters=filters)))) == {"x", "z", "l"}
        client.close()


class TestEmbedding:
    async def test_langchain(self, qdrant: Qdrant) -> None:
        embeddings = LangChainLike()
        hook = qdrant.hook(embedding_fn=embeddings)
        await hook.apply(put(fact("a")))
        assert ids(await hook.search("tea", 1)) == ["a"]
        assert embeddings.used == ["embed_documents", "embed_query"]

    async def test_a_coroutine_function(self, in_memory: Qdrant) -> None:
        client = AsyncQdrantClient(":memory:")
        hook = AsyncQdrantSyncHook(client, "memory", embed_later)
        await hook.apply(put(fact("a")))
        assert ids(await hook.search("tea", 1)) == ["a"]
        await client.close()
        with pytest.raises(HookError, match="use AsyncQdrantSyncHook in an AsyncMemoryStore"):
            await in_memory.hook(embedding_fn=embed_later).prepare(put(fact("a")))

    async def test_improper_vectors(self, qdrant: Qdrant) -> None:
        hook = qdrant.hook(embedding_fn=lambda texts: [[1.0, float("nan")]] * len(texts))
        with pytest.raises(HookError, match="NaN or infinity") as caught:
            await hook.apply(put(fact("a")))
        assert (caught.value.hook, caught.value.operation) == (f"qdrant:{qdrant.name}", "prepare")
        assert not await qdrant.asked.collection_exists(qdrant.name)

    @pytest.mark.parametrize("function", [None, "all-MiniLM-L6-v2"])
    def test_what_cannot_embed_is_refused(self, in_memory: Qdrant, function: Any) -> None:
        with pytest.raises(TypeError, match="embedding_fn must be a callable from a list of texts"):
            in_memory.hook(embedding_fn=function)


class TestConstruction:
    def test_what_the_store_asks_of_a_hook(self, in_memory: Qdrant) -> None:
        hook = in_memory.hook(target_types=["note"], text_field="content").target
        assert (hook.name, hook.target_types) == (f"qdrant:{in_memory.name}", frozenset({"note"}))
        assert isinstance(hook, PreparingHook)
        assert isinstance(hook, SearchingHook)
        assert isinstance(hook, ScanningHook)
        facts = [fact("a"), fact("b", " "), fact("c", type="task")]
        assert [hook.indexes(one) for one in facts] == [True, False, False]

    async def test_a_client_of_the_other_flavour(self, in_memory: Qdrant) -> None:
        client = AsyncQdrantClient(":memory:")
        with pytest.raises(TypeError, match="QdrantClient is a sync client: use QdrantSyncHook"):
            AsyncQdrantSyncHook(in_memory.client, "memory", LexicalEmbedder())
        with pytest.raises(TypeError, match="AsyncQdrantClient is an async client: use AsyncQdrantSyncHook"):
            QdrantSyncHook(client, "memory", LexicalEmbedder())
        await client.close()

    @pytest.mark.parametrize("distance", ["cos", "", 1, "l2"])
    def test_a_distance_that_is_none(self, in_memory: Qdrant, distance: Any) -> None:
        with pytest.raises(ValueError, match="must be one of 'Cosine', 'Dot', 'Euclid', 'Manhattan'"):
            in_memory.hook(distance=distance)

    def test_a_sync_hook_in_an_async_store_and_threads(self, in_memory: Qdrant) -> None:
        from memstate_core import AsyncInMemoryStorage, AsyncMemoryStore

        async def main() -> None:
            store = AsyncMemoryStore(AsyncInMemoryStorage(), hooks=[in_memory.hook(text_field="content").target])
            store.register_schema("note", Note)
            await asyncio.gather(*(store.commit_model(Note(content=f"tea {number}")) for number in range(20)))
            assert len(await store.search("tea", limit=50)) == 20

        asyncio.run(main())
