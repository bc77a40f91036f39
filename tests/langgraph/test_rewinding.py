"""Going back on purpose, looking at the past, and what is promised of single situations."""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
import weakref
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from memstate import (
    AsyncMemoryStore,
    BusyError,
    Fact,
    InMemoryStorage,
    MemoryStore,
    NotFoundError,
    SQLiteStorage,
    ValidationFailed,
)
from memstate_core._bridge import run
from memstate_langgraph import MemStateCheckpointer
from memstate_langgraph._line import divided
from tests.langgraph.conftest import Makes
from tests.langgraph.oracle import State
from tests.langgraph.test_sharing import call, thread


async def maybe(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


async def names(store: Any, thread_id: str = "t") -> list[str]:
    facts = await maybe(store.query("item", session_id=thread_id))
    return sorted(fact["payload"]["name"] for fact in facts)


def writer(store: Any, name: str, before: Any = None) -> Any:
    """A node that commits what it returns."""
    if isinstance(store, AsyncMemoryStore):

        async def run(state: Any) -> Any:
            await store.commit(Fact("item", {"name": name}))
            if before is not None:
                before()
            return {"items": [name]}

        return run

    def plain(state: Any) -> Any:
        store.commit(Fact("item", {"name": name}))
        if before is not None:
            before()
        return {"items": [name]}

    return plain


def chain(checkpointer: Any, **nodes: Any) -> Any:
    graph: Any = StateGraph(State)
    for name, node in nodes.items():
        graph.add_node(name, node)
    order = [START, *nodes, END]
    for one, other in itertools.pairwise(order):
        graph.add_edge(one, other)
    return graph.compile(checkpointer=checkpointer)


async def past(checkpointer: Any, graph: Any, following: str) -> Any:
    history = await call(checkpointer, graph, "get_state_history", thread("t"))
    return next(one.config for one in history if one.next == (following,))


def test_what_a_node_writes_for_others() -> None:
    """It goes back where it is on the thread's history, and not where it is on their own."""
    memory = MemoryStore(InMemoryStorage(), allow_unregistered=True)
    for fact_id, session_id in (("ada's", "ada"), ("long-term", None)):
        memory.commit(Fact("old", {"name": "old"}, id=fact_id, session_id=session_id))

    def node(state: Any) -> Any:
        memory.update("ada's", {"name": "new"})
        memory.delete("long-term")
        with memory.transaction() as tx:
            tx.commit(Fact("with the thread", {}), session_id="ada")
            tx.commit(Fact("with the thread", {}), session_id=None)
        memory.commit(Fact("theirs", {}, session_id="ada"))
        memory.commit(Fact("theirs", {}), session_id=None)
        return {"items": ["x"]}

    checkpointer = MemStateCheckpointer(memory)
    graph = chain(checkpointer, node=node)
    graph.invoke({"items": []}, thread("t"))
    assert memory.count("with the thread") == memory.count("theirs") == 2
    checkpointer.rewind(next(one.config for one in graph.get_state_history(thread("t")) if one.next == ("node",)))
    found = [(fact["type"], fact["payload"].get("name"), fact["session_id"]) for fact in memory.query(order_by="type")]
    assert sorted(found, key=str) == [
        ("old", "old", "ada"),
        ("old", "old", None),
        ("theirs", None, "ada"),
        ("theirs", None, None),
    ]


async def test_a_checkpointer_for_each_request(makes_in_memory: Makes) -> None:
    """Those that are gone cost nothing, and those that are still there are no matter."""
    memory = makes_in_memory.store()
    kept = [makes_in_memory.checkpointer(memory) for _ in range(sys.getrecursionlimit())]
    gone = [weakref.ref(makes_in_memory.checkpointer(memory)) for _ in range(10)]
    gc.collect()
    assert [one() for one in gone] == [None] * 10
    for checkpointer in (kept[0], makes_in_memory.checkpointer(memory)):
        graph = chain(checkpointer, a=writer(memory, "a"), b=writer(memory, "b"))
        await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
        where = await past(checkpointer, graph, "b")
    assert await names(memory) == ["a", "a", "b", "b"]
    del kept, checkpointer, graph
    gc.collect()
    assert await names(memory.at(where)) == ["a", "a", "b"]


def test_a_run_keeps_what_is_told_of_its_end() -> None:
    """Or a stream that is garbage, and its checkpointer with it, would hold its thread for ever."""
    memory = MemoryStore(InMemoryStorage())
    rewinder = weakref.ref(MemStateCheckpointer(memory)._saver.rewinder)
    gc.collect()
    assert rewinder() is None
    rewinder = weakref.ref((checkpointer := MemStateCheckpointer(memory))._saver.rewinder)
    run(checkpointer._saver.rewinder.runs.take("t", run_id := uuid.uuid4()))
    del checkpointer
    gc.collect()
    (alive,) = memory.engine.context.rewinders.alive()
    assert alive is rewinder()
    run(alive.runs.leave(run_id))
    del alive
    gc.collect()
    assert rewinder() is None


class TestByHand:
    @pytest.fixture
    async def made(self, makes: Makes) -> Any:
        checkpointer = makes.checkpointer(rewind="manual")
        graph = chain(checkpointer, **{name: writer(checkpointer.memory, name) for name in "abc"})
        await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
        return checkpointer, graph

    async def test_rewind(self, made: Any) -> None:
        checkpointer, graph = made
        where = await past(checkpointer, graph, "b")
        moved = await maybe(checkpointer.rewind(where))
        assert [one.changes[0].after.payload["name"] for one in moved.undone] == ["c", "b"]
        assert await names(checkpointer.memory) == ["a"]
        await maybe(checkpointer.rewind(await past(checkpointer, graph, "c")))
        assert await names(checkpointer.memory) == ["a", "b"]

    async def test_a_state_is_no_config(self, makes_in_memory: Makes) -> None:
        checkpointer = makes_in_memory.checkpointer()
        graph = chain(checkpointer, a=writer(checkpointer.memory, "a"))
        await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
        state = await call(checkpointer, graph, "get_state", thread("t"))
        for wrong, kind in ((state, "StateSnapshot"), (state.config["configurable"]["checkpoint_id"], "str")):
            with pytest.raises(ValidationFailed, match=rf"expected a config, such as the \.config of .*, not a {kind}"):
                await maybe(checkpointer.rewind(wrong))
            with pytest.raises(ValidationFailed, match="expected a config"):
                await maybe(checkpointer.diff(thread("t"), wrong))

    async def test_a_run_does_not_go_back_by_itself(self, made: Any) -> None:
        checkpointer, graph = made
        await call(checkpointer, graph, "invoke", None, await past(checkpointer, graph, "c"))
        assert await names(checkpointer.memory) == ["a", "b", "c", "c"]

    async def test_at_and_diff(self, made: Any) -> None:
        checkpointer, graph = made
        store = checkpointer.memory
        start, middle = await past(checkpointer, graph, "a"), await past(checkpointer, graph, "c")
        for view in (store.at(middle), checkpointer.at(middle)):
            assert await names(view) == ["a", "b"]
            assert await maybe(view.count("item", {"name": "b"})) == 1
        fact = (await maybe(store.query("item", {"name": "c"})))[0]
        assert await maybe(store.get(fact["id"])) == fact
        assert await maybe(store.at(middle).get(fact["id"])) is None
        changes = await maybe(checkpointer.diff(start, middle))
        assert sorted(one.after.payload["name"] for one in changes) == ["a", "b"]
        assert all(one.before is None for one in changes)
        back = await maybe(checkpointer.diff(thread("t"), middle))
        assert [one.before.payload["name"] for one in back] == ["c"]
        assert await names(store) == ["a", "b", "c"]

    async def test_what_is_not_known(self, made: Any) -> None:
        checkpointer, _ = made
        unknown = {"configurable": {"thread_id": "t", "checkpoint_id": "nothing"}}
        with pytest.raises(NotFoundError, match="nothing"):
            await maybe(checkpointer.rewind(unknown))
        with pytest.raises(NotFoundError, match="nothing"):
            await names(checkpointer.memory.at(unknown))
        with pytest.raises(ValueError, match="checkpoint_id"):
            await maybe(checkpointer.rewind(thread("t")))


class TestPromises:
    async def test_facts_of_outside_stay_with_their_line(self, makes: Makes) -> None:
        """They stay on a run from the head, go on a rewind before them, and are there again when one comes back."""
        checkpointer = makes.checkpointer()
        store = checkpointer.memory
        trouble = [False]

        def fail() -> None:
            if trouble[0]:
                raise ValueError

        graph = chain(checkpointer, a=lambda state: {"items": [interrupt("?")]}, b=writer(store, "b", before=fail))
        await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
        start = await past(checkpointer, graph, "a")
        await call(checkpointer, graph, "invoke", Command(resume="x"), thread("t"))
        await maybe(store.commit(Fact("item", {"name": "outside"}, session_id="t")))
        await call(checkpointer, graph, "invoke", None, thread("t"))
        assert await names(store) == ["b", "outside"]
        trouble[0] = True

        class Lost(type(checkpointer)):  # type: ignore[misc]
            def put(self, *_: Any) -> Any:
                raise OSError("lost")

            async def aput(self, *_: Any) -> Any:
                raise OSError("lost")

        kind = type(checkpointer)
        checkpointer.__class__ = Lost
        with pytest.raises(OSError, match="lost"):
            await call(checkpointer, graph, "invoke", Command(resume="y"), start, durability="sync")
        checkpointer.__class__ = kind
        assert "outside" not in await names(store)
        await call(checkpointer, graph, "invoke", None, thread("t"))
        assert await names(store) == ["b", "outside"]

    async def test_what_another_session_has_changed_since_stays(
        self, makes: Makes, caplog: pytest.LogCaptureFixture
    ) -> None:
        checkpointer = makes.checkpointer()
        store = checkpointer.memory

        if isinstance(store, AsyncMemoryStore):

            async def node(state: Any) -> Any:
                await store.commit(Fact("item", {"name": "mine"}, id="shared"))
                return {"items": ["mine"]}

        else:

            def node(state: Any) -> Any:  # type: ignore[misc]
                store.commit(Fact("item", {"name": "mine"}, id="shared"))
                return {"items": ["mine"]}

        graph = chain(checkpointer, a=node, b=lambda state: {"items": []})
        await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
        await maybe(store.commit(Fact("item", {"name": "theirs"}, id="shared"), session_id="other"))
        await call(
            checkpointer, graph, "update_state", await past(checkpointer, graph, "a"), {"items": []}, as_node="b"
        )
        assert (await maybe(store.get("shared")))["payload"] == {"name": "theirs"}
        assert "'shared'" in caplog.text

    async def test_a_node_changes_facts_of_others_on_its_own_line(self, makes: Makes) -> None:
        checkpointer = makes.checkpointer()
        store = checkpointer.memory
        await maybe(store.commit(Fact("item", {"name": "long-term"}, id="f")))
        await maybe(store.commit(Fact("item", {"name": "going"}, id="g")))
        if isinstance(store, AsyncMemoryStore):

            async def node(state: Any) -> Any:
                await store.update("f", {"name": "changed"})
                await store.delete("g")
                return {"items": ["x"]}

        else:

            def node(state: Any) -> Any:  # type: ignore[misc]
                store.update("f", {"name": "changed"})
                store.delete("g")
                return {"items": ["x"]}

        graph = chain(checkpointer, a=node, b=lambda state: {"items": []})
        await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
        assert await maybe(store.get("g")) is None
        await call(
            checkpointer, graph, "update_state", await past(checkpointer, graph, "a"), {"items": []}, as_node="b"
        )
        assert (await maybe(store.get("f")))["payload"] == {"name": "long-term"}
        assert (await maybe(store.get("f")))["session_id"] is None
        assert await maybe(store.get("g")) is not None

    async def test_going_back_into_a_subgraph(self, makes_in_memory: Makes) -> None:
        """It goes on from its own checkpoint, and finds the memory that it had there."""
        checkpointer = makes_in_memory.checkpointer()
        store = checkpointer.memory
        found: list[list[str]] = []

        async def ask(state: Any) -> Any:
            found.append(await names(store))
            return {"items": [interrupt("?")]}

        def ask_now(state: Any) -> Any:
            found.append(sorted(fact["payload"]["name"] for fact in store.query("item", session_id="t")))
            return {"items": [interrupt("?")]}

        inner = chain(None, x=writer(store, "x"), y=ask if store.storage.is_async else ask_now, z=writer(store, "z"))
        graph = chain(checkpointer, s=inner)
        await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
        state = await call(checkpointer, graph, "get_state", thread("t"), subgraphs=True)
        await call(checkpointer, graph, "invoke", Command(resume="y"), thread("t"))
        assert await names(store) == ["x", "z"]
        result = await call(checkpointer, graph, "invoke", Command(resume="again"), state.tasks[0].state.config)
        assert result["items"] == ["x", "again", "z"]
        assert found == [["x"]] * 3
        assert await names(store) == ["x", "z"]

    def test_an_entrypoint_that_does_something_itself_has_tasks_and_runs_a_graph(self) -> None:
        """The graph has the namespace of the entrypoint, and drops nothing but its own when it is resumed."""
        store = MemoryStore(InMemoryStorage(), allow_unregistered=True)
        made = itertools.count()

        def remember(name: str) -> None:
            store.commit(Fact("item", {"name": f"{name}{next(made)}"}))

        @task
        def step(name: str) -> None:
            remember(name)

        def ask(state: Any) -> Any:
            return {"items": [interrupt("?")]}

        graph = chain(None, x=writer(store, "x"), y=ask, z=writer(store, "z"))

        @entrypoint(checkpointer=MemStateCheckpointer(store))
        def work(given: Any) -> Any:
            step("a").result()
            remember("own")
            items = graph.invoke({"items": []})["items"]
            step("b").result()
            return items

        def facts() -> list[str]:
            return sorted(fact["payload"]["name"] for fact in store.query("item", session_id="t"))

        work.invoke(1, thread("t"))
        assert facts() == ["a0", "own1", "x"]
        assert work.invoke(Command(resume="y"), thread("t")) == ["x", "y", "z"]
        assert facts() == ["a0", "b3", "own2", "x", "z"]

    async def test_a_thread_of_the_users_may_act_for_a_node(self) -> None:
        checkpointer = MemStateCheckpointer(MemoryStore(InMemoryStorage(), allow_unregistered=True))
        store = checkpointer.memory

        def node(state: Any) -> Any:
            acting = checkpointer.acting_here()

            def work() -> None:
                with acting:
                    store.commit(Fact("item", {"name": "threaded"}))

            one = threading.Thread(target=work)
            one.start()
            one.join()
            return {"items": ["threaded"]}

        graph = chain(checkpointer, a=node, b=lambda state: {"items": []})
        graph.invoke({"items": []}, thread("t"))
        assert await names(store) == ["threaded"]
        graph.update_state(await past(checkpointer, graph, "a"), {"items": []}, as_node="b")
        assert await names(store) == []
        with pytest.raises(RuntimeError, match="node"):
            checkpointer.acting_here()

    @pytest.mark.parametrize("choice", ["keep", "discard"])
    async def test_the_facts_of_a_deleted_thread(self, makes: Makes, choice: str) -> None:
        checkpointer = makes.checkpointer(on_delete_thread=choice)
        graph = chain(checkpointer, a=writer(checkpointer.memory, "a"))
        for thread_id in ("t", "u"):
            await call(checkpointer, graph, "invoke", {"items": []}, thread(thread_id))
        await call(checkpointer, checkpointer, "delete_thread", "t")
        assert await names(checkpointer.memory, "t") == (["a"] if choice == "keep" else [])
        assert await names(checkpointer.memory, "u") == ["a"]
        with pytest.raises(ValueError, match="on_delete_thread"):
            makes.checkpointer(checkpointer.memory, on_delete_thread="perhaps")

    async def test_off_is_off(self) -> None:
        checkpointer = MemStateCheckpointer(MemoryStore(InMemoryStorage(), allow_unregistered=True), rewind="off")
        graph = chain(checkpointer, a=writer(checkpointer.memory, "a"))
        graph.invoke({"items": []}, thread("t"))
        assert checkpointer.memory.query("item")[0]["session_id"] is None
        with pytest.raises(ValueError, match="rewind"):
            MemStateCheckpointer(checkpointer.memory, rewind="sometimes")  # type: ignore[arg-type]


class TestOneRunAtATime:
    async def test_the_second_waits(self, makes: Makes) -> None:
        checkpointer = makes.checkpointer()
        store = checkpointer.memory
        other = makes.checkpointer(makes.store(makes.storages.again(store.storage)))
        running: list[str] = []

        def slow(state: Any) -> Any:
            running.append("in")
            time.sleep(0.1)
            running.append("out")
            return {"items": [f"{len(state['items'])}"]}

        async def one(saver: Any) -> None:
            await call(saver, chain(saver, a=slow), "invoke", {"items": []}, thread("t"))

        if store.engine.runtime.is_async:
            await asyncio.gather(one(checkpointer), one(other))
        else:
            await asyncio.gather(*(asyncio.to_thread(asyncio.run, one(saver)) for saver in (checkpointer, other)))
        assert running == ["in", "out", "in", "out"]
        state = await call(checkpointer, chain(checkpointer, a=slow), "get_state", thread("t"))
        assert state.values["items"] == ["0", "1"]

    async def test_or_fails_and_says_why(self) -> None:
        store = MemoryStore(InMemoryStorage(), allow_unregistered=True)
        checkpointer = MemStateCheckpointer(store, run_timeout=0.05)
        inside = threading.Event()
        go_on = threading.Event()

        def slow(state: Any) -> Any:
            inside.set()
            go_on.wait(10)
            return {"items": []}

        graph = chain(checkpointer, a=slow)
        first = threading.Thread(target=lambda: graph.invoke({"items": []}, thread("t")))
        first.start()
        inside.wait(10)
        with pytest.raises(BusyError, match="'t' is being run"):
            graph.invoke({"items": []}, thread("t"))
        inside.clear()
        second = threading.Thread(target=lambda: graph.invoke({"items": []}, thread("u")))
        second.start()
        assert inside.wait(10)
        go_on.set()
        first.join()
        second.join()
        graph.invoke({"items": []}, thread("t"))
        assert store.scan_records("langgraph.runs") == []

    async def test_a_failed_an_interrupted_and_an_abandoned_run_have_ended(self, makes_here: Makes) -> None:
        checkpointer = makes_here.checkpointer(run_timeout=0.0)

        def fail(state: Any) -> Any:
            raise ValueError("x")

        with pytest.raises(ValueError, match="x"):
            await call(checkpointer, chain(checkpointer, a=fail), "invoke", {"items": []}, thread("t"))
        graph = chain(checkpointer, a=lambda state: {"items": [interrupt("?")]}, b=lambda state: {"items": []})
        await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
        if checkpointer.memory.engine.runtime.is_async:
            stream = graph.astream(Command(resume="x"), thread("t"))
            await anext(stream)
            await stream.aclose()
        else:
            plain = graph.stream(Command(resume="x"), thread("t"))
            next(plain)
            plain.close()
        await call(checkpointer, graph, "invoke", None, thread("t"))
        assert await maybe(checkpointer.memory.scan_records("langgraph.runs")) == []


PROGRAM = """
import sys, time
from langgraph.graph import END, START, StateGraph
from memstate import Fact, MemoryStore, SQLiteStorage
from memstate_langgraph import MemStateCheckpointer
from tests.langgraph.oracle import State

memory = MemoryStore(SQLiteStorage(sys.argv[1]), allow_unregistered=True)
graph = StateGraph(State)

def node(name):
    def run(state):
        memory.commit(Fact("item", {"name": name}))
        print(name, flush=True)
        if name == sys.argv[2]:
            time.sleep(60)
        return {"items": [name]}
    return run

for name in "abc":
    graph.add_node(name, node(name))
graph.add_edge(START, "a"); graph.add_edge("a", "b"); graph.add_edge("b", "c"); graph.add_edge("c", END)
graph.compile(checkpointer=MemStateCheckpointer(memory)).invoke(
    {"items": []} if sys.argv[3] == "new" else None, {"configurable": {"thread_id": "t"}}, durability=sys.argv[4]
)
"""


@pytest.mark.parametrize(("node", "durability"), [("b", "sync"), ("b", "exit")])
def test_an_agent_that_was_killed_resumes_with_its_memory(tmp_path: Path, node: str, durability: str) -> None:
    database = tmp_path / "agent.db"
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(database)]
    root = Path(__file__).resolve().parent.parent.parent
    with subprocess.Popen([*command, node, "new", durability], stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == node:
                break
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    resumed = "new" if durability == "exit" else "resume"
    subprocess.run([*command, "none", resumed, durability], check=True, cwd=root, timeout=60, stdout=subprocess.DEVNULL)
    with SQLiteStorage(database) as storage:
        memory = MemoryStore(storage, allow_unregistered=True)
        assert sorted(fact["payload"]["name"] for fact in memory.query("item")) == ["a", "b", "c"]


async def finishes_twice(checkpointer: Any) -> None:
    """Without and with what it was resumed with, a task writes at two places, and an update applies both."""
    memory = checkpointer.memory
    times = itertools.count()

    def ask() -> None:
        if next(times):
            interrupt("?")

    graph = chain(checkpointer, first=writer(memory, "first"), second=writer(memory, "second", ask))
    await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
    before = await past(checkpointer, graph, "second")
    await call(checkpointer, graph, "invoke", Command(resume="yes"), before)
    assert await names(memory) == ["first", "second"]
    await call(checkpointer, graph, "update_state", before, None, as_node=END)
    state = await call(checkpointer, graph, "get_state", thread("t"))
    assert state.values["items"] == ["first", "second", "second"]
    assert await names(memory) == state.values["items"]


async def test_a_task_that_finished_twice_counts_as_its_writes_do(makes: Makes) -> None:
    await finishes_twice(makes.checkpointer())


async def ends_in_the_past(checkpointer: Any) -> None:
    """Of an update that ends the run, LangGraph looks only at what is updated; the latest is elsewhere all the same."""
    memory = checkpointer.memory
    thread_id = str(uuid.uuid4())  # at whose latest checkpoint nobody has looked

    async def history() -> list[Any]:
        return list(await call(checkpointer, graph, "get_state_history", thread(thread_id)))

    graph = chain(checkpointer, first=writer(memory, "first"), second=writer(memory, "second"))
    await call(checkpointer, graph, "invoke", {"items": []}, thread(thread_id))
    await maybe(memory.commit(Fact("item", {"name": "outside"}, session_id=thread_id)))
    await call(checkpointer, graph, "invoke", {"items": []}, thread(thread_id))
    now = await names(memory, thread_id)
    head, *others = await history()
    end = next(one for one in others if not one.next)
    middle = next(one for one in others if one.next == ("second",))
    for one, outside in ((end, []), (middle, ["outside"])):
        await call(checkpointer, graph, "update_state", one.config, None, as_node=END)
        latest = (await history())[0]
        assert await names(memory, thread_id) == sorted([*latest.values["items"], *outside])
    await maybe(checkpointer.rewind(head.config))
    assert await names(memory, thread_id) == now


async def test_an_update_that_ends_a_run_in_the_past(makes: Makes) -> None:
    await ends_in_the_past(makes.checkpointer())


async def test_an_update_in_place_of_a_task_whose_checkpoint_was_lost(makes: Makes) -> None:
    """What it wrote counts from then on, and what the task had done until it was interrupted does not."""
    checkpointer = makes.checkpointer()
    memory = checkpointer.memory
    graph = chain(checkpointer, one=writer(memory, "tentative", lambda: interrupt("?")), two=writer(memory, "two"))
    await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
    assert await names(memory) == ["tentative"]
    put = f"{'a' if isinstance(memory, AsyncMemoryStore) else ''}put"
    original = getattr(checkpointer, put)

    def lost(*_: Any) -> Any:
        raise OSError("the disk is full")

    setattr(checkpointer, put, lost)
    with pytest.raises(OSError, match="full"):
        await call(checkpointer, graph, "update_state", thread("t"), {"items": ["by hand"]}, as_node="one")
    setattr(checkpointer, put, original)
    found = await call(checkpointer, graph, "invoke", None, thread("t"))
    assert found["items"] == ["by hand", "two"]
    assert await names(memory) == ["two"]


async def test_positions_that_were_kept_in_records_of_their_own() -> None:
    """As they are beside another saver, and were once beside our own checkpoints."""
    memory = MemoryStore(InMemoryStorage(), allow_unregistered=True)
    checkpointer = MemStateCheckpointer(memory)
    graph = chain(checkpointer, first=writer(memory, "first"), second=writer(memory, "second"))
    graph.invoke({"items": []}, thread("t"))
    for key, record in list(memory.scan_records("langgraph.checkpoints:t")):
        position, rest = divided(record)
        assert position is not None
        memory.put_record("langgraph.checkpoints:t", key, rest)
        memory.put_record("langgraph.positions:t", key, ormsgpack.packb(list(position)))
    again = MemStateCheckpointer(memory)
    graph = chain(again, first=writer(memory, "first"), second=writer(memory, "again"))
    for one in graph.get_state_history(thread("t")):
        found = memory.at(one.config).query("item", session_id="t")
        assert [fact["payload"]["name"] for fact in found] == one.values.get("items", [])
    graph.invoke(None, await past(again, graph, "second"))
    assert await names(memory) == ["again", "first"]
