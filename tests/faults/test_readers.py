"""Readers wait for nobody, and see only what was committed, all of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from memstate_core import Change, Fact, HookError, InMemoryStorage, MemoryStore, SearchResult
from memstate_core.protocols import Scope
from tests.faults.indexes import Index
from tests.faults.model import register
from tests.faults.places import KINDS, MakePlace
from tests.faults.races import Shared
from tests.faults.readers import PAIR, write_pair
from tests.faults.stores import Awaited, Flavour
from tests.faults.test_races import in_threads
from tests.forking import ForkServer, wait_until

pytestmark = pytest.mark.waits

# Turns a hang into a failure, and nothing else.
LONG = 60


class Gate:
    """A fault that holds its hook up until it is opened."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, step: str, changes: Sequence[Change]) -> None:
        if step == self.step:
            self.reached.set()
            assert self.opened.wait(LONG), "nobody opened the gate"


async def read_all(store: Awaited) -> Any:
    return [
        await store.get("old"),
        await store.get("new"),
        await store.query(),
        await store.query("note", {"number": {"$gt": 0}}),
        await store.count(),
        await store.history(),
        await store.history(fact_id="old"),
        [(found.fact.id, found.fact.version, found.fact.payload) for found in await store.search("text")],
        await store.get_record("records", "key"),
    ]


# The hook of an asynchronous store is a plain one here, which waits in a thread.
@pytest.mark.parametrize("step", ["prepare", "before", "half", "after"])
async def test_a_slow_hook_holds_up_no_reader(flavour: Flavour, step: str) -> None:
    gate = Gate(step)
    index = Index()
    store = Awaited(flavour.open().store)
    store.store.add_hook(index)
    await store.commit(Fact("note", {"text": "old", "number": 1}, id="old"))
    before = await read_all(store)

    def sync_write() -> None:
        with store.store.transaction() as tx:
            tx.update("old", {"text": "changed"})
            tx.commit(Fact("note", {"text": "new", "number": 2}, id="new"))

    async def async_write() -> None:
        async with store.store.transaction() as tx:
            await tx.update("old", {"text": "changed"})
            await tx.commit(Fact("note", {"text": "new", "number": 2}, id="new"))

    index.fault = gate
    writing = asyncio.create_task(async_write() if flavour.is_async else asyncio.to_thread(sync_write))
    try:
        assert await asyncio.to_thread(gate.reached.wait, LONG)
        async with asyncio.timeout(LONG):
            # What is half in the index is not found; what is changed there is found as it was.
            assert await read_all(store) == before
            assert not any(await store.verify())
            # Another fact can even be written: no lock of the storage is held.
            index.fault = None
            await store.commit(Fact("note", {"text": "beside", "number": 3}, id="beside"))
    finally:
        gate.opened.set()
    await writing
    assert (await store.get("old"))["payload"]["text"] == "changed"
    assert (await store.get("new"))["version"] == 1
    assert index.scan() == {"old": 2, "new": 1, "beside": 1}


async def test_a_slow_hook_holds_up_the_writer_of_the_same_fact(flavour: Flavour) -> None:
    gate = Gate("after")
    index = Index()
    store = Awaited(flavour.open(claim_timeout=LONG).store)
    store.store.add_hook(index)
    await store.commit(Fact("note", {"text": "old", "number": 1}, id="old"))
    index.fault = gate

    def update(patch: dict[str, Any]) -> asyncio.Task[Any]:
        call = store.update("old", patch) if flavour.is_async else asyncio.to_thread(store.store.update, "old", patch)
        return asyncio.create_task(call)

    first = update({"text": "first"})
    try:
        assert await asyncio.to_thread(gate.reached.wait, LONG)
        second = update({"number": 2})
        await asyncio.sleep(0.05)
        assert not second.done()
    finally:
        gate.opened.set()
    await asyncio.gather(first, second)
    fact = await store.get("old")
    assert fact["payload"] == {"text": "first", "number": 2}
    assert index.content() == {"old": (3, fact["payload"])}


def check_pair(facts: list[dict[str, Any]]) -> None:
    assert len(facts) in (0, len(PAIR)), facts
    assert len({fact["payload"]["number"] for fact in facts}) <= 1, facts


@pytest.mark.parametrize("kind", ["memory", *KINDS])
def test_threads_see_whole_transactions(kind: str, make_place: MakePlace) -> None:
    with InMemoryStorage() if kind == "memory" else make_place(kind).storage() as storage:
        index = Index()
        writers = [MemoryStore(storage, hooks, claim_timeout=LONG) for hooks in ([index], [index])]
        reader = MemoryStore(storage, [index])
        for store in [*writers, reader]:
            register(store)
        ended = threading.Event()

        def write(number: int) -> None:
            try:
                for turn in range(number, 120, 2):
                    write_pair(writers[number], turn)
            finally:
                ended.set()

        def read() -> None:
            while not ended.is_set():
                check_pair(reader.query())
                for transaction in reader.history(limit=3):
                    assert {change.fact_id for change in transaction.changes} == set(PAIR)
                for found in reader.search("anything"):
                    assert found.fact.payload["text"] == found.fact.id

        in_threads(lambda: write(0), lambda: write(1), read, read)
        assert not any(reader.verify())


@pytest.mark.parametrize("kind", ["memory", *KINDS])
def test_search_while_a_deletion_fails(kind: str, make_place: MakePlace) -> None:
    """A fact that is committed all the time is found, also when the index did without it for a while."""
    with InMemoryStorage() if kind == "memory" else make_place(kind).storage() as storage:
        index = Index()
        deleted, searched, undone = threading.Event(), threading.Event(), threading.Event()

        def fail_when_searched(step: str, changes: Sequence[Change]) -> None:
            if step == "after" and changes[0].after is None:
                deleted.set()
                assert searched.wait(LONG)
                raise ConnectionError

        class SlowlySearched(Index):
            def search(self, query: str, limit: int, scope: Scope) -> list[SearchResult]:
                found = index.search(query, limit, scope)
                if deleted.is_set() and not searched.is_set():
                    searched.set()
                    assert undone.wait(LONG)
                return found

        index.fault = fail_when_searched
        writer = MemoryStore(storage, [index])
        reader = MemoryStore(storage, [SlowlySearched()])
        register(writer)
        register(reader)
        writer.commit(Fact("note", {"text": "one"}, id="one"))

        def delete() -> None:
            try:
                with pytest.raises(HookError):
                    writer.delete("one")
            finally:
                undone.set()

        def search() -> None:
            assert deleted.wait(LONG)
            assert [found.fact.id for found in reader.search("one")] == ["one"]

        in_threads(delete, search)


async def test_verify_does_not_mistake_work_for_drift(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that begins and ends while the index is compared with storage is no drift."""
    index = Index()
    scan = index.scan
    changes: list[tuple[str, Any]] = []

    # The index is scanned, then it is changed, then the facts are read: the worst order.
    def scan_and_change() -> Any:
        found = scan()
        if not changes:
            return found
        name, arguments = changes.pop()
        if flavour.is_async:
            return change_and_return(getattr(other, name)(*arguments), found)
        getattr(other.store, name)(*arguments)
        return found

    async def change_and_return(change: Any, found: Any) -> Any:
        await change
        return found

    monkeypatch.setattr(index, "scan", scan_and_change)
    store, other = flavour.open([index]), flavour.open([index])
    for name in PAIR:
        await store.commit(Fact("note", {"text": name}, id=name))
    changes += [("delete", ("right",)), ("update", ("left", {"number": 1}))]
    for _ in range(3):
        assert [drift for drift in await store.verify() if drift] == []
    assert not changes
    # And real drift is found, also then.
    index.distort("left", (1, {}))
    index.distort("nothing", (1, {}))
    changes.append(("commit", (Fact("note", {"text": "new"}, id="new"),)))
    (drift,) = await store.verify()
    assert (drift.missing, drift.stale, drift.orphaned) == ((), ("left",), ("nothing",))


@pytest.mark.parametrize("kind", KINDS)
def test_processes_see_whole_transactions(
    processes: ForkServer, make_place: MakePlace, kind: str, tmp_path: Path
) -> None:
    make_place(kind)
    shared = Shared(tmp_path)
    store = shared.open()
    workers = [processes.start("readers:write_pairs", tmp_path, number) for number in range(2)]
    seen = set()

    def enough() -> bool:
        assert not any(worker.errors for worker in workers), workers[0].errors + workers[1].errors
        facts = store.query()
        check_pair(facts)
        seen.add(facts[0]["version"] if facts else 0)
        if len(seen) % 10 == 1:
            # A snapshot of facts and journal: the one is what the other comes to.
            shared.place.read_state()
        return len(seen) > 50

    wait_until(enough, "fifty different states")
    for worker in workers:
        assert worker.kill() == -9
    shared.check()


async def test_uncommitted_facts_are_not_found(flavour: Flavour) -> None:
    """Not even by what names them: their ids, their singleton, their session."""
    gate = Gate("after")
    index = Index()
    store = Awaited(flavour.open().store)
    store.store.add_hook(index)
    await store.count()
    index.fault = gate
    fact = Fact("slot", {"name": "left", "text": "new"}, id="new")
    call = store.commit(fact, "a") if flavour.is_async else asyncio.to_thread(store.store.commit, fact, "a")
    writing = asyncio.create_task(call)
    try:
        assert await asyncio.to_thread(gate.reached.wait, LONG)
        assert index.scan() == {"new": 1}
        assert await store.get("new") is None
        assert await store.query("slot", {"name": "left"}) == []
        assert await store.count(session_id="a") == 0
        assert await store.search("new") == []
        assert await store.history("a") == []
    finally:
        gate.opened.set()
        with contextlib.suppress(Exception):
            await writing
    assert [found.fact.id for found in await store.search("new")] == ["new"]
