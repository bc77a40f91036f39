"""An index in a dict, into which faults are injected: in place of Chroma where Chroma would be slow, and beside it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memstate_core import Change, Fact, SearchResult
from memstate_core.protocols import Scope
from tests.faults.model import Image

Content = dict[str, tuple[int, dict[str, Any]]]


class Index:
    """What each fact was last said to be. ``fault(step, changes)`` is called at every step and may raise or wait.

    The steps are ``"prepare"``, and ``"before"``, ``"half"`` and ``"after"`` the changes are made.
    """

    def __init__(self, name: str = "index", fault: Callable[[str, Sequence[Change]], None] | None = None) -> None:
        self.name = name
        self.fault = fault
        self._content: Content = {}

    def prepare(self, changes: Sequence[Change]) -> Sequence[Change]:
        self._at("prepare", changes)
        return changes

    def apply(self, changes: Sequence[Change]) -> None:
        middle = len(changes) // 2
        self._at("before", changes)
        self._make(changes[:middle])
        self._at("half", changes)
        self._make(changes[middle:])
        self._at("after", changes)

    def search(self, query: str, limit: int, scope: Scope) -> list[SearchResult]:
        """Everything, however unlike the query."""
        return [SearchResult(id_, 1.0, version) for id_, (version, _) in list(self.content().items())[:limit]]

    def similarity(self, query: str, facts: Sequence[Fact]) -> list[SearchResult]:
        return [SearchResult(fact.id, 1.0, fact.version) for fact in facts]

    def scan(self) -> dict[str, int]:
        return {id_: version for id_, (version, _) in self.content().items()}

    def content(self) -> Content:
        return dict(self._content)

    def distort(self, fact_id: str, entry: tuple[int, dict[str, Any]]) -> None:
        """Write past every transaction."""
        self._content[fact_id] = entry

    def follow(self, facts: Mapping[str, Image]) -> None:
        """Be as if it had been told of these facts."""
        self._content = {id_: (image.version, image.payload) for id_, image in facts.items()}

    def asynchronous(self) -> AsyncIndex:
        return AsyncIndex(self)

    def _at(self, step: str, changes: Sequence[Change]) -> None:
        if threading.active_count() > 1:
            time.sleep(0)  # others' turn
        if self.fault is not None:
            self.fault(step, changes)

    def _make(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.after is None:
                self._content.pop(change.fact_id, None)
            else:
                self._content[change.fact_id] = change.after.version, change.after.payload


class AsyncIndex:
    """The same, awaited; it lets other tasks run at every step."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.name = index.name

    async def prepare(self, changes: Sequence[Change]) -> Sequence[Change]:
        await asyncio.sleep(0)
        return self.index.prepare(changes)

    async def apply(self, changes: Sequence[Change]) -> None:
        await asyncio.sleep(0)
        self.index.apply(changes)
        await asyncio.sleep(0)

    async def search(self, query: str, limit: int, scope: Scope) -> list[SearchResult]:
        return self.index.search(query, limit, scope)

    async def similarity(self, query: str, facts: Sequence[Fact]) -> list[SearchResult]:
        return self.index.similarity(query, facts)

    async def scan(self) -> dict[str, int]:
        found: Any = self.index.scan()
        return await found if asyncio.iscoroutine(found) else found


class FileIndex(Index):
    """The same in a file, for several processes; each call has a connection of its own, so that forks do not matter."""

    def __init__(
        self,
        path: str | Path,
        fault: Callable[[str, Sequence[Change]], None] | None = None,
        *,
        name: str = "index",
    ) -> None:
        super().__init__(name, fault)
        self._path = path
        self._execute("CREATE TABLE IF NOT EXISTS entries (id TEXT PRIMARY KEY, version INTEGER, payload TEXT)")

    def content(self) -> Content:
        rows = self._execute("SELECT id, version, payload FROM entries")
        return {id_: (version, json.loads(payload)) for id_, version, payload in rows}

    def _make(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.after is None:
                self._execute("DELETE FROM entries WHERE id = ?", change.fact_id)
            else:
                payload = json.dumps(change.after.payload)
                sql = "INSERT OR REPLACE INTO entries VALUES (?, ?, ?)"
                self._execute(sql, change.fact_id, change.after.version, payload)

    def _execute(self, sql: str, *parameters: Any) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None, timeout=100)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            return connection.execute(sql, parameters).fetchall()
