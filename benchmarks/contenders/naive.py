"""Dual writes as they are written by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.contenders import Candidate, Facts
from benchmarks.injection import Index, Steps


class Naive:
    """A table of facts and a journal in SQLite, written in one transaction; then the index is called."""

    def __init__(self, directory: Path, indexes: Sequence[Index], steps: Steps) -> None:
        self._indexes = indexes
        self._steps = steps
        self._database = sqlite3.connect(directory / "facts.db", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute("CREATE TABLE IF NOT EXISTS facts (id TEXT PRIMARY KEY, session TEXT, text TEXT)")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS journal (seq INTEGER PRIMARY KEY, session TEXT, operation TEXT, before TEXT)"
        )

    def commit(self, fact_id: str, text: str, session_id: str | None) -> Any:
        return self._both(self._write, "commit", session_id, {fact_id: (session_id, text)})

    def update(self, fact_id: str, text: str) -> Any:
        session_id, _ = self.facts()[fact_id]
        return self._both(self._write, "update", session_id, {fact_id: (session_id, text)})

    def delete(self, fact_id: str, session_id: str | None) -> Any:
        if fact_id not in self.facts():
            raise KeyError(fact_id)
        return self._both(self._write, "delete", session_id, {fact_id: None})

    def batch(self, session_id: str, texts: Mapping[str, str]) -> Any:
        return self._both(self._write, "batch", session_id, {id_: (session_id, text) for id_, text in texts.items()})

    def promote(self, session_id: str) -> Any:
        promoted = {id_: (None, text) for id_, (session, text) in self.facts().items() if session == session_id}
        return self._both(self._write, "promote", session_id, promoted)

    def discard(self, session_id: str) -> Any:
        gone = dict.fromkeys(id_ for id_, (session, _) in self.facts().items() if session == session_id)
        return self._both(self._write, "discard", session_id, gone)

    def rollback(self, session_id: str, steps: int) -> Any:
        return self._both(self._undo, session_id, steps)

    def facts(self) -> Facts:
        rows = self._database.execute("SELECT id, session, text FROM facts")
        return {id_: (session, text) for id_, session, text in rows}

    def journal(self, session_id: str) -> list[Any]:
        sql = "SELECT operation, before FROM journal WHERE session = ? ORDER BY seq"
        return self._database.execute(sql, (session_id,)).fetchall()

    def close(self) -> None:
        self._database.close()

    def _both(self, write: Callable[..., dict[str, str | None]], *arguments: Any) -> Any:
        told = write(*arguments)
        for index in self._indexes:
            index.apply(told)

    def _write(self, operation: str, session_id: str | None, wanted: Mapping[str, Any]) -> dict[str, str | None]:
        with self._transaction() as execute:
            facts = self.facts()
            before = json.dumps({id_: facts.get(id_) for id_ in wanted})
            execute("INSERT INTO journal (session, operation, before) VALUES (?, ?, ?)", session_id, operation, before)
            return self._make(execute, wanted)

    def _undo(self, session_id: str, steps: int) -> dict[str, str | None]:
        with self._transaction() as execute:
            sql = "SELECT seq, before FROM journal WHERE session = ? ORDER BY seq DESC LIMIT ?"
            entries = execute(sql, session_id, steps).fetchall()
            before: dict[str, Any] = {}
            for seq, undone in entries:
                before.update(json.loads(undone))
                execute("DELETE FROM journal WHERE seq = ?", seq)
            return self._make(execute, before)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        self._steps("storage: before")
        self._database.execute("BEGIN IMMEDIATE")
        with self._database:
            yield lambda sql, *parameters: self._database.execute(sql, parameters)
            self._steps("storage: inside")
        self._steps("storage: after")

    @staticmethod
    def _make(execute: Callable[..., object], wanted: Mapping[str, Any]) -> dict[str, str | None]:
        for fact_id, fact in wanted.items():
            if fact is None:
                execute("DELETE FROM facts WHERE id = ?", fact_id)
            else:
                execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", fact_id, *fact)
        return {fact_id: fact[1] if fact else None for fact_id, fact in wanted.items()}


class AsyncNaive(Naive):
    """The same with the database in a thread, and a client of the index that is awaited."""

    async def _both(self, write: Callable[..., dict[str, str | None]], *arguments: Any) -> Any:
        told = await asyncio.to_thread(write, *arguments)
        for index in self._indexes:
            await index.apply_async(told)


NAIVE: Final = Candidate("dual writes", Naive, open_async=AsyncNaive)
