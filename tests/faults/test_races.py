"""Several processes, threads and tasks on the same facts at once: nothing is lost, and nobody gets an error for it."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memstate_core import (
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    ConflictError,
    Fact,
    InMemoryStorage,
    MemoryStore,
)
from tests.faults.indexes import Index
from tests.faults.model import SINGLETON, Model, register
from tests.faults.places import KINDS, MakePlace
from tests.faults.races import Shared, change_in_every_way, check_history, commit_slot, count_up
from tests.forking import ForkServer, read_log, wait_until
from tests.servers import chroma_server

pytestmark = pytest.mark.waits


@pytest.fixture(scope="module")
def chroma_address() -> Iterator[tuple[str, int]]:
    with chroma_server() as address:
        yield address


@pytest.fixture(
    params=[
        ("sqlite", None),
        pytest.param(("sqlite", "chroma"), marks=pytest.mark.xdist_group("chroma-server")),
        *itertools.product(["postgres", "redis"], [None, "file"]),
    ],
    ids=str,
)
def shared(request: pytest.FixtureRequest, make_place: MakePlace, tmp_path: Path) -> Shared:
    kind, index = request.param
    make_place(kind)
    if index == "chroma":
        host, port = request.getfixturevalue("chroma_address")
        return Shared(tmp_path, [host, port, f"memory-{tmp_path.name}"])
    return Shared(tmp_path, index)


def all_at_once(processes: ForkServer, shared: Shared, function: str, count: int, times: int) -> Model:
    """Run a function in several processes that start together; returns what they leave."""
    directory = Path(shared.directory)
    workers = [processes.start(f"races:{function}", directory, n, times, shared.index) for n in range(count)]
    ready = [directory / f"ready-{number}" for number in range(count)]
    wait_until(lambda: all(path.exists() for path in ready) or any(w.errors for w in workers), "the start of all")
    (directory / "go").touch()
    for worker in workers:
        worker.finish()
    return shared.check()


def check_slot(state: Model, writers: int, times: int) -> None:
    """Each commit is one version of one fact, and in the journal, each writer's in their order."""
    ((_, fact),) = state.facts.items()
    assert fact.version == len(state.entries) == writers * times
    for number in range(writers):
        mine = [entry.changes[0].after for entry in state.entries.values() if entry.session_id == f"session {number}"]
        assert [image and image.payload["text"] for image in mine] == [f"{number} {turn}" for turn in range(times)]


def test_processes_on_one_singleton(processes: ForkServer, shared: Shared) -> None:
    writers, times = (4, 250) if shared.place.is_served else (2, 500)
    times = times if shared.index is None else 40
    check_slot(all_at_once(processes, shared, "commit_the_slot", writers, times), writers, times)


def test_processes_compare_and_set(processes: ForkServer, shared: Shared) -> None:
    store = shared.open()
    store.commit(Fact("note", {"text": "a counter", "number": 0}, id="counter"))
    times = 8 if shared.index else 60
    state = all_at_once(processes, shared, "compare_and_set", 4, times)
    assert state.facts["counter"].payload["number"] == 4 * times
    assert state.facts["counter"].version == 4 * times + 1
    assert sum(read_log(Path(shared.directory) / "conflicts")), "they never met"


def test_processes_patch_different_fields(processes: ForkServer, shared: Shared) -> None:
    store = shared.open()
    store.commit(Fact("fields", {}, id="fields"))
    times = 15 if shared.index else 80
    state = all_at_once(processes, shared, "patch_a_field", 4, times)
    assert state.facts["fields"].payload == {"text": "four fields", **dict.fromkeys("abcd", times)}
    assert state.facts["fields"].version == 4 * times + 1


def test_processes_change_everything(processes: ForkServer, shared: Shared) -> None:
    state = all_at_once(processes, shared, "mix", 3, 8 if shared.index else 40)
    operations = {entry.operation for entry in state.entries.values()}
    assert operations >= {"COMMIT", "UPDATE", "TRANSACTION", "ROLLBACK", "REDO"}


# Threads


@pytest.fixture(params=["no index", "index"])
def indexes(request: pytest.FixtureRequest) -> list[Index]:
    return [Index()] if request.param == "index" else []


@pytest.fixture(params=["memory", *KINDS])
def store(request: pytest.FixtureRequest, indexes: list[Index], make_place: MakePlace) -> Iterator[MemoryStore]:
    storage = InMemoryStorage() if request.param == "memory" else make_place(request.param).storage()
    with storage, MemoryStore(storage, indexes, claim_timeout=100) as store:
        register(store)
        yield store
        # Whatever the test did.
        check_history(store)
        for drift in store.verify():
            assert not drift
        for index in indexes:
            assert index.content() == {fact["id"]: (fact["version"], fact["payload"]) for fact in store.query()}


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns after every few instructions."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def in_threads(*functions: Callable[[], object]) -> None:
    """Call each in a thread of its own, at once; the first error is raised."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(functions))

    def call(function: Callable[[], object]) -> None:
        try:
            start.wait()
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


@pytest.mark.usefixtures("restless")
def test_threads_on_one_singleton(store: MemoryStore) -> None:
    def writer(number: int) -> Callable[[], None]:
        return lambda: [commit_slot(store, number, turn) for turn in range(25)] and None

    in_threads(*map(writer, range(5)))
    (fact,) = store.query()
    assert fact["version"] == 125 == len(store.history(limit=None))
    for number in range(5):
        texts = [entry.changes[0].after.payload["text"] for entry in store.history(f"session {number}")]
        assert texts[::-1] == [f"{number} {turn}" for turn in range(25)]


@pytest.mark.usefixtures("restless")
def test_threads_compare_and_set(store: MemoryStore) -> None:
    store.commit(Fact("note", {"text": "a counter", "number": 0}, id="counter"))
    in_threads(*[lambda: [count_up(store) for _ in range(16)]] * 6)
    fact = store.get("counter")
    assert fact
    assert fact["payload"]["number"] == 96
    assert fact["version"] == 97


@pytest.mark.usefixtures("restless")
def test_threads_patch_different_fields(store: MemoryStore) -> None:
    store.commit(Fact("fields", {}, id="fields"))

    def patch(field: str) -> Callable[[], None]:
        return lambda: [store.update("fields", {field: turn}) for turn in range(1, 31)] and None

    in_threads(*map(patch, "abcd"))
    fact = store.get("fields")
    assert fact
    assert fact["payload"] == {"text": "four fields", "a": 30, "b": 30, "c": 30, "d": 30}


@pytest.mark.usefixtures("restless")
def test_threads_change_everything_and_read(store: MemoryStore) -> None:
    ended = threading.Event()

    def change(number: int) -> Callable[[], None]:
        return lambda: [change_in_every_way(store, number, turn) for turn in range(10)] and None

    def read() -> None:
        while not ended.is_set():
            assert len(store.query(SINGLETON)) in (0, 1, 2)
            store.get("note 0")
            store.history(limit=3)

    def change_all() -> None:
        try:
            in_threads(*map(change, range(4)))
        finally:
            ended.set()

    in_threads(change_all, read, read)


# Tasks

TASKS = 16


@pytest.fixture(params=["memory", *KINDS])
async def async_store(request: pytest.FixtureRequest, indexes: list[Index], make_place: MakePlace) -> Any:
    place = None if request.param == "memory" else make_place(request.param)
    async with AsyncInMemoryStorage() if place is None else place.async_storage() as storage:
        store = AsyncMemoryStore(storage, [index.asynchronous() for index in indexes], claim_timeout=100)
        register(store)
        yield store
        for index in indexes:
            assert index.content() == {fact["id"]: (fact["version"], fact["payload"]) for fact in await store.query()}
        if place is not None:
            place.read_state()
            assert place.claims() == []


async def test_tasks_on_one_singleton(async_store: AsyncMemoryStore) -> None:
    async def write(number: int) -> None:
        fact = Fact(SINGLETON, {"name": "only", "text": str(number)})
        await async_store.commit(fact, session_id=f"session {number % 5}")

    await asyncio.gather(*map(write, range(TASKS)))
    (fact,) = await async_store.query()
    history = await async_store.history(limit=None)
    assert fact["version"] == TASKS == len(history)
    assert {entry.changes[0].after.payload["text"] for entry in history} == set(map(str, range(TASKS)))


async def test_tasks_compare_and_set(async_store: AsyncMemoryStore) -> None:
    await async_store.commit(Fact("note", {"text": "a counter", "number": 0}, id="counter"))

    async def add() -> None:
        while True:
            fact = await async_store.get("counter")
            assert fact
            new = {"number": fact["payload"]["number"] + 1}
            try:
                await async_store.update("counter", new, expected_version=fact["version"])
                return
            except ConflictError:
                pass

    await asyncio.gather(*[add() for _ in range(TASKS)])
    fact = await async_store.get("counter")
    assert fact
    assert fact["payload"]["number"] == TASKS


async def test_tasks_patch_different_fields(async_store: AsyncMemoryStore) -> None:
    await async_store.commit(Fact("fields", {}, id="fields"))
    await asyncio.gather(*[async_store.update("fields", {"abcd"[n % 4]: n}) for n in range(TASKS)])
    fact = await async_store.get("fields")
    assert fact
    assert fact["version"] == TASKS + 1
    assert all(fact["payload"][field] % 4 == place and fact["payload"][field] for place, field in enumerate("bcd", 1))


async def test_tasks_in_blocks(async_store: AsyncMemoryStore) -> None:
    """Blocks that read and write the same facts either come after one another, or are told to run again."""
    await async_store.commit(Fact("note", {"text": "a counter", "number": 0}, id="counter"))
    refused = 0

    async def add() -> None:
        nonlocal refused
        while True:
            try:
                async with async_store.transaction() as tx:
                    fact = await tx.get("counter")
                    assert fact
                    await tx.update("counter", {"number": fact["payload"]["number"] + 1})
                return
            except ConflictError:
                refused += 1

    await asyncio.gather(*[add() for _ in range(10)])
    fact = await async_store.get("counter")
    assert fact
    assert fact["payload"]["number"] == 10
    assert fact["version"] == 11
