"""Memory, and the least that it takes there."""

from __future__ import annotations

import json
import threading
import uuid
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import BaseModel

from benchmarks.storages import StorageKind
from benchmarks.workload import TYPES, Preference, Setting, check_name, payload_of

if TYPE_CHECKING:
    from memstate_core.protocols import Storage


class _Row(NamedTuple):
    id: str
    type: str
    payload: str
    source: str | None
    session_id: str | None
    ts: str
    version: int
    ephemeral: bool
    made_by: int

    def to_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "payload": json.loads(self.payload)}


class _Entry(NamedTuple):
    seq: int
    session_id: str
    parent: int
    head: int
    operation: str
    actor: str | None
    reason: str | None
    mark: str | None
    ts: str
    changes: Sequence[tuple[_Row | None, _Row | None]]


class MemoryFloor:
    """Dictionaries, a list and a lock: facts, the indexes that the operations need, journal and heads.

    The history of a session and of a fact can be read without looking through the journal: the one from its list, the
    other from ``made_by`` and, from the second change on, ``touched``. There are no namespaces, no declared types but
    the three of the workload, no hooks; and nothing is undone when an operation fails midway.

    What the conformance kit demands of every call is done here too, for no store could leave it out: the session's id
    is checked, an instance is validated as it is now (:func:`~benchmarks.workload.payload_of`), the journal says who,
    why, under which mark and where the head went, no version number is given to a fact twice, what is undone leaves its
    indexes, and a rollback that is refused has changed nothing.
    """

    def __init__(self) -> None:
        self._facts: dict[str, _Row] = {}
        self._by_type: dict[str, dict[str, None]] = defaultdict(dict)
        self._by_session: dict[str | None, dict[str, None]] = defaultdict(dict)
        self._topics: dict[str, dict[str, None]] = defaultdict(dict)
        self._settings: dict[str, str] = {}
        self._journal: list[_Entry] = []
        self._lines: dict[str, list[int]] = defaultdict(list)
        self._touched: dict[str, list[int]] = defaultdict(list)
        self._versions: dict[str, int] = {}  # the highest that a fact ever had, once it was changed
        self._heads: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def commit(self, model: BaseModel, session_id: str) -> str:
        """The fact and its index entries, a journal entry and the head are put in their places. A setting replaces the
        one of its name.
        """
        check_name(session_id)
        payload = payload_of(model)
        fact_id, typename, ts = str(uuid.uuid4()), TYPES[type(model)], datetime.now(UTC).isoformat()
        with self._lock:
            row = _Row(fact_id, typename, payload, None, session_id, ts, 1, False, len(self._journal) + 1)
            before = None
            if isinstance(model, Setting):
                before = self._facts.get(self._settings.setdefault(model.name, fact_id))
                if before is not None:
                    row = row._replace(id=before.id, version=self._next_version(before), made_by=before.made_by)
                    del self._by_session[before.session_id][before.id]
                    self._touched[before.id].append(len(self._journal) + 1)
            elif isinstance(model, Preference):
                self._topics[model.topic][fact_id] = None
            self._facts[row.id] = row
            self._by_type[row.type][row.id] = None
            self._by_session[session_id][row.id] = None
            self._record(session_id, "COMMIT", ts, [(before, row)])
        return row.id

    def _record(
        self,
        session_id: str,
        operation: str,
        ts: str,
        changes: Sequence[tuple[_Row | None, _Row | None]],
        back_to: int | None = None,
    ) -> None:
        parent = self._heads.get(session_id, (0, 0))[0]
        seq = len(self._journal) + 1
        head, redo = (seq, 0) if back_to is None else (back_to, parent)
        self._journal.append(_Entry(seq, session_id, parent, head, operation, None, None, None, ts, changes))
        self._lines[session_id].append(seq)
        self._heads[session_id] = head, redo

    def _next_version(self, row: _Row) -> int:
        version = self._versions[row.id] = self._versions.get(row.id, row.version) + 1
        return version

    def get(self, fact_id: str) -> dict[str, Any] | None:
        """One look, between transactions; the payload is decoded."""
        with self._lock:
            row = self._facts.get(fact_id)
        return None if row is None else row.to_dict()

    def query(self, topic: str) -> list[dict[str, Any]]:
        """One look into the index that the workload needs."""
        with self._lock:
            rows = [self._facts[id_] for id_ in self._topics.get(topic, ())]
        return [row.to_dict() for row in rows]

    def rollback(self, session_id: str, steps: int) -> list[dict[str, Any]]:
        """Up the journal from the head; each fact that is still as the session left it is put back or taken out."""
        check_name(session_id)
        undone: list[_Entry] = []
        with self._lock:
            seq = self._heads[session_id][0]
            while seq and len(undone) < steps:
                undone.append(self._journal[seq - 1])
                seq = undone[-1].parent
            back: dict[str, _Row | None] = {}
            for entry in undone:
                for before, after in entry.changes:
                    fact_id = (after or before).id  # type: ignore[union-attr]
                    if back.get(fact_id, self._facts.get(fact_id)) is not after:
                        raise RuntimeError("another session has changed one of the facts")
                    back[fact_id] = before
            changes = [(self._facts.get(fact_id), row) for fact_id, row in back.items()]
            for gone, row in changes:
                if gone is not None:
                    self._take_out(gone)
                if row is not None:
                    self._put_back(row)
            self._record(session_id, "ROLLBACK", datetime.now(UTC).isoformat(), changes, back_to=seq)
        return [
            {
                **entry._asdict(),
                "ts": datetime.fromisoformat(entry.ts),
                "changes": [
                    {"before": before and before.to_dict(), "after": after and after.to_dict()}
                    for before, after in entry.changes
                ],
            }
            for entry in undone
        ]

    def _take_out(self, row: _Row) -> None:
        del self._facts[row.id]
        del self._by_type[row.type][row.id]
        del self._by_session[row.session_id][row.id]
        self._versions.setdefault(row.id, row.version)
        self._touched[row.id].append(len(self._journal) + 1)
        if row.type == "preference":
            del self._topics[json.loads(row.payload)["topic"]][row.id]
        elif row.type == "setting":
            del self._settings[json.loads(row.payload)["name"]]

    def _put_back(self, row: _Row) -> None:
        self._facts[row.id] = row
        self._by_type[row.type][row.id] = None
        self._by_session[row.session_id][row.id] = None
        if row.type == "preference":
            self._topics[json.loads(row.payload)["topic"]][row.id] = None
        elif row.type == "setting":
            self._settings[json.loads(row.payload)["name"]] = row.id

    def promote(self, session_id: str) -> list[str]:
        """Every fact of the session that is not ephemeral is replaced by one without a session; one journal entry; the
        head.
        """
        check_name(session_id)
        ts = datetime.now(UTC).isoformat()
        with self._lock:
            ids = [id_ for id_ in self._by_session.get(session_id, ()) if not self._facts[id_].ephemeral]
            changes = []
            for id_ in ids:
                before = self._facts[id_]
                version = self._next_version(before)
                after = self._facts[id_] = before._replace(session_id=None, ts=ts, version=version)
                del self._by_session[session_id][id_]
                self._by_session[None][id_] = None
                self._touched[id_].append(len(self._journal) + 1)
                changes.append((before, after))
            self._record(session_id, "PROMOTE", ts, changes)
        return ids

    def close(self) -> None:
        """Nothing to close."""


def _open(_: Path) -> Storage:
    from memstate_core import InMemoryStorage

    return InMemoryStorage()


def _open_async(_: Path) -> Storage:
    from memstate_core import AsyncInMemoryStorage

    return AsyncInMemoryStorage()


MEMORY: Final = StorageKind(
    "memory",
    floor=lambda _: MemoryFloor(),
    storage=_open,
    async_storage=_open_async,
    floor_needs_thread=False,
    targets={
        "commit, new": 2.0,
        "commit, singleton": 2.0,
        "get": 1.5,
        "query on a declared index": 2.0,
        "rollback of 1": 2.5,
        "rollback of 100": 2.0,
        "promote 100 facts": 2.0,
    },
)
