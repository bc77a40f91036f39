"""What the processes of ``test_files.py`` do to a file, or are not allowed to do."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import time
from pathlib import Path

from memstate_core import Fact, MemoryStore, SQLiteStorage, StorageError, TransientError, UnavailableError
from tests.faults import inspection
from tests.faults.indexes import Index
from tests.faults.model import register
from tests.faults.races import Shared
from tests.forking import Log


def hold_the_lock(directory: str) -> None:
    """Write for ever, and never commit."""
    connection = sqlite3.connect(Path(directory) / "memory.db", isolation_level=None, timeout=60)
    connection.execute("BEGIN IMMEDIATE")
    (Path(directory) / "locked").touch()
    while True:
        time.sleep(1)


def open_first(directory: str, number: int, times: int, index: object) -> None:
    """Open a file that nobody has opened yet, together with others, and commit."""
    for turn in range(times):
        inside = Path(directory) / str(turn)
        inside.mkdir(exist_ok=True)
        shared = Shared(inside)
        shared.wait_for_the_others(number)
        with SQLiteStorage(shared.database, timeout=100) as storage:
            store = MemoryStore(storage)
            register(store)
            store.commit(Fact("note", {"text": str(number)}, id=f"note {number}"))


def write_without_permission(directory: str) -> None:
    """A file, and a directory, that this process may read and not write."""
    shared = Shared(Path(directory) / "memory")
    log = Log(Path(directory) / "log")
    with SQLiteStorage(shared.database) as storage:
        MemoryStore(storage, allow_unregistered=True).commit(Fact("thing", {"text": "one"}, id="one"))
    shared.database.chmod(0o444)
    shared.database.parent.chmod(0o555)
    if os.getuid() == 0:  # who may do anything
        os.setgid(65534)
        os.setuid(65534)
    for _ in range(2):
        with SQLiteStorage(shared.database) as storage:
            try:
                MemoryStore(storage, allow_unregistered=True).update("one", {"text": "two"})
            except StorageError as error:
                log.write([type(error).__name__, str(error)])


def fill_the_disk(directory: str) -> None:
    """Files of this process may not grow beyond a limit; ``ulimit -f`` is what a full disk looks like to SQLite."""
    index = Index()
    shared = Shared(directory)
    store = MemoryStore(SQLiteStorage(shared.database), [index])
    register(store)
    store.commit(Fact("note", {"text": "first"}, id="first"), session_id="a")
    store.update("first", {"number": 1})
    before = inspection.dump(shared.database)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = max(path.stat().st_size for path in Path(directory).iterdir()) + 64 * 1024
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for call in (
        lambda: store.commit(Fact("note", {"text": "x" * 10**6}, id="large")),
        lambda: store.update("first", {"text": "x" * 10**6}),
    ):
        try:
            call()
        except UnavailableError as error:
            assert isinstance(error, TransientError)
            assert "nothing was written" in str(error)
        else:
            raise AssertionError("the disk was large enough")
        assert index.content() == {"first": (2, {"text": "first", "number": 1})}
        assert store.query()[0]["payload"] == {"text": "first", "number": 1}
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    # Claims may have been left, for dropping them needs space too; they are healed with the next use.
    store.recover()
    assert inspection.dump(shared.database) == before
    store.commit(Fact("note", {"text": "x" * 10**6}, id="large"), session_id="a")
    assert [t.operation for t in store.rollback("a", 2)] == ["COMMIT", "UPDATE"]
    assert index.content() == {"first": (1, {"text": "first", "number": 0})}
    shared.check()


def kill_soon(pid: int) -> None:
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
