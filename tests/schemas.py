"""Schemas of a PostgreSQL database for tests: made once, emptied and used again, which takes a fraction of the time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import psycopg
from psycopg import sql

_numbers = itertools.count(1)


class Schemas:
    """The schemas of one database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._free: list[str] = []
        self._connection = self._connect()

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self.url, autocommit=True, options="-c lock_timeout=2s")

    def close(self) -> None:
        self._connection.close()

    def take(self) -> str:
        """The name of a schema that is empty, or not there yet."""
        return self._free.pop() if self._free else f"memstate {next(_numbers)}"

    def give_back(self, names: Iterable[str]) -> None:
        """Empty schemas for the next test; what somebody still uses is left to itself."""
        try:
            self._connection.execute("SELECT 1")
        except psycopg.OperationalError:  # some tests end all connections to the server
            self._connection.close()
            self._connection = self._connect()
        connection = self._connection
        for name in names:
            tables = connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename <> 'memstate_migrations'",
                (name,),
            ).fetchall()
            statements = [
                sql.SQL("DELETE FROM {}.{}").format(sql.Identifier(name), sql.Identifier(table)) for (table,) in tables
            ]
            if tables:
                transactions = sql.Identifier(name, "memstate_transactions").as_string(connection)
                statements.append(
                    sql.SQL("SELECT setval(pg_get_serial_sequence({}, 'seq'), 1, false)").format(transactions)
                )
            try:
                connection.execute(sql.SQL("; ").join(statements) if statements else "SELECT 1")
            except psycopg.errors.LockNotAvailable:
                continue
            self._free.append(name)
