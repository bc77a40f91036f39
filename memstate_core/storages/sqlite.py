"""Storage in one SQLite file, the embedded default: the standard library's ``sqlite3`` in WAL mode.

One writer at a time (``BEGIN IMMEDIATE``), readers beside it, any number of threads and processes on one file.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NoReturn, Self, TypeVar

from memstate_core._bridge import run
from memstate_core.errors import (
    ClosedError,
    ConflictError,
    StorageError,
    UnavailableError,
    ValidationFailed,
)
from memstate_core.facts import (
    UNSET,
    ChangedVersions,
    Entry,
    FactChange,
    IndexEntry,
    StoredFact,
    Unset,
)
from memstate_core.filters import Range, sort_facts
from memstate_core.protocols import Batch, Claim, Position, Record, Selection, Work
from memstate_core.storages._forks import renew_after_fork
from memstate_core.storages._locks import Exclusive
from memstate_core.storages._ordinals import ordinal
from memstate_core.storages._sqlite_schema import MIGRATIONS

T = TypeVar("T")

Durability = Literal["normal", "full"]

_CACHE_KIB: Final = 65536
_MMAP_BYTES: Final = 268_435_456
_CHECKPOINT_PAGES: Final = 4000  # a commit dirties six pages or more, so the default of 1000 stops the writers often
_PARAMETERS: Final = 400  # so many values go into one statement
_UNLIMITED: Final = 1 << 62

_FACT: Final = "id, type, payload, source, session_id, ts, version, ephemeral, schema_version, singleton, ordinal"
_FACT_OF_F: Final = ", ".join(f"f.{name}" for name in _FACT.split(", "))
_ENTRY: Final = "t.seq, t.session_id, t.parent, t.head, t.operation, t.actor, t.reason, t.mark, t.ts, t.changes"

_SELECT_FACT: Final = f"SELECT {_FACT} FROM memstate_facts WHERE namespace = ? AND id = ? AND current = 1"
_SELECT_VERSION: Final = (
    f"SELECT {_FACT} FROM memstate_facts WHERE namespace = ? AND id = ? AND current IN (0, 1) AND version = ?"
)
_SELECT_HOLDER: Final = f"SELECT {_FACT} FROM memstate_facts WHERE namespace = ? AND singleton = ? AND current = 1"
_SELECT_LATEST: Final = "SELECT max(version) FROM memstate_facts WHERE namespace = ? AND id = ? AND current = ?"
_SELECT_POSITION: Final = """
    SELECT coalesce(s.head, 0), coalesce(s.redo, 0), coalesce(g.generation, 0),
           EXISTS (SELECT 1 FROM memstate_claims WHERE namespace = ?1)
    FROM (SELECT 1)
    LEFT JOIN memstate_sessions s ON s.namespace = ?1 AND s.session = ?2
    LEFT JOIN memstate_generations g ON g.namespace = ?1
"""
_SELECT_LINE: Final = f"""
    WITH RECURSIVE line (seq, parent, place) AS (
        SELECT seq, parent, 1 FROM memstate_transactions WHERE seq = ?1 AND namespace = ?4 AND seq > ?2
        UNION ALL
        SELECT t.seq, t.parent, place + 1 FROM line JOIN memstate_transactions t ON t.seq = line.parent
        WHERE t.seq > ?2 AND place < ?3
    )
    SELECT {_ENTRY} FROM line CROSS JOIN memstate_transactions t ON t.seq = line.seq ORDER BY line.place
"""
_INSERT_FACT: Final = f"""
    INSERT INTO memstate_facts (namespace, current, has_fields, made_by, {_FACT}) VALUES (?, 1, ?, ?{", ?" * 11})
"""
_INSERT_FIELD: Final = """
    INSERT INTO memstate_fields (row, path, namespace, type, kind, value, ordinal, current)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_CHANGED_BY: Final = """
    SELECT made_by AS seq FROM memstate_facts WHERE namespace = ?1 AND id = ?2
    UNION SELECT seq FROM memstate_touched WHERE namespace = ?1 AND fact_id = ?2
"""
_RETIRE: Final = "UPDATE memstate_facts SET current = 0 WHERE namespace = ? AND id = ? AND current = 1"
_RESTORE: Final = "UPDATE memstate_facts SET current = 1 WHERE namespace = ? AND id = ? AND current = 0 AND version = ?"
_INSERT_TRANSACTION: Final = """
    INSERT INTO memstate_transactions
        (namespace, session_id, previous, parent, head, operation, actor, reason, mark, ts, changes)
    VALUES (
        ?1, ?2, coalesce((SELECT latest FROM memstate_sessions WHERE namespace = ?1 AND session = ?3), 0),
        ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11
    )
"""
_INSERT_TOUCHED: Final = "INSERT INTO memstate_touched (namespace, fact_id, seq) VALUES (?, ?, ?)"
_MOVE_HEAD: Final = """
    INSERT INTO memstate_sessions (namespace, session, head, redo, latest) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (namespace, session) DO UPDATE SET head = excluded.head, redo = excluded.redo, latest = excluded.latest
"""
_SELECT_OF_SESSION: Final = f"""
    WITH RECURSIVE past (seq, place) AS (
        SELECT CASE
            WHEN ?3 IS NOT NULL AND EXISTS (
                SELECT 1 FROM memstate_transactions WHERE seq = ?3 AND namespace = ?1 AND session_id IS ?5
            ) THEN (SELECT previous FROM memstate_transactions WHERE seq = ?3)
            ELSE coalesce((SELECT latest FROM memstate_sessions WHERE namespace = ?1 AND session = ?2), 0)
        END, 1
        UNION ALL
        SELECT t.previous, place + (?3 IS NULL OR t.seq < ?3)
        FROM past JOIN memstate_transactions t ON t.seq = past.seq WHERE place < ?4
    )
    SELECT {_ENTRY} FROM past CROSS JOIN memstate_transactions t ON t.seq = past.seq
    WHERE ?3 IS NULL OR t.seq < ?3 ORDER BY t.seq DESC LIMIT ?4
"""


def _session_key(session_id: str | None) -> str:
    """A session id as a key that is never NULL: NULLs are distinct from each other in a primary key."""
    return "" if session_id is None else f"={session_id}"


def _entry(row: Sequence[Any]) -> Entry:
    seq, session_id, parent, head, operation, actor, reason, mark, ts, changes = row
    versions = tuple(ChangedVersions(*change) for change in json.loads(changes))
    return Entry(seq, session_id, parent, seq if head is None else head, operation, actor, reason, mark, ts, versions)


def _chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), _PARAMETERS):
        yield values[start : start + _PARAMETERS]


def _marks(count: int, mark: str = "?") -> str:
    return ", ".join([mark] * count)


class _SQLiteTransaction:
    """One transaction on one connection; nothing in it ever suspends."""

    def __init__(self, connection: sqlite3.Connection, namespace: str) -> None:
        self._execute = connection.execute
        self._executemany = connection.executemany
        self._namespace = namespace

    async def facts(self, ids: Sequence[str]) -> dict[str, StoredFact]:
        if len(ids) == 1:
            row = self._execute(_SELECT_FACT, (self._namespace, ids[0])).fetchone()
            return {} if row is None else {row[0]: StoredFact._make(row)}
        found: dict[str, StoredFact] = {}
        for some in _chunks(list(ids)):
            rows = self._execute(
                f"SELECT {_FACT} FROM memstate_facts WHERE namespace = ? AND current = 1 AND id IN ({_marks(len(some))})",
                (self._namespace, *some),
            )
            found.update((row[0], StoredFact._make(row)) for row in rows)
        return found

    async def latest_versions(self, ids: Sequence[str]) -> dict[str, int]:
        latest: dict[str, int] = {}
        for id_ in ids:
            for current in (0, 1):
                version = self._execute(_SELECT_LATEST, (self._namespace, id_, current)).fetchone()[0]
                if version is not None:
                    latest[id_] = max(version, latest.get(id_, 0))
        return latest

    async def holders(self, singletons: Sequence[str]) -> dict[str, StoredFact]:
        found = {}
        for place in singletons:
            row = self._execute(_SELECT_HOLDER, (self._namespace, place)).fetchone()
            if row is not None:
                found[place] = StoredFact._make(row)
        return found

    async def versions(self, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], StoredFact]:
        found = {}
        for id_, version in wanted:
            row = self._execute(_SELECT_VERSION, (self._namespace, id_, version)).fetchone()
            found[id_, version] = StoredFact._make(row)
        return found

    async def select(self, selection: Selection) -> list[StoredFact]:
        source, parameters, residual = self._source(selection)
        sql = f"SELECT {_FACT_OF_F} FROM {source} ORDER BY f.ordinal"
        end = None if selection.limit is None else selection.offset + selection.limit
        if not residual and not selection.order and (end is not None or selection.offset):
            sql += " LIMIT ? OFFSET ?"
            parameters += [_UNLIMITED if selection.limit is None else selection.limit, selection.offset]
            return [StoredFact._make(row) for row in self._execute(sql, parameters)]
        found: list[StoredFact] = []
        cursor = self._execute(sql, parameters)
        for row in cursor:
            fact = StoredFact._make(row)
            if residual and not selection.predicate(selection.decode(fact)):  # type: ignore[misc]
                continue
            found.append(fact)
            if len(found) == end and not selection.order:
                cursor.close()
                break
        if selection.order:
            found = sort_facts(found, selection.order, selection.decode)
        return found[selection.offset : end] if selection.offset or end is not None else found

    async def count(self, selection: Selection) -> int:
        source, parameters, residual = self._source(selection)
        if residual:
            return len(await self.select(selection))
        count: int = self._execute(f"SELECT count(*) FROM {source}", parameters).fetchone()[0]
        return count

    def _source(self, selection: Selection) -> tuple[str, list[Any], bool]:
        """FROM and WHERE, their parameters, and whether the predicate is still to be asked."""
        range_ = self._range(selection)
        parameters: list[Any]
        if range_ is None:
            sql = "memstate_facts f WHERE f.namespace = ? AND f.current = 1"
            parameters = [self._namespace]
            if selection.typename is not None:
                sql += " AND f.type = ?"
                parameters.append(selection.typename)
            residual = selection.predicate is not None
        else:
            assert selection.predicate is not None
            sql = (
                "memstate_fields x CROSS JOIN memstate_facts f ON f.row = x.row "
                "WHERE x.namespace = ? AND x.type = ? AND x.path = ? AND x.kind = ? AND x.current = 1"
            )
            parameters = [self._namespace, selection.typename, range_.path, range_.kind]
            if range_.low is not None and range_.low == range_.high:
                sql += " AND x.value = ?"
                parameters.append(range_.low)
            else:
                for bound, comparison in ((range_.low, ">="), (range_.high, "<=")):
                    if bound is not None:
                        sql += f" AND x.value {comparison} ?"
                        parameters.append(bound)
            residual = not selection.predicate.decided_by(range_)
        if not isinstance(selection.session_id, Unset):
            sql += " AND f.session_id IS ?"
            parameters.append(selection.session_id)
        return sql, parameters, residual

    @staticmethod
    def _range(selection: Selection) -> Range | None:
        """The range to narrow by: an equality before any other."""
        if selection.predicate is None or selection.typename is None:
            return None
        usable = [range_ for range_ in selection.predicate.ranges if range_.path in selection.indexed]
        usable.sort(key=lambda range_: (range_.low is None) + (range_.low != range_.high))
        return usable[0] if usable else None

    async def position(self, session_id: str | None) -> Position:
        row = self._execute(_SELECT_POSITION, (self._namespace, _session_key(session_id))).fetchone()
        return Position(row[0], row[1], row[2], bool(row[3]))

    async def entries(self, seqs: Sequence[int]) -> dict[int, Entry]:
        found: dict[int, Entry] = {}
        for some in _chunks(list(seqs)):
            rows = self._execute(
                f"SELECT {_ENTRY} FROM memstate_transactions t WHERE namespace = ? AND seq IN ({_marks(len(some))})",
                (self._namespace, *some),
            )
            found.update((row[0], _entry(row)) for row in rows)
        return found

    async def line(self, seq: int, *, above: int = 0, limit: int | None = None) -> list[Entry]:
        if limit == 0 or seq <= above:
            return []
        rows = self._execute(_SELECT_LINE, (seq, above, _UNLIMITED if limit is None else limit, self._namespace))
        return [_entry(row) for row in rows]

    async def history(
        self,
        *,
        session_id: str | None | Unset = UNSET,
        fact_id: str | None = None,
        mark: str | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[Entry]:
        most = _UNLIMITED if limit is None else limit
        if not isinstance(session_id, Unset) and fact_id is None and mark is None:
            session = (self._namespace, _session_key(session_id), before, most, session_id)
            return [_entry(row) for row in self._execute(_SELECT_OF_SESSION, session)]
        sql = f"SELECT {_ENTRY} FROM memstate_transactions t WHERE t.namespace = ?"
        parameters: list[Any] = [self._namespace]
        if fact_id is not None:
            sql = (
                f"SELECT {_ENTRY} FROM ({_CHANGED_BY}) o CROSS JOIN memstate_transactions t ON t.seq = o.seq "
                "WHERE t.namespace = ?3"
            )
            parameters = [self._namespace, fact_id, self._namespace]
        if not isinstance(session_id, Unset):
            sql += " AND t.session_id IS ?"
            parameters.append(session_id)
        if mark is not None:
            sql += " AND t.mark = ?"
            parameters.append(mark)
        if before is not None:
            sql += " AND t.seq < ?"
            parameters.append(before)
        sql += " ORDER BY t.seq DESC LIMIT ?"
        parameters.append(most)
        return [_entry(row) for row in self._execute(sql, parameters)]

    async def savepoint(self, session_id: str | None, name: str) -> int | None:
        row = self._execute(
            "SELECT seq FROM memstate_savepoints WHERE namespace = ? AND session = ? AND name = ?",
            (self._namespace, _session_key(session_id), name),
        ).fetchone()
        return None if row is None else row[0]

    async def record(self, collection: str, key: str) -> bytes | None:
        row = self._execute(
            "SELECT value FROM memstate_records WHERE namespace = ? AND collection = ? AND key = ?",
            (self._namespace, collection, key),
        ).fetchone()
        return None if row is None else row[0]

    async def scan(
        self,
        collection: str,
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Record]:
        sql = "SELECT key, value FROM memstate_records WHERE namespace = ? AND collection = ?"
        parameters: list[Any] = [self._namespace, collection]
        for bound, comparison in ((start, ">="), (end, "<")):
            if bound is not None:
                sql += f" AND key {comparison} ?"
                parameters.append(bound)
        sql += f" ORDER BY key {'DESC' if reverse else 'ASC'} LIMIT ?"
        parameters.append(_UNLIMITED if limit is None else limit)
        return [Record._make(row) for row in self._execute(sql, parameters)]

    async def claims(self, keys: Sequence[str] | None = None) -> list[Claim]:
        sql = "SELECT key, owner, expires, hooks FROM memstate_claims WHERE namespace = ?"
        rows: Iterable[Any]
        if keys is None:
            rows = self._execute(sql, (self._namespace,))
        else:
            rows = [
                row
                for some in _chunks(list(keys))
                for row in self._execute(f"{sql} AND key IN ({_marks(len(some))})", (self._namespace, *some))
            ]
        return [Claim(key, owner, expires, tuple(json.loads(hooks))) for key, owner, expires, hooks in rows]

    async def definitions(self) -> dict[str, str]:
        rows = self._execute(
            "SELECT type, definition FROM memstate_definitions WHERE namespace = ?", (self._namespace,)
        )
        return dict(rows.fetchall())

    async def reindex(
        self, typename: str, compute: Callable[[StoredFact], tuple[str | None, tuple[IndexEntry, ...]]]
    ) -> None:
        rows = self._execute(
            f"SELECT row, current, {_FACT} FROM memstate_facts WHERE namespace = ? AND type = ? ORDER BY ordinal",
            (self._namespace, typename),
        ).fetchall()
        described = [(row[0], row[1], fact := StoredFact._make(row[2:]), *compute(fact)) for row in rows]
        places: dict[str, str] = {}
        for _, current, fact, place, _ in described:
            if current and place is not None and places.setdefault(place, fact.id) != fact.id:
                raise ConflictError(
                    f"facts {places[place]!r} and {fact.id!r} would have the same singleton value ({place})",
                    fact_id=places[place],
                )
        self._execute(
            "UPDATE memstate_facts SET singleton = NULL WHERE namespace = ? AND type = ?", (self._namespace, typename)
        )
        self._executemany("DELETE FROM memstate_fields WHERE row = ?", [(row,) for row, *_ in described])
        self._executemany(
            "UPDATE memstate_facts SET singleton = ?, has_fields = ? WHERE row = ?",
            [(place, bool(index), row) for row, _, _, place, index in described],
        )
        for row, current, fact, _, index in described:
            self._insert_fields(row, fact, index, current)

    def _insert_fields(self, row: int, fact: StoredFact, index: Sequence[IndexEntry], current: int) -> None:
        for path, kind, value in index:
            self._execute(_INSERT_FIELD, (row, path, self._namespace, fact.type, kind, value, fact.ordinal, current))

    async def write(self, batch: Batch) -> int:
        seq = 0
        if batch.entry is not None:
            seq = self._write_entry(batch)
        for change in batch.changes:
            if change.before is not None:
                self._execute(_RETIRE, (self._namespace, change.fact_id))
        for place, change in enumerate(batch.changes):
            if change.after is not None:
                self._make_current(change, seq, place, batch.restores)
        if batch.savepoint is not None:
            session_id, name, at = batch.savepoint
            self._execute(
                "INSERT OR REPLACE INTO memstate_savepoints (namespace, session, name, seq) VALUES (?, ?, ?, ?)",
                (self._namespace, _session_key(session_id), name, at),
            )
        if batch.records:
            self._write_records(batch)
        if batch.definitions:
            self._write_definitions(batch)
        if batch.drop_claims_of is not None:
            self._execute(
                "DELETE FROM memstate_claims WHERE namespace = ? AND owner = ?", (self._namespace, batch.drop_claims_of)
            )
        if batch.claims:
            self._executemany(
                "INSERT OR REPLACE INTO memstate_claims (namespace, key, owner, expires, hooks) VALUES (?, ?, ?, ?, ?)",
                [
                    (self._namespace, claim.key, claim.owner, claim.expires, json.dumps(claim.hooks))
                    for claim in batch.claims
                ],
            )
        return seq

    def _write_entry(self, batch: Batch) -> int:
        entry = batch.entry
        assert entry is not None
        changes = [
            (
                change.fact_id,
                change.before.version if change.before is not None else 0,
                change.after.version if change.after is not None else 0,
            )
            for change in batch.changes
        ]
        session = _session_key(entry.session_id)
        seq = self._execute(
            _INSERT_TRANSACTION,
            (
                self._namespace,
                entry.session_id,
                session,
                entry.parent,
                entry.head,
                entry.operation.value,
                entry.actor,
                entry.reason,
                entry.mark,
                entry.ts,
                json.dumps(changes),
            ),
        ).lastrowid
        assert seq is not None
        no_version = [change.fact_id for change in batch.changes if batch.restores or change.after is None]
        if no_version:
            self._executemany(_INSERT_TOUCHED, [(self._namespace, fact_id, seq) for fact_id in no_version])
        head = seq if entry.head is None else entry.head
        self._execute(_MOVE_HEAD, (self._namespace, session, head, entry.redo, seq))
        return seq

    def _make_current(self, change: FactChange, seq: int, place: int, restores: bool) -> None:
        fact = change.after
        assert fact is not None
        if restores:
            self._execute(_RESTORE, (self._namespace, fact.id, fact.version))
            return
        if fact.ordinal < 0:
            fact = StoredFact._make((*fact[:-1], ordinal(seq, place)))  # _replace takes ten times as long
        row = self._execute(_INSERT_FACT, (self._namespace, bool(change.fields), seq, *fact)).lastrowid
        if change.fields:
            assert row is not None
            self._insert_fields(row, fact, change.fields, 1)

    def _write_records(self, batch: Batch) -> None:
        for collection, key, value in batch.records:
            if value is None:
                self._execute(
                    "DELETE FROM memstate_records WHERE namespace = ? AND collection = ? AND key = ?",
                    (self._namespace, collection, key),
                )
            else:
                self._execute(
                    "INSERT INTO memstate_records (namespace, collection, key, value) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (namespace, collection, key) DO UPDATE SET value = excluded.value",
                    (self._namespace, collection, key, value),
                )

    def _write_definitions(self, batch: Batch) -> None:
        self._executemany(
            "INSERT OR REPLACE INTO memstate_definitions (namespace, type, definition) VALUES (?, ?, ?)",
            [(self._namespace, typename, text) for typename, text in batch.definitions.items()],
        )
        self._execute(
            "INSERT INTO memstate_generations (namespace, generation) VALUES (?, 1) "
            "ON CONFLICT (namespace) DO UPDATE SET generation = generation + 1",
            (self._namespace,),
        )


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
        self._single = self._given is not None or self._path == ":memory:"
        self._writer: sqlite3.Connection | None = None
        self._readers: list[sqlite3.Connection] = []
        self._left_behind: list[sqlite3.Connection] = []
        self._lock = Exclusive()
        self._closed = False
        renew_after_fork(self)

    def after_fork(self) -> None:
        self._lock = Exclusive()
        if not self._single:
            # SQLite's connections must not be used, nor closed, on the other side of a fork.
            self._left_behind += [*self._readers, *([self._writer] if self._writer else [])]
            self._readers, self._writer = [], None

    async def open(self) -> None:
        """Open the file and make or migrate its tables, if that has not happened."""
        with self._exclusively():
            pass

    async def read(self, namespace: str, work: Work[T], *, snapshot: bool = False) -> T:
        if self._single:
            with self._exclusively() as connection:
                return await work(_SQLiteTransaction(connection, namespace))
        if self._writer is None:
            await self.open()
        try:
            connection = self._readers.pop()
        except IndexError:
            connection = self._connect()
        try:
            if snapshot:
                connection.execute("BEGIN")
            return await work(_SQLiteTransaction(connection, namespace))
        except sqlite3.Error as error:
            self._translate(error)
        finally:
            if snapshot and connection.in_transaction:
                connection.execute("ROLLBACK")
            if self._closed:
                connection.close()
            else:
                self._readers.append(connection)

    async def write(self, namespace: str, work: Work[T]) -> T:
        with self._exclusively() as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                result = await work(_SQLiteTransaction(connection, namespace))
                connection.execute("COMMIT")
            except BaseException as error:
                if connection.in_transaction:
                    try:
                        connection.execute("ROLLBACK")
                    except sqlite3.Error as cleanup:
                        error.add_note(f"the transaction could not be rolled back: {cleanup}")
                raise
            return result

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[sqlite3.Connection]:
        """The connection that writes, for one thread at a time; driver errors are translated."""
        with self._lock:
            try:
                if self._closed:
                    raise ClosedError(f"this SQLiteStorage ({self._path}) was closed; make a new one")
                if self._writer is None:
                    self._writer = self._prepare()
                yield self._writer
            except sqlite3.Error as error:
                self._translate(error)

    def _prepare(self) -> sqlite3.Connection:
        """The writer's connection, with all tables there."""
        connection = self._given if self._given is not None else self._connect()
        if connection.in_transaction:
            raise StorageError("the given connection is in the midst of a transaction; commit or roll it back first")
        _migrate(connection, self._path)
        return connection

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
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._durability}")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.execute(f"PRAGMA mmap_size = {_MMAP_BYTES}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        except sqlite3.Error as error:
            connection.close()
            self._translate(error)
        return connection

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
            connections = [*self._readers]
            self._readers.clear()
            if self._writer is not None and self._given is None:
                connections.append(self._writer)
            self._writer = None
            for connection in connections:
                connection.close()

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
        renew_after_fork(self)

    @staticmethod
    def _new_thread() -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="memstate-sqlite")

    def after_fork(self) -> None:
        self._thread = self._new_thread()

    async def _there(self, function: Callable[[], T]) -> T:
        """Call on the storage's thread, in the caller's context."""
        if self._storage._closed:
            raise ClosedError(f"this AsyncSQLiteStorage ({self._storage._path}) was closed; make a new one")
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
        return await self._there(lambda: run(self._storage.write(namespace, work)))

    async def aclose(self) -> None:
        """Close what this storage opened; a given connection stays open."""
        if not self._storage._closed:
            await self._there(self._storage.close)
            self._thread.shutdown(wait=False)

    async def close(self) -> None:
        """The same as :meth:`aclose`."""
        await self.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _path_of(database: str | os.PathLike[str]) -> str:
    if not isinstance(database, str | os.PathLike):
        raise ValidationFailed(f"SQLiteStorage takes a path or a sqlite3.Connection, not {database!r}")
    path = os.fspath(database)
    if path.startswith("sqlite://"):
        path = path.removeprefix("sqlite://").removeprefix("/") or ":memory:"
    if not path:
        raise ValidationFailed("SQLiteStorage needs a path; for a database in memory pass ':memory:'")
    return path if path == ":memory:" or path.startswith("file:") else str(Path(path).expanduser())


def _migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the tables to the newest migration, once, whoever of many processes comes first."""
    sql = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'memstate_migrations'"

    def applied() -> int:
        if not connection.execute(sql).fetchone()[0]:
            return 0
        number: int = connection.execute("SELECT coalesce(max(number), 0) FROM memstate_migrations").fetchone()[0]
        return number

    if applied() < len(MIGRATIONS):
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute("CREATE TABLE IF NOT EXISTS memstate_migrations (number INTEGER PRIMARY KEY)")
            for number, statements in enumerate(MIGRATIONS[applied() :], start=applied() + 1):
                for statement in statements:
                    connection.execute(statement)
                connection.execute("INSERT INTO memstate_migrations (number) VALUES (?)", (number,))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    if applied() > len(MIGRATIONS):
        raise StorageError(
            f"{path} was written by a newer MemState (migration {applied()}, this one knows {len(MIGRATIONS)}); upgrade memstate"
        )
