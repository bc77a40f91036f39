"""What only SQLite's storages have: paths, given connections, durability, and other users of the file."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from memstate_core import (
    AsyncMemoryStore,
    AsyncSQLiteStorage,
    ClosedError,
    Fact,
    MemoryStore,
    SQLiteStorage,
    StorageError,
    TransientError,
    UnavailableError,
    ValidationFailed,
)
from memstate_core.storages._sqlite import schema
from memstate_core.storages._sqlite.schema import MIGRATIONS


def store_on(database: Any, **options: Any) -> MemoryStore:
    return MemoryStore(SQLiteStorage(database, **options), allow_unregistered=True)


def dict_factory(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


@pytest.mark.parametrize(
    "name",
    ["str", "Path", "sqlite URL", "sqlite URL, absolute", "file URI", "odd characters", "home"],
)
def test_paths_of_one_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / ("ö %41 ' #?.db" if name == "odd characters" else "memory.db")
    database: Any = {
        "str": str(file),
        "Path": file,
        "sqlite URL": f"sqlite:///{file.name}",
        "sqlite URL, absolute": f"sqlite:///{file}",
        "file URI": f"file:{file}",
        "odd characters": str(file),
        "home": "~/memory.db",
    }[name]
    with store_on(database) as store, store.storage:  # type: ignore[attr-defined]
        store.commit(Fact("note", {"a": 1}, id="n"))
    assert file.exists()
    with SQLiteStorage(file) as storage:
        assert MemoryStore(storage).query()[0]["id"] == "n"


@pytest.mark.parametrize(
    "database", [":memory:", "sqlite://", "sqlite:///:memory:", "file::memory:", "file:x?mode=memory"]
)
def test_databases_in_memory(database: str) -> None:
    with SQLiteStorage(database) as storage, SQLiteStorage(database) as other:
        store = MemoryStore(storage, allow_unregistered=True)
        store.commit(Fact("note", {"a": 1}, id="n"))
        assert store.get("n") is not None
        assert [one.operation for one in store.history()] == ["COMMIT"]
        assert MemoryStore(other, allow_unregistered=True).count() == 0


@pytest.mark.parametrize("kind", [SQLiteStorage, AsyncSQLiteStorage])
def test_senseless_arguments(kind: Any) -> None:
    for database in (None, 5, b"bytes", ""):
        with pytest.raises(ValidationFailed):
            kind(database)
    with pytest.raises(ValueError, match="durability"):
        kind(":memory:", durability="most")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    store = store_on(tmp_path / "nowhere" / "memory.db")
    for _ in range(2):
        with pytest.raises(StorageError, match="folder"):
            store.count()
    (tmp_path / "nowhere").mkdir()
    assert store.count() == 0
    store.storage.close()  # type: ignore[attr-defined]


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "text.db"
    file.write_text("no database at all, but quite some text" * 100)
    with pytest.raises(StorageError, match="not a database"), SQLiteStorage(file) as storage:
        MemoryStore(storage).count()
    assert file.read_text().startswith("no database")


@pytest.mark.parametrize("number", range(1, len(MIGRATIONS)))
def test_a_file_of_an_older_version_is_migrated(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", MIGRATIONS[:number])
    with store_on(tmp_path / "memory.db") as store, store.storage:  # type: ignore[attr-defined]
        store.commit(Fact("note", {"a": 1}, id="n"))
        store.update("n", {"a": 2})
    monkeypatch.undo()
    with SQLiteStorage(tmp_path / "memory.db") as storage:
        store = MemoryStore(storage, [lambda *told: None], allow_unregistered=True, delivery="deferred")
        store.rollback()
        assert store.get("n")["payload"] == {"a": 1}  # type: ignore[index]
        assert store.deliver() == 1
    with sqlite3.connect(tmp_path / "memory.db") as connection:
        assert connection.execute("SELECT max(number) FROM memstate_migrations").fetchone() == (len(MIGRATIONS),)


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    with SQLiteStorage(file) as storage:
        MemoryStore(storage).count()
    connection = sqlite3.connect(file)
    with connection:
        connection.execute("INSERT INTO memstate_migrations (number) VALUES (999)")
    connection.close()
    with pytest.raises(StorageError, match="upgrade memstate"), SQLiteStorage(file) as storage:
        MemoryStore(storage).count()


def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        try:
            start.wait()
            with SQLiteStorage(tmp_path / "memory.db") as storage:
                MemoryStore(storage, allow_unregistered=True).commit(Fact("note", {"n": number}))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with SQLiteStorage(tmp_path / "memory.db") as storage:
        assert MemoryStore(storage).count() == 8


@pytest.mark.parametrize("row_factory", [None, sqlite3.Row, dict_factory])
@pytest.mark.parametrize("isolation_level", [None, "DEFERRED", "EXCLUSIVE"])
def test_a_given_connection_stays_the_callers(isolation_level: Any, row_factory: Any) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=isolation_level)
    connection.row_factory = row_factory
    connection.execute("CREATE TABLE mine (a)")
    storage = SQLiteStorage(connection)
    store = MemoryStore(storage, allow_unregistered=True)
    store.commit(Fact("note", {"a": 1}, id="n", session_id="s"))
    store.update("n", {"a": 2})
    store.put_record("c", "k", b"v")
    store.rollback("s")
    assert store.query(order_by="ts")[0]["payload"] == {"a": 1}
    assert [one.operation for one in store.history("s")] == ["ROLLBACK", "UPDATE", "COMMIT"]
    assert store.scan_records("c") == [("k", b"v")]
    assert not connection.in_transaction
    assert connection.row_factory is row_factory
    with pytest.raises(ZeroDivisionError):
        store.promote_session("s", lambda fact: 1 / 0)
    assert not connection.in_transaction
    storage.close()
    with pytest.raises(ClosedError):
        store.count()
    connection.row_factory = None
    assert connection.execute("SELECT count(*) FROM mine").fetchone() == (0,)
    connection.close()


def test_a_given_connection_in_a_transaction_is_refused() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE mine (a)")
    connection.execute("INSERT INTO mine VALUES (1)")
    store = store_on(connection)
    with pytest.raises(StorageError, match="midst of a transaction"):
        store.count()
    connection.rollback()
    assert store.count() == 0
    connection.close()


async def test_a_given_connection_in_an_async_storage() -> None:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    async with AsyncSQLiteStorage(connection) as storage:
        store = AsyncMemoryStore(storage, allow_unregistered=True)
        await store.commit(Fact("note", {}, id="n"))
        assert await store.count() == 1
    assert connection.execute("SELECT count(*) FROM memstate_facts").fetchone() == (1,)
    connection.close()


async def test_a_connection_of_one_thread_in_an_async_storage_says_so() -> None:
    connection = sqlite3.connect(":memory:")
    async with AsyncSQLiteStorage(connection) as storage:
        with pytest.raises(StorageError, match="thread"):
            await AsyncMemoryStore(storage).count()
    connection.close()


def test_another_process_that_writes_is_waited_for(tmp_path: Path) -> None:
    store = store_on(tmp_path / "memory.db", timeout=0.05)
    store.commit(Fact("note", {}, id="n"))
    other = sqlite3.connect(tmp_path / "memory.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match="locked") as caught:
        store.commit(Fact("note", {}))
    assert isinstance(caught.value, TransientError)
    assert store.count() == 1  # readers do not wait
    patient = store_on(tmp_path / "memory.db", timeout=10)
    timer = threading.Timer(0.1, lambda: other.execute("COMMIT"))
    timer.start()
    patient.commit(Fact("note", {}))
    timer.join()
    other.close()
    assert store.count() == 2
    for one in (store, patient):
        one.storage.close()  # type: ignore[attr-defined]


def test_a_full_disk_is_told_and_passes(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "memory.db")
    store = MemoryStore(storage, allow_unregistered=True)
    store.commit(Fact("note", {"text": "x"}, id="n"))
    assert storage._writer is not None
    pages = storage._writer.execute("PRAGMA page_count").fetchone()[0]
    storage._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(UnavailableError, match="full"):
        store.commit(Fact("note", {"text": "x" * 1_000_000}, id="m"))
    assert [one.id for one in store.history()] == ["tx-1"]
    storage._writer.execute("PRAGMA max_page_count = 1000000")
    store.commit(Fact("note", {"text": "x" * 1_000_000}, id="m"))
    assert store.count() == 2
    storage.close()


def test_tables_that_are_gone_are_a_storage_error(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "memory.db")
    store = MemoryStore(storage, allow_unregistered=True)
    store.count()
    assert storage._writer is not None
    storage._writer.execute("DROP TABLE memstate_facts")
    for call in (store.query, lambda: store.commit(Fact("note", {}))):
        with pytest.raises(StorageError, match="memstate_facts"):
            call()
    storage.close()


@pytest.mark.parametrize("durability", ["normal", "full"])
def test_durability(tmp_path: Path, durability: Any) -> None:
    storage = SQLiteStorage(tmp_path / "memory.db", durability=durability)
    store = MemoryStore(storage, allow_unregistered=True)
    store.commit(Fact("note", {}))
    assert storage._writer is not None
    # Where everything is to be synced, that is done behind the commit: see test_sqlite_syncing.
    assert storage._writer.execute("PRAGMA synchronous").fetchone() == (1,)
    assert (storage._log is not None) is (durability == "full")
    assert storage._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    storage.close()


def test_a_storage_that_is_dropped_closes_itself(tmp_path: Path) -> None:
    store: Any = store_on(tmp_path / "memory.db")
    store.commit(Fact("note", {}))
    del store
    gc.collect()
    assert not (tmp_path / "memory.db-wal").exists()


def test_readers_go_on_beside_a_long_write(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "memory.db")
    store = MemoryStore(storage, allow_unregistered=True)
    store.commit(Fact("note", {"a": 1}, id="n", session_id="s"))
    entered, go = threading.Event(), threading.Event()

    def selector(fact: dict[str, Any]) -> bool:
        entered.set()
        return go.wait(10)

    writer = threading.Thread(target=store.promote_session, args=("s", selector))
    writer.start()
    assert entered.wait(10)
    assert store.query()[0]["session_id"] == "s"
    assert len(store.history()) == 1
    go.set()
    writer.join()
    assert store.query()[0]["session_id"] is None
    storage.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are of POSIX")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_shares_the_file(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "memory.db")
    store = MemoryStore(storage, allow_unregistered=True)
    store.commit(Fact("note", {"who": "parent"}))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            store.commit(Fact("note", {"who": "child"}))
            status = 0 if store.count() == 2 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.commit(Fact("note", {"who": "parent again"}))
    assert [fact["payload"]["who"] for fact in store.query()] == ["parent", "child", "parent again"]
    storage.close()


async def test_cancelled_calls_leave_the_thread_usable(tmp_path: Path) -> None:
    async with AsyncSQLiteStorage(tmp_path / "memory.db") as storage:
        store = AsyncMemoryStore(storage, allow_unregistered=True)
        tasks = [asyncio.create_task(store.commit(Fact("note", {"n": n}, id=str(n)))) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        done = {result for result in results if isinstance(result, str)}
        assert len(done) >= 10
        there = {fact["id"] for fact in await store.query()}
        assert done <= there
        assert len(await store.history()) == len(there)
