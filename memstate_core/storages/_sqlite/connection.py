"""What the storage uses of a connection, whoever made it."""

from __future__ import annotations

import sqlite3
from typing import Any, Protocol


class Connection(Protocol):
    """What is used of a :class:`sqlite3.Connection`."""

    @property
    def total_changes(self) -> int: ...

    def execute(self, statement: str, parameters: Any = ..., /) -> sqlite3.Cursor: ...

    def executemany(self, statement: str, parameters: Any, /) -> sqlite3.Cursor: ...


class PlainRows:
    """A caller's connection with a row factory of its own, which stays as it is: our cursors have none."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._cursor_of = connection.cursor
        self.total_changes = 0  # which nobody asks for where others change something by the connection, too

    def _cursor(self) -> sqlite3.Cursor:
        cursor = self._cursor_of()
        cursor.row_factory = None
        return cursor

    def execute(self, statement: str, parameters: Any = (), /) -> sqlite3.Cursor:
        return self._cursor().execute(statement, parameters)

    def executemany(self, statement: str, parameters: Any, /) -> sqlite3.Cursor:
        return self._cursor().executemany(statement, parameters)
