"""What embedding functions are asked, and what is remembered of their answers, whatever the index."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from memstate_core import Fact, InMemoryStorage, MemoryStore
from tests.hooks.conftest import Chroma, Qdrant
from tests.hooks.facts import fact, put


class Recording:
    """An embedding function that keeps the lists of texts that it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, texts: list[str]) -> list[list[float]]:
        self.asked.append(list(texts))
        return [[1.0, float(len(text))] for text in texts]

    def taken(self) -> list[list[str]]:
        asked, self.asked = self.asked, []
        return asked


class AskedApart(Recording):
    """The same with LangChain's methods, of which queries have one of their own."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self(texts)

    def embed_query(self, text: str) -> list[float]:
        self.asked.append([f"query: {text}"])
        return [1.0, 0.0]


@pytest.fixture(params=["chroma", "qdrant"])
def make(request: pytest.FixtureRequest, ephemeral: Chroma, in_memory: Qdrant) -> Callable[..., Any]:
    """``make(embedding_fn, …)`` returns a hook whose methods are awaited."""
    place = ephemeral if request.param == "chroma" else in_memory
    return lambda embedding_fn, **options: place.hook(embedding_fn=embedding_fn, text_field="content", **options)


class TestCache:
    def test_an_update_that_leaves_the_text_embeds_nothing(self, make: Callable[..., Any]) -> None:
        embed = Recording()
        hook = make(embed, metadata_fields=["role"]).target
        store = MemoryStore(InMemoryStorage(), hooks=[hook], allow_unregistered=True)
        store.commit(Fact("note", {"content": "tea", "role": "x"}, id="a"), session_id="s")
        assert embed.taken() == [["tea"]]
        store.update("a", {"role": "y"})
        store.promote_session("s")
        store.rollback("s", 2)
        store.redo("s")
        assert embed.taken() == []
        assert dict(hook.scan()) == {"a": 2}
        store.update("a", {"content": "coffee"})
        assert embed.taken() == [["coffee"]]
        store.rollback("s")
        store.reindex()
        assert embed.taken() == []
        assert [(found.fact.id, found.score) for found in store.search("tea")] == [("a", pytest.approx(1.0))]

    async def test_a_transaction_is_one_call_for_what_is_new(self, make: Callable[..., Any]) -> None:
        embed = Recording()
        hook = make(embed)
        await hook.apply(put(fact("a", "tea"), fact("b", "coffee"), fact("c", "tea")))
        assert embed.taken() == [["tea", "coffee"]]
        await hook.apply(put(fact("d", "milk"), fact("e", "tea"), fact("f", "water"), fact("g", "milk")))
        assert embed.taken() == [["milk", "water"]]
        again = await hook.prepare(put(fact("e", "tea"), fact("f", "water"), fact("g", "milk"), fact("h", "tea")))
        assert [vector[1] for vector in again.vectors] == [3, 5, 4, 3]

    async def test_queries_are_remembered_apart_where_they_are_asked_apart(self, make: Callable[..., Any]) -> None:
        embed = AskedApart()
        hook = make(embed)
        await hook.apply(put(fact("a", "tea")))
        for _ in range(2):
            await hook.search("tea", 1)
        assert embed.taken() == [["tea"], ["query: tea"]]
        await hook.apply(put(fact("b", "tea")))
        assert embed.taken() == []

    async def test_a_query_is_embedded_like_a_document_where_it_is_one(self, make: Callable[..., Any]) -> None:
        embed = Recording()
        hook = make(embed)
        await hook.apply(put(fact("a", "tea")))
        await hook.search("tea", 1)
        await hook.search("coffee", 1)
        assert embed.taken() == [["tea"], ["coffee"]]

    async def test_the_oldest_are_forgotten(self, make: Callable[..., Any]) -> None:
        embed = Recording()
        hook = make(embed, embedding_cache=2)
        for text in ("1", "22", "1", "333", "1", "22"):
            await hook.prepare(put(fact("a", text)))
        assert embed.taken() == [["1"], ["22"], ["333"], ["22"]]
        await hook.prepare(put(*(fact(str(number), "x" * number) for number in range(4, 9))))
        embed.taken()
        await hook.prepare(put(*(fact(str(number), "x" * number) for number in range(4, 9))))
        assert embed.taken() == [["x" * number for number in range(4, 7)]]

    async def test_nothing_need_be_remembered(self, make: Callable[..., Any]) -> None:
        embed = Recording()
        hook = make(embed, embedding_cache=0)
        for _ in range(2):
            await hook.prepare(put(fact("a", "tea")))
            await hook.search("tea", 1)
        assert embed.taken() == [["tea"]] * 4
        for size in (-1, 1.5, None):
            with pytest.raises(ValueError, match="embedding_cache must be a whole number"):
                make(embed, embedding_cache=size)

    async def test_what_fails_is_not_remembered(self, make: Callable[..., Any]) -> None:
        embed = Recording()
        answers: list[Any] = [None, [[1.0, float("inf")]]]
        hook = make(lambda texts: answers.pop() if answers else embed(texts))
        for _ in range(2):
            with pytest.raises(Exception, match="embedding_fn returned"):
                await hook.prepare(put(fact("a", "tea")))
        assert (await hook.prepare(put(fact("a", "tea")))).vectors[0].tolist() == [1.0, 3.0]

    async def test_what_is_remembered_is_nobody_elses(self, make: Callable[..., Any]) -> None:
        given = [1.0, 2.0]
        array = np.array([given], dtype=np.float32)
        hook = make(lambda _: array)
        first = await hook.prepare(put(fact("a", "tea")))
        array[:] = 9
        with pytest.raises(ValueError, match="read-only"):
            first.vectors[0][0] = 9
        assert (await hook.prepare(put(fact("a", "tea")))).vectors[0].tolist() == given

    def test_threads_share_it(self, make: Callable[..., Any]) -> None:
        embed = Recording()
        hook = make(embed, embedding_cache=3).target
        wrong: list[Any] = []

        def work() -> None:
            for number in range(300):
                text = "x" * (1 + number % 5)
                (vector,) = hook.prepare(put(fact("a", text))).vectors
                if vector.tolist() != [1.0, len(text)]:
                    wrong.append(vector)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
