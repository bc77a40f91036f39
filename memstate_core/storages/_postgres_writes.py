"""How a batch becomes one statement that writes all of it, or nothing when what it builds on has changed.

Each part is a data-modifying common table expression. Rows that are changed are found by their version and stamp: where
another transaction has changed one since, READ COMMITTED looks at it again when that one has ended, and leaves it out.
So the parts count, and the statement's end compares the counts; where they are not as expected, it casts a word
to a number, which undoes everything and says what was wrong (:data:`GROUND`, :data:`FACTS`, :data:`CLAIMS`).

A session's row comes first and facts by id, so that transactions wait for each other rather than deadlock.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from psycopg.types.numeric import Int8
from pydantic_core import to_json

from memstate_core.facts import FactChange, StoredFact
from memstate_core.filters import ABSENT
from memstate_core.protocols import Batch, Claim, Position, Settlement
from memstate_core.storages import _postgres_tables as tables
from memstate_core.storages._ordinals import LARGEST_TRANSACTION, ordinal
from memstate_core.storages._postgres_tables import key_of, name_of, session_key

# What a refused statement says: where the session stands, definitions or claims; facts; or an owner's claims.
GROUND: Final = "memstate:ground"
FACTS: Final = "memstate:facts"
CLAIMS: Final = "memstate:claims"

_F: Final = name_of(tables.FACTS)
_V: Final = name_of(tables.VERSIONS)
_X: Final = name_of(tables.FIELDS)
_T: Final = name_of(tables.TRANSACTIONS)
_S: Final = name_of(tables.SESSIONS)
_C: Final = name_of(tables.CLAIMS)

_SHIFT: Final = LARGEST_TRANSACTION.bit_length() - 1
_COLUMNS: Final = tuple(column.name for column in tables.VERSIONS.columns)
_ARCHIVED: Final = ", ".join(_COLUMNS)
_ARCHIVED_OF_F: Final = ", ".join(f"f.{name}" for name in _COLUMNS)

_FACT_INPUT: Final = (
    ("id", "text"),
    ("type", "text"),
    ("payload", "text"),
    ("source", "text"),
    ("session_id", "text"),
    ("ts", "text"),
    ("version", "bigint"),
    ("ephemeral", "boolean"),
    ("schema_version", "integer"),
    ("singleton", "text"),
    ("ordinal", "bigint"),
    ("place", "bigint"),
    ("plain", "boolean"),
)
_BEFORE_INPUT: Final = (("was", "bigint"), ("stamp", "bigint"))
_FIELD_INPUT: Final = (
    ("ordinal", "bigint"),
    ("place", "bigint"),
    ("field", "text"),
    ("kind", "smallint"),
    ("number", "numeric"),
    ("text", "text"),
)
_CLAIM_INPUT: Final = (("key", "text"), ("owner", "text"), ("expires", "double precision"), ("hooks", "text"))

Input = Sequence[tuple[str, str]]


@dataclass(slots=True)
class Ground:
    """What a transaction has seen, and relies on when it writes.

    ``positions`` by session, with the seq of the session's last transaction. ``facts`` are the stamps of those that
    were asked for (None: there was no such fact), ``selected`` of those that a selection found, which need not stay if
    they are not changed. ``places`` and the keys of ``claims`` and ``records`` are what was looked for.
    """

    positions: dict[str | None, tuple[Position, int]] = field(default_factory=dict)
    facts: dict[str, int | None] = field(default_factory=dict)
    selected: dict[str, int] = field(default_factory=dict)
    places: set[str] = field(default_factory=set)
    claims: dict[str, Claim | None] = field(default_factory=dict)
    records: dict[tuple[str, str], bytes | None] = field(default_factory=dict)


class _Statement:
    """A statement in the making: its parts, its values, and the conditions that are checked at its end."""

    def __init__(self, namespace: str, *, shared: bool) -> None:
        self.namespace = namespace
        self.values: list[Any] = [namespace]
        self.parts: list[str] = []
        self.ground: list[str] = []
        self.facts: list[str] = []
        self.claims: list[str] = []
        self.shared = shared

    def value(self, value: Any, type_: str = "text") -> str:
        self.values.append(Int8(value) if type(value) is int else value)
        return f"${len(self.values)}::{type_}"

    def array(self, items: Sequence[Any], type_: str = "text") -> str:
        """A list as an array. It goes as JSON: psycopg takes as long to make an array as it takes to use it."""
        item = f"json_array_elements_text({self.value(to_json(items).decode(), 'json')})"
        return f"ARRAY(SELECT {item if type_ == 'text' else f'CAST({item} AS {type_})'})"

    def rows(self, columns: Input, rows: Sequence[Sequence[Any]], name: str = "x") -> str:
        """Rows as a table expression: one by one value each, many as one JSON document."""
        if len(rows) == 1:
            given = zip(columns, rows[0], strict=True)
            values = ", ".join(f"{self.value(value, type_)} AS {column}" for (column, type_), value in given)
            return f"(SELECT {values}) {name}"
        names = [column for column, _ in columns]
        document = to_json([dict(zip(names, row, strict=True)) for row in rows]).decode()
        types = ", ".join(f"{column} {type_}" for column, type_ in columns)
        return f"json_to_recordset({self.value(document, 'json')}) AS {name} ({types})"

    def part(self, name: str, text: str) -> None:
        self.parts.append(f"{name} AS ({text})")

    def counted(self, name: str, count: int) -> str:
        return f"(SELECT count(*) FROM {name}) = {count}"

    def finished(self) -> tuple[str, list[Any]]:
        cases = "".join(
            f" WHEN NOT ({' AND '.join(conditions)}) THEN '{word}'"
            for conditions, word in ((self.claims, CLAIMS), (self.ground, GROUND), (self.facts, FACTS))
            if conditions
        )
        check = f"CAST(CASE{cases} ELSE '0' END AS integer)" if cases else "0"
        return f"WITH {', '.join(self.parts)} SELECT (SELECT seq FROM entry), {check}", self.values


def statement_of(
    batch: Batch, namespace: str, token: str, ground: Ground, latest: int, *, shared: bool
) -> tuple[str, list[Any]]:
    """The statement that writes a batch, and its values; its one row begins with the seq of the entry.

    :param token: the transaction's id, by which it can be found when its reply is lost.
    :param latest: the seq of the last transaction of the entry's session.
    :param shared: lock the namespace's row for as long as the statement takes, where there is no other way to keep
        out a change of the definitions.
    """
    common = _common(batch, namespace, token, ground, latest, shared=shared)
    return common or _built(batch, namespace, token, ground, latest, shared=shared)


def _built(
    batch: Batch, namespace: str, token: str, ground: Ground, latest: int, *, shared: bool
) -> tuple[str, list[Any]]:
    made = _Statement(namespace, shared=shared)
    _check_ground(made, batch, ground)
    _write_entry(made, batch, token, latest)
    if batch.changes or ground.facts:
        _write_facts(made, batch, ground)
    if batch.savepoint is not None:
        session_id, name, seq = batch.savepoint
        made.part(
            "saved",
            f"INSERT INTO {name_of(tables.SAVEPOINTS)} (namespace, session, name, seq) "
            f"SELECT $1, {made.value(session_key(session_id))}, {made.value(name)}, {made.value(seq, 'bigint')} "
            "ON CONFLICT (namespace, session, name) DO UPDATE SET seq = excluded.seq",
        )
    if batch.deferred:
        _put_into_outbox(made, batch)
    if batch.settlement is not None:
        _settle(made, batch.settlement)
    if batch.records or ground.records:
        _write_records(made, batch, ground)
    if batch.definitions:
        _write_definitions(made, batch)
    if batch.claims or batch.drop_claims_of is not None or ground.claims:
        _write_claims(made, batch, ground)
    return made.finished()


_texts: Final[dict[tuple[Any, ...], str]] = {}


def _common(
    batch: Batch, namespace: str, token: str, ground: Ground, latest: int, *, shared: bool
) -> tuple[str, list[Any]] | None:
    """What :func:`_built` would build for a commit of one fact, whose text need not be put together again.

    That is most of what there is to do for the most frequent of all transactions. None: it is another one.
    """
    new = batch.entry
    if (
        new is None
        or not latest
        or len(batch.changes) != 1
        or batch.restores
        or batch.savepoint
        or batch.records
        or batch.definitions
        or batch.claims
        or batch.drop_claims_of is not None
        or batch.deferred
        or batch.settlement
        or ground.claims
        or ground.records
        or ground.selected
        or len(ground.positions) != 1
        or new.session_id not in ground.positions
    ):
        return None
    position = ground.positions[new.session_id][0]
    before, after, entries = batch.changes[0]
    if after is None or position.claimed or len(entries) > 1 or any(entry.kind == ABSENT for entry in entries):
        return None
    if before is None:
        if ground.facts or after.ordinal >= 0:
            return None
    elif before.ordinal != after.ordinal or len(ground.facts) != 1 or ground.facts.get(before.id) is None:
        return None
    shape = (before is None, new.head is None, len(entries), shared)
    text = _texts.get(shape)
    if text is None:
        text = _texts[shape] = _built(batch, namespace, token, ground, latest, shared=shared)[0]
    session_id, operation, actor, reason, mark, ts, parent, head, redo = new
    changes = ((after.id, 0 if before is None else before.version, after.version),)
    values: list[Any] = [
        namespace,
        Int8(position.generation),
        session_key(session_id),
        Int8(latest),
        token,
        session_id,
        Int8(parent),
        None if head is None else Int8(head),
        operation.value,
        actor,
        reason,
        mark,
        ts,
        to_json(changes).decode(),
    ]
    if head is not None:
        values.append(Int8(head))
    values.append(Int8(redo))
    if before is not None:
        values.append(before.id)
    values += [Int8(value) if type(value) is int else value for value in _fact_input(after, 0)]
    known = None if after.ordinal < 0 else Int8(after.ordinal)
    if before is not None:
        values += (Int8(before.version), Int8(ground.facts[before.id]))  # type: ignore[arg-type]
    for path, kind, value in entries:
        number, words = (None, value) if isinstance(value, str) else (numeric(value), None)
        values += (known, Int8(0), field_key(namespace, after.type, path), Int8(kind), number, words)
    return text, values


def _check_ground(made: _Statement, batch: Batch, ground: Ground) -> None:
    """That the sessions whose position was asked for still stand there, and definitions and claims are as they were."""
    first = True
    for session_id, (position, latest) in ground.positions.items():
        if first:
            lock = " FOR SHARE" if made.shared else ""
            made.ground.append(
                f"coalesce((SELECT generation FROM {name_of(tables.NAMESPACES)} WHERE namespace = $1{lock}), 0) = "
                + made.value(position.generation, "bigint")
            )
            if not position.claimed:
                made.ground.append(f"NOT EXISTS (SELECT 1 FROM {_C} WHERE namespace = $1)")
            first = False
        if batch.entry is None or batch.entry.session_id != session_id:
            made.ground.append(
                f"coalesce((SELECT latest FROM {_S} WHERE namespace = $1 AND session = "
                f"{made.value(session_key(session_id))}), 0) = {made.value(latest, 'bigint')}"
            )


def _write_entry(made: _Statement, batch: Batch, token: str, latest: int) -> None:
    """The journal entry, and the head; ``entry`` has the seq for all other parts, or no row when the head has moved."""
    new = batch.entry
    if new is None:
        made.part(
            "entry",
            f"INSERT INTO {name_of(tables.WRITES)} (token) SELECT {made.value(token, 'uuid')} "
            "RETURNING CAST(0 AS bigint) AS seq",
        )
        return
    session = made.value(session_key(new.session_id))
    known = ""
    if latest:
        known = f"namespace = $1 AND session = {session} AND latest = {made.value(latest, 'bigint')}"
        made.part("gate", f"SELECT 1 FROM {_S} WHERE {known} FOR UPDATE")
    changes = [
        (
            (change.after or change.before).id,  # type: ignore[union-attr]
            change.before.version if change.before is not None else 0,
            change.after.version if change.after is not None else 0,
        )
        for change in batch.changes
    ]
    given = ", ".join(
        made.value(value, type_)
        for value, type_ in (
            (token, "uuid"),
            (new.session_id, "text"),
            (new.parent, "bigint"),
            (new.head, "bigint"),
            (new.operation.value, "text"),
            (new.actor, "text"),
            (new.reason, "text"),
            (new.mark, "text"),
            (new.ts, "text"),
            (to_json(changes).decode(), "text"),
        )
    )
    made.part(
        "entry",
        f"INSERT INTO {_T} (namespace, token, session_id, parent, head, operation, actor, reason, mark, ts, changes) "
        f"SELECT $1, {given}{' FROM gate' if latest else ''} RETURNING seq",
    )
    head = "e.seq" if new.head is None else made.value(new.head, "bigint")
    redo = made.value(new.redo, "bigint")
    if latest:
        moved = (
            f"UPDATE {_S} s SET head = {head}, redo = {redo}, latest = e.seq FROM entry e "
            f"WHERE {known} AND latest < e.seq RETURNING 1"
        )
    else:
        moved = (
            f"INSERT INTO {_S} (namespace, session, head, redo, latest) "
            f"SELECT $1, {session}, {head}, {redo}, e.seq FROM entry e "
            "ON CONFLICT (namespace, session) DO NOTHING RETURNING 1"
        )
    made.part("moved", moved)
    made.ground.append(made.counted("moved", 1))


def _fact_input(fact: StoredFact, place: int) -> tuple[Any, ...]:
    # A NUL, written as an escape, is what JSONB refuses; of other escapes there is nearly none.
    plain = "\\u" not in fact.payload
    return *fact[:-1], fact.ordinal if fact.ordinal >= 0 else None, place, plain


def _write_facts(made: _Statement, batch: Batch, ground: Ground) -> None:
    stamps: dict[str, int | None] = {**ground.selected, **ground.facts}
    new: list[tuple[Any, ...]] = []
    changed: list[tuple[Any, ...]] = []
    gone: list[tuple[Any, ...]] = []
    cleared: list[int] = []
    fields: list[tuple[Any, ...]] = []
    absent: list[tuple[Any, ...]] = []
    touched: list[str] = []
    looked_for: list[tuple[Any, ...]] = []
    if len(batch.changes) > LARGEST_TRANSACTION:
        ordinal(0, len(batch.changes) - 1)  # says so
    for place, (before, after, entries) in enumerate(batch.changes):
        if after is None:
            assert before is not None
            gone.append((before.id, before.version, stamps.get(before.id)))
            cleared.append(before.ordinal)
            touched.append(before.id)
            continue
        row = _fact_input(after, place)
        if before is None:
            new.append(row)
            if not batch.restores and after.id in ground.facts:
                looked_for.append((after.id, after.version))
        else:
            changed.append((*row, before.version, stamps.get(before.id)))
            if before.ordinal != after.ordinal:
                cleared.append(before.ordinal)
        if batch.restores:
            touched.append(after.id)
        for path, kind, value in entries:
            key = field_key(made.namespace, after.type, path)
            if kind == ABSENT:
                if before is not None:
                    absent.append((before.ordinal, key))
                continue
            number, text = (None, value) if isinstance(value, str) else (numeric(value), None)
            fields.append((row[10], place, key, kind, number, text))
    # Transactions on the same facts meet them in the same order; else they would deadlock, and one be run again.
    changed.sort()
    gone.sort()
    ids = {change.fact_id for change in batch.changes}
    kept = [(id_, stamp) for id_, stamp in ground.facts.items() if stamp is not None and id_ not in ids]
    _lock(made, [*(row[0] for row in changed), *(row[0] for row in gone)], kept)
    if new:
        _insert(made, batch, new, looked_for)
    if changed or gone:
        theirs = _archive(made, [*(row[0] for row in changed), *(row[0] for row in gone)])
    if changed:
        _update(made, batch, changed, theirs)
    if gone:
        source = made.rows((("id", "text"), *_BEFORE_INPUT), gone)
        made.part(
            "gone",
            f"DELETE FROM {_F} f USING entry e, {source} WHERE f.namespace = $1 AND {theirs} AND f.id = x.id "
            f"AND f.version = x.was AND f.stamp = coalesce(x.stamp, f.stamp){_after_locks(made)} RETURNING 1",
        )
        made.facts.append(made.counted("gone", len(gone)))
    if cleared:
        one = len(cleared) == 1
        condition = made.value(cleared[0], "bigint") if one else f"ANY ({made.array(cleared, 'bigint')})"
        made.part("cleared", f"DELETE FROM {_X} WHERE ordinal = {condition}")
    _write_fields(made, fields, absent)
    if touched:
        source = made.rows((("id", "text"),), [(id_,) for id_ in touched])
        made.part(
            "touched",
            f"INSERT INTO {name_of(tables.TOUCHED)} (namespace, fact_id, seq) "
            f"SELECT $1, x.id, e.seq FROM entry e, {source}",
        )


def _after_locks(made: _Statement) -> str:
    return " AND (SELECT count(*) FROM locked) >= 0" if any(part.startswith("locked ") for part in made.parts) else ""


def _lock(made: _Statement, ids: Sequence[str], kept: Sequence[tuple[str, int]]) -> None:
    """Lock those that were only read, and then also the others, in the order of their ids."""
    if not kept:
        return
    wanted = made.array([*ids, *(id_ for id_, _ in kept)])
    made.part(
        "locked",
        f"SELECT f.id, f.stamp FROM {_F} f, entry e WHERE f.namespace = $1 AND f.id = ANY ({wanted}) "
        "ORDER BY f.id FOR UPDATE OF f",
    )
    if kept:
        source = made.rows((("id", "text"), ("stamp", "bigint")), kept)
        made.facts.append(
            f"(SELECT count(*) FROM locked f JOIN {source} ON f.id = x.id AND f.stamp = x.stamp) = {len(kept)}"
        )


def _made_by(batch: Batch) -> str:
    if not batch.restores:
        return "e.seq"
    return f"(SELECT v.made_by FROM {_V} v WHERE v.namespace = $1 AND v.id = x.id AND v.version = x.version)"


def _insert(
    made: _Statement, batch: Batch, new: Sequence[tuple[Any, ...]], looked_for: Sequence[tuple[Any, ...]]
) -> None:
    source = made.rows(_FACT_INPUT, new)
    made.part(
        "made",
        f"INSERT INTO {_F} (namespace, id, type, payload, source, session_id, ts, version, ephemeral, schema_version, "
        "singleton, ordinal, made_by, stamp, plain) "
        "SELECT $1, x.id, x.type, x.payload, x.source, x.session_id, x.ts, x.version, x.ephemeral, x.schema_version, "
        f"x.singleton, coalesce(x.ordinal, (e.seq << {_SHIFT}) | x.place), {_made_by(batch)}, e.seq, x.plain "
        f"FROM entry e, {source} RETURNING 1",
    )
    made.facts.append(made.counted("made", len(new)))
    if looked_for:
        # The ids are the caller's, so another transaction may have made and removed the fact after this statement's
        # snapshot was taken; a volatile function sees that, and nobody can do it now that the fact is here.
        used = f"{_V.partition('.')[0]}.memstate_used"
        source = made.rows((("id", "text"), ("version", "bigint")), looked_for, "u")
        made.facts.append(
            f"(SELECT count(*) FROM made m) = {len(new)} AND NOT EXISTS "
            f"(SELECT 1 FROM {source} WHERE {used}($1, u.id, u.version))"
        )


def _archive(made: _Statement, ids: Sequence[str]) -> str:
    """A version is archived when it stops being the current one; one that came back is in the archive already.

    Returns the condition that a fact ``f`` is one of them. A join with the input says the same, but the planner is for
    reading all facts then, and not always in the same order.
    """
    theirs = f"f.id = {made.value(ids[0])}" if len(ids) == 1 else f"f.id = ANY ({made.array(ids)})"
    made.part(
        "archived",
        f"INSERT INTO {_V} ({_ARCHIVED}) SELECT {_ARCHIVED_OF_F} FROM {_F} f, entry e "
        f"WHERE f.namespace = $1 AND {theirs} ON CONFLICT (id, namespace, version) DO NOTHING",
    )
    return theirs


def _update(made: _Statement, batch: Batch, changed: Sequence[tuple[Any, ...]], theirs: str) -> None:
    source = made.rows((*_FACT_INPUT, *_BEFORE_INPUT), changed)
    unused = ""
    if not batch.restores and any(row[-1] is None for row in changed):
        unused = (
            f" AND NOT EXISTS (SELECT 1 FROM {_V} v WHERE v.namespace = $1 AND v.id = x.id AND v.version >= x.version)"
        )
    made.part(
        "changed",
        f"UPDATE {_F} f SET type = x.type, payload = x.payload, source = x.source, session_id = x.session_id, "
        "ts = x.ts, version = x.version, ephemeral = x.ephemeral, schema_version = x.schema_version, "
        f"singleton = x.singleton, ordinal = coalesce(x.ordinal, (e.seq << {_SHIFT}) | x.place), "
        f"made_by = {_made_by(batch)}, stamp = e.seq, plain = x.plain FROM entry e, {source} "
        f"WHERE f.namespace = $1 AND {theirs} AND f.id = x.id AND f.version = x.was "
        f"AND f.stamp = coalesce(x.stamp, f.stamp){unused}{_after_locks(made)} RETURNING 1",
    )
    made.facts.append(made.counted("changed", len(changed)))


def field_key(namespace: str, typename: str, path: str) -> str:
    """``namespace`` is its key."""
    return key_of(json.dumps([namespace, typename, path], ensure_ascii=False))


def numeric(value: float) -> str:
    """A number as PostgreSQL's numeric has it: exactly."""
    return str(Decimal(value))


_SAME: Final = "(f.kind, f.number, f.text) IS DISTINCT FROM (excluded.kind, excluded.number, excluded.text)"


def _write_fields(made: _Statement, fields: Sequence[tuple[Any, ...]], absent: Sequence[tuple[Any, ...]]) -> None:
    if fields:
        source = made.rows(_FIELD_INPUT, fields)
        made.part(
            "indexed",
            f"INSERT INTO {_X} AS f (ordinal, field, kind, number, text) "
            f"SELECT coalesce(x.ordinal, (e.seq << {_SHIFT}) | x.place), x.field, x.kind, x.number, x.text "
            f"FROM entry e, {source} ON CONFLICT (ordinal, field) "
            f"DO UPDATE SET kind = excluded.kind, number = excluded.number, text = excluded.text WHERE {_SAME}",
        )
    if absent:
        source = made.rows((("ordinal", "bigint"), ("field", "text")), absent)
        made.part(
            "unindexed",
            f"DELETE FROM {_X} f USING entry e, {source} WHERE f.ordinal = x.ordinal AND f.field = x.field",
        )


def _put_into_outbox(made: _Statement, batch: Batch) -> None:
    source = made.rows(
        (
            ("hook", "text"),
            ("lane", "integer"),
            ("fact_id", "text"),
            ("before", "bigint"),
            ("after", "bigint"),
            ("at", "double precision"),
        ),
        [(*lane, *change, at) for lane, change, at in batch.deferred],
    )
    made.part(
        "deferred",
        f"INSERT INTO {name_of(tables.OUTBOX)} "
        "(namespace, hook, lane, seq, fact_id, before, after, at, attempts, due) "
        f"SELECT $1, x.hook, x.lane, e.seq, x.fact_id, x.before, x.after, x.at, 0, 0 FROM entry e, {source}",
    )


def _settle(made: _Statement, settlement: Settlement) -> None:
    lane, owner, expires, delivered, postponed = settlement
    this = f"namespace = $1 AND hook = {made.value(lane.hook)} AND lane = {made.value(lane.number, 'integer')}"
    kept = f"owner, expires = {made.value(expires, 'double precision')}" if expires else "NULL, expires = 0"
    made.part(
        "held",
        f"UPDATE {name_of(tables.LANES)} SET owner = {kept} WHERE {this} AND owner = {made.value(owner)} RETURNING 1",
    )
    made.claims.append(made.counted("held", 1))
    which = "o.seq = x.seq AND o.fact_id = x.fact_id"
    key = (("seq", "bigint"), ("fact_id", "text"))
    if delivered:
        source = made.rows(key, [(one.seq, one.change.fact_id) for one in delivered])
        made.part("delivered", f"DELETE FROM {name_of(tables.OUTBOX)} o USING {source} WHERE {this} AND {which}")
    if postponed:
        source = made.rows(
            (*key, ("attempts", "integer"), ("due", "double precision"), ("error", "text")),
            [(one.seq, one.change.fact_id, one.attempts, one.due, one.error) for one in postponed],
        )
        made.part(
            "postponed",
            f"UPDATE {name_of(tables.OUTBOX)} o SET attempts = x.attempts, due = x.due, error = x.error "
            f"FROM {source} WHERE {this} AND {which}",
        )


def _write_records(made: _Statement, batch: Batch, ground: Ground) -> None:
    """Records that were read are put or deleted only where they are still the same."""
    table = name_of(tables.RECORDS)
    writes = {(write.collection, write.key): write.value for write in batch.records}
    puts = [(*key, value) for key, value in writes.items() if value is not None and key not in ground.records]
    deletes = [key for key, value in writes.items() if value is None]
    if puts:
        made.part(
            "put",
            f"INSERT INTO {table} (namespace, collection, key, value) SELECT $1, x.collection, x.key, x.value "
            f"FROM {_records(made, puts)} "
            "ON CONFLICT (namespace, collection, key) DO UPDATE SET value = excluded.value",
        )
    if deletes:
        source = made.rows((("collection", "text"), ("key", "text")), [(key_of(one), key) for one, key in deletes])
        made.part(
            "removed",
            f"DELETE FROM {table} r USING {source} "
            "WHERE r.namespace = $1 AND r.collection = x.collection AND r.key = x.key",
        )
    for number, (key, old) in enumerate(ground.records.items()):
        where = f"namespace = $1 AND collection = {made.value(key_of(key[0]))} AND key = {made.value(key[1])}"
        value = writes.get(key)
        if old is None and value is None:
            made.ground.append(f"NOT EXISTS (SELECT 1 FROM {table} WHERE {where})")
            continue
        if old is None:
            text = (
                f"INSERT INTO {table} (namespace, collection, key, value) SELECT $1, {made.value(key_of(key[0]))}, "
                f"{made.value(key[1])}, {made.value(value, 'bytea')} "
                "ON CONFLICT (namespace, collection, key) DO NOTHING RETURNING 1"
            )
        elif value is None:
            text = f"SELECT 1 FROM {table} WHERE {where} AND value = {made.value(old, 'bytea')} FOR UPDATE"
        else:
            text = (
                f"UPDATE {table} SET value = {made.value(value, 'bytea')} "
                f"WHERE {where} AND value = {made.value(old, 'bytea')} RETURNING 1"
            )
        made.part(f"record{number}", text)
        made.ground.append(made.counted(f"record{number}", 1))


def _records(made: _Statement, puts: Sequence[tuple[str, str, bytes]]) -> str:
    columns: list[list[Any]] = [[key_of(one[0]) for one in puts], [one[1] for one in puts], [one[2] for one in puts]]
    if len(puts) == 1:
        return made.rows((("collection", "text"), ("key", "text"), ("value", "bytea")), [[one[0] for one in columns]])
    typed = zip(columns, ("text[]", "text[]", "bytea[]"), strict=True)
    given = ", ".join(made.value(one, type_) for one, type_ in typed)
    return f"unnest({given}) AS x (collection, key, value)"


def _write_definitions(made: _Statement, batch: Batch) -> None:
    source = made.rows((("type", "text"), ("definition", "text")), list(batch.definitions.items()))
    made.part(
        "defined",
        f"INSERT INTO {name_of(tables.DEFINITIONS)} (namespace, type, definition) "
        f"SELECT $1, x.type, x.definition FROM {source} "
        "ON CONFLICT (namespace, type) DO UPDATE SET definition = excluded.definition",
    )
    made.part(
        "raised",
        f"INSERT INTO {name_of(tables.NAMESPACES)} AS n (namespace, generation) SELECT $1, 1 "
        "ON CONFLICT (namespace) DO UPDATE SET generation = n.generation + 1",
    )


def _write_claims(made: _Statement, batch: Batch, ground: Ground) -> None:
    """Claims that were looked at are put only where they are still the same, or still not there."""
    seen = ground.claims
    none_there = any(not position.claimed for position, _ in ground.positions.values())
    new, renewed, others = [], [], []
    for claim in {claim.key: claim for claim in batch.claims}.values():
        row = (claim.key, claim.owner, claim.expires, json.dumps(claim.hooks))
        old = seen.get(claim.key)
        if old is not None:
            renewed.append((*row, old.owner, old.expires))
        elif none_there or claim.key in seen:
            new.append(row)
        else:
            others.append(row)
    keys = [claim.key for claim in batch.claims]
    insert = f"INSERT INTO {_C} (namespace, key, owner, expires, hooks) SELECT $1, x.key, x.owner, x.expires, x.hooks "
    if new:
        made.part(
            "claimed",
            f"{insert}FROM {made.rows(_CLAIM_INPUT, new)} ON CONFLICT (namespace, key) DO NOTHING RETURNING 1",
        )
        made.ground.append(made.counted("claimed", len(new)))
    if others:
        made.part(
            "put_claims",
            f"{insert}FROM {made.rows(_CLAIM_INPUT, others)} ON CONFLICT (namespace, key) "
            "DO UPDATE SET owner = excluded.owner, expires = excluded.expires, hooks = excluded.hooks",
        )
    if renewed:
        source = made.rows((*_CLAIM_INPUT, ("was", "text"), ("ended", "double precision")), renewed)
        made.part(
            "renewed",
            f"UPDATE {_C} c SET owner = x.owner, expires = x.expires, hooks = x.hooks FROM {source} "
            "WHERE c.namespace = $1 AND c.key = x.key AND c.owner = x.was AND c.expires = x.ended RETURNING 1",
        )
        made.ground.append(made.counted("renewed", len(renewed)))
    if batch.drop_claims_of is not None:
        but = f" AND key <> ALL ({made.array(keys)})" if keys else ""
        made.part(
            "dropped",
            f"DELETE FROM {_C} WHERE namespace = $1 AND owner = {made.value(batch.drop_claims_of)}{but} RETURNING 1",
        )
        if batch.dropped is not None:
            made.claims.append(made.counted("dropped", batch.dropped))
    free = [key for key, claim in seen.items() if claim is None and key not in keys]
    if free:
        made.ground.append(f"NOT EXISTS (SELECT 1 FROM {_C} WHERE namespace = $1 AND key = ANY ({made.array(free)}))")


def places_that_swap(changes: Sequence[FactChange]) -> list[str]:
    """Ids of facts that leave a singleton place which another one enters: a unique index minds the order."""
    entering = {
        change.after.singleton: change.after.id
        for change in changes
        if change.after is not None and change.after.singleton is not None
    }
    return [
        change.before.id
        for change in changes
        if change.before is not None
        and change.before.singleton is not None
        and entering.get(change.before.singleton, change.before.id) != change.before.id
    ]


LEAVE_PLACES: Final = f"""
UPDATE {_F} SET singleton = NULL
WHERE namespace = $1 AND id = ANY (ARRAY(SELECT json_array_elements_text($2::json)))
"""
CLEAR_FIELDS: Final = f"""
DELETE FROM {_X} x USING {_F} f WHERE f.namespace = $1 AND f.type = $2 AND x.ordinal = f.ordinal
"""
CLEAR_PLACES: Final = f"UPDATE {_F} SET singleton = NULL WHERE namespace = $1 AND type = $2 AND singleton IS NOT NULL"
SET_PLACES: Final = f"""
UPDATE {_F} f SET singleton = x.singleton FROM json_to_recordset($2::json) AS x (id text, singleton text)
WHERE f.namespace = $1 AND f.id = x.id
"""
SET_FIELDS: Final = f"""
INSERT INTO {_X} (ordinal, field, kind, number, text)
SELECT x.ordinal, x.field, x.kind, x.number, x.text
FROM json_to_recordset($2::json) AS x (ordinal bigint, field text, kind smallint, number numeric, text text)
WHERE $1::text IS NOT NULL
"""
