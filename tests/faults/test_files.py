"""Locked, read-only, damaged, full and foreign files: a clear error, and nothing half written."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from memstate_core import (
    Change,
    Fact,
    MemoryStore,
    SQLiteStorage,
    StorageError,
    TransientError,
    UnavailableError,
)
from tests.faults import inspection
from tests.faults.indexes import Index
from tests.faults.model import register
from tests.faults.races import Shared
from tests.faults.stores import Flavour
from tests.forking import ForkServer, read_log, wait_until

pytestmark = pytest.mark.waits

SHORT = 0.05


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Path]:
    """A file with one fact in it."""
    path = tmp_path / "memory.db"
    with SQLiteStorage(path) as storage:
        store = MemoryStore(storage)
        register(store)
        store.commit(Fact("note", {"text": "one"}, id="one"))
    return path


def open_store(path: Any, *hooks: Any, timeout: float = SHORT) -> MemoryStore:
    store = MemoryStore(SQLiteStorage(path, timeout=timeout), hooks)
    register(store)
    return store


# Locked


def test_locked_by_another_process(processes: ForkServer, database: Path) -> None:
    index = Index()
    store = open_store(database, index)
    store.reindex()
    before = inspection.dump(database)
    content = index.content()
    other = processes.start("files:hold_the_lock", database.parent)
    wait_until((database.parent / "locked").exists, "the lock")
    for call in (
        lambda: store.commit(Fact("note", {"text": "two"}, id="two")),
        lambda: store.update("one", {"number": 1}),
        store.rollback,
        lambda: store.put_record("records", "key", b"value"),
        lambda: MemoryStore(store.storage, allow_unregistered=True).commit(Fact("thing", {})),
    ):
        with pytest.raises(UnavailableError, match="locked by another process") as refused:
            call()
        assert isinstance(refused.value, TransientError)
        assert isinstance(refused.value.__cause__, sqlite3.OperationalError)
        assert inspection.dump(database) == before
        assert index.content() == content
    # Readers do not mind, new ones neither.
    assert store.get("one") == open_store(database).get("one") == store.query()[0]
    assert len(store.history()) == 1
    other.kill()
    store.update("one", {"number": 1})
    assert index.content() == {"one": (2, {"text": "one", "number": 1})}


def test_locked_for_a_while(processes: ForkServer, database: Path) -> None:
    """A lock that goes away in time is waited for."""
    store = open_store(database, timeout=60)
    other = processes.start("files:hold_the_lock", database.parent)
    wait_until((database.parent / "locked").exists, "the lock")
    server_side = processes.start("files:kill_soon", other.pid)
    store.update("one", {"number": 1})
    server_side.finish()
    assert store.get("one")["version"] == 2


@pytest.mark.parametrize("step", ["prepare", "after"])
def test_locked_in_the_midst_of_a_commit(database: Path, step: str) -> None:
    """The lock is taken between claim and decision, or before the claim; it stays while all is undone."""
    other = sqlite3.connect(database, isolation_level=None)
    index = Index()
    store = open_store(database, index)
    store.reindex()
    before = inspection.dump(database)

    def lock(now: str, changes: Sequence[Change]) -> None:
        if now == step and not other.in_transaction:
            other.execute("BEGIN IMMEDIATE")

    index.fault = lock
    with pytest.raises(UnavailableError) as refused:
        store.update("one", {"number": 1})
    index.fault = None
    assert index.content() == {"one": (1, {"text": "one", "number": 0})}
    if step == "after":
        assert any("claims could not be" in note for note in refused.value.__notes__)
    other.execute("ROLLBACK")
    other.close()
    assert store.recover().in_doubt == ()
    assert inspection.dump(database) == before
    store.update("one", {"number": 2})
    assert index.content() == {"one": (2, {"text": "one", "number": 2})}


def test_many_processes_open_a_new_file(processes: ForkServer, tmp_path: Path) -> None:
    count, times = 4, 5
    workers = [processes.start("files:open_first", tmp_path, number, times, None) for number in range(count)]
    for turn in range(times):
        directory = tmp_path / str(turn)
        ready = [directory / f"ready-{number}" for number in range(count)]
        wait_until(lambda ready=ready: all(p.exists() for p in ready) or any(w.errors for w in workers), "the start")
        (directory / "go").touch()
    for worker in workers:
        worker.finish()
    for turn in range(times):
        state = Shared(tmp_path / str(turn)).check()
        assert set(state.facts) == {f"note {number}" for number in range(count)}


# Not to be written, or not a database


def test_not_permitted(processes: ForkServer) -> None:
    # Not below pytest's directory, which other users may not even look into.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        memory = Path(directory) / "memory"
        memory.mkdir()
        processes.run("files:write_without_permission", directory)
        errors = read_log(Path(directory) / "log")
        memory.chmod(0o755)
        assert [name for name, _ in errors] == ["StorageError"] * 2
        assert all(str(memory / "memory.db") in message for _, message in errors), errors
        assert Shared(memory).check().facts["one"].version == 1


def test_opened_read_only(database: Path) -> None:
    before = database.read_bytes()
    store = open_store(f"file:{database}?mode=ro")
    assert store.get("one")["payload"]["text"] == "one"
    with pytest.raises(StorageError, match="readonly") as refused:
        store.update("one", {"number": 1})
    assert not isinstance(refused.value, TransientError)
    store.storage.close()
    assert database.read_bytes() == before


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere.*does its folder exist"):
        open_store(tmp_path / "nowhere" / "memory.db").count()
    assert list(tmp_path.iterdir()) == []


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=str(tmp_path)):
        open_store(tmp_path).count()


@pytest.mark.parametrize("content", [b"This is a letter to my aunt. " * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_not_a_database(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"letter\.txt.*(not a database|malformed|unsupported)"):
        open_store(path).commit(Fact("note", {"text": "x"}))
    assert path.read_bytes() == content


def test_damaged(database: Path) -> None:
    size = database.stat().st_size
    with database.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    store = open_store(database)
    with pytest.raises(StorageError, match=r"memory\.db"):
        store.query()
    with pytest.raises(StorageError, match=r"memory\.db"):
        store.commit(Fact("note", {"text": "x"}))


def test_in_the_midst_of_a_transaction() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("BEGIN")
    with pytest.raises(StorageError, match="commit or roll it back"):
        open_store(connection).count()
    assert connection.in_transaction
    connection.execute("ROLLBACK")
    assert open_store(connection).count() == 0
    connection.close()


# Full


def test_the_disk_is_full(processes: ForkServer, tmp_path: Path) -> None:
    processes.run("files:fill_the_disk", tmp_path)


def test_the_database_is_full(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    connection = sqlite3.connect(path, isolation_level=None)
    index = Index()
    store = open_store(connection, index)
    store.commit(Fact("note", {"text": "one"}, id="one"))
    before = inspection.dump(path)
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 5}")
    for call in (
        lambda: store.commit(Fact("note", {"text": "x" * 10**5}, id="two")),
        lambda: store.update("one", {"text": "x" * 10**5}),
        lambda: store.put_record("records", "key", b"x" * 10**5),
    ):
        with pytest.raises(UnavailableError, match="full") as refused:
            call()
        assert isinstance(refused.value, TransientError)
        assert inspection.dump(path) == before
        assert index.content() == {"one": (1, {"text": "one", "number": 0})}
    connection.execute("PRAGMA max_page_count = 100000")
    store.update("one", {"text": "x" * 10**5})
    assert index.scan() == {"one": 2}
    connection.close()


# Foreign


@pytest.mark.parametrize("flavour", ["sqlite", "async sqlite"], indirect=True)
async def test_written_by_a_newer_version(flavour: Flavour, database: Path) -> None:
    assert database == flavour.database
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT INTO memstate_migrations (number) VALUES (1000)")
    connection.close()
    before = inspection.dump(database)
    store = flavour.open()
    for call in (store.get("one"), store.commit(Fact("note", {"text": "two"})), store.rollback(), store.recover()):
        with pytest.raises(StorageError, match=r"memory\.db was written by a newer .*1000.*upgrade") as refused:
            await call
        assert not isinstance(refused.value, TransientError)
    assert inspection.dump(database) == before


# Durability


@pytest.mark.parametrize(("durability", "synchronous"), [("normal", 1), ("full", 2)])
def test_durability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Any, synchronous: int) -> None:
    """What the connections of the storage are really set to.

    SQLite syncs the commits of none that writes where that is done for several of them at once.
    """
    connections = []
    connect = sqlite3.connect

    def remember(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connections.append(connect(*arguments, **options))
        return connections[-1]

    monkeypatch.setattr(sqlite3, "connect", remember)
    with SQLiteStorage(tmp_path / "memory.db", durability=durability) as storage:
        store = MemoryStore(storage)
        register(store)
        store.commit(Fact("note", {"text": "one"}))
        store.query()
        assert len(connections) >= 2  # one that writes, one that reads
        writer, *readers = connections
        assert writer.execute("PRAGMA synchronous").fetchone() == (1,)
        assert (storage._log is not None) is (durability == "full")
        for connection in readers:
            assert connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
        for connection in connections:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_durability_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'normal' or 'full'"):
        SQLiteStorage(tmp_path / "memory.db", durability="FULL")  # type: ignore[arg-type]
