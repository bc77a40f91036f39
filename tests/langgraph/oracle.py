"""Graphs whose memory must be their state: each node commits what it returns, and checks what it finds.

A node is told what to do by a plan that a test draws: fail, interrupt, try again. Wherever the graph is run from, the
memory of its thread must be the state there: at every node's start, and at every checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import operator
import random
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.config import get_config
from langgraph.errors import EmptyInputError
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, RetryPolicy, interrupt

from memstate import Fact


def root_step_now() -> str:
    """The checkpoint of the root that the node runs from."""
    configurable = get_config()["configurable"]
    found: str = configurable["checkpoint_map"][""]
    return found


class Boom(Exception):
    """What a node that fails raises."""


class Again(Exception):
    """The same, where the node is tried again."""


class State(TypedDict):
    items: Annotated[list[str], operator.add]


def union(one: list[str], other: list[str]) -> list[str]:
    return [*one, *(item for item in other if item not in one)]


class Total(TypedDict):
    """The state of a graph whose nodes are graphs: these return all that they have."""

    items: Annotated[list[str], union]


class World:
    """A graph, its memory, and what it is about to do."""

    def __init__(self, store: Any, checkpointer: BaseCheckpointSaver[Any], seed: int, thread_id: str) -> None:
        self.store = store
        self.checkpointer = checkpointer
        self.random = random.Random(seed)
        self.thread_id = thread_id
        self.config: Any = {"configurable": {"thread_id": thread_id}}
        self.is_async = store.engine.runtime.is_async
        self.made = 0
        self.trouble = 0.3
        self.is_functional = False
        self.parallel = False
        self.violations: list[str] = []
        self.outside: set[str] = set()
        self.step_of: dict[str, str] = {}

    # What nodes do

    def name(self, node: str) -> str:
        self.made += 1
        return f"{node}-{self.made}"

    def fate(self) -> str:
        if self.random.random() > self.trouble:
            return "ok"
        return self.random.choice(["fail before", "fail after", "interrupt before", "interrupt after", "again"])

    def check(self, node: str, found: set[str], state: list[str]) -> None:
        """What a node finds; it may also find what others of its step have committed."""
        step = root_step_now()
        expected = set(state)
        extra = {
            one
            for one in found - expected - self.outside
            if self.step_of[one] != step or not self.parallel or one.partition("-")[0] == node
        }
        if extra or expected - found:
            self.violations.append(f"{node}: too much {sorted(extra)}, missing {sorted(expected - found)}")

    def act(self, node: str) -> Callable[[Any], Any]:
        """A node's function."""
        world = self

        def prepare() -> tuple[str, str]:
            item = world.name(node)
            world.step_of[item] = root_step_now()
            return world.fate(), item

        def before(fate: str) -> None:
            if fate == "fail before":
                raise Boom
            if fate == "interrupt before":
                interrupt(node)

        def after(fate: str) -> None:
            if fate == "fail after":
                raise Boom
            if fate == "interrupt after":
                interrupt(node)
            if fate == "again":
                raise Again

        if self.is_async:

            async def run_async(state: Any) -> Any:
                world.check(node, await world.facts(), state["items"])
                fate, item = prepare()
                before(fate)
                await world.remember(item)
                after(fate)
                return {"items": [item]}

            return run_async

        def run(state: Any) -> Any:
            world.check(node, world.facts_now(), state["items"])
            fate, item = prepare()
            before(fate)
            world.remember(item)
            after(fate)
            return {"items": [item]}

        return run

    # What the memory is

    def remember(self, item: str) -> Any:
        return self.store.commit(Fact("item", {"name": item}))

    def remembered(self, view: Any) -> Any:
        """The facts that the memory, or a view of its past, has of what the nodes did."""
        return view.query("item", session_id=self.thread_id)

    def name_of(self, fact: Any) -> str:
        name: str = fact["payload"]["name"]
        return name

    def facts_now(self) -> set[str]:
        return set(map(self.name_of, self.remembered(self.store)))

    async def facts(self, view: Any = None) -> set[str]:
        found = self.remembered(view or self.store)
        if inspect.isawaitable(found):
            found = await found
        return set(map(self.name_of, found))

    # What a test does

    async def call(self, graph: Any, name: str, *arguments: Any, **options: Any) -> Any:
        method = getattr(graph, f"a{name}" if self.is_async else name)
        result = method(*arguments, **options)
        if hasattr(result, "__aiter__"):
            return [one async for one in result]
        return await result if inspect.isawaitable(result) else result

    async def run(self, graph: Any, given: Any, config: Any, durability: str) -> None:
        try:
            await self.call(graph, "invoke", given, config, durability=durability)
        except (Boom, Again, EmptyInputError):  # the last where a first checkpoint was lost
            pass
        except RuntimeError as error:
            if "multiple pending interrupts" not in str(error):
                raise

    async def history(self, graph: Any) -> list[Any]:
        return list(await self.call(graph, "get_state_history", self.config))

    async def look_back(self, graph: Any) -> list[Any]:
        """Every checkpoint's memory must be its state. Looking changes nothing."""
        # A node that was called off, since one beside it failed, may still be committing. That comes to an end.
        for _ in range(20):
            before = await self.facts()
            history = await self.history(graph)
            wrong = [found for one in history if (found := await self._wrong(one))]
            if await self.facts() == before:
                self.violations += wrong
                return history
            await asyncio.sleep(0.05)
        raise AssertionError("memory changes while it is only looked at")

    async def _wrong(self, one: Any) -> str | None:
        found = await self.facts(self.store.at(one.config)) - self.outside
        expected = set((one.values or {}).get("items", []))
        if found == expected:
            return None
        where = one.config["configurable"]["checkpoint_id"]
        return f"at {where} ({one.metadata}): too much {sorted(found - expected)}, missing {sorted(expected - found)}"


def line(world: World) -> Any:
    """Three nodes, one after the other."""
    graph: Any = StateGraph(State)
    for node in "abc":
        graph.add_node(node, world.act(node), retry_policy=RETRY)
    return _chain(graph, "abc").compile(checkpointer=world.checkpointer)


def fan(world: World) -> Any:
    """Three nodes at once between two."""
    world.parallel = True
    graph: Any = StateGraph(State)
    for node in "abcde":
        graph.add_node(node, world.act(node), retry_policy=RETRY)
    graph.add_edge(START, "a")
    for node in "bcd":
        graph.add_edge("a", node)
    graph.add_edge(["b", "c", "d"], "e")
    graph.add_edge("e", END)
    return graph.compile(checkpointer=world.checkpointer)


def nested(world: World) -> Any:
    """A graph whose second node is a graph."""
    inner: Any = StateGraph(State)
    for node in "xyz":
        inner.add_node(node, world.act(node), retry_policy=RETRY)
    below = _chain(inner, "xyz").compile()

    if world.is_async:

        async def sub(state: Any) -> Any:
            done = await below.ainvoke({"items": state["items"]})
            return {"items": done["items"][len(state["items"]) :]}

    else:

        def sub(state: Any) -> Any:  # type: ignore[misc]
            done = below.invoke({"items": state["items"]})
            return {"items": done["items"][len(state["items"]) :]}

    graph: Any = StateGraph(State)
    graph.add_node("a", world.act("a"), retry_policy=RETRY)
    graph.add_node("s", sub, retry_policy=RETRY)
    graph.add_node("c", world.act("c"), retry_policy=RETRY)
    return _chain(graph, "asc").compile(checkpointer=world.checkpointer)


def mixed(world: World) -> Any:
    """A node that does something itself, and then runs two graphs, between two others."""
    world.parallel = True
    graphs = []
    for nodes in ("xy", "vw"):
        inner: Any = StateGraph(State)
        for node in nodes:
            inner.add_node(node, world.act(node), retry_policy=RETRY)
        graphs.append(_chain(inner, nodes).compile())
    own = world.act("s")

    if world.is_async:

        async def sub(state: Any) -> Any:
            given = {"items": state["items"]}
            found = list((await own(state))["items"])
            for one in graphs:
                found += (await one.ainvoke(given))["items"][len(state["items"]) :]
            return {"items": found}

    else:

        def sub(state: Any) -> Any:  # type: ignore[misc]
            given = {"items": state["items"]}
            found = list(own(state)["items"])
            for one in graphs:
                found += one.invoke(given)["items"][len(state["items"]) :]
            return {"items": found}

    graph: Any = StateGraph(State)
    graph.add_node("a", world.act("a"), retry_policy=RETRY)
    graph.add_node("s", sub, retry_policy=RETRY)
    graph.add_node("c", world.act("c"), retry_policy=RETRY)
    return _chain(graph, "asc").compile(checkpointer=world.checkpointer)


def below(world: World) -> Any:
    """Two nodes at once that are graphs, between two that are not."""
    world.parallel = True
    inner: Any = StateGraph(State)
    for node in "xy":
        inner.add_node(node, world.act(node), retry_policy=RETRY)
    other: Any = StateGraph(State)
    for node in "vw":
        other.add_node(node, world.act(node), retry_policy=RETRY)
    graph: Any = StateGraph(Total)
    graph.add_node("a", world.act("a"), retry_policy=RETRY)
    graph.add_node("s", _chain(inner, "xy").compile(), retry_policy=RETRY)
    graph.add_node("t", _chain(other, "vw").compile(), retry_policy=RETRY)
    graph.add_node("c", world.act("c"), retry_policy=RETRY)
    graph.add_edge(START, "a")
    graph.add_edge("a", "s")
    graph.add_edge("a", "t")
    graph.add_edge(["s", "t"], "c")
    graph.add_edge("c", END)
    return graph.compile(checkpointer=world.checkpointer)


def functional(world: World) -> Any:
    """An entrypoint with tasks; its state is what it returned."""
    world.is_functional = True
    acts = {node: world.act(node) for node in "abc"}
    if world.is_async:

        @task(retry_policy=RETRY)
        async def step(node: str, items: list[str]) -> list[str]:
            return (await acts[node]({"items": items}))["items"]  # type: ignore[no-any-return]

        @entrypoint(checkpointer=world.checkpointer)
        async def work(given: Any, *, previous: Any = None) -> Any:
            items = list((previous or {"items": []})["items"])
            for node in "abc":
                items += await step(node, items)
            return {"items": items}

        return work

    @task(retry_policy=RETRY)
    def plain_step(node: str, items: list[str]) -> list[str]:
        return acts[node]({"items": items})["items"]  # type: ignore[no-any-return]

    @entrypoint(checkpointer=world.checkpointer)
    def plain_work(given: Any, *, previous: Any = None) -> Any:
        items = list((previous or {"items": []})["items"])
        for node in "abc":
            items += plain_step(node, items).result()
        return {"items": items}

    return plain_work


RETRY = RetryPolicy(initial_interval=0.0, max_interval=0.0, jitter=False, max_attempts=3, retry_on=Again)
TOPOLOGIES = {"line": line, "fan": fan, "nested": nested, "mixed": mixed, "below": below, "functional": functional}


def _chain(graph: Any, nodes: str) -> Any:
    graph.add_edge(START, nodes[0])
    for one, other in itertools.pairwise(nodes):
        graph.add_edge(one, other)
    graph.add_edge(nodes[-1], END)
    return graph


async def wander(world: World, graph: Any, steps: int) -> None:
    """Do things at random, and look at what became of the memory after each."""
    await world.run(graph, {"items": []}, world.config, "sync")
    for _ in range(steps):
        history = await world.look_back(graph)
        durability = world.random.choice(["sync", "async", "exit"])
        kind = world.random.choice(["input", "resume", "go on", "past", "past", "past resume", "update", "outside"])
        past = world.random.choice(history).config if history else world.config
        if kind == "input":
            await world.run(graph, {"items": []}, world.config, durability)
        elif kind == "resume":
            await world.run(graph, Command(resume="yes"), world.config, durability)
        elif kind == "go on":
            await world.run(graph, None, world.config, durability)
        elif kind == "past":
            given = world.random.choice([None, {"items": []}])
            await world.run(graph, given, past, durability)
        elif kind == "past resume":
            await world.run(graph, Command(resume="yes"), past, durability)
        elif kind == "update":
            where = world.random.choice([past, world.config])
            if world.is_functional:
                continue
            node = world.random.choice(["a", "c", END])
            with contextlib.suppress(Boom):
                await world.call(graph, "update_state", where, None if node == END else {"items": []}, as_node=node)
        else:
            name = world.name("outside")
            world.outside.add(name)
            committed = world.store.commit(Fact("item", {"name": name}, session_id=world.thread_id))
            if inspect.isawaitable(committed):
                await committed
