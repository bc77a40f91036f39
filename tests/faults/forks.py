"""What the processes of ``test_forks.py`` do: fork, and go on with the same store object on both sides."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from memstate_core import AsyncMemoryStore, AsyncSQLiteStorage, Fact, InMemoryStorage, MemoryStore, SQLiteStorage
from tests.faults.indexes import FileIndex
from tests.faults.model import register
from tests.faults.races import PATIENCE, Shared, count_up
from tests.faults.readers import PAIR, write_pair
from tests.forking import Log


def child(function: Callable[[], object], *, ends_normally: bool = False) -> int:
    """Fork a process that calls a function; ``ends_normally``: as a program does, tidying up."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        function()
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    if ends_normally:
        raise SystemExit(code)
    os._exit(code)


def reap(*pids: int) -> None:
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"child {pid} ended with {os.waitstatus_to_exitcode(status)}"


def note(store: MemoryStore, fact_id: str) -> None:
    store.commit(Fact("note", {"text": fact_id}, id=fact_id))


def all_go_on(directory: str) -> None:
    """Parent, children and a grandchild write at once, all on one object that the parent has used before."""
    store = Shared(directory).open()
    store.commit(Fact("note", {"text": "a counter", "number": 0}, id="counter"))
    assert store.count() == 1

    def write(name: str) -> None:
        for number in range(20):
            count_up(store)
            note(store, f"{name} {number}")

    def child_and_grandchild() -> None:
        pid = child(lambda: write("grandchild"))
        write("child 2")
        reap(pid)

    children = [child(lambda: write("child 1")), child(child_and_grandchild)]
    write("parent")
    reap(*children)
    assert store.get("counter")["payload"]["number"] == 80  # type: ignore[index]


def one_side_closes(directory: str, side: str) -> None:
    """One side closes its storage, or ends and tidies up, in the midst of the other's work."""
    store = Shared(directory).open()
    note(store, "before")
    steps = [os.pipe() for _ in range(2)]

    def meet(mine: int, theirs: int) -> None:
        os.write(steps[mine][1], b"x")
        os.read(steps[theirs][0], 1)

    def go_on(mine: int, theirs: int, name: str) -> None:
        note(store, f"{name} 1")
        meet(mine, theirs)
        meet(mine, theirs)  # meanwhile the other closes
        for number in range(2, 10):
            note(store, f"{name} {number}")
        assert store.count() >= 10

    def close(mine: int, theirs: int, name: str) -> None:
        note(store, f"{name} 1")
        meet(mine, theirs)
        store.storage.close()  # type: ignore[attr-defined]
        meet(mine, theirs)

    def tidy_up(mine: int, theirs: int, name: str) -> None:
        note(store, f"{name} 1")
        meet(mine, theirs)
        os.write(steps[mine][1], b"x")

    if side == "the parent closes":
        pid = child(lambda: go_on(1, 0, "child"))
        close(0, 1, "parent")
        reap(pid)
    else:
        pid = child(
            lambda: (close if side == "the child closes" else tidy_up)(1, 0, "child"),
            ends_normally=side == "the child ends",
        )
        if side == "the child ends":
            note(store, "parent 1")
            meet(0, 1)
            reap(pid)
            os.write(steps[0][1], b"x")
            for number in range(2, 10):
                note(store, f"parent {number}")
        else:
            go_on(0, 1, "parent")
            reap(pid)


def from_a_busy_parent(directory: str, kind: str) -> None:
    """Fork again and again while threads read and write; every child finds a store that is whole and works."""
    sys.setswitchinterval(1e-5)
    storage = InMemoryStorage() if kind == "memory" else SQLiteStorage(Path(directory) / "memory.db", timeout=PATIENCE)
    store = MemoryStore(storage)
    register(store)
    ended = threading.Event()
    errors: list[str] = []

    def busy(act: Callable[[int], object]) -> None:
        turn = 0
        try:
            while not ended.is_set():
                act(turn)
                turn += 1
        except BaseException:
            errors.append(traceback.format_exc())

    def check() -> None:
        facts = [fact for fact in store.query() if fact["id"] in PAIR]
        assert len({fact["payload"]["number"] for fact in facts}) <= 1, facts
        assert len(facts) in (0, 2), facts

    def use(number: int) -> None:
        signal.alarm(60)
        check()
        note(store, f"child {number}")
        assert store.history(fact_id=f"child {number}")
        for change in (change for transaction in store.history(limit=5) for change in transaction.changes):
            assert change.after is None or change.after.id == change.fact_id

    acts = [lambda turn: write_pair(store, turn), lambda _: check(), lambda _: store.get("left")]
    threads = [threading.Thread(target=busy, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    try:
        for number in range(40):
            reap(child(lambda: use(number)))
            assert not errors, errors
            assert (store.get(f"child {number}") is None) is (kind == "memory")
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not errors, errors
    check()


def asynchronous(directory: str) -> None:
    """An asynchronous store, used by the parent's loop before and after, and by the child's."""
    storage = AsyncSQLiteStorage(Path(directory) / "memory.db", timeout=PATIENCE)
    store = AsyncMemoryStore(storage)
    register(store)

    async def write(name: str) -> None:
        await asyncio.gather(*[store.commit(Fact("note", {"text": name}, id=f"{name} {n}")) for n in range(20)])
        assert len(await store.query()) >= 20

    asyncio.run(write("before"))
    pid = child(lambda: asyncio.run(write("child")))
    asyncio.run(write("parent"))
    reap(pid)


def leases_in_the_child(directory: str) -> None:
    """A forked process renews the leases of its own transactions, though the parent's thread did not come along."""
    index = FileIndex(Path(directory) / "index.db")
    store = MemoryStore(SQLiteStorage(Path(directory) / "memory.db"), [index], lease=0.3, claim_timeout=PATIENCE)
    register(store)
    store.commit(Fact("fields", {}, id="fields"))
    started, tell = os.pipe()

    def slowly(step: str, changes: object) -> None:
        if step == "half":
            os.write(tell, b"x")
            time.sleep(1.5)

    def write_slowly() -> None:
        index.fault = slowly
        store.update("fields", {"a": 1})

    pid = child(write_slowly)
    os.read(started, 1)
    recovered = store.recover()
    assert recovered == ((), (), ()), recovered
    store.update("fields", {"b": 1})  # waits
    changes = [(entry.changes[0].before, entry.changes[0].after) for entry in store.history(limit=2)]
    assert [after.payload["a"] for _, after in changes if after] == [1, 1], "the child lost its lease"
    reap(pid)


def leave_claims_to_a_child(directory: str) -> None:
    """Be killed in the midst of a commit, while a child that was forked meanwhile lives and works."""
    index = FileIndex(Path(directory) / "index.db")
    store = MemoryStore(SQLiteStorage(Path(directory) / "memory.db"), [index], lease=0.3)
    register(store)
    reached = threading.Event()

    def wait(step: str, changes: object) -> None:
        if step == "after":
            reached.set()
            time.sleep(100)

    def work_on() -> None:
        # With an index of another name, so that it cannot heal what it does not keep alive.
        store = MemoryStore(SQLiteStorage(Path(directory) / "memory.db"), [beside], lease=0.3)
        register(store)
        Log(Path(directory) / "child").write(os.getpid())
        while True:
            note(store, "child")
            time.sleep(0.01)

    beside = FileIndex(Path(directory) / "child.db", name="beside")
    index.fault = wait
    threading.Thread(target=lambda: note(store, "parent"), daemon=True).start()
    assert reached.wait(60)
    child(work_on)
    Log(Path(directory) / "parent").write(os.getpid())
    time.sleep(100)
