"""How LangGraph calls a checkpointer, as far as the rewinds rely on it: a canary for each situation."""

from __future__ import annotations

import asyncio
import itertools
import operator
import threading
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.config import ContextThreadPoolExecutor, run_in_executor
from langgraph.config import get_config
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, RetryPolicy, interrupt

from memstate import InMemoryStorage, MemoryStore
from memstate_langgraph import MemStateCheckpointer
from memstate_langgraph._tags import current_node, runtime_in

CONFIG: Any = {"configurable": {"thread_id": "t"}}


class State(TypedDict):
    items: Annotated[list[str], operator.add]


class Recorder(MemStateCheckpointer):
    """Notes each call: ``G`` for a load by a run, ``g`` for a look, ``n`` for that of a node, ``P`` with parent and
    child, ``W``, ``L``.
    """

    def __init__(self) -> None:
        super().__init__(MemoryStore(InMemoryStorage(), allow_unregistered=True))
        self.calls: list[tuple[Any, ...]] = []
        self.ids: dict[str, str] = {}

    def short(self, checkpoint_id: str | None) -> str | None:
        if not checkpoint_id:
            return None
        return self.ids.setdefault(checkpoint_id, f"c{len(self.ids)}")

    def taken(self) -> list[tuple[Any, ...]]:
        calls, self.calls = self.calls, []
        return calls

    def get_tuple(self, config: Any) -> Any:
        runtime = runtime_in(config["configurable"])
        ns = config["configurable"].get("checkpoint_ns") or ""
        asked = self.short(config["configurable"].get("checkpoint_id"))
        by_node = runtime is not None and runtime.execution_info is not None and not ns
        self.calls.append(("g" if runtime is None else "n" if by_node else "G", kind_of(ns), asked or "latest"))
        if runtime is not None and ns:
            assert runtime.execution_info is not None
        return super().get_tuple(config)

    def list(self, config: Any, **options: Any) -> Any:
        ns = config["configurable"].get("checkpoint_ns") or ""
        self.calls.append(("L", kind_of(ns)))
        return super().list(config, **options)

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        configurable = config["configurable"]
        ns = configurable.get("checkpoint_ns") or ""
        parent = self.short(configurable.get("checkpoint_id"))
        by_run = runtime_in(configurable) is not None
        self.calls.append(
            ("P" if by_run else "p", kind_of(ns), parent, self.short(checkpoint["id"]), metadata.get("source"))
        )
        if ns:
            assert configurable["checkpoint_map"][""]
        return super().put(config, checkpoint, metadata, new_versions)

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        ns = config["configurable"].get("checkpoint_ns") or ""
        special = all(channel.startswith("__") and channel != "__return__" for channel, _ in writes)
        self.calls.append(
            ("W", kind_of(ns), self.short(config["configurable"]["checkpoint_id"]), "special" if special else "regular")
        )
        super().put_writes(config, writes, task_id, task_path)


def kind_of(ns: str) -> str:
    return "|".join(part.partition(":")[0] for part in ns.split("|"))


class Recorded:
    """A graph, what it called, and where its nodes ran from."""

    def __init__(self) -> None:
        self.saver = Recorder()
        self.ran: list[tuple[str, str | None, int]] = []
        self.tasks: list[str] = []
        self.trouble: list[Any] = []

    def node(self, name: str) -> Any:
        def run(state: Any) -> Any:
            configurable = get_config()["configurable"]
            runtime = runtime_in(configurable)
            assert runtime is not None
            info = runtime.execution_info
            assert info is not None
            self.ran.append((name, self.saver.short(info.checkpoint_id), info.node_attempt))
            self.tasks.append(info.task_id)
            assert info.checkpoint_ns.rpartition(":")[2] == info.task_id
            assert configurable["checkpoint_map"][""]
            if self.trouble:
                trouble = self.trouble.pop(0)
                if trouble == "interrupt":
                    interrupt("?")
                elif trouble is not None:
                    raise trouble
            return {"items": [name]}

        return run

    def graph(self, nodes: str, **options: Any) -> Any:
        builder: Any = StateGraph(State)
        for name in nodes:
            builder.add_node(name, self.node(name), **options)
        builder.add_edge(START, nodes[0])
        for one, other in itertools.pairwise(nodes):
            builder.add_edge(one, other)
        builder.add_edge(nodes[-1], END)
        return builder.compile(checkpointer=self.saver)

    def around(self, nodes: str, **options: Any) -> Any:
        """A graph whose one node ``s`` is a graph."""
        inner: Any = StateGraph(State)
        for name in nodes:
            inner.add_node(name, self.node(name))
        inner.add_edge(START, nodes[0])
        for one, other in itertools.pairwise(nodes):
            inner.add_edge(one, other)
        builder: Any = StateGraph(State)
        builder.add_node("s", inner.compile(**options))
        builder.add_edge(START, "s")
        return builder.compile(checkpointer=self.saver)

    def loads_and_puts(self) -> list[tuple[Any, ...]]:
        return [call for call in self.saver.taken() if call[0] in "GgPpL"]


@pytest.fixture
def seen() -> Recorded:
    return Recorded()


def past(graph: Any, following: str) -> Any:
    return next(one.config for one in graph.get_state_history(CONFIG) if one.next == (following,))


def test_a_run(seen: Recorded) -> None:
    seen.graph("ab").invoke({"items": []}, CONFIG, durability="sync")
    assert seen.loads_and_puts() == [
        ("G", "", "latest"),
        ("P", "", None, "c0", "input"),
        ("P", "", "c0", "c1", "loop"),
        ("P", "", "c1", "c2", "loop"),
        ("P", "", "c2", "c3", "loop"),
    ]
    assert seen.ran == [("a", "c1", 1), ("b", "c2", 1)]


def test_going_back_without_input(seen: Recorded) -> None:
    graph = seen.graph("ab")
    graph.invoke({"items": []}, CONFIG, durability="sync")
    where = past(graph, "b")
    seen.saver.taken()
    seen.ran.clear()
    graph.invoke(None, where, durability="sync")
    assert seen.loads_and_puts() == [
        ("G", "", "c2"),
        ("G", "", "latest"),
        ("P", "", "c2", "c4", "fork"),
        ("P", "", "c4", "c5", "loop"),
    ]
    assert seen.ran == [("b", "c4", 1)]


def test_going_back_with_input(seen: Recorded) -> None:
    graph = seen.graph("ab")
    graph.invoke({"items": []}, CONFIG, durability="sync")
    where = past(graph, "b")
    seen.saver.taken()
    graph.invoke({"items": []}, where, durability="sync")
    assert seen.loads_and_puts()[:3] == [("G", "", "c2"), ("G", "", "latest"), ("P", "", "c2", "c4", "input")]


def test_resuming_in_the_past_runs_the_same_tasks_again(seen: Recorded) -> None:
    graph = seen.graph("a")
    seen.trouble = ["interrupt"]
    graph.invoke({"items": []}, CONFIG, durability="sync")
    where = past(graph, "a")
    graph.invoke(Command(resume=1), CONFIG, durability="sync")
    seen.saver.taken()
    seen.ran.clear()
    graph.invoke(Command(resume=2), where, durability="sync")
    calls = seen.saver.taken()
    assert calls[:2] == [("G", "", "c1"), ("G", "", "latest")]
    assert ("W", "", "c1", "special") in calls
    assert seen.ran == [("a", "c1", 1)]
    assert len(set(seen.tasks)) == 1
    assert [call for call in calls if call[0] == "P"] == [("P", "", "c1", "c3", "loop")]


def test_resuming_after_a_failure(seen: Recorded) -> None:
    graph = seen.graph("a")
    seen.trouble = [ValueError("x")]
    with pytest.raises(ValueError, match="x"):
        graph.invoke({"items": []}, CONFIG, durability="sync")
    seen.saver.taken()
    graph.invoke(None, CONFIG, durability="sync")
    assert seen.loads_and_puts() == [("G", "", "latest"), ("P", "", "c1", "c2", "loop")]
    assert len(set(seen.tasks)) == 1


def test_new_input_after_a_failure(seen: Recorded) -> None:
    graph = seen.graph("a")
    seen.trouble = [ValueError("x")]
    with pytest.raises(ValueError, match="x"):
        graph.invoke({"items": []}, CONFIG, durability="sync")
    seen.saver.taken()
    graph.invoke({"items": []}, CONFIG, durability="sync")
    assert seen.loads_and_puts()[:2] == [("G", "", "latest"), ("P", "", "c1", "c2", "input")]
    assert len(set(seen.tasks)) == 2


def test_updating_in_the_past(seen: Recorded) -> None:
    graph = seen.graph("ab")
    graph.invoke({"items": []}, CONFIG, durability="sync")
    where = past(graph, "b")
    seen.saver.taken()
    graph.update_state(where, {"items": ["u"]}, as_node="a")
    assert seen.loads_and_puts() == [("g", "", "c2"), ("g", "", "latest"), ("p", "", "c2", "c4", "update")]
    graph.invoke(None, CONFIG, durability="sync")
    assert seen.loads_and_puts() == [("G", "", "latest"), ("P", "", "c4", "c5", "loop")]


def test_a_copy_has_the_parent_of_what_it_copies(seen: Recorded) -> None:
    graph = seen.graph("ab")
    graph.invoke({"items": []}, CONFIG, durability="sync")
    where = past(graph, "b")
    seen.saver.taken()
    graph.update_state(where, None, as_node="__copy__")
    assert seen.loads_and_puts()[0] == ("g", "", "c2")
    assert seen.saver.calls == []
    copies = [one for one in graph.get_state_history(CONFIG) if one.metadata["source"] == "fork"]
    assert seen.saver.short(copies[0].parent_config["configurable"]["checkpoint_id"]) == "c1"


def test_looking_has_no_runtime(seen: Recorded) -> None:
    graph = seen.graph("ab")
    graph.invoke({"items": []}, CONFIG, durability="sync")
    where = past(graph, "b")
    seen.saver.taken()
    graph.get_state(CONFIG)
    graph.get_state(where)
    list(graph.get_state_history(CONFIG))
    assert {call[0] for call in seen.saver.taken()} == {"g", "L"}


def test_a_retry_calls_nobody(seen: Recorded) -> None:
    policy = RetryPolicy(initial_interval=0.0, jitter=False, retry_on=ValueError)
    seen.trouble = [ValueError("x"), ValueError("y")]
    seen.graph("a", retry_policy=policy).invoke({"items": []}, CONFIG, durability="sync")
    assert seen.ran == [("a", "c1", 1), ("a", "c1", 2), ("a", "c1", 3)]
    assert len(set(seen.tasks)) == 1
    assert [call[0] for call in seen.loads_and_puts()] == ["G", "P", "P", "P"]


def test_at_the_exit_there_is_one_checkpoint(seen: Recorded) -> None:
    seen.graph("ab").invoke({"items": []}, CONFIG, durability="exit")
    puts = [call for call in seen.saver.taken() if call[0] == "P"]
    assert [call[2] for call in puts] == [None]
    assert puts[0][3] not in {place for _, place, _ in seen.ran}


def test_a_fan_runs_from_one_checkpoint(seen: Recorded) -> None:
    builder: Any = StateGraph(State)
    for name in "abcd":
        builder.add_node(name, seen.node(name))
    builder.add_edge(START, "a")
    for name in "bc":
        builder.add_edge("a", name)
    builder.add_edge(["b", "c"], "d")
    builder.compile(checkpointer=seen.saver).invoke({"items": []}, CONFIG, durability="sync")
    assert sorted(seen.ran) == [("a", "c1", 1), ("b", "c2", 1), ("c", "c2", 1), ("d", "c3", 1)]
    assert len(set(seen.tasks)) == 4
    calls = seen.saver.taken()
    assert calls.count(("W", "", "c2", "regular")) == 2
    assert [call for call in calls if call[:3] == ("P", "", "c2")] == [("P", "", "c2", "c3", "loop")]


def test_resuming_after_an_interrupt(seen: Recorded) -> None:
    graph = seen.graph("ab")
    seen.trouble = [None, "interrupt"]
    graph.invoke({"items": []}, CONFIG, durability="sync")
    seen.saver.taken()
    graph.invoke(Command(resume=1), CONFIG, durability="sync")
    calls = seen.saver.taken()
    assert calls[0] == ("G", "", "latest")
    assert sorted(calls[1:]) == [
        ("P", "", "c2", "c3", "loop"),
        ("W", "", "c2", "regular"),
        ("W", "", "c2", "special"),
    ]
    assert seen.ran[-2:] == [("b", "c2", 1)] * 2
    assert len(set(seen.tasks[-2:])) == 1


def test_a_node_that_looks_has_its_own_runtime(seen: Recorded) -> None:
    def look(state: Any) -> Any:
        assert len(graph.get_state(CONFIG).values["items"]) == 0
        return {"items": ["looked"]}

    builder: Any = StateGraph(State)
    builder.add_node("look", look)
    builder.add_edge(START, "look")
    graph = builder.compile(checkpointer=seen.saver)
    graph.invoke({"items": []}, CONFIG, durability="sync")
    looks = [call for call in seen.saver.taken() if call[0] in "gn"]
    assert [call[1:] for call in looks] == [("", "latest")]


async def test_a_nodes_context_goes_with_its_tasks_and_threads(seen: Recorded) -> None:
    """A bare thread does without."""
    found: dict[str, Any] = {}

    def here(how: str) -> None:
        node = current_node()
        found[how] = None if node is None else node.tag.name

    async def node(state: Any) -> Any:
        async def task() -> None:
            here("task")

        await asyncio.create_task(task())
        await asyncio.to_thread(here, "to_thread")
        await run_in_executor(None, here, "run_in_executor")
        await RunnableLambda(here).abatch(["abatch"])
        RunnableLambda(here).batch(["batch", "batch too"])
        with ContextThreadPoolExecutor() as executor:
            executor.submit(here, "executor").result()
        thread = threading.Thread(target=here, args=["thread"])
        thread.start()
        thread.join()
        return {"items": ["x"]}

    builder: Any = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    await builder.compile(checkpointer=seen.saver).ainvoke({"items": []}, CONFIG)
    assert found.pop("thread") is None
    assert found == dict.fromkeys(
        ["task", "to_thread", "run_in_executor", "abatch", "batch", "batch too", "executor"], "node"
    )


def test_a_subgraph_in_the_past_runs_in_another_namespace(seen: Recorded) -> None:
    graph = seen.around("x")
    graph.invoke({"items": []}, CONFIG, durability="sync")
    assert ("G", "s", "latest") in seen.saver.taken()
    graph.invoke(None, past(graph, "s"), durability="sync")
    calls = seen.saver.taken()
    assert ("L", "s") in calls
    namespaces = {
        one.config["configurable"]["checkpoint_ns"]
        for one in MemStateCheckpointer.list(seen.saver, {"configurable": {"thread_id": "t"}})
    }
    assert len(namespaces) == 3  # the root's, and one for each run of the subgraph


def test_a_subgraph_with_its_own_checkpointer_keeps_its_namespace(seen: Recorded) -> None:
    graph = seen.around("x", checkpointer=True)
    for _ in range(2):
        graph.invoke({"items": []}, CONFIG, durability="sync")
    where = past(graph, "s")
    seen.saver.taken()
    graph.invoke(None, where, durability="sync")
    calls = [call for call in seen.loads_and_puts() if call[1] == "s"]
    # It goes on from its last checkpoint before those that the root goes back over, which it finds in a list.
    assert calls[0] == ("L", "s")
    assert calls[1][:3] == ("P", "s", "c4")
    namespaces = {
        one.config["configurable"]["checkpoint_ns"]
        for one in MemStateCheckpointer.list(seen.saver, {"configurable": {"thread_id": "t"}})
    }
    assert namespaces == {"", "s"}


@pytest.mark.parametrize("own", [None, True])
def test_going_back_into_a_subgraph(seen: Recorded, own: bool | None) -> None:
    graph = seen.around("xy", checkpointer=own)
    seen.trouble = [None, "interrupt"]
    graph.invoke({"items": []}, CONFIG, durability="sync")
    where = graph.get_state(CONFIG, subgraphs=True).tasks[0].state.config
    graph.invoke(Command(resume=1), CONFIG, durability="sync")
    seen.saver.taken()
    seen.ran.clear()
    graph.invoke(Command(resume=2), where, durability="sync")
    assert seen.loads_and_puts()[:5] == [
        ("G", "", "c1"),
        ("G", "", "latest"),
        ("G", "s", "c4"),
        ("G", "s", "latest"),
        ("P", "s", "c4", "c7", "fork"),
    ]
    assert seen.ran == [("y", "c7", 1)]


def test_tasks_that_have_finished_do_not_run_again(seen: Recorded) -> None:
    """Those of an entrypoint run from its checkpoint, and are told from one another by their ids."""
    ids: list[str] = []

    @task
    def step(name: str) -> str:
        runtime = runtime_in(get_config()["configurable"])
        assert runtime is not None
        assert runtime.execution_info is not None
        ids.append(runtime.execution_info.task_id)
        return name

    @entrypoint(checkpointer=seen.saver)
    def work(given: Any) -> Any:
        first = step("a").result()
        return [first, interrupt("?"), step("b").result()]

    work.invoke(1, CONFIG, durability="sync")
    calls = seen.saver.taken()
    assert ("W", "", "c0", "regular") in calls
    assert ("W", "", "c0", "special") in calls
    assert work.invoke(Command(resume=2), CONFIG, durability="sync") == ["a", 2, "b"]
    assert len(ids) == len(set(ids)) == 2
    assert {call[1:3] for call in seen.saver.taken() if call[0] == "W"} == {("", "c0")}
    past = [one.config for one in work.get_state_history(CONFIG)][-1]
    work.invoke(None, past, durability="sync")
    assert seen.loads_and_puts()[-3:] == [("G", "", "c0"), ("G", "", "latest"), ("P", "", "c0", "c2", "fork")]
    assert len(set(ids)) == 3


def test_a_task_is_stored_at_the_root(seen: Recorded) -> None:
    found: list[Any] = []

    @task
    def step() -> int:
        configurable = get_config()["configurable"]
        found.append(configurable["checkpoint_map"])
        return 1

    @entrypoint(checkpointer=seen.saver)
    def work(given: Any) -> Any:
        return step().result()

    work.invoke(1, CONFIG, durability="sync")
    (checkpoints,) = found
    assert len(set(checkpoints.values())) == 1
    assert sorted(kind_of(ns) for ns in checkpoints) == ["", "work"]
    assert {call[1] for call in seen.saver.taken() if call[0] == "W"} == {""}
