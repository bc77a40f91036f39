"""A thread that was exported and imported goes back, with its memory, as the original does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from memstate import Fact, InMemoryStorage, MemoryStore, SQLiteStorage
from memstate_core._bridge import run
from memstate_core.exporting import Line, export_namespace
from memstate_core.importing import import_namespace
from memstate_langgraph import MemStateCheckpointer

CONFIG: Any = {"configurable": {"thread_id": "trip"}}


class State(TypedDict):
    messages: Annotated[list[Any], add_messages]


def graph_on(memory: MemoryStore) -> Any:
    def listen(state: State) -> dict[str, Any]:
        memory.commit(Fact("said", {"text": state["messages"][-1].content}))
        return {}

    builder = StateGraph(State)
    builder.add_node("listen", listen)
    builder.add_edge(START, "listen")
    builder.add_edge("listen", END)
    return builder.compile(checkpointer=MemStateCheckpointer(memory))


def said(memory: MemoryStore) -> list[str]:
    return [fact["payload"]["text"] for fact in memory.query("said", session_id="trip")]


def test_a_copied_thread_goes_back_with_its_memory(tmp_path: Path) -> None:
    memory = MemoryStore(InMemoryStorage(), allow_unregistered=True)
    # Numbers of transactions that do not begin with this thread's.
    memory.commit(Fact("profile", {"name": "Ada"}))
    graph = graph_on(memory)
    for place in ("Rome", "Oslo", "Bern"):
        graph.invoke({"messages": [("user", place)]}, CONFIG)
    lines: list[Line] = []
    run(export_namespace(memory.storage, "default", lines.append, lines.clear))
    with SQLiteStorage(tmp_path / "copy.db") as storage:
        run(import_namespace(storage, "default", json.loads(json.dumps(lines))))
        copy = MemoryStore(storage, allow_unregistered=True)
        copied = graph_on(copy)
        history = list(graph.get_state_history(CONFIG))
        assert list(copied.get_state_history(CONFIG)) == history
        first = next(one for one in reversed(history) if not one.next)
        for which, its_memory in ((graph, memory), (copied, copy)):
            assert said(its_memory) == ["Rome", "Oslo", "Bern"]
            which.invoke({"messages": [("user", "Kyiv")]}, first.config)
            assert said(its_memory) == ["Rome", "Kyiv"]
