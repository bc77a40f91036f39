"""One transaction on one SQLite connection: the storage protocol in SQL."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from pydantic_core import from_json

from memstate_core.facts import UNSET, ChangedVersions, Entry, IndexEntry, StoredFact, Unset
from memstate_core.filters import Range, sort_facts
from memstate_core.protocols import (
    Batch,
    Claim,
    Delivery,
    Lane,
    LaneState,
    Position,
    Record,
    Savepoint,
    Selection,
)
from memstate_core.storages._places import refuse_shared_places
from memstate_core.storages._sqlite import outbox
from memstate_core.storages._sqlite import statements as sql
from memstate_core.storages._sqlite.connection import Connection, PlainRows
from memstate_core.storages._sqlite.known import Known
from memstate_core.storages._sqlite.writes import session_key, write_batch, write_fields

T = TypeVar("T")

_PARAMETERS: Final = 400  # so many values go into one statement
_UNLIMITED: Final = 1 << 62


def _entry(row: Sequence[Any]) -> Entry:
    seq, session_id, parent, head, operation, actor, reason, mark, ts, changes = row
    versions = tuple([ChangedVersions(*change) for change in from_json(changes)])
    return Entry(seq, session_id, parent, seq if head is None else head, operation, actor, reason, mark, ts, versions)


def _chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), _PARAMETERS):
        yield values[start : start + _PARAMETERS]


def _marks(count: int, mark: str = "?") -> str:
    return ", ".join([mark] * count)


class SQLiteTransaction:
    """One transaction on one connection; nothing in it ever suspends. ``known`` is what need not be read."""

    __slots__ = (
        "_batch",
        "_connection",
        "_execute",
        "_executemany",
        "_is_checked",
        "_known",
        "_latest",
        "_namespace",
        "has_read_outbox",
    )

    is_serial = True

    def __init__(self, connection: sqlite3.Connection, namespace: str, known: Known | None = None) -> None:
        self._connection: Connection = connection if connection.row_factory is None else PlainRows(connection)
        self._execute = self._connection.execute
        self._executemany = self._connection.executemany
        self._namespace = namespace
        self._known = known
        self._is_checked = False
        self.has_read_outbox = False
        self._batch: Batch | None = None
        # The fact that was read last, and its latest version before the current one, if any.
        self._latest: tuple[str, int | None] = "", None

    def begin(self) -> None:
        """Begin to write."""
        self._execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        version = self._known.commits() if self._known is not None else None
        self._execute("COMMIT")
        if self._known is not None:
            self._known.committed(version, self._namespace, self._batch)

    def _what_is_known(self) -> Known | None:
        if self._known is not None and not self._is_checked:
            self._known.check(self._connection)
            self._is_checked = True
        return self._known

    @property
    def moment(self) -> object:
        known = self._what_is_known()
        return None if known is None else known.moment(self._connection)

    async def facts(self, ids: Sequence[str]) -> dict[str, StoredFact]:
        if len(ids) == 1:
            if self._known is not None:
                return self._fact_to_be_changed(ids[0])
            row = self._execute(sql.SELECT_FACT, (self._namespace, ids[0])).fetchone()
            return {} if row is None else {row[0]: StoredFact._make(row)}
        if not ids:
            return {}
        rows = self._execute(sql.SELECT_FACTS, (self._namespace, json.dumps(list(ids))))
        return {row[0]: StoredFact._make(row) for row in rows}

    def _fact_to_be_changed(self, fact_id: str) -> dict[str, StoredFact]:
        row = self._execute(sql.SELECT_FACT_AND_LATEST, (self._namespace, fact_id) * 2).fetchone()
        if row is None:
            return {}
        self._latest = fact_id, row[-1]
        return {fact_id: StoredFact._make(row[:-1])}

    async def latest_versions(self, ids: Sequence[str]) -> dict[str, int]:
        if len(ids) == 1:
            if ids[0] == self._latest[0]:
                return {ids[0]: self._latest[1]} if self._latest[1] else {}
            version = self._execute(sql.SELECT_LATEST, (self._namespace, ids[0])).fetchone()[0]
            return {ids[0]: version} if version else {}
        return dict(self._execute(sql.SELECT_LATEST_OF_MANY, (self._namespace, json.dumps(list(ids)))).fetchall())

    async def holders(self, singletons: Sequence[str]) -> dict[str, StoredFact]:
        found = {}
        for place in singletons:
            row = self._execute(sql.SELECT_HOLDER, (self._namespace, place)).fetchone()
            if row is not None:
                found[place] = StoredFact._make(row)
        return found

    async def versions(self, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], StoredFact]:
        found = {}
        for id_, version in wanted:
            row = self._execute(sql.SELECT_VERSION, (self._namespace, id_, version) * 2).fetchone()
            found[id_, version] = StoredFact._make(row)
        return found

    async def select(self, selection: Selection) -> list[StoredFact]:
        source, parameters, residual = self._source(selection)
        text = f"SELECT {sql.FACT_OF_F} FROM {source} ORDER BY f.row"
        end = None if selection.limit is None else selection.offset + selection.limit
        if not residual and not selection.order and (end is not None or selection.offset):
            text += " LIMIT ? OFFSET ?"
            parameters += [_UNLIMITED if selection.limit is None else selection.limit, selection.offset]
            return [StoredFact._make(row) for row in self._execute(text, parameters)]
        found: list[StoredFact] = []
        cursor = self._execute(text, parameters)
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
            text = "memstate_facts f WHERE f.namespace = ?"
            if selection.typename is None and isinstance(selection.session_id, Unset):
                # Rows are in the order wanted; an index on the namespace alone would have them sorted, all of them.
                text = "memstate_facts f NOT INDEXED WHERE f.namespace = ?"
            parameters = [self._namespace]
            if selection.typename is not None:
                text += " AND f.type = ?"
                parameters.append(selection.typename)
            residual = selection.predicate is not None
        else:
            assert selection.predicate is not None
            text = (
                "memstate_fields x CROSS JOIN memstate_facts f ON f.row = x.row "
                "WHERE x.namespace = ? AND x.type = ? AND x.path = ? AND x.kind = ?"
            )
            parameters = [self._namespace, selection.typename, range_.path, range_.kind]
            if range_.low is not None and range_.low == range_.high:
                text += " AND x.value = ?"
                parameters.append(range_.low)
            else:
                for bound, comparison in ((range_.low, ">="), (range_.high, "<=")):
                    if bound is not None:
                        text += f" AND x.value {comparison} ?"
                        parameters.append(bound)
            residual = not selection.predicate.decided_by(range_)
        if not isinstance(selection.session_id, Unset):
            text += " AND f.session_id IS ?"
            parameters.append(selection.session_id)
        if selection.after is not None:
            text += " AND f.row > ?"
            parameters.append(selection.after)
        return text, parameters, residual

    @staticmethod
    def _range(selection: Selection) -> Range | None:
        """The range to narrow by: an equality before any other."""
        if selection.predicate is None or selection.typename is None:
            return None
        usable = [range_ for range_ in selection.predicate.ranges if range_.path in selection.indexed]
        usable.sort(key=lambda range_: (range_.low is None) + (range_.low != range_.high))
        return usable[0] if usable else None

    async def position(self, session_id: str | None) -> Position:
        known = self._what_is_known()
        position = known.position(self._namespace, session_id) if known is not None else None
        if position is not None:
            return position
        row = self._execute(
            sql.SELECT_POSITION, (self._namespace, self._namespace, session_key(session_id), self._namespace)
        ).fetchone()
        position = Position(row[0], row[1], row[2], bool(row[3]))
        if known is not None:
            known.stands(self._namespace, session_id, position)
        return position

    async def entries(self, seqs: Sequence[int]) -> dict[int, Entry]:
        found: dict[int, Entry] = {}
        for some in _chunks(list(seqs)):
            rows = self._execute(
                f"SELECT {sql.ENTRY} FROM memstate_transactions t WHERE namespace = ? AND seq IN ({_marks(len(some))})",
                (self._namespace, *some),
            )
            found.update((row[0], _entry(row)) for row in rows)
        return found

    async def line(self, seq: int, *, above: int = 0, limit: int | None = None) -> list[Entry]:
        if limit == 0 or seq <= above:
            return []
        if limit == 1:
            return [_entry(row) for row in self._execute(sql.SELECT_ENTRY, (seq, self._namespace))]
        rows = self._execute(
            sql.SELECT_LINE, (seq, self._namespace, above, above, _UNLIMITED if limit is None else limit)
        )
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
            end = _UNLIMITED if before is None else before
            session = (
                end,
                self._namespace,
                session_id,
                self._namespace,
                session_key(session_id),
                end,
                most,
                end,
                most,
            )
            return [_entry(row) for row in self._execute(sql.SELECT_OF_SESSION, session)]
        text = f"SELECT {sql.ENTRY} FROM memstate_transactions t WHERE t.namespace = ?"
        parameters: list[Any] = [self._namespace]
        if fact_id is not None:
            text = (
                f"SELECT {sql.ENTRY} FROM ({sql.CHANGED_BY}) o CROSS JOIN memstate_transactions t ON t.seq = o.seq "
                "WHERE t.namespace = ?"
            )
            parameters = [*(self._namespace, fact_id) * 3, self._namespace]
        if not isinstance(session_id, Unset):
            text += " AND t.session_id IS ?"
            parameters.append(session_id)
        if mark is not None:
            text += " AND t.mark = ?"
            parameters.append(mark)
        if before is not None:
            text += " AND t.seq < ?"
            parameters.append(before)
        text += " ORDER BY t.seq DESC LIMIT ?"
        parameters.append(most)
        return [_entry(row) for row in self._execute(text, parameters)]

    async def savepoint(self, session_id: str | None, name: str) -> int | None:
        row = self._execute(
            "SELECT seq FROM memstate_savepoints WHERE namespace = ? AND session = ? AND name = ?",
            (self._namespace, session_key(session_id), name),
        ).fetchone()
        return None if row is None else row[0]

    async def savepoints(self, known: Sequence[str | None]) -> list[Savepoint]:
        rows = self._execute(
            "SELECT session, name, seq FROM memstate_savepoints WHERE namespace = ?", (self._namespace,)
        )
        return [Savepoint(session[1:] if session else None, name, seq) for session, name, seq in rows]

    async def namespaces(self) -> list[str]:
        """Of the whole file."""
        names: list[str] = []
        while (
            name := self._execute(sql.SELECT_NEXT_NAMESPACE, (names[-1] if names else "",)).fetchone()[0]
        ) is not None:
            names.append(name)
        return names

    async def collections(self) -> list[str]:
        return [row[0] for row in self._execute(sql.SELECT_COLLECTIONS, (self._namespace,) * 2)]

    async def record(self, collection: str, key: str, *, is_new: bool = False) -> bytes | None:
        if self._known is not None and not is_new:
            return (await self.records([(collection, key)])).get((collection, key))
        row = self._execute(sql.SELECT_RECORD, (self._namespace, collection, key)).fetchone()
        return None if row is None else row[0]

    async def records(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
        known = self._what_is_known()
        values = known.records(self._namespace, wanted) if known is not None else None
        if values is not None:
            return {place: value for place, value in values.items() if value is not None}
        found: dict[tuple[str, str], bytes] = {}
        for start in range(0, len(wanted), sql.MOST_RECORDS):
            some = wanted[start : start + sql.MOST_RECORDS]
            parameters = [value for place in some for value in (self._namespace, *place)]
            found.update((some[row[0]], row[1]) for row in self._execute(sql.select_records(len(some)), parameters))
        if known is not None:
            known.learn(self._namespace, [(place, found.get(place)) for place in wanted])
        return found

    async def scan(
        self,
        collection: str,
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Record]:
        text = "SELECT key, value FROM memstate_records WHERE namespace = ? AND collection = ?"
        parameters: list[Any] = [self._namespace, collection]
        for bound, comparison in ((start, ">="), (end, "<")):
            if bound is not None:
                text += f" AND key {comparison} ?"
                parameters.append(bound)
        text += f" ORDER BY key {'DESC' if reverse else 'ASC'} LIMIT ?"
        parameters.append(_UNLIMITED if limit is None else limit)
        return [Record._make(row) for row in self._execute(text, parameters)]

    async def lanes(self) -> list[LaneState]:
        return outbox.lanes(self._connection, self._namespace)

    async def deliveries(self, lane: Lane, limit: int) -> list[Delivery]:
        self.has_read_outbox = True
        return outbox.deliveries(self._connection, self._namespace, lane, limit)

    async def take_lane(
        self, hooks: Sequence[str], owner: str, now: float, expires: float, *, gone: Sequence[str] = ()
    ) -> Lane | None:
        return outbox.take_lane(self._connection, self._namespace, hooks, owner, now, expires, gone)

    async def claims(self, keys: Sequence[str] | None = None) -> list[Claim]:
        known = self._what_is_known()
        if keys is not None and known is not None and known.is_free(self._namespace, keys):
            return []
        text = "SELECT key, owner, expires, hooks FROM memstate_claims WHERE namespace = ?"
        rows: Iterable[Any]
        if keys is None:
            rows = self._execute(text, (self._namespace,))
        else:
            rows = [
                row
                for some in _chunks(list(keys))
                for row in self._execute(f"{text} AND key IN ({_marks(len(some))})", (self._namespace, *some))
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
        facts = [
            StoredFact._make(row)
            for row in self._execute(
                f"SELECT {sql.FACT} FROM memstate_facts WHERE namespace = ? AND type = ? ORDER BY row",
                (self._namespace, typename),
            )
        ]
        described = [(fact, *compute(fact)) for fact in facts]
        refuse_shared_places((fact.id, place) for fact, place, _ in described)
        self._execute(
            "UPDATE memstate_facts SET singleton = NULL WHERE namespace = ? AND type = ?", (self._namespace, typename)
        )
        self._execute("DELETE FROM memstate_fields WHERE namespace = ? AND type = ?", (self._namespace, typename))
        self._executemany(
            "UPDATE memstate_facts SET singleton = ? WHERE row = ?",
            [(place, fact.ordinal) for fact, place, _ in described if place is not None],
        )
        write_fields(self._connection, self._namespace, [(fact, entries) for fact, _, entries in described])

    async def write(self, batch: Batch) -> None:
        write_batch(self._connection, self._namespace, batch)
        self._batch = batch
