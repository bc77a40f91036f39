"""With ``durability="full"`` what has returned is on the disk, whoever syncs it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from memstate_core import AsyncMemoryStore, AsyncSQLiteStorage, Fact, MemoryStore, SQLiteStorage, StorageError
from memstate_core._bridge import run
from memstate_core.protocols import Lane
from memstate_core.storages._sqlite import syncing

SYNC = syncing._sync


class Disk:
    """Counts syncs, and remembers how long the log was at the last one; ``before`` is called by each."""

    def __init__(self) -> None:
        self.syncs = 0
        self.synced = 0
        self.before: Callable[[], object] = lambda: None

    def sync(self, descriptor: int) -> None:
        self.before()
        length = os.fstat(descriptor).st_size
        SYNC(descriptor)
        self.syncs += 1
        self.synced = length


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(syncing, "_sync", disk.sync)
    return disk


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released by every commit."""
    committed = threading.Semaphore(0)
    wrote = syncing.LogSync.wrote

    def counted(log: syncing.LogSync) -> int:
        number = wrote(log)
        committed.release()
        return number

    monkeypatch.setattr(syncing.LogSync, "wrote", counted)
    return committed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture
def storage(path: Path) -> Iterator[SQLiteStorage]:
    with SQLiteStorage(path, durability="full") as storage:
        yield storage


def store_on(storage: Any) -> MemoryStore:
    return MemoryStore(storage, allow_unregistered=True)


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def test_what_has_returned_is_synced(disk: Disk, storage: SQLiteStorage, path: Path) -> None:
    store = store_on(storage)
    for number in range(3):
        store.commit(Fact("note", {"n": number}))
        assert disk.synced == log_of(path).stat().st_size
    before = disk.syncs
    store.query()
    store.rollback(steps=0)
    assert disk.syncs == before


def test_one_sync_is_for_all_who_came_meanwhile(
    disk: Disk, storage: SQLiteStorage, path: Path, committed: threading.Semaphore
) -> None:
    store = store_on(storage)
    store.commit(Fact("note", {}, id="first"))
    started, go = threading.Event(), threading.Event()

    def hold() -> None:
        disk.before = lambda: None
        started.set()
        assert go.wait(10)

    before = disk.syncs
    disk.before = hold
    with ThreadPoolExecutor(9) as threads:
        calls = [threads.submit(store.commit, Fact("note", {}, id="0"))]
        assert started.wait(10)
        calls += [threads.submit(store.commit, Fact("note", {}, id=str(number))) for number in range(1, 9)]
        for _ in range(10):
            assert committed.acquire(timeout=10)
        assert store.count() == 10
        assert not any(call.done() for call in calls)
        go.set()
        assert sorted(call.result() for call in calls) == [str(number) for number in range(9)]
    assert disk.syncs == before + 2
    assert disk.synced == log_of(path).stat().st_size


async def test_one_sync_is_for_all_tasks_that_came_meanwhile(
    disk: Disk, path: Path, committed: threading.Semaphore
) -> None:
    async with AsyncSQLiteStorage(path, durability="full") as storage:
        store = AsyncMemoryStore(storage, allow_unregistered=True)
        await store.commit(Fact("note", {}, id="first"))
        started, go = threading.Event(), threading.Event()

        def hold() -> None:
            disk.before = lambda: None
            started.set()
            assert go.wait(10)

        before = disk.syncs
        disk.before = hold
        first = asyncio.create_task(store.commit(Fact("note", {}, id="0")))
        await asyncio.to_thread(started.wait, 10)
        others = [asyncio.create_task(store.commit(Fact("note", {}, id=str(number)))) for number in range(1, 9)]
        for _ in range(10):
            assert await asyncio.to_thread(committed.acquire, timeout=10)
        assert await store.count() == 10
        assert not any(task.done() for task in others)
        go.set()
        assert len(await asyncio.gather(first, *others)) == 9
        assert disk.syncs == before + 2
        assert disk.synced == log_of(path).stat().st_size


def test_a_sync_that_fails_is_told_for_good(disk: Disk, path: Path) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    with SQLiteStorage(path, durability="full") as storage:
        store = store_on(storage)
        store.commit(Fact("note", {}, id="a"))
        disk.before = fail
        with pytest.raises(StorageError, match=r"is there, but could not be synced .*Input/output error"):
            store.commit(Fact("note", {}, id="b"))
        # What was lost once is not on the disk when the next sync succeeds.
        disk.before = lambda: None
        with pytest.raises(StorageError, match="could not be synced"):
            store.commit(Fact("note", {}, id="c"))
        assert [fact["id"] for fact in store.query()] == ["a", "b", "c"]
    with SQLiteStorage(path, durability="full") as storage:
        assert store_on(storage).commit(Fact("note", {}, id="d")) == "d"


def test_closing_syncs_for_who_still_waits(disk: Disk, storage: SQLiteStorage) -> None:
    store = store_on(storage)
    store.commit(Fact("note", {}, id="a"))
    before = disk.syncs
    log: Any = storage._log
    number = log.wrote()
    storage.close()
    assert disk.syncs == before + 1
    log.wait(number)
    assert disk.syncs == before + 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are of POSIX")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_syncs_for_itself(disk: Disk, storage: SQLiteStorage, path: Path) -> None:
    store = store_on(storage)
    store.commit(Fact("note", {}, id="a"))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            store.commit(Fact("note", {}, id="b"))
            status = 0 if disk.synced == log_of(path).stat().st_size else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.commit(Fact("note", {}, id="c"))
    assert disk.synced == log_of(path).stat().st_size
    assert store.count() == 3


def test_what_hooks_are_told_of_is_synced_whoever_wrote_it(disk: Disk, storage: SQLiteStorage, path: Path) -> None:
    store_on(storage).count()
    with SQLiteStorage(path) as other:
        store_on(other).commit(Fact("note", {}, id="a"))
    before = disk.syncs
    run(storage.read("default", lambda tx: tx.deliveries(Lane("h", 0), 10)))
    assert disk.syncs == before + 1


def test_nothing_is_synced_that_need_not_be(disk: Disk, tmp_path: Path) -> None:
    given = sqlite3.connect(tmp_path / "given.db", isolation_level=None)
    databases: list[tuple[Any, Any]] = [(tmp_path / "normal.db", "normal"), (":memory:", "full"), (given, "full")]
    for database, durability in databases:
        with SQLiteStorage(database, durability=durability) as storage:
            store_on(storage).commit(Fact("note", {}))
    assert disk.syncs == 0
    given.close()


def test_sqlite_syncs_where_the_log_cannot_be_opened(disk: Disk, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(syncing.os, "open", refuse)
    with SQLiteStorage(path, durability="full") as storage:
        store_on(storage).commit(Fact("note", {}))
        assert storage._writer is not None
        assert storage._writer.execute("PRAGMA synchronous").fetchone() == (2,)
    assert disk.syncs == 0
