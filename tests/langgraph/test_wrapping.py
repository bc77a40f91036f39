"""Savers of other kinds keep the checkpoints, and the memory goes back with them all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command, interrupt

from memstate import (
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    AsyncSQLiteStorage,
    InMemoryStorage,
    MemoryStore,
    SQLiteStorage,
)
from memstate_langgraph import AsyncMemStateCheckpointer, MemStateCheckpointer
from tests.langgraph.oracle import TOPOLOGIES, State, World, wander
from tests.langgraph.test_rewind import late
from tests.langgraph.test_rewinding import chain, ends_in_the_past, finishes_twice, maybe, names, past, writer
from tests.langgraph.test_sharing import call, thread
from tests.servers import Databases

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Wraps:
    """Makes checkpointers around one saver, on one memory."""

    def __init__(self, saver: Any, storage: Any) -> None:
        self.saver = saver
        self.storage = storage

    def checkpointer(self, **options: Any) -> Any:
        if self.storage.is_async:
            store = AsyncMemoryStore(self.storage, allow_unregistered=True)
            return AsyncMemStateCheckpointer(store, inner=self.saver, **options)
        return MemStateCheckpointer(MemoryStore(self.storage, allow_unregistered=True), inner=self.saver, **options)


@pytest.fixture(scope="module")
def database(postgres: Databases) -> str:
    """The tables of PostgresSaver, for all threads."""
    url = postgres.database()
    with PostgresSaver.from_conn_string(url) as saver:
        saver.setup()
    return url


# Beside SqliteSaver, the memory is in its file.
SAVERS = [f"{kind}-{flavour}" for kind in ("memory", "sqlite", "postgres") for flavour in ("sync", "async")]


@pytest_asyncio.fixture(params=SAVERS)
async def wraps(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Wraps]:
    file = tmp_path / "both.db"
    if request.param == "memory-sync":
        yield Wraps(InMemorySaver(), InMemoryStorage())
    elif request.param == "memory-async":
        yield Wraps(InMemorySaver(), AsyncInMemoryStorage())
    elif request.param == "sqlite-sync":
        with SQLiteStorage(file) as storage, SqliteSaver.from_conn_string(str(file)) as saver:
            yield Wraps(saver, storage)
    elif request.param == "sqlite-async":
        async with AsyncSQLiteStorage(file) as waited, AsyncSqliteSaver.from_conn_string(str(file)) as other:
            yield Wraps(other, waited)
    elif request.param == "postgres-sync":
        with PostgresSaver.from_conn_string(request.getfixturevalue("database")) as postgres:
            yield Wraps(postgres, InMemoryStorage())
            postgres.delete_thread("t")
    else:
        async with AsyncPostgresSaver.from_conn_string(request.getfixturevalue("database")) as awaited:
            yield Wraps(awaited, AsyncInMemoryStorage())
            await awaited.adelete_thread("t")


@pytest.mark.parametrize("topology", TOPOLOGIES)
async def test_memory_is_the_state(wraps: Wraps, topology: str) -> None:
    checkpointer = wraps.checkpointer()
    world = World(checkpointer.memory, checkpointer, 1, "t")
    await wander(world, TOPOLOGIES[topology](world), 6)
    assert world.violations == []


@pytest.mark.parametrize("flavour", ["sync", "async"])
@pytest.mark.parametrize("topology", ["line", "nested"])
async def test_checkpoints_that_the_other_saver_stores_late_or_loses(flavour: str, topology: str) -> None:
    """What was noted of the memory before is as if it had never been."""
    for seed in range(2):
        storage = InMemoryStorage() if flavour == "sync" else AsyncInMemoryStorage()
        checkpointer = Wraps(late(InMemorySaver(), seed, 0.1), storage).checkpointer()
        world = World(checkpointer.memory, checkpointer, seed, "t")
        await wander(world, TOPOLOGIES[topology](world), 8)
        assert world.violations == [], seed


async def test_going_back(wraps: Wraps) -> None:
    checkpointer = wraps.checkpointer()
    memory = checkpointer.memory
    graph = chain(checkpointer, **{name: writer(memory, name) for name in "abc"})
    await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
    before_b, before_c = await past(checkpointer, graph, "b"), await past(checkpointer, graph, "c")
    assert await names(memory.at(before_c)) == ["a", "b"]
    changes = await maybe(checkpointer.diff(before_b, thread("t")))
    assert sorted(one.after.payload["name"] for one in changes) == ["b", "c"]

    await maybe(checkpointer.rewind(before_b))
    assert await names(memory) == ["a"]
    await call(checkpointer, graph, "invoke", None, before_c)
    assert await names(memory) == ["a", "b", "c"]
    await call(checkpointer, graph, "update_state", before_b, {"items": ["b"]}, as_node="b")
    assert await names(memory) == ["a"]
    await call(checkpointer, graph, "invoke", None, thread("t"))
    assert await names(memory) == ["a", "c"]

    await call(checkpointer, checkpointer, "delete_thread", "t")
    assert await call(checkpointer, graph, "get_state_history", thread("t")) == []
    for kind in ("positions", "lines", "finished"):
        assert await maybe(memory.scan_records(f"langgraph.{kind}:t")) == []


async def test_what_an_interrupted_node_did_is_done_once(wraps: Wraps) -> None:
    checkpointer = wraps.checkpointer()
    memory = checkpointer.memory
    graph = chain(checkpointer, a=writer(memory, "a"), b=writer(memory, "b", before=lambda: interrupt("?")))
    await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
    asked = (await call(checkpointer, graph, "get_state", thread("t"))).config
    for config in (thread("t"), asked):
        assert await names(memory.at(asked)) == ["a"]
        state = await call(checkpointer, graph, "invoke", Command(resume=1), config)
        assert await names(memory) == state["items"] == ["a", "b"]


async def test_a_thread_that_was_there_before(wraps: Wraps, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody knows where the memory stood then; from now on it is known."""
    nodes = {name: (lambda state: {"items": ["old"]}) for name in "ab"}
    bare = chain(wraps.saver, **nodes)
    given: Any = {"items": []}
    await (bare.ainvoke(given, thread("t")) if wraps.storage.is_async else maybe(bare.invoke(given, thread("t"))))
    checkpointer = wraps.checkpointer()
    memory = checkpointer.memory
    graph = chain(checkpointer, a=writer(memory, "a"), b=writer(memory, "b"))
    old = await past(checkpointer, graph, "b")
    state = await call(checkpointer, graph, "invoke", {"items": []}, thread("t"))
    assert state["items"] == ["old", "old", "a", "b"]
    assert await names(memory) == ["a", "b"]
    await call(checkpointer, graph, "invoke", None, await past(checkpointer, graph, "b"))
    assert await names(memory) == ["a", "b"]
    assert caplog.text == ""
    await call(checkpointer, graph, "invoke", None, old)
    assert await names(memory) == ["a", "b", "b"]
    assert "no position of the memory" in caplog.text


def test_its_options_are_its_own() -> None:
    store = MemoryStore(InMemoryStorage())
    with pytest.raises(ValueError, match="inner"):
        MemStateCheckpointer(store, inner=InMemorySaver(), allow=[State])
    one = MemStateCheckpointer(store, inner=InMemorySaver())
    assert "." in one.get_next_version(None, None)
    assert one.with_allowlist([("a", "b")]).inner is not None


async def test_a_task_that_finished_twice_counts_as_its_writes_do(wraps: Wraps) -> None:
    await finishes_twice(wraps.checkpointer())


async def test_an_update_that_ends_a_run_in_the_past(wraps: Wraps) -> None:
    await ends_in_the_past(wraps.checkpointer())
