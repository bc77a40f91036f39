"""LangGraph checkpoints, against LangGraph's own savers at the same durability.

A thread of messages to which every step adds one. Only what is the same on both sides is timed: the messages are made
beforehand, and each put adds to the one before. Where there is no saver for a storage, it is LangGraph's one in memory.
The floor is a saver that stores only what is new, and nothing else (:mod:`benchmarks.checkpoint_floors`).
"""

from __future__ import annotations

import importlib.util
import itertools
import sqlite3
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from benchmarks.bench import Bench, say
from benchmarks.measure import Effort, Row, Side, compared, in_turn
from benchmarks.storages import StorageKind
from benchmarks.workload import fresh
from memstate_core import MemoryStore
from memstate_core.storages.sqlite import SQLiteStorage

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver

SECTION: Final = "Checkpoints"
_LONG: Final = 500
_SHORT: Final = 10
_TEXT: Final = "x" * 500
_NODES: Final = 10

# What calls may be of the floor's.
_OVER_FLOOR: Final = {"put": 3.0, "put_writes": 2.0, "list": 1.5}

# By storage: what a put and a whole graph may be of the peer's. A put of a short thread costs what its records cost.
_PUT: Final = {"memory": None, "sqlite": 0.1, "postgres": 0.1, "redis": None}
_SHORT_PUT: Final = {"memory": None, "sqlite": 1.0, "postgres": 1.0, "redis": None}
_GRAPH: Final = {"memory": None, "sqlite": 1.6, "postgres": 3.0, "redis": None}


def rows(bench: Bench) -> Iterator[Row]:
    if importlib.util.find_spec("langgraph") is None:
        say('checkpoints are not measured: they need LangGraph (pip install "memstate[langgraph]")')
        return
    for kind in bench.kinds:
        yield from _rows(bench, kind)


def _rows(bench: Bench, kind: StorageKind) -> Iterator[Row]:
    from langgraph.checkpoint.memory import InMemorySaver

    from benchmarks.checkpoint_floors import floor

    name, peer = _peer(bench, kind)
    mine = _checkpointer(bench, kind)
    least = floor(kind, bench.directory())
    bench.closing(least.rows.close)
    for length, target in ((_LONG, _PUT[kind.name]), (_SHORT, _SHORT_PUT[kind.name])):
        for other, saver, limit in ((name, peer, target), ("floor", least, _OVER_FLOOR["put"])):
            say(f"{kind.name}: put, {length} messages, against {other}")
            timing = in_turn(_puts(saver, length), _puts(mine, length), calls=5, effort=bench.effort)
            yield compared(SECTION, f"put, {length} messages, {other}", kind.name, timing, limit)
    for other, saver, limit in ((name, peer, None), ("floor", least, _OVER_FLOOR["put_writes"])):
        say(f"{kind.name}: put_writes, against {other}")
        timing = in_turn(_writes(saver), _writes(mine), calls=5, effort=bench.effort)
        yield compared(SECTION, f"put_writes, {other}", kind.name, timing, limit)
    in_memory = InMemorySaver()
    long = {saver: _filled(saver, _LONG, 20) for saver in (peer, least, mine, in_memory)}
    effort = Effort(max(5, bench.effort.rounds // 4), bench.effort.seconds, bench.effort.clock)
    for other, saver, limit in (("InMemorySaver", in_memory, 1.2), ("floor", least, None)):
        say(f"{kind.name}: get_tuple, against {other}")
        timing = in_turn(_reads(saver, long[saver]), _reads(mine, long[mine]), calls=1, effort=effort)
        yield compared(SECTION, f"get_tuple, {other}", kind.name, timing, limit)
    for other, saver, limit in ((name, peer, None), ("floor", least, _OVER_FLOOR["list"])):
        say(f"{kind.name}: list, against {other}")
        timing = in_turn(_lists(saver, long[saver]), _lists(mine, long[mine]), calls=1, effort=effort)
        yield compared(SECTION, f"list of 20, {other}", kind.name, timing, limit)
    savers: tuple[tuple[str, Any, float | None], ...] = (
        ("without a saver", None, _GRAPH[kind.name]),
        ("a saver that keeps nothing", _keeps_nothing(), None),
        ("floor", least, None),
        (name, peer, None),
    )
    for other, saver, limit in savers:
        say(f"{kind.name}: a whole graph, against {other}")
        timing = in_turn(_runs(saver), _runs(mine), calls=1, effort=effort)
        yield compared(SECTION, f"graph of {_NODES} nodes, {other}", kind.name, timing, limit)
    yield _size(bench, kind, 200 if bench.effort.rounds > 20 else 20)


def _keeps_nothing() -> BaseCheckpointSaver[Any]:
    """What LangGraph itself takes for having a saver."""
    from langgraph.checkpoint.memory import InMemorySaver

    class Nothing(InMemorySaver):
        def get_tuple(self, config: Any) -> None:
            return None

        def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
            return {"configurable": {**config["configurable"], "checkpoint_id": checkpoint["id"]}}

        def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
            """Nothing."""

    return Nothing()


def _checkpointer(bench: Bench, kind: StorageKind) -> Any:
    from memstate_langgraph import MemStateCheckpointer

    directory = bench.directory()
    # LangGraph's saver leaves SQLite's own setting: every commit is synced.
    storage: Any = (
        SQLiteStorage(directory / "bench.db", durability="full") if kind.name == "sqlite" else kind.storage(directory)
    )
    bench.closing(storage.close)
    return MemStateCheckpointer(MemoryStore(storage, allow_unregistered=True))


def _peer(bench: Bench, kind: StorageKind) -> tuple[str, BaseCheckpointSaver[Any]]:
    from langgraph.checkpoint.memory import InMemorySaver

    if kind.name == "sqlite":
        try:
            from langgraph.checkpoint.sqlite import SqliteSaver
        except ImportError:
            say("SqliteSaver is not there: pip install langgraph-checkpoint-sqlite")
        else:
            connection = sqlite3.connect(bench.directory() / "peer.db", check_same_thread=False)
            bench.closing(connection.close)
            saver = SqliteSaver(connection)
            saver.setup()
            return "SqliteSaver", saver
    if kind.name == "postgres":
        try:
            from langgraph.checkpoint.postgres import PostgresSaver
        except ImportError:
            say("PostgresSaver is not there: pip install langgraph-checkpoint-postgres")
        else:
            import psycopg
            from psycopg.rows import dict_row

            from benchmarks.storages.postgres import own_url

            connected: Any = psycopg.connect(own_url(), autocommit=True, prepare_threshold=0, row_factory=dict_row)
            bench.closing(connected.close)
            other = PostgresSaver(connected)
            other.setup()
            return "PostgresSaver", other
    return "InMemorySaver", InMemorySaver()


class _Thread:
    """A thread that grows by a message with every put."""

    def __init__(self, saver: Any, length: int) -> None:
        from langchain_core.messages import HumanMessage
        from langgraph.runtime import Runtime

        self.saver = saver
        self.messages: list[Any] = [HumanMessage(_TEXT, id=f"m{number}") for number in range(length)]
        self.length = length
        self.version: Any = None
        self.other = saver.get_next_version(None, None)
        self.runtime = Runtime()
        self.config: Any = {
            "configurable": {"thread_id": fresh("thread"), "checkpoint_ns": "", "__runtime": self.runtime}
        }
        self.step = itertools.count()
        self.put(self.grown())

    def grown(self) -> tuple[Any, Any, Any, Any]:
        """The arguments of the next put; the thread stays as long as it was."""
        from langchain_core.messages import AIMessage
        from langgraph.checkpoint.base.id import uuid6

        step = next(self.step)
        self.messages = [*self.messages, AIMessage(_TEXT, id=f"a{step}")]
        self.version = self.saver.get_next_version(self.version, None)
        checkpoint = {
            "v": 4,
            "id": str(uuid6(clock_seq=step & 0x3FFF)),
            "ts": "2030-01-01T00:00:00+00:00",
            "channel_values": {"messages": self.messages, "step": step},
            "channel_versions": {"messages": self.version, "step": self.other},
            "versions_seen": {"__input__": {}, "answer": {"messages": self.other}},
            "updated_channels": ["messages"],
        }
        return self.config, checkpoint, {"source": "loop", "step": step, "parents": {}}, {"messages": self.version}

    def put(self, arguments: tuple[Any, Any, Any, Any]) -> None:
        _, *others = arguments
        stored = self.saver.put(self.config, *others)
        # What LangGraph's loop passes has its runtime, by which it is told from update_state.
        self.config = {"configurable": {**stored["configurable"], "__runtime": self.runtime}}


def _filled(saver: Any, length: int, puts: int) -> _Thread:
    thread = _Thread(saver, length - puts)
    for _ in range(puts):
        thread.put(thread.grown())
    return thread


def _puts(saver: Any, length: int) -> Side:
    thread = _Thread(saver, length)

    def prepare(calls: int) -> Sequence[Any]:
        nonlocal thread
        if len(thread.messages) > length * 1.2 + 20:
            thread = _Thread(saver, length)
        return [thread.grown() for _ in range(calls)]

    def call(arguments: tuple[Any, Any, Any, Any]) -> None:
        thread.put(arguments)

    return Side(prepare, call)


def _writes(saver: Any) -> Side:
    from langchain_core.messages import AIMessage

    thread = _Thread(saver, _SHORT)
    tasks = itertools.count()

    def prepare(calls: int) -> Sequence[Any]:
        thread.put(thread.grown())
        return [(next(tasks), AIMessage(_TEXT)) for _ in range(calls)]

    def call(argument: tuple[int, Any]) -> None:
        number, message = argument
        saver.put_writes(thread.config, [("messages", [message])], f"task-{number}", "path")

    return Side(prepare, call)


def _latest(thread: _Thread) -> Any:
    return {"configurable": {"thread_id": thread.config["configurable"]["thread_id"], "checkpoint_ns": ""}}


def _reads(saver: Any, thread: _Thread) -> Side:
    return Side(lambda calls: [_latest(thread)] * calls, saver.get_tuple)


def _lists(saver: Any, thread: _Thread) -> Side:
    return Side(lambda calls: [_latest(thread)] * calls, lambda config: list(saver.list(config, limit=20)))


def _runs(saver: Any) -> Side:
    from langgraph.graph import END, START, StateGraph

    builder: Any = StateGraph(dict)
    names = [f"n{number}" for number in range(_NODES)]
    for name in names:
        builder.add_node(name, lambda state: {"n": state["n"] + 1})
    for one, other in itertools.pairwise([START, *names, END]):
        builder.add_edge(one, other)
    graph = builder.compile(checkpointer=saver)

    def call(thread_id: str) -> None:
        graph.invoke({"n": 0}, {"configurable": {"thread_id": thread_id}})

    return Side(lambda calls: [fresh("run") for _ in range(calls)], call)


def _size(bench: Bench, kind: StorageKind, turns: int) -> Row:
    """What a thread takes after so many turns of two messages of 1 KB, in the values of its records."""
    from langchain_core.messages import AIMessage, HumanMessage
    from langgraph.graph import END, START, StateGraph
    from langgraph.graph.message import MessagesState

    say(f"{kind.name}: {turns} turns")
    saver = _checkpointer(bench, kind)
    builder: Any = StateGraph(MessagesState)
    builder.add_node("answer", lambda state: {"messages": [AIMessage("y" * 1000)]})
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    graph = builder.compile(checkpointer=saver)
    start = time.monotonic()
    for _ in range(turns):
        graph.invoke({"messages": [HumanMessage("x" * 1000)]}, {"configurable": {"thread_id": "size"}})
    say(f"{kind.name}: {turns} turns took {time.monotonic() - start:.1f} s")
    size = sum(
        len(record.key) + len(record.value)
        for part in ("checkpoints", "channels", "writes", "positions", "lines", "finished")
        for record in saver.memory.scan_records(f"langgraph.{part}:size")
    )
    return Row(
        SECTION,
        f"{turns} turns of 2 KB",
        kind.name,
        turns * 2.0,
        size / 1000,
        size / 1000 / (turns * 2),
        target=7.5,
        unit="kB",
        value_unit="×",
    )
