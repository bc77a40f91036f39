"""How LangGraph calls a checkpointer, as far as the rewinds rely on it: a canary for each situation."""

from __future__ import annotations

import itertools
import operator
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.config import get_config
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, RetryPolicy, interrupt

from memstate import InMemoryStorage, MemoryStore
from memstate_langgraph import MemStateCheckpointer
from memstate_langgraph._tags import runtime_in

CONFIG: Any = {"configurable": {"thread_id": "t"}}


class State(TypedDict):
    items: Annotated[list[str], operator.add]


class Recorder(MemStateCheckpointer):
    """Notes each call: ``G`` for a load by a run, ``g`` for a look, ``P`` with parent and child, ``W``, ``L``."""

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
        self.calls.append(("g" if runtime is None else "G", kind_of(ns), asked or "latest"))
        if runtime is not None:
            assert (runtime.execution_info is None) == (ns == "")
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


def test_a_subgraph_in_the_past_runs_in_another_namespace(seen: Recorded) -> None:
    inner: Any = StateGraph(State)
    inner.add_node("x", seen.node("x"))
    inner.add_edge(START, "x")
    builder: Any = StateGraph(State)
    builder.add_node("s", inner.compile())
    builder.add_edge(START, "s")
    graph = builder.compile(checkpointer=seen.saver)
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
