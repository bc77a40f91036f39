"""Storage in one SQLite file, the embedded default: the standard library's ``sqlite3`` in WAL mode.

One writer at a time (``BEGIN IMMEDIATE``), readers beside it, any number of threads and processes on one file.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Self, TypeVar

from memstate_core._bridge import run
from memstate_core.errors import (
    ClosedError,
    ConflictError,
    StorageError,
    UnavailableError,
    ValidationFailed,
)
from memstate_core.protocols import Work
from memstate_core.storages._forks import tell_of_forks
from memstate_core.storages._locks import is_held, refuse_nesting
from memstate_core.storages._sqlite.known import Known
from memstate_core.storages._sqlite.schema import migrate
from memstate_core.storages._sqlite.syncing import LogSync
from memstate_core.storages._sqlite.transaction import SQLiteTransaction

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")

Durability = Literal["normal", "full"]

_CACHE_KIB: Final = 65536
_MMAP_BYTES: Final = 268_435_456
_FORK_PATIENCE: Final = 10.0  # seconds that a fork waits for readers in other threads
_CHECKPOINT_PAGES: Final = 4000  # a commit dirties six pages or more, so the default of 1000 stops the writers often


class SQLiteStorage:
    """Storage in an SQLite file.

    :param database: a path (or ``sqlite:///path``), ``":memory:"``, or a :class:`sqlite3.Connection` that the caller
        owns and closes; an own connection must not be used by others in the midst of a transaction.
    :param durability: ``"normal"``: what returned survives the death of the process; ``"full"``: also a power cut.
    :param timeout: seconds to wait for another process that writes, before :class:`UnavailableError`.

    Threads and processes may share a file, and threads and forked processes a storage object.
    """

    is_async = False

    def __init__(
        self,
        database: str | os.PathLike[str] | sqlite3.Connection,
        *,
        durability: Durability = "normal",
        timeout: float = 30.0,
    ) -> None:
        if durability not in ("normal", "full"):
            raise ValueError(f"durability is 'normal' or 'full', not {durability!r}")
        self._durability = durability
        self._timeout = timeout
        self._given = database if isinstance(database, sqlite3.Connection) else None
        self._path = "the given connection" if isinstance(database, sqlite3.Connection) else _path_of(database)
        # One connection serves readers too where a second one would see another database, or is not ours to make.
        self._single = self._given is not None or _is_private(self._path)
        self._writer: sqlite3.Connection | None = None
        # Of the writer; None where others may use the connection too.
        self._known: Known | None = None
        # What syncs the writer's commits, several at once; None: SQLite does it, as far as it is to be done.
        self._log: LogSync | None = None
        self._readers: list[sqlite3.Connection] = []
        self._reading: dict[sqlite3.Connection, int] = {}
        self._gate = threading.Lock()
        self._lock = threading.RLock()
        self._closed = False
        tell_of_forks(self)

    def before_fork(self) -> None:
        in_transaction = is_held(self._lock)
        self._lock.acquire()
        self._gate.acquire()
        me = threading.get_ident()
        deadline = time.monotonic() + _FORK_PATIENCE
        while any(thread != me for thread in list(self._reading.values())) and time.monotonic() < deadline:
            time.sleep(0.001)
        # A fork from within a transaction can only leave it as it is.
        if not in_transaction and not self._single:
            self._disconnect()

    def after_fork(self, *, in_child: bool) -> None:
        if in_child and self._log is not None:
            self._log.after_fork()
        self._gate.release()
        self._lock.release()

    def _disconnect(self) -> None:
        """Close what is open and idle; it is opened again when it is needed."""
        log, self._log = self._log, None
        if log is not None:
            log.close()
        connections = [*self._readers]
        self._readers.clear()
        if self._writer is not None and self._given is None:
            connections.append(self._writer)
        self._writer = None
        for connection in connections:
            connection.close()

    async def open(self) -> None:
        """Open the file and make or migrate its tables, if that has not happened."""

        async def nothing(_: sqlite3.Connection) -> None:
            return

        await self._alone(nothing)

    async def read(self, namespace: str, work: Work[T], *, snapshot: bool = False) -> T:
        if self._single:
            return await self._alone(lambda connection: work(SQLiteTransaction(connection, namespace)))
        if self._writer is None:
            await self.open()
        with self._gate:
            connection = self._readers.pop() if self._readers else self._connect()
            self._reading[connection] = threading.get_ident()
        tx = SQLiteTransaction(connection, namespace)
        try:
            if snapshot:
                connection.execute("BEGIN")
            result = await work(tx)
            log = self._log
            if tx.has_read_outbox and log is not None:
                # What hooks are told of must not be lost afterwards.
                self._sync(log, None)
            return result
        except sqlite3.Error as error:
            self._translate(error)
        finally:
            if snapshot and connection.in_transaction:
                connection.execute("ROLLBACK")
            del self._reading[connection]
            if self._closed:
                connection.close()
            else:
                self._readers.append(connection)

    async def write(self, namespace: str, work: Work[T]) -> T:
        result, sync = await self.commit(namespace, work)
        if sync is not None:
            sync()
        return result

    async def commit(self, namespace: str, work: Work[T]) -> tuple[T, Callable[[], None] | None]:
        """What :meth:`write` does first, and what it does then, if anything: to wait until it is on the disk."""

        # With what _alone does written out: this is what every transaction goes through.
        refuse_nesting(self._lock)
        with self._lock:
            try:
                connection = self._writing()
                before = connection.total_changes
                try:
                    tx = SQLiteTransaction(connection, namespace, self._known)
                    tx.begin()
                    result = await work(tx)
                    tx.commit()
                except BaseException as error:
                    if connection.in_transaction:
                        try:
                            connection.execute("ROLLBACK")
                        except sqlite3.Error as cleanup:
                            error.add_note(f"the transaction could not be rolled back: {cleanup}")
                    raise
            except sqlite3.Error as error:
                self._translate(error)
            if self._log is None or connection.total_changes == before:
                return result, None
            return result, partial(self._sync, self._log, self._log.wrote())

    async def namespaces(self) -> list[str]:
        async def work(tx: Any) -> list[str]:
            return await tx.namespaces()  # type: ignore[no-any-return]

        return await self.read("", work)

    def _sync(self, log: LogSync, number: int | None) -> None:
        """Wait until a commit is on the disk (None: until everything is)."""
        try:
            if number is None:
                log.sync()
            else:
                log.wait(number)
        except OSError as error:
            raise StorageError(
                f"{self._path}: what was written is there, but could not be synced ({error}), and a power cut may undo "
                "it; look at the disk, and make a new storage"
            ) from error

    async def _alone(self, use: Callable[[sqlite3.Connection], Awaitable[T]]) -> T:
        """Use the connection that writes, one thread at a time; driver errors are translated."""
        refuse_nesting(self._lock)
        with self._lock:
            try:
                return await use(self._writing())
            except sqlite3.Error as error:
                self._translate(error)

    def _writing(self) -> sqlite3.Connection:
        """The connection that writes, in no transaction of ours."""
        if self._closed:
            raise ClosedError(f"this SQLiteStorage ({self._path}) was closed; make a new one")
        writer = self._writer
        if writer is None:
            writer = self._writer = self._prepare()
        if writer.in_transaction and self._given is None:
            writer.execute("ROLLBACK")  # an interruption came between a failure and its rollback
        return writer

    def _prepare(self) -> sqlite3.Connection:
        """The writer's connection, with all tables there."""
        connection = self._given if self._given is not None else self._connect()
        if connection.in_transaction:
            raise StorageError("the given connection is in the midst of a transaction; commit or roll it back first")
        migrate(connection, self._path)
        self._known = Known() if self._given is None else None
        if self._durability == "full" and not self._single:
            self._sync_together(connection)
        return connection

    def _sync_together(self, connection: sqlite3.Connection) -> None:
        """Sync the log of a connection ourselves, if it has one that can be opened."""
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            return
        with contextlib.suppress(OSError):
            self._log = LogSync(connection.execute("PRAGMA database_list").fetchone()[2] + "-wal")
            connection.execute("PRAGMA synchronous = normal")

    def _connect(self) -> sqlite3.Connection:
        if self._closed:
            raise ClosedError(f"this SQLiteStorage ({self._path}) was closed; make a new one")
        try:
            connection = sqlite3.connect(
                self._path,
                timeout=self._timeout,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
                uri=self._path.startswith("file:"),
            )
        except sqlite3.Error as error:
            raise StorageError(f"{self._path} cannot be opened: {error}; does its folder exist?") from error
        try:
            self._use_wal(connection)
            connection.execute(f"PRAGMA synchronous = {self._durability}")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.execute(f"PRAGMA mmap_size = {_MMAP_BYTES}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        except sqlite3.Error as error:
            connection.close()
            self._translate(error)
        return connection

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Switch to WAL; SQLite does not wait by itself when several processes do that to a new file at once."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def _translate(self, error: sqlite3.Error) -> NoReturn:
        name = getattr(error, "sqlite_errorname", "") or ""
        if self._closed:
            raise ClosedError(f"this SQLiteStorage ({self._path}) was closed; make a new one") from error
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise UnavailableError(
                f"{self._path} is locked by another process that writes ({error}); try again, or raise timeout="
            ) from error
        if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            raise UnavailableError(f"{self._path}: {error}; nothing was written") from error
        if name.startswith("SQLITE_CONSTRAINT"):
            raise ConflictError(f"the database refused the change: {error}") from error
        raise StorageError(f"{self._path}: {error}") from error

    async def aclose(self) -> None:
        with self._lock:
            self._closed = True
            self._disconnect()

    def close(self) -> None:
        """Close what this storage opened; a given connection stays open."""
        run(self.aclose())

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            if not self._closed:
                self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncSQLiteStorage:
    """The same for an :class:`~memstate_core.AsyncMemoryStore`: :class:`SQLiteStorage` on one thread of its own."""

    is_async = True

    def __init__(
        self,
        database: str | os.PathLike[str] | sqlite3.Connection,
        *,
        durability: Durability = "normal",
        timeout: float = 30.0,
    ) -> None:
        self._storage = SQLiteStorage(database, durability=durability, timeout=timeout)
        self._thread = self._new_thread()
        self._syncs = self._new_thread()
        tell_of_forks(self)

    @staticmethod
    def _new_thread() -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor

        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="memstate-sqlite")

    def before_fork(self) -> None:
        """The storage underneath prepares itself."""

    def after_fork(self, *, in_child: bool) -> None:
        if in_child:
            self._thread = self._new_thread()
            self._syncs = self._new_thread()

    async def _there(self, function: Callable[[], T]) -> T:
        """Call on the storage's thread, in the caller's context."""
        if self._storage._closed:
            raise ClosedError(f"this AsyncSQLiteStorage ({self._storage._path}) was closed; make a new one")
        import asyncio  # which a program without a loop need not

        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: context.run(function))

    async def open(self) -> None:
        """Open the file and make or migrate its tables, if that has not happened."""
        await self._there(lambda: run(self._storage.open()))

    async def connect(self) -> None:
        """Open explicitly; everything else does it on first use."""
        await self.open()

    async def create_tables(self) -> None:
        """Make the tables explicitly; everything else does it on first use."""
        await self.open()

    async def read(self, namespace: str, work: Work[T], *, snapshot: bool = False) -> T:
        return await self._there(lambda: run(self._storage.read(namespace, work, snapshot=snapshot)))

    async def write(self, namespace: str, work: Work[T]) -> T:
        result, sync = await self._there(lambda: run(self._storage.commit(namespace, work)))
        if sync is None:
            return result
        if self._storage._closed:
            sync()  # which was done then
        else:
            import asyncio

            # On another thread, so that others commit meanwhile.
            await asyncio.get_running_loop().run_in_executor(self._syncs, sync)
        return result

    async def namespaces(self) -> list[str]:
        return await self._there(lambda: run(self._storage.namespaces()))

    async def aclose(self) -> None:
        """Close what this storage opened; a given connection stays open."""
        if not self._storage._closed:
            await self._there(self._storage.close)
            self._thread.shutdown(wait=False)
            self._syncs.shutdown(wait=False)

    async def close(self) -> None:
        """The same as :meth:`aclose`."""
        await self.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _is_private(path: str) -> bool:
    """Whether each connection to the path would see a database of its own."""
    in_memory = path == ":memory:" or (path.startswith("file:") and (":memory:" in path or "mode=memory" in path))
    return in_memory and "cache=shared" not in path


def _path_of(database: str | os.PathLike[str]) -> str:
    if not isinstance(database, str | os.PathLike):
        raise ValidationFailed(f"SQLiteStorage takes a path or a sqlite3.Connection, not {database!r}")
    path = os.fspath(database)
    if path.startswith("sqlite://"):
        path = path.removeprefix("sqlite://").removeprefix("/") or ":memory:"
    if not path:
        raise ValidationFailed("SQLiteStorage needs a path; for a database in memory pass ':memory:'")
    return path if path == ":memory:" or path.startswith("file:") else str(Path(path).expanduser())
