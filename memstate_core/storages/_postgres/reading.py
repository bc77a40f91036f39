"""One transaction that only reads on PostgreSQL, a statement at a time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from pydantic_core import from_json, to_json

from memstate_core.errors import StorageError
from memstate_core.facts import UNSET, ChangedVersions, Entry, IndexEntry, StoredFact, Unset
from memstate_core.filters import BOOLEAN, NULL, STRING, Range, encodes, sort_facts
from memstate_core.protocols import Batch, Claim, Delivery, Lane, LaneState, Position, Record, Savepoint, Selection
from memstate_core.storages._known_records import KnownRecords
from memstate_core.storages._postgres import outbox
from memstate_core.storages._postgres import statements as sql
from memstate_core.storages._postgres.fact_writes import field_key, numeric
from memstate_core.storages._postgres.parts import as_sent, whole
from memstate_core.storages._postgres.ports import Rows
from memstate_core.storages._postgres.positions import Positions
from memstate_core.storages._postgres.tables import Statement, is_digest, key_of, sent, session_key

Ask = Callable[[bytes, Sequence[Any]], Awaitable[Rows]]

WIDTH: Final = len(StoredFact._fields)

_UNLIMITED: Final = 1 << 62
_LEAST_PAGE: Final = 100
_DEEPEST: Final = 200


def _entry(row: Sequence[Any]) -> Entry:
    seq, session_id, parent, head, operation, actor, reason, mark, ts, changes = row
    versions = tuple([ChangedVersions(*change) for change in from_json(changes)])
    return Entry(seq, session_id, parent, seq if head is None else head, operation, actor, reason, mark, ts, versions)


def _claim(row: Sequence[Any]) -> Claim:
    key, owner, expires, hooks = row
    return Claim(key, owner, expires, tuple(json.loads(hooks)))


def fact_of(row: Sequence[Any]) -> StoredFact:
    return StoredFact._make(row[:WIDTH])


class ReadTransaction:
    """What can be read, a statement at a time.

    ``hold`` holds on to one moment from now on, for what takes several statements, and says whether it has only begun
    to; None: what is selected is read by one statement. ``learns`` is told of records that were read, and ``sees`` of
    positions.
    """

    is_serial = False  # ranges that were read are not looked at again
    moment = None

    def __init__(
        self,
        ask: Ask,
        namespace: str,
        prefix: str,
        *,
        documents: bool,
        hold: Callable[[], Awaitable[bool]] | None = None,
        learns: KnownRecords | None = None,
        sees: Positions | None = None,
    ) -> None:
        self._ask_text = ask
        self._learns = learns
        self._sees = sees
        self._name = namespace
        self._hold = hold
        self._namespace = key_of(namespace)
        self._prefix = prefix
        self._documents = documents

    async def _ask(self, statement: Statement, **values: Any) -> Rows:
        values["namespace"] = self._namespace
        given = [as_sent(values[name]) for name in statement.names]
        return await self._ask_text(sent(statement.text, self._prefix), given)

    async def facts(self, ids: Sequence[str]) -> dict[str, StoredFact]:
        if not ids:
            return {}
        rows = await (self._ask(sql.FACT, id=ids[0]) if len(ids) == 1 else self._ask(sql.FACTS_OF, ids=list(ids)))
        return {row[0]: StoredFact._make(row) for row in rows}

    async def latest_versions(self, ids: Sequence[str]) -> dict[str, int]:
        rows = await self._ask(sql.LATEST, ids=list(ids)) if ids else ()
        return {row[0]: row[1] for row in rows}

    async def holders(self, singletons: Sequence[str]) -> dict[str, StoredFact]:
        rows = await self._ask(sql.HOLDERS, places=list(singletons)) if singletons else ()
        facts = map(StoredFact._make, rows)
        return {fact.singleton: fact for fact in facts if fact.singleton is not None}

    async def versions(self, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], StoredFact]:
        if not wanted:
            return {}
        pairs = to_json([{"id": id_, "version": version} for id_, version in wanted]).decode()
        rows = await self._ask(sql.VERSIONS_OF, pairs=pairs)
        found = {(fact.id, fact.version): fact for fact in map(StoredFact._make, rows)}
        return {key: found[key] for key in wanted}

    # Selections

    async def select(self, selection: Selection) -> list[StoredFact]:
        return [fact_of(row) for row in await self._selected(selection)]

    async def _selected(self, selection: Selection) -> list[Sequence[Any]]:
        """The rows of a selection; behind a fact's own columns stand its stamp and its highest archived version."""
        values, shape, residual = self._source(selection)
        limit, offset = selection.limit, selection.offset
        if not residual and not selection.order:
            limited = limit is not None or offset > 0
            statement = sql.selection(False, *shape, limited, "after" in values)
            return list(
                await self._ask(statement, **values, limit=_UNLIMITED if limit is None else limit, offset=offset)
            )
        end = None if limit is None else offset + limit
        if selection.order:
            rows = await self._ask(sql.selection(False, *shape, False, "after" in values), **values)
            by_id = {row[0]: row for row in rows}
            facts = sort_facts(self._matching(map(fact_of, rows), selection), selection.order, selection.decode)
            return [by_id[fact.id] for fact in facts[offset:end]]
        return (await self._first(selection, values, shape, end))[offset:]

    async def _first(
        self, selection: Selection, values: dict[str, Any], shape: tuple[Any, ...], end: int | None
    ) -> list[Sequence[Any]]:
        """The first ``end`` rows that fulfil the predicate, read in pages that grow, and all of one moment."""
        fulfils = selection.predicate
        assert fulfils is not None
        by_payload = shape[-1]
        if by_payload or end is None or self._hold is None:
            rows = await self._ask(sql.selection(False, *shape, False, "after" in values), **values)
            return list(itertools.islice((row for row in rows if fulfils(selection.decode(fact_of(row)))), end))
        statement = sql.selection(False, *shape, True, True)
        found: list[Sequence[Any]] = []
        page = min(max(_LEAST_PAGE, end), _UNLIMITED)
        first = values.pop("after", -1)
        after = first
        while len(found) < end:
            rows = await self._ask(statement, **values, limit=page, offset=0, after=after)
            found.extend(row for row in rows if fulfils(selection.decode(fact_of(row))))
            if len(rows) < page:
                break
            after = rows[-1][WIDTH - 1]
            page = min(page * 2, _UNLIMITED)
            if len(found) < end and await self._hold():
                found, after = [], first  # the first page was of an earlier moment than all others will be
        return found[:end]

    @staticmethod
    def _matching(facts: Iterable[StoredFact], selection: Selection) -> Iterable[StoredFact]:
        predicate = selection.predicate
        return facts if predicate is None else (fact for fact in facts if predicate(selection.decode(fact)))

    async def count(self, selection: Selection) -> int:
        values, shape, residual = self._source(selection)
        if residual:
            return sum(1 for _ in await self._selected(selection))
        rows = await self._ask(sql.selection(True, *shape, False, "after" in values), **values)
        count: int = rows[0][0]
        return count

    def _source(self, selection: Selection) -> tuple[dict[str, Any], tuple[Any, ...], bool]:
        """The values and the shape of the statement, and whether the predicate is still to be asked."""
        values: dict[str, Any] = {}
        session: bool | None = None
        if not isinstance(selection.session_id, Unset):
            session = selection.session_id is not None
            values["session_id"] = selection.session_id
        if selection.typename is not None:
            values["type"] = selection.typename
        if selection.after is not None:
            values["after"] = selection.after
        predicate = selection.predicate
        residual = predicate is not None
        field = None
        documents = False
        range_ = _declared_range(selection)
        if range_ is not None:
            assert predicate is not None
            assert selection.typename is not None
            field = _field_values(self._namespace, range_, selection.typename, values)
            residual = not predicate.decided_by(range_)
        elif predicate is not None and self._documents and selection.as_stored:
            document = _document_of(predicate.ranges)
            if document:
                documents = True
                values["document"] = to_json(document).decode()
        return values, (selection.typename is not None, session, field, documents), residual

    # Journal

    async def position(self, session_id: str | None) -> Position:
        position, latest = await self.real_position(session_id)
        if self._sees is not None:
            self._sees.seen(self._name, session_id, position, latest)
        return position

    async def real_position(self, session_id: str | None) -> tuple[Position, int]:
        """The position, and the seq of the session's last transaction."""
        rows = await self._ask(sql.POSITION, session=session_key(session_id))
        head, redo, latest, generation, claimed = rows[0]
        return Position(head, redo, generation, claimed), latest

    async def entries(self, seqs: Sequence[int]) -> dict[int, Entry]:
        rows = await self._ask(sql.ENTRIES, seqs=list(seqs)) if seqs else ()
        return {row[0]: _entry(row) for row in rows}

    async def line(self, seq: int, *, above: int = 0, limit: int | None = None) -> list[Entry]:
        if limit == 0 or seq <= above:
            return []
        if limit == 1:
            rows = await self._ask(sql.ENTRIES, seqs=[seq])
        else:
            rows = await self._ask(sql.LINE, seq=seq, above=above, limit=_UNLIMITED if limit is None else limit)
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
        session = None if isinstance(session_id, Unset) else session_id is not None
        rows = await self._ask(
            sql.history(session, fact_id is not None, mark is not None, before is not None, limit is not None),
            session_id=session_id,
            fact_id=fact_id,
            mark=mark,
            before=before,
            limit=limit,
        )
        return [_entry(row) for row in rows]

    async def savepoint(self, session_id: str | None, name: str) -> int | None:
        rows = await self._ask(sql.SAVEPOINT, session=session_key(session_id), name=name)
        return rows[0][0] if rows else None

    async def savepoints(self, known: Sequence[str | None]) -> list[Savepoint]:
        whose = {session_key(session_id): session_id for session_id in known}
        found = []
        for session, name, seq in await self._ask(sql.SAVEPOINTS_OF):
            if session in whose:
                found.append(Savepoint(whose[session], name, seq))
            elif not is_digest(session):
                found.append(Savepoint(session[1:] if session else None, name, seq))
        return found

    # The outbox

    async def lanes(self) -> list[LaneState]:
        rows = await self._ask_text(sent(outbox.STATES, self._prefix), (self._namespace,))
        return [outbox.state(row) for row in rows]

    async def deliveries(self, lane: Lane, limit: int) -> list[Delivery]:
        values = (self._namespace, lane.hook, whole(lane.number), whole(limit))
        return [outbox.delivery(row) for row in await self._ask_text(sent(outbox.DELIVERIES, self._prefix), values)]

    async def take_lane(
        self, hooks: Sequence[str], owner: str, now: float, expires: float, *, gone: Sequence[str] = ()
    ) -> Lane | None:
        raise TypeError("take_lane() was called in a transaction that only reads")

    # Records, claims and definitions

    async def namespaces(self) -> list[str]:
        """Of all in the schema."""
        names: list[str] = []
        while (name := (await self._ask(sql.NEXT_NAMESPACE, behind=names[-1] if names else ""))[0][0]) is not None:
            names.append(name)
        if any(map(is_digest, names)):
            raise StorageError(
                "there is a namespace whose name is longer than 200 bytes, and PostgresStorage keeps only a digest of "
                "it; namespaces cannot be listed"
            )
        return names

    async def collections(self) -> list[str]:
        names = [row[0] for row in await self._ask(sql.COLLECTIONS)]
        if any(map(is_digest, names)):
            raise StorageError(
                "there is a collection of records whose name is longer than 200 bytes, and PostgresStorage keeps only "
                "a digest of it; collections cannot be listed"
            )
        return names

    async def record(self, collection: str, key: str, *, is_new: bool = False) -> bytes | None:
        rows = await self._ask(sql.RECORD, collection=key_of(collection), key=key)
        value = bytes(rows[0][1]) if rows else None
        if self._learns is not None:
            self._learns.learn(self._name, {(collection, key): value})
        return value

    async def records(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
        places = {(key_of(collection), key): (collection, key) for collection, key in wanted}
        found = {}
        asked = list(places)
        for start in range(0, len(asked), sql.MOST_RECORDS):
            some = asked[start : start + sql.MOST_RECORDS]
            values: dict[str, str] = {}
            for number, (collection, key) in enumerate(some):
                values[f"collection{number}"], values[f"key{number}"] = collection, key
            for collection, key, value in await self._ask(sql.records(len(some)), **values):
                found[places[collection, key]] = bytes(value)
        if self._learns is not None:
            self._learns.learn(self._name, {place: found.get(place) for place in places.values()})
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
        rows = await self._ask(
            sql.scan(start is not None, end is not None, limit is not None, reverse),
            collection=key_of(collection),
            start=start,
            end=end,
            limit=limit,
        )
        return [Record(key, bytes(value)) for key, value in rows]

    async def claims(self, keys: Sequence[str] | None = None) -> list[Claim]:
        if keys is None:
            rows = await self._ask(sql.ALL_CLAIMS)
        else:
            rows = await self._ask(sql.CLAIMS_ON, keys=list(keys)) if keys else ()
        return [_claim(row) for row in rows]

    async def definitions(self) -> dict[str, str]:
        rows = await self._ask(sql.ALL_DEFINITIONS)
        return {row[0]: row[1] for row in rows}

    async def reindex(
        self, typename: str, compute: Callable[[StoredFact], tuple[str | None, tuple[IndexEntry, ...]]]
    ) -> None:
        raise TypeError("reindex() was called in a transaction that only reads")

    async def write(self, batch: Batch) -> None:
        raise TypeError("write() was called in a transaction that only reads")


def _declared_range(selection: Selection) -> Range | None:
    """The range to narrow by: an equality before any other."""
    if selection.predicate is None or selection.typename is None:
        return None
    usable = [range_ for range_ in selection.predicate.ranges if range_.path in selection.indexed]
    usable.sort(key=lambda range_: (range_.low is None) + (range_.low != range_.high))
    return usable[0] if usable else None


def _field_values(namespace: str, range_: Range, typename: str, values: dict[str, Any]) -> str:
    """Put a range's bounds among the values; returns how they are compared, for the statement's shape."""
    values["field"] = field_key(namespace, typename, range_.path)
    values["kind"] = whole(range_.kind)
    bounds = {"low": range_.low, "high": range_.high}
    column = "text" if any(isinstance(value, str) for value in bounds.values()) else "number"
    values |= {
        name: value if value is None or isinstance(value, str) else numeric(value) for name, value in bounds.items()
    }
    if range_.low is not None and range_.low == range_.high:
        return f"{column}:="
    return f"{column}:{'>' * (range_.low is not None)}{'<' * (range_.high is not None)}"


def _document_of(ranges: Sequence[Range]) -> dict[str, Any]:
    """What the payload of every match contains, as far as JSONB can say: equalities that keys give exactly.

    A number as a part of a path may index a list, which containment does not know. Nor does JSONB know every path: keys
    with a NUL or a lone surrogate, or deeper than JSON is written.
    """
    document: dict[str, Any] = {}
    for path, kind, low, high, exact in ranges:
        parts = path.split(".")
        if not exact or low != high or kind > STRING or any(part.isdigit() for part in parts):
            continue
        if "\0" in path or len(parts) > _DEEPEST or not encodes(path):
            continue
        value = None if kind == NULL else bool(low) if kind == BOOLEAN else low
        at: Any = document
        for part in parts[:-1]:
            at = at.setdefault(part, {}) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at.setdefault(parts[-1], value)
    return document
