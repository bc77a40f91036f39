"""Two processes run one thread: one after the other, and nobody waits for a process that is gone."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ormsgpack
import pytest

from memstate import BusyError, InMemoryStorage, MemoryStore, PostgresStorage, SQLiteStorage
from memstate_langgraph import MemStateCheckpointer
from memstate_langgraph import _keys as keys
from tests.langgraph.test_rewinding import chain, writer
from tests.langgraph.test_sharing import thread
from tests.servers import Databases

# Its first node is always done, the second one when it may go on.
PROGRAM = """
import sys
from langgraph.graph import START, StateGraph
from memstate import Fact, MemoryStore, PostgresStorage, SQLiteStorage
from memstate_langgraph import MemStateCheckpointer
from tests.langgraph.oracle import State

def first(state):
    memory.commit(Fact("item", {"name": "their first"}))
    return {"items": ["their first"]}

def second(state):
    memory.commit(Fact("item", {"name": "their second"}))
    print("inside", flush=True)
    sys.stdin.readline()
    return {"items": ["their second"]}

kind = {"sqlite": SQLiteStorage, "postgres": PostgresStorage}[sys.argv[1]]
with kind(sys.argv[2]) as storage:
    memory = MemoryStore(storage, allow_unregistered=True)
    builder = StateGraph(State).add_node(first).add_node(second).add_edge(START, "first").add_edge("first", "second")
    graph = builder.compile(checkpointer=MemStateCheckpointer(memory))
    for _ in range(2):
        # What has come to the second node is stored by then, or there would be nothing to go on from.
        graph.invoke({"items": []}, {"configurable": {"thread_id": "t"}}, durability="sync")
        print("ended", flush=True)
        sys.stdin.readline()
"""


class Other:
    """A process that runs the thread twice, and waits for our word in each run's second node and after it."""

    def __init__(self, kind: str, address: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, kind, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parent.parent.parent,
        )

    def says(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def goes_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    if request.param == "sqlite":
        return request.param, str(tmp_path / "shared.db")
    postgres: Databases = request.getfixturevalue("postgres")
    return request.param, postgres.database()


@pytest.fixture
def other(place: tuple[str, str]) -> Iterator[Other]:
    process = Other(*place)
    yield process
    process.close()


def test_one_process_at_a_time(place: tuple[str, str], other: Other) -> None:
    kind, address = place
    assert other.says() == "inside"
    with (SQLiteStorage if kind == "sqlite" else PostgresStorage)(address) as storage:
        memory = MemoryStore(storage, allow_unregistered=True)

        def checkpointer(**options: Any) -> Any:
            return MemStateCheckpointer(memory, **options)

        def ours(saver: Any) -> Any:
            return chain(saver, ours=writer(memory, "ours"))

        def remembered() -> list[str]:
            return sorted(fact["payload"]["name"] for fact in memory.query("item", session_id="t"))

        # Who does not wait has done nothing.
        with pytest.raises(BusyError, match="'t' is being run by another"):
            ours(checkpointer(run_timeout=0.0)).invoke({"items": []}, thread("t"))
        assert remembered() == ["their first", "their second"]

        # Who waits runs when they have ended.
        patient = checkpointer(run_timeout=60)
        states: list[Any] = []
        run = threading.Thread(target=lambda: states.append(ours(patient).invoke({"items": []}, thread("t"))))
        with told_to_wait(patient) as waits:
            run.start()
            assert waits.wait(60)
        other.goes_on()
        assert other.says() == "ended"
        run.join(60)
        assert states == [{"items": ["their first", "their second", "ours"]}]
        assert remembered() == sorted(states[0]["items"])

        # Nobody waits for one that was killed in mid-run, of which what it had finished is left.
        other.goes_on()
        assert other.says() == "inside"
        other.kill()
        impatient = checkpointer(run_timeout=0.0)
        resumed = chain(impatient, first=writer(memory, "their first"), second=writer(memory, "their second"))
        state = resumed.invoke(None, thread("t"))
        assert state["items"] == [*states[0]["items"], "their first", "their second"]
        assert remembered() == sorted(state["items"])
        assert memory.scan_records(keys.RUNS) == []


@contextlib.contextmanager
def told_to_wait(checkpointer: Any) -> Iterator[threading.Event]:
    """Set when a run of the checkpointer has found its thread taken."""
    runs, told = checkpointer._saver.rewinder.runs, threading.Event()
    take = runs._try

    async def tried(*arguments: Any) -> Any:
        holder = await take(*arguments)
        if holder is not None:
            told.set()
        return holder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_try", tried)
        yield told


def test_a_run_on_another_host_is_waited_for_as_long_as_its_lease() -> None:
    """Nobody can tell from here whether it lives; one that has come too late lets the thread to whom has it."""
    memory = MemoryStore(InMemoryStorage(), allow_unregistered=True)
    checkpointer = MemStateCheckpointer(memory, run_timeout=0.0)
    graph = chain(checkpointer, a=lambda state: {"items": ["a"]})

    def held(seconds: float) -> None:
        record = ormsgpack.packb(["elsewhere|1|1|x", time.time() + seconds])
        memory.put_record(keys.RUNS, keys.thread("t"), record)

    held(20)
    with pytest.raises(BusyError, match="elsewhere"):
        graph.invoke({"items": []}, thread("t"))
    held(-1)
    assert graph.invoke({"items": []}, thread("t")) == {"items": ["a"]}
    assert memory.scan_records(keys.RUNS) == []

    def overtaken(state: Any) -> Any:
        held(20)
        return {"items": ["late"]}

    chain(checkpointer, a=overtaken).invoke({"items": []}, thread("t"))
    with pytest.raises(BusyError, match="elsewhere"):
        graph.invoke({"items": []}, thread("t"))
