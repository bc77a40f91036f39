"""The tables of :mod:`memstate_core.storages.sqlite`, as an append-only list of numbered migrations.

``memstate_facts`` are the facts as they are, in the order of their making (``row`` is the ordinal), changed in place;
``memstate_versions`` are the versions that were replaced or removed, so that rollback can bring them back.
``memstate_fields`` are the declared index entries of current facts. ``memstate_transactions`` is the journal: a tree by
``parent``, and a list per session by ``previous``; its ``changes`` are ``[[fact id, version before, version after],
…]``. Which transactions changed a fact is told by ``made_by`` of its versions, and by ``memstate_touched`` for those
that made no version of it. ``memstate_outbox`` is what hooks are still to be told of, ``memstate_lanes`` who delivers
it. Each index less is a page less that a commit writes.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from memstate_core.errors import StorageError

MIGRATIONS: Final[list[tuple[str, ...]]] = [
    (
        """
        CREATE TABLE memstate_facts (
            row INTEGER PRIMARY KEY,
            namespace TEXT NOT NULL,
            id TEXT NOT NULL,
            version INTEGER NOT NULL,
            type TEXT NOT NULL,
            payload TEXT NOT NULL,
            source TEXT,
            session_id TEXT,
            ts TEXT NOT NULL,
            ephemeral INTEGER NOT NULL,
            schema_version INTEGER NOT NULL,
            singleton TEXT,
            made_by INTEGER NOT NULL,
            UNIQUE (namespace, id)
        )
        """,
        """
        CREATE UNIQUE INDEX memstate_facts_by_singleton ON memstate_facts (namespace, singleton)
        WHERE singleton IS NOT NULL
        """,
        "CREATE INDEX memstate_facts_by_type ON memstate_facts (namespace, type)",
        "CREATE INDEX memstate_facts_by_session ON memstate_facts (namespace, session_id)",
        """
        CREATE TABLE memstate_versions (
            row INTEGER NOT NULL,
            namespace TEXT NOT NULL,
            id TEXT NOT NULL,
            version INTEGER NOT NULL,
            type TEXT NOT NULL,
            payload TEXT NOT NULL,
            source TEXT,
            session_id TEXT,
            ts TEXT NOT NULL,
            ephemeral INTEGER NOT NULL,
            schema_version INTEGER NOT NULL,
            singleton TEXT,
            made_by INTEGER NOT NULL,
            UNIQUE (namespace, id, version)
        )
        """,
        """
        CREATE TABLE memstate_fields (
            row INTEGER NOT NULL,
            path TEXT NOT NULL,
            namespace TEXT NOT NULL,
            type TEXT NOT NULL,
            kind INTEGER NOT NULL,
            value NOT NULL,
            PRIMARY KEY (row, path)
        ) WITHOUT ROWID
        """,
        "CREATE INDEX memstate_fields_by_value ON memstate_fields (namespace, type, path, kind, value, row)",
        """
        CREATE TRIGGER memstate_fields_go AFTER DELETE ON memstate_facts BEGIN
            DELETE FROM memstate_fields WHERE row = old.row;
        END
        """,
        """
        CREATE TABLE memstate_transactions (
            seq INTEGER PRIMARY KEY,
            namespace TEXT NOT NULL,
            session_id TEXT,
            previous INTEGER NOT NULL,
            parent INTEGER NOT NULL,
            head INTEGER,
            operation TEXT NOT NULL,
            actor TEXT,
            reason TEXT,
            mark TEXT,
            ts TEXT NOT NULL,
            changes TEXT NOT NULL
        )
        """,
        """
        CREATE INDEX memstate_transactions_by_mark ON memstate_transactions (namespace, mark, seq)
        WHERE mark IS NOT NULL
        """,
        """
        CREATE TABLE memstate_touched (
            namespace TEXT NOT NULL,
            fact_id TEXT NOT NULL,
            seq INTEGER NOT NULL,
            PRIMARY KEY (namespace, fact_id, seq)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE memstate_sessions (
            namespace TEXT NOT NULL,
            session TEXT NOT NULL,
            head INTEGER NOT NULL,
            redo INTEGER NOT NULL,
            latest INTEGER NOT NULL,
            PRIMARY KEY (namespace, session)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE memstate_savepoints (
            namespace TEXT NOT NULL,
            session TEXT NOT NULL,
            name TEXT NOT NULL,
            seq INTEGER NOT NULL,
            PRIMARY KEY (namespace, session, name)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE memstate_records (
            namespace TEXT NOT NULL,
            collection TEXT NOT NULL,
            key TEXT NOT NULL,
            value BLOB NOT NULL,
            UNIQUE (namespace, collection, key)
        )
        """,
        """
        CREATE TABLE memstate_claims (
            namespace TEXT NOT NULL,
            key TEXT NOT NULL,
            owner TEXT NOT NULL,
            expires REAL NOT NULL,
            hooks TEXT NOT NULL,
            PRIMARY KEY (namespace, key)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE memstate_definitions (
            namespace TEXT NOT NULL,
            type TEXT NOT NULL,
            definition TEXT NOT NULL,
            PRIMARY KEY (namespace, type)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE memstate_generations (
            namespace TEXT NOT NULL PRIMARY KEY,
            generation INTEGER NOT NULL
        ) WITHOUT ROWID
        """,
    ),
    (
        """
        CREATE TABLE memstate_outbox (
            namespace TEXT NOT NULL,
            hook TEXT NOT NULL,
            lane INTEGER NOT NULL,
            seq INTEGER NOT NULL,
            fact_id TEXT NOT NULL,
            before INTEGER NOT NULL,
            after INTEGER NOT NULL,
            at REAL NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0,
            due REAL NOT NULL DEFAULT 0,
            error TEXT,
            PRIMARY KEY (namespace, hook, lane, seq, fact_id)
        ) WITHOUT ROWID
        """,
        "CREATE INDEX memstate_outbox_failing ON memstate_outbox (namespace, hook, lane) WHERE attempts > 0",
        """
        CREATE TABLE memstate_lanes (
            namespace TEXT NOT NULL,
            hook TEXT NOT NULL,
            lane INTEGER NOT NULL,
            owner TEXT NOT NULL,
            expires REAL NOT NULL,
            PRIMARY KEY (namespace, hook, lane)
        ) WITHOUT ROWID
        """,
    ),
]


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the tables to the newest migration, once, whoever of many processes comes first."""
    sql = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'memstate_migrations'"

    def applied() -> int:
        cursor = connection.cursor()
        cursor.row_factory = None  # a caller's connection may have one
        if not cursor.execute(sql).fetchone()[0]:
            return 0
        number: int = cursor.execute("SELECT coalesce(max(number), 0) FROM memstate_migrations").fetchone()[0]
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
            f"{path} was written by a newer MemState (migration {applied()}, this one knows {len(MIGRATIONS)}); "
            "upgrade memstate"
        )
