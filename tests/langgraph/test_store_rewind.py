"""What the nodes of a graph put into its store goes back when the graph does."""

from __future__ import annotations

from typing import Annotated, Any

import chromadb
import pytest
from chromadb.config import Settings
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolCall
from langchain_core.tools import tool
from langgraph.config import get_store
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedStore, ToolNode
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore, PutOp

from memstate import AsyncInMemoryStorage, AsyncMemoryStore, InMemoryStorage, MemoryStore
from memstate_core.embedding import LexicalEmbedder
from memstate_core.hooks.chroma import ChromaSyncHook
from memstate_langgraph import (
    AsyncMemStateCheckpointer,
    AsyncMemStateStore,
    MemStateCheckpointer,
    MemStateStore,
    item_index,
)
from tests.langgraph.conftest import Makes
from tests.langgraph.oracle import TOPOLOGIES, State, World, wander
from tests.langgraph.test_rewinding import past
from tests.langgraph.test_sharing import call, thread
from tests.langgraph.test_store import Clock, ask, keys, maybe

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NOTES = ("notes",)


class StoreWorld(World):
    """The same, where nodes put what they return into the store."""

    def __init__(self, items: Any, checkpointer: Any, seed: int, thread_id: str) -> None:
        super().__init__(items.memory, checkpointer, seed, thread_id)
        self.items = items

    def remember(self, item: str) -> Any:
        put = self.items.aput if self.is_async else self.items.put
        return put((self.thread_id, "things"), item, {"name": item})

    def remembered(self, view: Any) -> Any:
        if view is self.store:
            search = self.items.asearch if self.is_async else self.items.search
            return search((self.thread_id,), limit=1000)
        return view.query("store_item", {"namespace": [self.thread_id, "things"]})

    def name_of(self, fact: Any) -> str:
        name: str = fact["payload"]["key"] if isinstance(fact, dict) else fact.value["name"]
        return name


async def violations(makes: Makes, topology: str, seed: int, steps: int) -> list[str]:
    checkpointer = makes.checkpointer()
    items = makes.items(checkpointer.memory)
    world = StoreWorld(items, checkpointer, seed, f"thread-{topology}-{seed}")
    await wander(world, TOPOLOGIES[topology](world), steps)
    return world.violations


@pytest.mark.parametrize("topology", ["line", "below"])
async def test_the_store_is_the_state(makes: Makes, topology: str) -> None:
    assert await violations(makes, topology, 1, 5) == []


@pytest.mark.parametrize("topology", TOPOLOGIES)
async def test_the_store_is_the_state_on_many_ways(makes_in_memory: Makes, topology: str) -> None:
    for seed in range(200, 203):
        assert await violations(makes_in_memory, topology, seed, 10) == [], seed


def notes(items: Any, **options: Any) -> Any:
    """A graph that puts a note in each of its nodes, by the store it was compiled with."""

    def node(name: str) -> Any:
        if isinstance(items, AsyncMemStateStore):

            async def wait(state: State, runtime: Runtime[Any]) -> Any:
                assert isinstance(runtime.store, AsyncMemStateStore)
                await runtime.store.aput(NOTES, name, {"by": name})
                await runtime.store.aput(NOTES, "last", {"by": name})
                return {"items": [name]}

            return wait

        def at_once(state: State, runtime: Runtime[Any]) -> Any:
            assert isinstance(runtime.store, MemStateStore)
            runtime.store.put(NOTES, name, {"by": name})
            runtime.store.put(NOTES, "last", {"by": name})
            return {"items": [name]}

        return at_once

    graph: Any = StateGraph(State)
    for name in "abc":
        graph.add_node(name, node(name))
    graph.add_edge(START, "a")
    graph.add_edge("a", "b")
    graph.add_edge("b", "c")
    graph.add_edge("c", END)
    return graph.compile(store=items, **options)


async def last(items: Any) -> Any:
    found = await ask(items, "get", NOTES, "last")
    return None if found is None else found.value["by"]


class TestGoingBack:
    @pytest.fixture
    async def made(self, makes: Makes) -> Any:
        checkpointer = makes.checkpointer()
        items = makes.items(checkpointer.memory, ttl={"refresh_on_read": True})
        await ask(items, "put", NOTES, "outside", {})
        graph = notes(items, checkpointer=checkpointer)
        await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
        return checkpointer, items, graph

    async def test_the_store_goes_back_with_its_thread(self, made: Any) -> None:
        checkpointer, items, graph = made
        assert await keys(items, NOTES) == ["outside", "a", "last", "b", "c"]
        assert await last(items) == "c"
        before_b = await past(checkpointer, graph, "b")
        await maybe(checkpointer.rewind(before_b))
        assert await keys(items, NOTES) == ["outside", "a", "last"]
        assert await last(items) == "a"
        await call(checkpointer, graph, "update_state", before_b, {"items": ["x"]}, as_node="b")
        assert await last(items) == "a"
        await call(checkpointer, graph, "invoke", None, thread("t"))
        assert await keys(items, NOTES) == ["outside", "a", "last", "c"]

    async def test_items_are_everybodys(self, made: Any) -> None:
        """They belong to no session, though it is in the thread's history that they were put, and by which node."""
        checkpointer, items, graph = made
        memory = checkpointer.memory
        fact = await maybe(memory.get(items.fact_id(NOTES, "a")))
        assert fact["session_id"] is None
        (entry,) = await maybe(memory.history(fact_id=fact["id"]))
        assert (entry.session_id, entry.actor) == ("t", "a")
        await maybe(memory.discard_session("t"))
        assert await last(items) == "c"
        await call(checkpointer, graph, "invoke", {"items": []}, thread("u"))
        entries = await maybe(memory.history(fact_id=fact["id"]))
        assert [one.session_id for one in entries] == ["u", "t"]

    async def test_what_another_thread_has_put_since_stays(self, made: Any, caplog: pytest.LogCaptureFixture) -> None:
        checkpointer, items, graph = made
        await ask(items, "put", NOTES, "a", {"by": "somebody"})
        await maybe(checkpointer.rewind(await past(checkpointer, graph, "a")))
        assert await keys(items, NOTES) == ["outside", "a"]
        assert (await ask(items, "get", NOTES, "a")).value == {"by": "somebody"}
        assert items.fact_id(NOTES, "a") in caplog.text

    async def test_reading_is_nothing_to_go_back_over(self, made: Any) -> None:
        """Also where it postpones an item's end, in another thread."""
        checkpointer, items, graph = made
        where = await past(checkpointer, graph, "b")
        await maybe(checkpointer.rewind(await past(checkpointer, graph, "a")))
        await ask(items, "put", NOTES, "mine", {}, ttl=10)
        assert await ask(items, "get", NOTES, "mine") is not None
        await maybe(checkpointer.rewind(where))
        assert await keys(items, NOTES) == ["outside", "a", "last", "mine"]

    async def test_items_of_another_memory_stay_and_that_is_said(
        self, makes_in_memory: Makes, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Once, and not of a graph whose checkpointer leaves going back alone."""
        checkpointer = makes_in_memory.checkpointer()
        its_own = makes_in_memory.items(checkpointer.memory)
        items = makes_in_memory.items(makes_in_memory.store(checkpointer.memory.storage))
        still = makes_in_memory.checkpointer(rewind="off")
        for one, store in ((still, items), (checkpointer, its_own)):
            await call(one, notes(store, checkpointer=one), "invoke", {"items": []}, thread("t"))
        assert "another memory" not in caplog.text
        for _ in range(2):
            await call(checkpointer, notes(items, checkpointer=checkpointer), "invoke", {"items": []}, thread("t"))
        assert caplog.text.count("node 'a' of thread 't' puts items into another memory") == 1
        assert f"one and the same {type(items.memory).__name__}" in caplog.text

    async def test_a_deletion_goes_back_too(self, makes: Makes) -> None:
        checkpointer = makes.checkpointer()
        items = makes.items(checkpointer.memory)
        await ask(items, "put", NOTES, "old", {"n": 1})
        made = (await ask(items, "get", NOTES, "old")).created_at

        if isinstance(items, AsyncMemStateStore):

            async def forget(state: State) -> Any:
                await get_store().abatch([PutOp(NOTES, "old", None), PutOp(NOTES, "new", {})])
                return {"items": ["x"]}

        else:

            def forget(state: State) -> Any:  # type: ignore[misc]
                get_store().batch([PutOp(NOTES, "old", None), PutOp(NOTES, "new", {})])
                return {"items": ["x"]}

        graph: Any = StateGraph(State)
        graph.add_node("forget", forget)
        graph.add_edge(START, "forget")
        graph.add_edge("forget", END)
        graph = graph.compile(checkpointer=checkpointer, store=items)
        await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
        assert await keys(items, NOTES) == ["new"]
        await maybe(checkpointer.rewind(await past(checkpointer, graph, "forget")))
        (found,) = await ask(items, "search", NOTES)
        assert (found.key, found.value, found.created_at) == ("old", {"n": 1}, made)


async def test_the_index_goes_back_too(makes_here: Makes) -> None:
    client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
    name = f"rewound-{id(makes_here)}"
    hook = ChromaSyncHook(client, name, LexicalEmbedder(), **item_index())
    memory = makes_here.store(hooks=[hook])
    checkpointer, items = makes_here.checkpointer(memory), makes_here.items(memory, fields=["by"])
    graph = notes(items, checkpointer=checkpointer)
    await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
    found = await ask(items, "search", NOTES, query="c")
    assert {one.key for one in found[:2]} == {"c", "last"}
    await maybe(checkpointer.rewind(await past(checkpointer, graph, "b")))
    assert set(await keys(items, NOTES, query="c")) == {"a", "last"}
    assert client.get_collection(name).count() == 2
    assert not any(await maybe(memory.verify()))


async def test_a_failed_attempt_leaves_nothing(makes_here: Makes) -> None:
    checkpointer = makes_here.checkpointer()
    items = makes_here.items(checkpointer.memory)

    def fail(state: State) -> Any:
        get_store().put(NOTES, "half", {})
        raise KeyError("no")

    async def fail_later(state: State) -> Any:
        await get_store().aput(NOTES, "half", {})
        raise KeyError("no")

    graph: Any = StateGraph(State)
    graph.add_node("fail", fail_later if isinstance(items, AsyncMemStateStore) else fail)
    graph.add_edge(START, "fail")
    graph = graph.compile(checkpointer=checkpointer, store=items)
    with pytest.raises(KeyError):
        await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
    assert await keys(items, NOTES) == []


async def test_plain_nodes_of_an_awaited_graph() -> None:
    """They may use the plain methods of either store, and what they put is their thread's."""
    awaited = AsyncMemoryStore(AsyncInMemoryStorage())
    plain = MemoryStore(InMemoryStorage())
    for checkpointer, items in (
        (AsyncMemStateCheckpointer(awaited), AsyncMemStateStore(awaited)),
        (MemStateCheckpointer(plain), MemStateStore(plain)),
    ):

        def put(state: State, *, store: BaseStore) -> Any:
            store.put(NOTES, "x", {})
            return {"items": ["x"]}

        async def put_too(state: State, *, store: BaseStore) -> Any:
            await store.aput(NOTES, "y", {})
            return {"items": ["y"]}

        graph: Any = StateGraph(State)
        graph.add_node("put", put)
        graph.add_node("put_too", put_too)
        graph.add_edge(START, "put")
        graph.add_edge("put", "put_too")
        graph = graph.compile(checkpointer=checkpointer, store=items)
        await graph.ainvoke({"items": []}, thread("t"))
        assert await keys(items, NOTES) == ["x", "y"]
        history = await maybe(checkpointer.memory.history("t"))
        assert [one.actor for one in history] == ["put_too", "put"]
        start = [one async for one in graph.aget_state_history(thread("t"))][-2]
        await maybe(checkpointer.rewind(start.config))
        assert await keys(items, NOTES) == []


def test_tools() -> None:
    """Those of one message run at once, in threads, and belong to the thread of their graph."""
    memory = MemoryStore(InMemoryStorage())
    checkpointer, items = MemStateCheckpointer(memory), MemStateStore(memory)

    @tool
    def note(text: str, store: Annotated[Any, InjectedStore()]) -> str:
        """Note something."""
        store.put(NOTES, text, {"text": text})
        return f"noted {text}"

    calls = [ToolCall(name="note", args={"text": f"n{n}"}, id=f"call-{n}", type="tool_call") for n in range(4)]
    model = GenericFakeChatModel(messages=iter([AIMessage("", tool_calls=calls), AIMessage("done")] * 2))
    graph: Any = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([note]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges(
        "model", lambda state: "tools" if getattr(state["messages"][-1], "tool_calls", None) else END, ["tools", END]
    )
    graph.add_edge("tools", "model")
    graph = graph.compile(checkpointer=checkpointer, store=items)
    graph.invoke({"messages": [("user", "note this")]}, thread("t"))
    assert {one.key for one in items.search(NOTES)} == {"n0", "n1", "n2", "n3"}
    before = next(one.config for one in graph.get_state_history(thread("t")) if one.next == ("tools",))
    checkpointer.rewind(before)
    assert items.search(NOTES) == []
    graph.invoke(None, before)
    assert len(items.search(NOTES)) == 4


async def test_what_is_brought_back_may_have_expired_since(makes_here: Makes) -> None:
    """Time does not go back: neither does an item that has expired come back, nor is one lost that has not."""
    clock = Clock()
    memory = makes_here.store(clock=clock)
    checkpointer, items = makes_here.checkpointer(memory), makes_here.items(memory)

    def node(minutes: float) -> Any:
        async def later(state: State) -> Any:
            await items.aput(NOTES, "k", {"minutes": minutes}, ttl=minutes)
            return {"items": ["x"]}

        def now(state: State) -> Any:
            items.put(NOTES, "k", {"minutes": minutes}, ttl=minutes)
            return {"items": ["x"]}

        return later if isinstance(items, AsyncMemStateStore) else now

    graph: Any = StateGraph(State)
    graph.add_node("short", node(10))
    graph.add_node("long", node(100))
    graph.add_edge(START, "short")
    graph.add_edge("short", "long")
    graph = graph.compile(checkpointer=checkpointer, store=items)
    await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
    clock.after(20)
    end = (await call(checkpointer, graph, "get_state", thread("t"))).config
    assert (await ask(items, "get", NOTES, "k", refresh_ttl=False)).value == {"minutes": 100}
    await maybe(checkpointer.rewind(await past(checkpointer, graph, "long")))
    assert await ask(items, "get", NOTES, "k") is None
    await maybe(checkpointer.rewind(end))
    assert (await ask(items, "get", NOTES, "k")).value == {"minutes": 100}
