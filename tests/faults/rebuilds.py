"""Processes that write, and that rebuild the index beside them, for ``test_rebuilds.py``."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from memstate_core import Change, ConflictError, Fact, HookError, MemoryStore, NotFoundError
from tests.faults.indexes import Content, FileIndex
from tests.faults.places import Place

T = TypeVar("T")


class Gone(Exception):
    """The table is not there any more."""


class NamedTables(FileIndex):
    """An index as servers have them: a table whose name can be changed, and handles on it that do not notice.

    ``at(step)`` is called between the requests that a swap takes, of which each is atomic and the whole is not.
    """

    def __init__(self, path: Path, called: str = "notes", at: Callable[[str], None] = lambda step: None) -> None:
        super().__init__(path)
        self._called = called
        self._at_step = at
        self._handle: int | None = None
        self._follows = True
        self._execute("CREATE TABLE IF NOT EXISTS tables (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")

    # Requests
    def _request(self, sql: str, *parameters: Any) -> list[Any]:
        while True:
            handle = self._open() if self._handle is None else self._handle
            self._handle = handle
            try:
                return self._execute(sql.replace("entries", f"entries_{handle}"), *parameters)
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
                if not self._follows:
                    raise Gone from error
                self._handle = None

    def _open(self) -> int:
        """The handle of the table of our name; what a swap that went no further has left comes back."""
        while True:
            if found := self._execute("SELECT id FROM tables WHERE name = ?", self._called):
                return int(found[0][0])
            with contextlib.suppress(sqlite3.IntegrityError):
                sql = "UPDATE tables SET name = ? WHERE name = ? RETURNING id"
                if not self._execute(sql, self._called, f"{self._called}.old"):
                    self._make_table(self._called)

    def _make_table(self, name: str) -> int:
        with self._transaction() as connection:
            handle = connection.execute("INSERT INTO tables (name) VALUES (?)", (name,)).lastrowid
            connection.execute(f"CREATE TABLE entries_{handle} (id TEXT PRIMARY KEY, version INTEGER, payload TEXT)")
        assert handle is not None
        return handle

    def _remove(self, name: str) -> None:
        """At once: who still had a handle on a table without a name would write to it for ever."""
        with self._transaction() as connection:
            connection.execute("BEGIN IMMEDIATE")
            for (handle,) in connection.execute("SELECT id FROM tables WHERE name = ?", (name,)).fetchall():
                connection.execute("DELETE FROM tables WHERE id = ?", (handle,))
                connection.execute(f"DROP TABLE entries_{handle}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._path, timeout=100)) as connection, connection:
            connection.execute("PRAGMA synchronous = OFF")
            yield connection

    # The hook
    def beside(self) -> Self:
        self._open()
        self._remove(f"{self._called}.new")
        hook = type(self)(self._path, self._called, self._at_step)
        hook._handle, hook._follows = self._make_table(f"{self._called}.new"), False
        return hook

    def swap(self, beside: NamedTables) -> None:
        self._open()
        self._remove(f"{self._called}.old")
        while True:
            self._at_step("away")
            # Somebody may find the name free, before it is taken again, and bring the old table back.
            self._execute("UPDATE tables SET name = ? WHERE name = ?", f"{self._called}.old", self._called)
            self._at_step("in between")
            with contextlib.suppress(sqlite3.IntegrityError):
                sql = "UPDATE tables SET name = ? WHERE id = ? RETURNING id"
                if not self._execute(sql, self._called, beside._handle):
                    self._open()
                    raise Gone
                break
        self._at_step("in place")
        self.settle()
        self._at_step("swapped")

    def settle(self) -> None:
        self._handle = self._open()
        self._remove(f"{self._called}.old")

    def content(self) -> Content:
        rows = self._request("SELECT id, version, payload FROM entries")
        return {id_: (version, json.loads(payload)) for id_, version, payload in rows}

    def lookup(self, ids: Sequence[str]) -> dict[str, int]:
        sql = "SELECT id, version FROM entries WHERE id IN (SELECT value FROM json_each(?))"
        return dict(self._request(sql, json.dumps(list(ids))))

    def _make(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.after is None:
                self._request("DELETE FROM entries WHERE id = ?", change.fact_id)
            else:
                payload = json.dumps(change.after.payload)
                sql = "INSERT OR REPLACE INTO entries VALUES (?, ?, ?)"
                self._request(sql, change.fact_id, change.after.version, payload)


def index(directory: str | Path, at: Callable[[str], None] = lambda step: None) -> NamedTables:
    return NamedTables(Path(directory) / "index.db", at=at)


def open_store(directory: str | Path, hook: NamedTables | None = None) -> MemoryStore:
    return MemoryStore(
        Place.of(directory).storage(), [hook or index(directory)], allow_unregistered=True, claim_timeout=60, lease=5
    )


def write(directory: str, seed: int) -> None:
    """Write until killed: facts of one's own, and one that is shared; some of it fails, some is rolled back."""
    rng = random.Random(seed)
    hook = index(directory)
    store = open_store(directory, hook)

    def refuse(step: str, changes: Sequence[Change]) -> None:
        if step == "after" and rng.random() < 0.2:
            hook.fault = None
            raise OSError("refused")

    for count in itertools.count():
        hook.fault = refuse if rng.random() < 0.3 else None
        id_ = "shared" if rng.random() < 0.2 else f"{seed}-{rng.randrange(20)}"
        with contextlib.suppress(HookError, ConflictError, NotFoundError):
            store.commit(Fact("note", {"text": f"{seed} {count}"}, id=id_, session_id=f"s{seed}"))
            if rng.random() < 0.2:
                store.delete(id_)
            elif rng.random() < 0.2:
                store.rollback(f"s{seed}")
        time.sleep(rng.random() * 0.003)


def rebuild(directory: str, step: str, linger: bool) -> None:
    """Rebuild until killed; at a step of the first swap, tell of it and wait for that."""

    def at(here: str) -> None:
        if here == step:
            (Path(directory) / "reached").write_text(here)
            if linger:
                time.sleep(60)

    store = open_store(directory)
    while True:
        store.reindex(into=index(directory, at))
        (Path(directory) / "rebuilt").touch()


def rebuild_once(directory: str) -> None:
    open_store(directory).reindex(into=index(directory))


def check(directory: str) -> None:
    """What the next process finds: an index that answers, and, once it has used it, that is what storage says."""
    store = open_store(directory)
    while store.recover().in_doubt:
        time.sleep(0.01)
    facts = {fact["id"]: fact["version"] for fact in store.query()}
    assert index(directory).scan() == facts
    assert not any(store.verify())
    assert {found.fact.id for found in store.search("", 1000)} == facts.keys()
    store.commit(Fact("note", {"text": "goes on"}, id="checked"))
    assert "checked" in index(directory).scan()
