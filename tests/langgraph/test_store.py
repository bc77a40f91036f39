"""LangGraph's store over facts: items, namespaces, filters, queries and times to live."""

from __future__ import annotations

import asyncio
import inspect
from datetime import UTC, datetime, timedelta
from typing import Any

import chromadb
import pytest
from chromadb.config import Settings
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchOp,
)
from pydantic import BaseModel
from qdrant_client import QdrantClient

from memstate import AsyncInMemoryStorage, AsyncMemoryStore, InMemoryStorage, MemoryStore, ValidationFailed
from memstate_core.embedding import LexicalEmbedder
from memstate_core.hooks.chroma import ChromaSyncHook
from memstate_core.hooks.qdrant import QdrantSyncHook
from memstate_langgraph import AsyncMemStateStore, MemStateStore, item_index
from tests.langgraph.conftest import Makes


async def maybe(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


async def ask(store: Any, name: str, *arguments: Any, **options: Any) -> Any:
    """Call a method of a store, in its own flavour."""
    is_async = isinstance(store, AsyncMemStateStore)
    return await maybe(getattr(store, f"a{name}" if is_async else name)(*arguments, **options))


async def keys(store: Any, prefix: Any, **options: Any) -> list[str]:
    return [one.key for one in await ask(store, "search", prefix, **options)]


REFRESHING = {"refresh_on_read": True}


class Clock:
    """A time that only goes on when told to."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def after(self, minutes: float) -> datetime:
        self.now += timedelta(minutes=minutes)
        return self.now


class TestItems:
    async def test_an_item_is_kept_replaced_and_deleted(self, makes: Makes) -> None:
        clock = Clock()
        store = makes.items(makes.store(clock=clock))
        assert await ask(store, "get", ("u", "1"), "k") is None
        value = {"text": "tea", "deep": {"list": [1, 2.5, None, True, "é\0"]}}
        made = clock.now
        await ask(store, "put", ("u", "1"), "k", value)
        value["text"] = "changed by the caller"
        found = await ask(store, "get", ("u", "1"), "k")
        assert found.value == {"text": "tea", "deep": {"list": [1, 2.5, None, True, "é\0"]}}
        assert (found.namespace, found.key) == (("u", "1"), "k")
        assert found.created_at == found.updated_at == made
        found.value["text"] = "changed by a reader"
        changed = clock.after(1)
        await ask(store, "put", ("u", "1"), "k", {"text": "coffee"})
        found = await ask(store, "get", ("u", "1"), "k")
        assert found.value == {"text": "coffee"}
        assert (found.created_at, found.updated_at) == (made, changed)
        (searched,) = await ask(store, "search", ("u",))
        assert (searched.value, searched.created_at, searched.updated_at) == ({"text": "coffee"}, made, changed)
        assert searched.score is None
        await ask(store, "delete", ("u", "1"), "k")
        await ask(store, "delete", ("u", "1"), "k")
        assert await ask(store, "get", ("u", "1"), "k") is None
        await ask(store, "put", ("u", "1"), "k", {})
        assert (await ask(store, "get", ("u", "1"), "k")).created_at == changed

    async def test_every_item_is_one_of_its_own(self, makes: Makes) -> None:
        """Whatever is in labels and keys: none is taken for another one."""
        long = "x" * 600
        places = [
            (("a",), "b"),
            (("ab",), "c"),
            (("a", "b"), "c"),
            (("a b",), "c"),
            (('a","b',), "c"),
            (("a",), 'b","c'),
            (("a", "b", "c"), "d"),
            (("a/b",), "c"),
            (("*",), "c"),
            (("%", "_"), "\0"),
            (("a",), ""),
            (("a",), "."),
            (("é", "\U0001f600"), "\u2028"),
            ((long,), "k"),
            ((long + "y",), "k"),
            ((long, "y"), "k"),
            (("a",), long),
        ]
        store = makes.items()
        await ask(store, "batch", [PutOp(namespace, key, {"n": n}) for n, (namespace, key) in enumerate(places)])
        found = await ask(store, "batch", [GetOp(namespace, key) for namespace, key in places])
        assert [one.value["n"] for one in found] == list(range(len(places)))
        assert [(one.namespace, one.key) for one in found] == places
        for prefix in {namespace[:length] for namespace, _ in places for length in range(4)}:
            expected = [n for n, (namespace, _) in enumerate(places) if namespace[: len(prefix)] == prefix]
            assert [one.value["n"] for one in await ask(store, "search", prefix, limit=99)] == expected
        assert await ask(store, "list_namespaces") == sorted({namespace for namespace, _ in places})

    async def test_prefixes_below_the_indexed_ones(self, makes: Makes) -> None:
        store = makes.items()
        deep = ("a", "b", "c", "d", "e", "f")
        for length in range(1, 7):
            await ask(store, "put", deep[:length], str(length), {})
        await ask(store, "put", (*deep[:4], "x", "f"), "other", {})
        assert await keys(store, deep[:5]) == ["5", "6"]
        assert await keys(store, deep) == ["6"]
        assert await keys(store, (*deep[:4], "x")) == ["other"]
        assert await ask(store, "list_namespaces", prefix=deep[:5]) == [deep[:5], deep]

    async def test_what_is_under_a_prefix_is_all_that_is_read(self, makes: Makes) -> None:
        store = makes.items()
        await ask(store, "batch", [PutOp(("u", str(n), "x"), "k", {"n": n}) for n in range(60)])
        registry = store.memory.engine.registry
        decode, decoded = registry.decode, []
        registry.decode = lambda fact: decoded.append(fact.id) or decode(fact)
        found = await ask(store, "search", ("u", "7"), filter={"n": {"$gte": 0}})
        assert await ask(store, "list_namespaces", prefix=("u", "8"), suffix=("x",)) == [("u", "8", "x")]
        assert [one.value for one in found] == [{"n": 7}]
        assert set(decoded) == {store.fact_id(("u", n, "x"), "k") for n in "78"}

    async def test_pages(self, makes: Makes) -> None:
        store = makes.items()
        await ask(store, "batch", [PutOp(("p",), f"{n:02}", {"even": n % 2 == 0}) for n in range(25)])
        assert await keys(store, ("p",)) == [f"{n:02}" for n in range(10)]
        assert await keys(store, ("p",), limit=4, offset=20) == ["20", "21", "22", "23"]
        assert await keys(store, ("p",), limit=9, offset=20) == ["20", "21", "22", "23", "24"]
        assert await keys(store, (), limit=3, offset=2, filter={"even": False}) == ["05", "07", "09"]
        assert await keys(store, ("p",), limit=0) == await keys(store, ("p",), offset=25) == []
        with pytest.raises(ValueError, match="limit"):
            await keys(store, ("p",), limit=-1)
        with pytest.raises(ValueError, match="offset"):
            await keys(store, ("p",), offset=-1)

    async def test_more_than_a_page(self, makes_here: Makes) -> None:
        store = makes_here.items()
        await ask(store, "batch", [PutOp(("p", str(n)), "k", {"n": n}) for n in range(600)])
        assert len(await ask(store, "list_namespaces", prefix=("p",), limit=999)) == 600
        (found,) = await ask(store, "search", ("p",), filter={"n": 599})
        assert found.namespace == ("p", "599")

    async def test_what_is_no_json_is_refused(self, makes_here: Makes) -> None:
        store = makes_here.items()
        for value, path in (({"a": float("nan")}, "value.a"), ({"a": "\ud800"}, "value.a"), ({"b": object()}, "value")):
            with pytest.raises(ValidationFailed, match=path):
                await ask(store, "put", ("a",), "k", value)
        with pytest.raises(ValidationFailed, match="must be a dict"):
            await ask(store, "put", ("a",), "k", "text")
        with pytest.raises(ValidationFailed, match=r"index=\['text'\]"):
            await ask(store, "put", ("a",), "k", {}, index="text")
        assert await keys(store, ()) == []

    async def test_namespaces_are_validated(self, makes_here: Makes) -> None:
        store = makes_here.items()
        for namespace in ((), ("a.b",), ("",), ("langgraph", "x"), (1,)):
            with pytest.raises(InvalidNamespaceError):
                await ask(store, "put", namespace, "k", {})
        for op in (GetOp(("a.b",), "k"), PutOp(("a", ""), "k", {}), SearchOp(("\0",))):
            with pytest.raises(InvalidNamespaceError):
                await ask(store, "batch", [PutOp(("fine",), "k", {}), op])
        with pytest.raises(ValueError, match="Unknown operation"):
            await ask(store, "batch", ["get"])
        assert await keys(store, ()) == []


class TestBatches:
    async def test_a_batch_is_one_transaction(self, makes: Makes) -> None:
        store = makes.items()
        await ask(store, "put", ("a",), "old", {"n": 0})
        results = await ask(
            store,
            "batch",
            [
                PutOp(("a",), "new", {"n": 1}),
                GetOp(("a",), "new"),
                SearchOp(("a",)),
                PutOp(("b",), "gone", {"n": 2}),
                PutOp(("b",), "gone", None),
                PutOp(("a",), "old", {"n": 3}),
                PutOp(("a",), "new", {"n": 4}),
                ListNamespacesOp(),
                GetOp(("a",), "old"),
            ],
        )
        assert [one.key for one in results[2]] == ["old"]  # what a batch reads is what was there before it
        assert results[8].value == {"n": 0}
        assert results[7] == [("a",)]
        assert [results[place] for place in (0, 1, 3, 4, 5, 6)] == [None] * 6
        assert [(one.key, one.value["n"]) for one in await ask(store, "search", ())] == [("old", 3), ("new", 4)]
        history = await maybe(store.memory.history())
        assert [len(one.changes) for one in history] == [2, 1]

    async def test_a_batch_that_fails_changes_nothing(self, makes: Makes) -> None:
        store = makes.items()
        bad = [PutOp(("a",), "k", {"n": 1}), PutOp(("a",), "bad", {"n": float("inf")})]
        with pytest.raises(ValidationFailed, match=r"value\.n"):
            await ask(store, "batch", bad)
        assert await ask(store, "get", ("a",), "k") is None
        assert await maybe(store.memory.history()) == []

    async def test_nothing_to_do_is_no_transaction(self, makes_here: Makes) -> None:
        store = makes_here.items()
        assert await ask(store, "batch", []) == []
        await ask(store, "delete", ("a",), "k")
        assert await maybe(store.memory.history()) == []

    async def test_puts_at_once(self, makes: Makes) -> None:
        """The last one wins, and nobody is told of an error."""
        store = makes.items()
        await asyncio.gather(*(store.aput(("a",), "k", {"n": n}) for n in range(12)))
        (one,) = await ask(store, "search", ("a",))
        history = await maybe(store.memory.history(fact_id=store.fact_id(("a",), "k")))
        assert len(history) == 12
        assert history[0].changes[0].after.payload["value"] == one.value
        assert {entry.changes[0].after.payload["created_at"] for entry in history} == {one.created_at.isoformat()}

    async def test_memories_do_not_share_items(self, makes_here: Makes) -> None:
        storage = makes_here.storages.new()
        one, other = (makes_here.items(makes_here.store(storage, namespace=name)) for name in ("one", "other"))
        await ask(one, "put", ("a",), "k", {})
        assert await ask(other, "get", ("a",), "k") is None
        assert await ask(other, "list_namespaces") == []

    async def test_two_kinds_of_items_in_one_memory(self, makes_here: Makes) -> None:
        memory = makes_here.store()
        one, other = makes_here.items(memory), makes_here.items(memory, typename="note")
        await ask(one, "put", ("a",), "k", {"of": "one"})
        await ask(other, "put", ("a",), "k", {"of": "other"})
        assert (await ask(one, "get", ("a",), "k")).value == {"of": "one"}
        assert [item.value for item in await ask(other, "search", ())] == [{"of": "other"}]


FILTERS: list[tuple[dict[str, Any], list[str]]] = [
    ({"color": "red"}, ["a", "b"]),
    ({"color": {"$eq": "red"}}, ["a", "b"]),
    ({"color": {"$ne": "red"}}, ["c", "d", "e"]),
    ({"color": None}, ["d", "e"]),
    ({"size": 1}, ["a", "c"]),  # as in Python, True is 1
    ({"size": True}, ["a", "c"]),
    ({"size": {"$gt": 1}}, ["b", "d"]),  # what cannot be compared does not match
    ({"size": {"$gte": 1, "$lt": 3}}, ["a", "b", "c"]),
    ({"size": {"$gt": "2"}}, ["d"]),
    ({"size": {"$lte": "2"}}, ["a", "b", "c"]),
    ({"name": {"$gt": "b"}}, ["b", "c"]),
    ({"deep": {"x": 1}}, ["a", "b"]),
    ({"deep": {"x": 1, "y": {"$gt": 1}}}, ["b"]),
    ({"deep": {"$eq": {"x": 1}}}, ["a"]),
    ({"deep.x": 1}, ["e"]),  # a dot is a character like any other
    ({"list": [1, {"$gt": 1}]}, ["a"]),
    ({"list": (1, 2)}, ["a"]),
    ({"list": {"$eq": [1, 2]}}, ["a"]),
    ({"color": "red", "size": 2}, ["b"]),
    ({"$size": "odd"}, ["e"]),
    ({}, ["a", "b", "c", "d", "e"]),
]


class TestFilters:
    @pytest.fixture
    def store(self) -> MemStateStore:
        store = MemStateStore(MemoryStore(InMemoryStorage()))
        values: dict[str, dict[str, Any]] = {
            "a": {"color": "red", "size": 1, "deep": {"x": 1}, "list": [1, 2], "name": "a"},
            "b": {"color": "red", "size": 2, "deep": {"x": 1, "y": 2}, "list": [1], "name": "bb"},
            "c": {"color": "blue", "size": True, "deep": [1], "name": "c"},
            "d": {"color": None, "size": 3, "deep": {"x": 2}, "list": "12"},
            "e": {"size": "big", "deep.x": 1, "name": None, "$size": "odd"},
        }
        for key, value in values.items():
            store.put(("f",), key, value)
        return store

    @pytest.mark.parametrize(("condition", "expected"), FILTERS, ids=str)
    def test_filter(self, store: MemStateStore, condition: dict[str, Any], expected: list[str]) -> None:
        assert [one.key for one in store.search(("f",), filter=condition)] == expected

    @pytest.mark.parametrize("condition", [{"a": {"$in": [1]}}, {"a": {"$gt": 1, "x": 2}}, {"a": {"b": {"$not": 1}}}])
    def test_unknown_operators(self, condition: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="Unsupported operator"):
            MemStateStore(MemoryStore(InMemoryStorage())).search((), filter=condition)


class TestNamespaces:
    @pytest.fixture
    async def store(self, makes: Makes) -> Any:
        store = makes.items()
        found = [("a", "b", "c"), ("a", "b", "d"), ("a", "x", "c"), ("ab", "b"), ("b", "c"), ("c",)]
        await ask(store, "batch", [PutOp(namespace, key, {}) for namespace in found for key in "12"])
        return store

    async def test_conditions(self, store: Any) -> None:
        async def found(**options: Any) -> Any:
            return await ask(store, "list_namespaces", **options)

        assert await found(prefix=("a",)) == [("a", "b", "c"), ("a", "b", "d"), ("a", "x", "c")]
        assert await found(prefix=("a", "*", "c")) == [("a", "b", "c"), ("a", "x", "c")]
        assert await found(prefix=("*", "b")) == [("a", "b", "c"), ("a", "b", "d"), ("ab", "b")]
        assert await found(suffix=("c",)) == [("a", "b", "c"), ("a", "x", "c"), ("b", "c"), ("c",)]
        assert await found(suffix=("b", "*")) == [("a", "b", "c"), ("a", "b", "d"), ("b", "c")]
        assert await found(prefix=("a",), suffix=("c",)) == [("a", "b", "c"), ("a", "x", "c")]
        assert await found(max_depth=1) == [("a",), ("ab",), ("b",), ("c",)]
        assert await found(max_depth=2, prefix=("a",), limit=1, offset=1) == [("a", "x")]
        assert await found(limit=2, offset=3) == [("ab", "b"), ("b", "c")]
        two = ListNamespacesOp((MatchCondition("prefix", ("a", "b")), MatchCondition("prefix", ("*", "*", "d"))))
        assert await ask(store, "batch", [two]) == [[("a", "b", "d")]]
        wrong: Any = MatchCondition("infix", ("a",))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="infix"):
            await ask(store, "batch", [ListNamespacesOp((wrong,))])

    async def test_a_namespace_goes_with_its_last_item(self, store: Any) -> None:
        await ask(store, "delete", ("c",), "1")
        assert ("c",) in await ask(store, "list_namespaces")
        await ask(store, "delete", ("c",), "2")
        assert ("c",) not in await ask(store, "list_namespaces")


class TestTimesToLive:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    async def test_what_has_expired_is_not_there(self, makes: Makes, clock: Clock) -> None:
        store = makes.items(makes.store(clock=clock))
        made = clock.now
        await ask(store, "put", ("t",), "short", {}, ttl=5)
        await ask(store, "put", ("t",), "long", {}, ttl=50)
        await ask(store, "put", ("s",), "ever", {})
        clock.after(4.9)
        assert await keys(store, (), refresh_ttl=False) == ["short", "long", "ever"]
        clock.after(0.2)
        assert await ask(store, "get", ("t",), "short") is None
        assert await keys(store, ("t",), refresh_ttl=False, limit=1) == ["long"]
        clock.after(50)
        assert await keys(store, ()) == ["ever"]
        assert await ask(store, "list_namespaces") == [("s",)]
        await ask(store, "put", ("t",), "short", {})
        assert (await ask(store, "get", ("t",), "short")).created_at == clock.now != made

    async def test_reading_postpones_the_end(self, makes: Makes, clock: Clock) -> None:
        store = makes.items(makes.store(clock=clock), ttl=REFRESHING)
        await ask(store, "batch", [PutOp(("t",), key, {"k": key}, ttl=10) for key in "abcd"])
        written = len(await maybe(store.memory.history()))
        clock.after(8)
        assert await ask(store, "get", ("t",), "a") is not None
        assert await keys(store, ("t",), filter={"k": "b"}) == ["b"]
        assert await ask(store, "get", ("t",), "c", refresh_ttl=False) is not None
        clock.after(8)
        assert await keys(store, ("t",)) == ["a", "b"]
        clock.after(8)
        assert await keys(store, ("t",)) == ["a", "b"]
        assert len(await maybe(store.memory.history())) == written  # reading is no change of the memory
        await ask(store, "put", ("t",), "a", {}, ttl=1)
        clock.after(2)
        assert await keys(store, ("t",)) == ["b"]

    async def test_many_ends_that_were_postponed(self, makes: Makes, clock: Clock) -> None:
        store = makes.items(makes.store(clock=clock), ttl=REFRESHING)
        names = [f"{n:02}" for n in range(20)]
        await ask(store, "batch", [PutOp(("t",), key, {}, ttl=10) for key in names])
        clock.after(8)
        assert await keys(store, ("t",), limit=99) == names
        clock.after(8)
        assert await keys(store, ("t",), limit=99, refresh_ttl=False) == names
        assert await ask(store, "list_namespaces") == [("t",)]

    async def test_an_item_that_is_read_while_it_is_swept(self, makes: Makes, clock: Clock) -> None:
        store = makes.items(makes.store(clock=clock), ttl=REFRESHING)
        await ask(store, "put", ("t",), "k", {}, ttl=10)
        clock.after(9)
        look = store._items._expired

        async def looked(after: int | None) -> Any:
            assert await ask(store, "get", ("t",), "k") is not None
            clock.after(5)
            return [store.fact_id(("t",), "k")], None

        store._items._expired = looked
        assert await maybe(store.sweep_ttl()) == 0
        store._items._expired = look
        clock.after(9)
        assert await maybe(store.sweep_ttl()) == 1

    async def test_the_defaults_of_the_configuration(self, makes_here: Makes, clock: Clock) -> None:
        memory = makes_here.store(clock=clock)
        for ttl in ({"default_ttl": 10.0}, {"default_ttl": 10.0, "refresh_on_read": False}):
            store = makes_here.items(memory, ttl=ttl)
            await ask(store, "put", ("t",), "a", {})
            await ask(store, "put", ("t",), "ever", {}, ttl=None)
            clock.after(9)
            assert await ask(store, "get", ("t",), "a") is not None
            clock.after(9)
            assert await keys(store, ("t",)) == ["ever"]

    async def test_sweeping(self, makes: Makes, clock: Clock) -> None:
        store = makes.items(makes.store(clock=clock), ttl=REFRESHING)
        memory = store.memory
        await ask(store, "batch", [PutOp(("t",), f"{n:02}", {}, ttl=10) for n in range(30)])
        await ask(store, "put", ("t",), "ever", {})
        clock.after(9)
        for key in ("03", "04"):
            assert await ask(store, "get", ("t",), key) is not None
        assert await maybe(store.sweep_ttl()) == 0
        clock.after(9)
        assert await maybe(store.sweep_ttl()) == 28
        assert await maybe(memory.count("store_item")) == 3
        assert await keys(store, ("t",), refresh_ttl=False) == ["03", "04", "ever"]
        await ask(store, "put", ("t",), "03", {})
        clock.after(99)
        assert await maybe(store.sweep_ttl()) == 1
        assert await maybe(memory.count("store_item")) == 2
        assert await maybe(memory.scan_records("langgraph.reads:store_item")) == []

    async def test_the_sweeper(self) -> None:
        clock = Clock()
        swept = asyncio.Event()
        loop = asyncio.get_running_loop()
        with MemStateStore(MemoryStore(InMemoryStorage(), clock=clock), ttl={"sweep_interval_minutes": 1}) as store:
            store.put(("t",), "k", {}, ttl=1)
            clock.after(2)
            sweep = store.sweep_ttl

            def once() -> int:
                count = sweep()
                loop.call_soon_threadsafe(swept.set)
                return count

            store.sweep_ttl = once  # type: ignore[method-assign]
            future = store.start_ttl_sweeper(0.001)
            assert store.start_ttl_sweeper() is future
            await asyncio.wait_for(swept.wait(), 10)
            assert store.memory.count() == 0
            assert store.stop_ttl_sweeper()
            assert future.done()
            again = store.start_ttl_sweeper(10)
            assert again.cancel()
            assert store.stop_ttl_sweeper(timeout=10)

    async def test_the_awaited_sweeper(self) -> None:
        clock = Clock()
        async with AsyncMemStateStore(AsyncMemoryStore(AsyncInMemoryStorage(), clock=clock)) as store:
            await store.aput(("t",), "k", {}, ttl=1)
            clock.after(2)
            task = await store.start_ttl_sweeper(0.0001)
            assert await store.start_ttl_sweeper() is task
            async with asyncio.timeout(10):
                while await store.memory.count():
                    await asyncio.sleep(0.005)
            assert await store.stop_ttl_sweeper()
            assert task.cancelled()


class TestQueries:
    """With a Chroma index behind the memory."""

    TEXTS = ("the cat sleeps on the mat", "dogs chase the ball", "a cat and a dog", "rain in the mountains")

    def hook(self, **options: Any) -> ChromaSyncHook:
        client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
        name = f"items-{id(object())}-{datetime.now(UTC).timestamp()}"
        return ChromaSyncHook(client, name, LexicalEmbedder(), **{**item_index(), **options})

    async def filled(self, makes: Makes, **options: Any) -> Any:
        store = makes.items(makes.store(hooks=[self.hook()]), fields=["text"], **options)
        await ask(store, "batch", [PutOp(("u", "1"), str(n), {"text": text}) for n, text in enumerate(self.TEXTS)])
        await ask(store, "put", ("u", "2"), "other", {"text": "the cat of somebody else"})
        return store

    async def test_what_is_similar_comes_first(self, makes_here: Makes) -> None:
        store = await self.filled(makes_here)
        found = await ask(store, "search", ("u", "1"), query="the cat sleeps on the mat", limit=2)
        assert [one.key for one in found] == ["0", "2"]
        assert found[0].score == pytest.approx(1, abs=1e-3)
        assert found[0].score > found[1].score
        everything = await ask(store, "search", ("u",), query="cat")
        assert {one.key for one in everything[:3]} == {"0", "2", "other"}
        assert await keys(store, ("u", "1"), query="dog", offset=1, limit=1) != await keys(
            store, ("u", "1"), query="dog", limit=1
        )
        filtered = await ask(store, "search", ("u",), query="cat", filter={"text": {"$ne": self.TEXTS[0]}}, limit=2)
        assert {one.key for one in filtered} == {"2", "other"}
        deep = ("u", "1", "2", "3", "4", "5")
        await ask(store, "put", deep, "deep", {"text": "cat"})
        assert await keys(store, deep, query="cat") == ["deep"]

    async def test_what_is_not_indexed_comes_last_without_a_score(self, makes_here: Makes) -> None:
        store = await self.filled(makes_here)
        await ask(store, "put", ("u", "1"), "hidden", {"text": "cat cat cat"}, index=False)
        await ask(store, "put", ("u", "1"), "0", {"text": "no more about animals"})
        found = await ask(store, "search", ("u", "1"), query="cat")
        assert found[0].key == "2"
        assert (found[-1].key, found[-1].score) == ("hidden", None)
        assert len(found) == 5
        assert await keys(store, ("u", "1"), query="cat", limit=1, offset=4) == ["hidden"]

    async def test_every_text_of_an_item_is_indexed_by_itself(self, makes_here: Makes) -> None:
        store = await self.filled(makes_here)
        memory = store.memory
        value = {
            "text": "nothing",
            "notes": [{"t": "purple elephants"}, {"t": ""}, {"t": "green tea"}, {"t": "lemons"}],
        }
        await ask(store, "put", ("w",), "x", value, index=["notes[*].t"])
        await ask(store, "put", ("w",), "whole", value, index=["$"])
        for query in ("purple elephants", "green tea", "lemons"):
            found = await ask(store, "search", ("w",), query=query)
            assert [one.key for one in found] == ["x", "whole"]
            assert found[0].score == pytest.approx(1, abs=1e-3)
            assert 0 < found[1].score < 0.9
            assert await keys(store, (), query=query, limit=1) == ["x"]
            assert await keys(store, (), query=query, limit=1, filter={"notes": {"$ne": value["notes"]}}) != ["x"]
        assert await maybe(memory.count("store_item_text")) == 2
        assert "x" not in await keys(store, ("u",), query="green tea")
        await ask(store, "put", ("w",), "x", {"a": "rain", "b": "green tea"}, index=["a", "b"])
        assert (await ask(store, "search", ("w",), query="lemons", limit=1))[0].score < 0.5
        assert (await ask(store, "search", ("w",), query="green tea", limit=1))[0].score == pytest.approx(1, abs=1e-3)
        (one,) = await maybe(memory.query("store_item_text"))
        assert one["payload"]["text"] == "green tea"
        assert not any(await maybe(memory.verify()))
        await ask(store, "delete", ("w",), "x")
        assert await maybe(memory.count("store_item_text")) == 0
        await maybe(memory.rollback())
        assert (await ask(store, "search", ("w",), query="green tea", limit=1))[0].score == pytest.approx(1, abs=1e-3)

    async def test_an_item_that_is_put_again_while_it_is_searched_for(self, makes_here: Makes) -> None:
        store = await self.filled(makes_here)
        await ask(store, "put", ("w",), "x", {"a": "lemons", "b": "green tea"}, index=["a", "b"])
        look = store._items._items_of

        async def late(*arguments: Any) -> Any:
            await ask(store, "put", ("w",), "x", {"a": "rain", "b": "wind"}, index=["a", "b"])
            return await look(*arguments)

        store._items._items_of = late
        (found,) = await ask(store, "search", ("w",), query="green tea")
        assert found.score < 0.5  # no text that it has no more has counted

    async def test_puts_and_searches_at_once(self, makes_here: Makes) -> None:
        store = await self.filled(makes_here)

        async def work(n: int) -> None:
            await store.aput(("w",), "x", {"a": [f"text {n} {m}" for m in range(n % 4)]}, index=["a[*]"])
            await store.asearch(("w",), query="text")
            if n == 5:
                await store.adelete(("w",), "x")

        await asyncio.gather(*(work(n) for n in range(10)))
        assert not any(await maybe(store.memory.verify()))
        texts = await maybe(store.memory.query("store_item_text", {"item": store.fact_id(("w",), "x")}))
        item = await ask(store, "get", ("w",), "x")
        assert sorted(one["payload"]["text"] for one in texts) == (item.value["a"][1:] if item else [])

    async def test_what_matches_or_has_expired_is_told_by_the_item(self, makes_here: Makes) -> None:
        """Also when it was found by a further one of its texts."""
        clock = Clock()
        store = makes_here.items(makes_here.store(hooks=[self.hook()], clock=clock), fields=["t[*]"])
        await ask(store, "put", ("w",), "gone", {"t": ["dogs", "green tea"]}, ttl=5)
        await ask(store, "put", ("w",), "other", {"t": ["dogs", "green tea"], "n": 1})
        await ask(store, "put", ("w",), "wanted", {"t": ["dogs", "tea"], "n": 2})
        await ask(store, "put", ("v",), "elsewhere", {"t": ["dogs", "green tea"], "n": 2})
        clock.after(6)
        (found,) = await ask(store, "search", ("w",), query="green tea", limit=1, filter={"n": {"$gt": 1}})
        assert found.key == "wanted"
        assert found.score > 0.3  # which is that of "tea", behind two others in the index
        assert await keys(store, ("w",), query="green tea") == ["other", "wanted"]
        scores = [one.score for one in await ask(store, "search", (), query="dogs")]
        assert scores == [pytest.approx(1, abs=1e-3)] * 3

    async def test_texts_go_with_their_item(self, makes: Makes) -> None:
        clock = Clock()
        store = makes.items(makes.store(clock=clock), fields=["a[*]"])
        count = store.memory.count
        await ask(store, "batch", [PutOp(("t",), key, {"a": ["x", "y", "z"]}, ttl=5) for key in "kl"])
        assert await maybe(count("store_item_text")) == 4
        await ask(store, "batch", [PutOp(("t",), "k", {"a": ["x", "y"]}), PutOp(("t",), "m", {"a": list("xyz")})])
        assert await maybe(count("store_item_text")) == 5
        clock.after(6)
        await maybe(store.sweep_ttl())
        assert await maybe(count("store_item_text")) == 3
        await ask(store, "batch", [PutOp(("t",), "k", None), PutOp(("t",), "m", {"a": list("xyz")}, index=False)])
        assert await maybe(count("store_item_text")) == 0
        assert await maybe(count("store_item")) == 1

    async def test_what_has_expired_is_not_found(self, makes_here: Makes) -> None:
        clock = Clock()
        memory = makes_here.store(hooks=[self.hook()], clock=clock)
        store = makes_here.items(memory, fields=["text"])
        for n in range(6):
            await ask(store, "put", ("u",), str(n), {"text": "cat"}, ttl=5)
        await ask(store, "put", ("u",), "last", {"text": "a rather different cat"})
        clock.after(6)
        (found,) = await ask(store, "search", ("u",), query="cat", limit=1)
        assert found.key == "last"
        assert found.score is not None  # it was found by the index, behind those that have expired
        assert await maybe(store.sweep_ttl()) == 6
        assert [one.fact.payload["key"] for one in await maybe(memory.search("cat"))] == ["last"]

    def test_on_qdrant(self) -> None:
        hook = QdrantSyncHook(QdrantClient(":memory:"), "items", LexicalEmbedder(), **item_index())
        store = MemStateStore(MemoryStore(InMemoryStorage(), hooks=[hook]), fields=["t[*]"])
        store.batch([PutOp(("u", str(n)), "k", {"t": [f"cat {n}", "green tea"], "n": n}) for n in range(20)])
        (found,) = store.search(("u", "7"), query="green tea")
        assert found.score == pytest.approx(1, abs=1e-3)
        assert store.search(("u",), query="cat 3", limit=1)[0].value["n"] == 3
        assert len(store.search(("u",), query="cat", limit=99, filter={"n": {"$lt": 15}})) == 15

    async def test_without_an_index_a_query_is_ignored(self, makes_here: Makes) -> None:
        told: list[Any] = []
        memory = makes_here.store(hooks=[lambda *change: told.append(change)])
        store = makes_here.items(memory)
        await ask(store, "put", ("a",), "k", {"text": "tea"}, index=["text"])
        (found,) = await ask(store, "search", ("a",), query="coffee")
        assert (found.key, found.score) == ("k", None)
        assert len(told) == 1

    async def test_a_put_that_the_index_refuses_is_none(self, makes_here: Makes) -> None:
        class Trouble(ChromaSyncHook):
            def apply(self, batch: Any) -> None:
                super().apply(batch)
                if batch.ids and "trouble" in batch.texts:
                    raise OSError("the index is down")

        hook = self.hook()
        hook.__class__ = Trouble
        store = makes_here.items(makes_here.store(hooks=[hook]), fields=["text"])
        await ask(store, "put", ("a",), "k", {"text": "fine"})
        with pytest.raises(Exception, match="the index is down"):
            await ask(store, "batch", [PutOp(("a",), "k", {"text": "trouble"}), PutOp(("a",), "k2", {"text": "x"})])
        found = await ask(store, "search", ("a",), query="trouble")
        assert [one.value for one in found] == [{"text": "fine"}]


class TestFlavours:
    async def test_the_plain_methods_of_the_awaited_one(self) -> None:
        store = AsyncMemStateStore(AsyncMemoryStore(AsyncInMemoryStorage()))
        await asyncio.to_thread(store.put, ("a",), "k", {"n": 1})
        assert (await asyncio.to_thread(store.get, ("a",), "k")).value == {"n": 1}
        with pytest.raises(asyncio.InvalidStateError, match="event loop's own thread"):
            store.get(("a",), "k")

    def test_without_a_loop(self) -> None:
        store = AsyncMemStateStore(AsyncMemoryStore(AsyncInMemoryStorage()))
        with pytest.raises(asyncio.InvalidStateError, match="before there was a loop"):
            store.get(("a",), "k")

    async def test_the_plain_one_is_awaited_in_threads(self) -> None:
        store = MemStateStore(MemoryStore(InMemoryStorage()))
        await store.aput(("a",), "k", {"n": 1})
        assert (await store.aget(("a",), "k")).value == {"n": 1}  # type: ignore[union-attr]
        assert store.get(("a",), "k") == await store.aget(("a",), "k")

    def test_of_what_it_is_made(self) -> None:
        memory = MemoryStore(InMemoryStorage())
        with pytest.raises(TypeError, match="AsyncMemStateStore"):
            MemStateStore(AsyncMemoryStore(AsyncInMemoryStorage()))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="MemStateStore"):
            AsyncMemStateStore(memory)  # type: ignore[arg-type]

        class Note(BaseModel):
            text: str

        memory.register_schema("note", Note)
        with pytest.raises(ValidationFailed, match="typename="):
            MemStateStore(memory, typename="note")
        with pytest.raises(ValidationFailed, match="fields"):
            MemStateStore(memory, fields="text")
