"""SQLite, and the least that it takes there."""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from benchmarks.storages import StorageKind
from benchmarks.workload import INDEXED, SINGLETON, TYPES, Setting, check_name, payload_of

if TYPE_CHECKING:
    from memstate_core.protocols import Storage

# What memstate's own connections are set to; durability and caches must be the same, or it is no comparison.
PRAGMAS: Final = (
    "journal_mode = WAL",
    "synchronous = normal",
    "cache_size = -65536",
    "mmap_size = 268435456",
    "wal_autocheckpoint = 4000",
)
TABLES: Final = (
    """
    CREATE TABLE facts (
        row INTEGER PRIMARY KEY, id TEXT NOT NULL, type TEXT NOT NULL, payload TEXT NOT NULL, source TEXT,
        session_id TEXT, ts TEXT NOT NULL, version INTEGER NOT NULL, made_by INTEGER NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX facts_by_id ON facts (id)",
    "CREATE INDEX facts_by_type ON facts (type)",
    "CREATE INDEX facts_by_session ON facts (session_id)",
    f"CREATE INDEX facts_by_topic ON facts (json_extract(payload, '$.{INDEXED}')) WHERE type = 'preference'",
    f"CREATE UNIQUE INDEX facts_by_name ON facts (json_extract(payload, '$.{SINGLETON}')) WHERE type = 'setting'",
    """
    CREATE TABLE journal (
        seq INTEGER PRIMARY KEY, session_id TEXT, previous INTEGER NOT NULL, parent INTEGER NOT NULL,
        operation TEXT NOT NULL, actor TEXT, reason TEXT, ts TEXT NOT NULL, changes TEXT NOT NULL
    )
    """,
    "CREATE TABLE touched (fact_id TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (fact_id, seq)) WITHOUT ROWID",
    """
    CREATE TABLE sessions (
        session_id TEXT PRIMARY KEY, head INTEGER NOT NULL, redo INTEGER NOT NULL, latest INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
)
_FACT: Final = "id, type, payload, source, session_id, ts, version, made_by"
_INSERT_FACT: Final = f"INSERT INTO facts ({_FACT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_ENTRY: Final = """
    INSERT INTO journal (session_id, previous, parent, operation, actor, reason, ts, changes)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_SELECT_SESSION: Final = "SELECT head, latest FROM sessions WHERE session_id = ?"
_MOVE_HEAD: Final = """
    INSERT INTO sessions (session_id, head, redo, latest) VALUES (?, ?, ?, ?)
    ON CONFLICT (session_id) DO UPDATE SET head = excluded.head, redo = excluded.redo, latest = excluded.latest
"""
_TOUCH: Final = "INSERT INTO touched (fact_id, seq) VALUES (?, ?)"
_TOUCH_MANY: Final = "INSERT INTO touched (fact_id, seq) SELECT value, ? FROM json_each(?)"
_SELECT_FACT: Final = f"SELECT {_FACT} FROM facts WHERE id = ?"
_SELECT_TOPIC: Final = (
    f"SELECT {_FACT} FROM facts WHERE type = 'preference' AND json_extract(payload, '$.{INDEXED}') = ? ORDER BY row"
)
_SELECT_SETTING: Final = (
    f"SELECT {_FACT} FROM facts WHERE type = 'setting' AND json_extract(payload, '$.{SINGLETON}') = ?"
)
_REWRITE: Final = "UPDATE facts SET payload = ?, source = ?, session_id = ?, ts = ?, version = ? WHERE id = ?"
_SELECT_LINE: Final = """
    WITH RECURSIVE line (seq, parent, operation, actor, reason, ts, changes, place) AS (
        SELECT seq, parent, operation, actor, reason, ts, changes, 1 FROM journal WHERE seq = ?
        UNION ALL
        SELECT j.seq, j.parent, j.operation, j.actor, j.reason, j.ts, j.changes, place + 1
        FROM line JOIN journal j ON j.seq = line.parent WHERE place < ?
    )
    SELECT seq, parent, operation, actor, reason, ts, changes FROM line
"""
_SELECT_FACTS: Final = f"SELECT {_FACT}, row FROM facts WHERE id IN (SELECT value FROM json_each(?))"
_DELETE: Final = "DELETE FROM facts WHERE row = ?"
_DELETE_ONE: Final = f"DELETE FROM facts WHERE id = ? RETURNING {_FACT}"
_PROMOTE: Final = "UPDATE facts SET session_id = NULL, ts = ?, version = version + 1 WHERE session_id = ?"


def _fact(row: Sequence[Any]) -> dict[str, Any]:
    id_, type_, payload, source, session_id, ts, version, _ = row
    return {
        "id": id_,
        "type": type_,
        "payload": json.loads(payload),
        "source": source,
        "session_id": session_id,
        "ts": ts,
        "version": version,
    }


class SQLiteFloor:
    """Facts, journal and heads by hand, in the fewest statements, on one connection that threads take in turn.

    The journal keeps the *before* of every change (the *after* is the fact itself, or the next *before*), so all can
    be undone and redone. The history of a session and of a fact can be read without looking through the journal: the
    one is a list by ``previous``, the other is told by ``made_by`` and, from the second change on, by ``touched``.

    There are no namespaces, no marks, no declared types but the three of the workload, whose indexes are partial ones
    made for them, no refusals but of what is not valid, and no hooks.
    """

    def __init__(self, path: Path) -> None:
        self._writer = _connect(path)
        self._reader = _connect(path)
        for statement in TABLES:
            self._writer.execute(statement)
        self._lock = threading.Lock()

    def commit(self, model: BaseModel, session_id: str) -> str:
        """Begin; where the session stands; the journal; the fact; the head; commit. For a setting, first the one of
        that name, which is replaced.
        """
        check_name(session_id)
        payload = payload_of(model)
        typename = TYPES[type(model)]
        fact_id, ts = str(uuid.uuid4()), datetime.now(UTC).isoformat()
        with self._lock:
            execute = self._writer.execute
            execute("BEGIN IMMEDIATE")
            try:
                before = None
                if isinstance(model, Setting):
                    before = execute(_SELECT_SETTING, (model.name,)).fetchone()
                    fact_id = fact_id if before is None else before[0]
                head, latest = execute(_SELECT_SESSION, (session_id,)).fetchone() or (0, 0)
                changes = json.dumps([[fact_id, before]])
                seq = execute(_INSERT_ENTRY, (session_id, latest, head, "COMMIT", None, None, ts, changes)).lastrowid
                if before is None:
                    execute(_INSERT_FACT, (fact_id, typename, payload, None, session_id, ts, 1, seq))
                else:
                    execute(_REWRITE, (payload, None, session_id, ts, before[6] + 1, fact_id))
                    execute(_TOUCH, (fact_id, seq))
                execute(_MOVE_HEAD, (session_id, seq, 0, seq))
                execute("COMMIT")
            except BaseException:
                execute("ROLLBACK")
                raise
        return fact_id

    def get(self, fact_id: str) -> dict[str, Any] | None:
        """One statement; the payload is decoded."""
        row = self._reader.execute(_SELECT_FACT, (fact_id,)).fetchone()
        return None if row is None else _fact(row)

    def query(self, topic: str) -> list[dict[str, Any]]:
        """One statement on the index that the workload needs, in the order in which facts were made."""
        return [_fact(row) for row in self._reader.execute(_SELECT_TOPIC, (topic,))]

    def rollback(self, session_id: str, steps: int) -> list[dict[str, Any]]:
        """Where the session stands, the transactions, the facts that they made, which are deleted, the journal, what it
        touched, the head. Only new facts are undone here, as the workload has it; that each is still as the session
        left it is checked.
        """
        ts = datetime.now(UTC).isoformat()
        with self._lock:
            execute = self._writer.execute
            execute("BEGIN IMMEDIATE")
            try:
                head, latest = execute(_SELECT_SESSION, (session_id,)).fetchone()
                entries = execute(_SELECT_LINE, (head, steps)).fetchall()
                ids = [change[0] for entry in entries for change in json.loads(entry[6])]
                if len(ids) == 1:
                    gone = execute(_DELETE_ONE, (ids[0],)).fetchall()
                else:
                    # One DELETE … RETURNING for all takes twice as long.
                    found = execute(_SELECT_FACTS, (json.dumps(ids),)).fetchall()
                    self._writer.executemany(_DELETE, [row[-1:] for row in found])
                    gone = [row[:-1] for row in found]
                if len(gone) != len(ids) or any(row[6] != 1 for row in gone):
                    raise RuntimeError("another session has changed one of the facts")
                changes = json.dumps([[row[0], row] for row in gone])
                seq = execute(_INSERT_ENTRY, (session_id, latest, head, "ROLLBACK", None, None, ts, changes)).lastrowid
                self._touch(ids, seq)
                execute(_MOVE_HEAD, (session_id, entries[-1][1], head, seq))
                execute("COMMIT")
            except BaseException:
                execute("ROLLBACK")
                raise
        images = {row[0]: row for row in gone}
        return [
            {
                "seq": seq,
                "parent": parent,
                "operation": operation,
                "actor": actor,
                "reason": reason,
                "ts": datetime.fromisoformat(made),
                "changes": [{"id": id_, "before": None, "after": _fact(images[id_])} for id_, _ in json.loads(changed)],
            }
            for seq, parent, operation, actor, reason, made, changed in entries
        ]

    def promote(self, session_id: str) -> list[str]:
        """The session's facts, one statement that changes them all, the journal with what they were, what it touched,
        the head.
        """
        ts = datetime.now(UTC).isoformat()
        with self._lock:
            execute = self._writer.execute
            execute("BEGIN IMMEDIATE")
            try:
                facts = execute(
                    f"SELECT {_FACT} FROM facts WHERE session_id = ? ORDER BY row", (session_id,)
                ).fetchall()
                head, latest = execute(_SELECT_SESSION, (session_id,)).fetchone()
                execute(_PROMOTE, (ts, session_id))
                changes = json.dumps([[row[0], row] for row in facts])
                seq = execute(_INSERT_ENTRY, (session_id, latest, head, "PROMOTE", None, None, ts, changes)).lastrowid
                self._touch([row[0] for row in facts], seq)
                execute(_MOVE_HEAD, (session_id, seq, 0, seq))
                execute("COMMIT")
            except BaseException:
                execute("ROLLBACK")
                raise
        return [row[0] for row in facts]

    def _touch(self, ids: Sequence[str], seq: int | None) -> None:
        if len(ids) == 1:
            self._writer.execute(_TOUCH, (ids[0], seq))
        else:
            self._writer.execute(_TOUCH_MANY, (seq, json.dumps(ids)))

    def close(self) -> None:
        self._writer.close()
        self._reader.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _open(directory: Path) -> Storage:
    from memstate_core import SQLiteStorage

    return SQLiteStorage(directory / "memstate.db")


def _open_async(directory: Path) -> Storage:
    from memstate_core import AsyncSQLiteStorage

    return AsyncSQLiteStorage(directory / "memstate.db")


SQLITE: Final = StorageKind(
    "sqlite",
    floor=lambda directory: SQLiteFloor(directory / "floor.db"),
    storage=_open,
    async_storage=_open_async,
    floor_needs_thread=True,
    targets={
        "commit, new": 2.0,
        "commit, singleton": 2.0,
        "get": 1.5,
        "query on a declared index": 2.0,
        "rollback of 1": 2.5,
        "rollback of 100": 2.0,
        "promote 100 facts": 2.0,
        "16 writers": 0.6,
    },
)
