"""How a batch's changes of facts become parts of the statement that writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

from memstate_core.facts import FactChange, StoredFact
from memstate_core.filters import ABSENT
from memstate_core.protocols import Batch
from memstate_core.storages._ordinals import LARGEST_TRANSACTION, ordinal
from memstate_core.storages._postgres import tables
from memstate_core.storages._postgres.parts import MANY, Ground, WriteStatement
from memstate_core.storages._postgres.tables import SEQUENCE, key_of, name_of

_F: Final = name_of(tables.FACTS)
_V: Final = name_of(tables.VERSIONS)
_X: Final = name_of(tables.FIELDS)

# The greatest seq that anybody has got, for who may know it: to make an entry takes no right to the sequence.
_LAST: Final = (
    "(SELECT CASE WHEN has_sequence_privilege(s, 'USAGE, SELECT') THEN pg_sequence_last_value(s) END "
    f"FROM (SELECT {SEQUENCE} AS s) q)"
)

# The namespace as the index of ordinals has it.
_IN_ORDER: Final = "f.namespace || '' = $1"

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
_BEFORE_INPUT: Final = (("at", "bigint"), ("was", "bigint"), ("stamp", "bigint"))
# Also one that is the same again must have become so before this transaction got its seq.
_SAME_FACT: Final = (
    "f.ordinal = x.at AND f.version = x.was AND f.stamp = coalesce(x.stamp, f.stamp) AND f.stamp < e.seq"
)
# What a version always has. A place may have to be set anew though it is the same.
_CONTENT: Final = frozenset(StoredFact._fields) - {"id", "version", "singleton"}
_FIELD_INPUT: Final = (
    ("ordinal", "bigint"),
    ("place", "bigint"),
    ("field", "text"),
    ("kind", "smallint"),
    ("number", "numeric"),
    ("text", "text"),
)


def fact_input(fact: StoredFact, place: int) -> tuple[Any, ...]:
    return *fact[:-1], fact.ordinal if fact.ordinal >= 0 else None, place, _is_plain(fact.payload)


def _is_plain(payload: str) -> bool:
    # A NUL, written as an escape, is what JSONB refuses; of other escapes there is nearly none.
    return "\\u" not in payload


# The ordinal before, the change's place, before, after, and the stamp.
_Changed = tuple[int, int, StoredFact, StoredFact, int | None]


def write_facts(made: WriteStatement, batch: Batch, ground: Ground) -> None:
    stamps: dict[str, int | None] = {**ground.selected, **ground.facts}
    new: list[tuple[StoredFact, int]] = []
    changed: list[_Changed] = []
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
            gone.append((before.ordinal, before.version, stamps.get(before.id)))
            cleared.append(before.ordinal)
            touched.append(before.id)
            continue
        if before is None:
            new.append((after, place))
            if not batch.restores and after.id in ground.facts:
                looked_for.append((after.id, after.version))
        else:
            changed.append((before.ordinal, place, before, after, stamps.get(before.id)))
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
            fields.append((after.ordinal if after.ordinal >= 0 else None, place, key, kind, number, text))
    # Transactions on the same facts meet them in the same order; else they would deadlock, and one be run again.
    changed.sort()
    gone.sort()
    befores = [change.before for change in batch.changes if change.before is not None]
    _lock(made, [before.id for before in befores], _kept(batch, ground))
    if new:
        _insert(made, batch, new, looked_for)
    if befores:
        theirs = _archive(made, befores)
    if changed:
        _update(made, batch, changed, theirs)
    if gone:
        source = made.rows(_BEFORE_INPUT, gone, hashed=True)
        made.part(
            "gone",
            f"DELETE FROM {_F} f USING entry e, {source} "
            f"WHERE {theirs} AND {_SAME_FACT}{_after_locks(made)} RETURNING 1",
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
    _check_order(made, _returning(batch), entering(batch.changes))


def _returning(batch: Batch) -> list[str]:
    """Ids of facts that are made, and were there before."""
    return [
        after.id
        for before, after, _ in batch.changes
        if before is None and after is not None and (batch.restores or after.version > 1)
    ]


def entering(changes: Sequence[FactChange]) -> list[str]:
    """Singleton places that facts enter which were not in them."""
    return [
        after.singleton
        for before, after, _ in changes
        if after is not None and after.singleton is not None and (before is None or before.singleton != after.singleton)
    ]


def _check_order(made: WriteStatement, ids: Sequence[str], places: Sequence[str]) -> None:
    """See that ids and places which are taken, and were free, did not become so in a transaction with a greater seq.

    That one would have come and gone while this statement, which has its seq, was waiting, and the journal would have
    the two in the wrong order. It is looked at when they are taken, by a function that sees what is there now, and
    only where anybody has got a greater seq, which a sequence tells everybody at once.
    """
    if not ids and not places:
        return
    seq = "(SELECT seq FROM entry)"
    overtaken = f"{_V.partition('.')[0]}.memstate_overtaken($1, {seq}, {made.array(ids)}, {made.array(places)})"
    made.facts.append(
        f"NOT {overtaken}" if made.shared else f"CASE {seq} WHEN {_LAST} THEN true ELSE NOT {overtaken} END"
    )


def _kept(batch: Batch, ground: Ground) -> list[tuple[str, int]]:
    """Facts that were asked for and stay, with their stamps."""
    if not ground.facts:
        return []
    ids = {change.fact_id for change in batch.changes}
    return [(id_, stamp) for id_, stamp in ground.facts.items() if stamp is not None and id_ not in ids]


def _after_locks(made: WriteStatement) -> str:
    return " AND (SELECT count(*) FROM locked) >= 0" if any(part.startswith("locked ") for part in made.parts) else ""


def _lock(made: WriteStatement, ids: Sequence[str], kept: Sequence[tuple[str, int]]) -> None:
    """Lock those that were only read, and then also the others, in the order of their ids."""
    if not kept:
        return
    wanted = made.array([*ids, *(id_ for id_, _ in kept)])
    made.part(
        "locked",
        f"SELECT f.id, f.stamp FROM {_F} f, entry e WHERE f.namespace = $1 AND f.id = ANY ({wanted}) "
        "ORDER BY f.ordinal FOR UPDATE OF f",
    )
    source = made.rows((("id", "text"), ("stamp", "bigint")), kept, hashed=True)
    made.facts.append(
        f"(SELECT count(*) FROM locked f JOIN {source} ON f.id = x.id AND f.stamp = x.stamp) = {len(kept)}"
    )


def _archived(batch: Batch, new: Sequence[tuple[StoredFact, int]]) -> str:
    """The highest version in the archive of facts that are made: of new ones there is none."""
    if not batch.restores and all(fact.version == 1 for fact, _ in new):
        return "0"
    return f"coalesce((SELECT max(v.version) FROM {_V} v WHERE v.namespace = $1 AND v.id = x.id), 0)"


def _made_by(batch: Batch, fact: str) -> str:
    if not batch.restores:
        return "e.seq"
    return f"(SELECT v.made_by FROM {_V} v WHERE v.namespace = $1 AND v.id = {fact}.id AND v.version = x.version)"


def _insert(
    made: WriteStatement, batch: Batch, new: Sequence[tuple[StoredFact, int]], looked_for: Sequence[tuple[Any, ...]]
) -> None:
    source = made.rows(_FACT_INPUT, [fact_input(fact, place) for fact, place in new])
    made.part(
        "made",
        f"INSERT INTO {_F} (namespace, id, type, payload, source, session_id, ts, version, ephemeral, schema_version, "
        "singleton, ordinal, made_by, stamp, archived, plain) "
        "SELECT $1, x.id, x.type, x.payload, x.source, x.session_id, x.ts, x.version, x.ephemeral, x.schema_version, "
        f"x.singleton, coalesce(x.ordinal, (e.seq << {_SHIFT}) | x.place), {_made_by(batch, 'x')}, e.seq, "
        f"{_archived(batch, new)}, x.plain FROM entry e, {source} RETURNING 1",
    )
    made.facts.append(made.counted("made", len(new)))
    if looked_for:
        _check_unused(made, "made", len(new), looked_for)


def _check_unused(made: WriteStatement, part: str, count: int, versions: Sequence[tuple[Any, ...]]) -> None:
    """See that facts of a part that has just written ``count`` never had these versions.

    Another transaction may have given and taken them back after this statement's snapshot was taken; a volatile
    function sees that, and nobody can do it now that the facts are locked.
    """
    used = f"{_V.partition('.')[0]}.memstate_used"
    source = made.rows((("id", "text"), ("version", "bigint")), versions, "u")
    made.facts.append(
        f"(SELECT count(*) FROM {part} m) = {count} AND NOT EXISTS "
        f"(SELECT 1 FROM {source} WHERE {used}($1, u.id, u.version))"
    )


def _archive(made: WriteStatement, befores: Sequence[StoredFact]) -> str:
    """A version is archived when it stops being the current one; one that came back is in the archive already.

    Returns the condition that a fact ``f`` is one of them. A join with the input says the same, but the planner is for
    reading all facts then, and not always in the same order. Several are looked up by their order, in which those of
    one session are side by side, while ids are all over an index.
    """
    if len(befores) == 1:
        theirs = f"f.namespace = $1 AND f.id = {made.value(befores[0].id)}"
    else:
        ordinals = made.array(sorted([before.ordinal for before in befores]), "bigint")
        theirs = f"{_IN_ORDER} AND f.ordinal = ANY ({ordinals})"
    made.part(
        "archived",
        f"INSERT INTO {_V} ({_ARCHIVED}) SELECT {_ARCHIVED_OF_F} FROM {_F} f, entry e "
        f"WHERE {theirs} AND f.version > f.archived",
    )
    return theirs


def _update(made: WriteStatement, batch: Batch, changed: Sequence[_Changed], theirs: str) -> None:
    kept: frozenset[str] | set[str] = frozenset()
    if len(changed) < MANY:
        rows = [(*fact_input(after, place), at, before.version, stamp) for at, place, before, after, stamp in changed]
        source = made.rows((*_FACT_INPUT, *_BEFORE_INPUT), rows, hashed=True)
    else:
        columns, kept = _columns(changed)
        source = made.many(columns, hashed=True)
    values = {name: f"x.{name}" for name, _ in _FACT_INPUT if name not in ("id", "place")}
    values["ordinal"] = f"coalesce(x.ordinal, (e.seq << {_SHIFT}) | x.place)"
    values |= {"made_by": _made_by(batch, "f"), "stamp": "e.seq", "archived": "greatest(f.archived, f.version)"}
    assigned = ", ".join(f"{name} = {value}" for name, value in values.items() if name not in kept)
    made.part(
        "changed",
        f"UPDATE {_F} f SET {assigned} FROM entry e, {source} "
        f"WHERE {theirs} AND {_SAME_FACT}{_after_locks(made)} RETURNING 1",
    )
    made.facts.append(made.counted("changed", len(changed)))
    unseen = [(after.id, after.version) for _, _, _, after, stamp in changed if stamp is None]
    if unseen and not batch.restores:
        _check_unused(made, "changed", len(changed), unseen)


def _columns(changed: Sequence[_Changed]) -> tuple[list[tuple[tuple[str, str], Sequence[Any]]], set[str]]:
    """What must be given to change many facts, by columns, and the columns that stay as they are in all of them."""
    at, places, befores, afters, stamps = zip(*changed, strict=True)
    before = dict(zip(StoredFact._fields, zip(*befores, strict=True), strict=True))
    given: dict[str, Sequence[Any]] = dict(zip(StoredFact._fields, zip(*afters, strict=True), strict=True))
    kept = {name for name in _CONTENT if before[name] == given[name]}
    if "payload" in kept:
        kept.add("plain")
    else:
        given["plain"] = [_is_plain(payload) for payload in given["payload"]]
    if "ordinal" in kept:
        kept.add("place")
    else:
        given["ordinal"] = [None if known < 0 else known for known in given["ordinal"]]
        given["place"] = places
    given |= {"at": at, "was": before["version"], "stamp": stamps}
    wanted = [column for column in (*_FACT_INPUT[1:], *_BEFORE_INPUT) if column[0] not in kept]
    return [(column, given[column[0]]) for column in wanted], kept


def field_key(namespace: str, typename: str, path: str) -> str:
    """``namespace`` is its key."""
    return key_of(json.dumps([namespace, typename, path], ensure_ascii=False))


def numeric(value: float) -> str:
    """A number as PostgreSQL's numeric has it: exactly."""
    return str(Decimal(value))


_SAME: Final = "(f.kind, f.number, f.text) IS DISTINCT FROM (excluded.kind, excluded.number, excluded.text)"


def _write_fields(made: WriteStatement, fields: Sequence[tuple[Any, ...]], absent: Sequence[tuple[Any, ...]]) -> None:
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


def places_that_swap(changes: Sequence[FactChange]) -> list[str]:
    """Ids of facts that leave a singleton place which another one enters: a unique index minds the order."""
    entering = {
        after.singleton: after.id for _, after, _ in changes if after is not None and after.singleton is not None
    }
    if not entering:
        return []
    return [
        change.before.id
        for change in changes
        if change.before is not None
        and change.before.singleton is not None
        and entering.get(change.before.singleton, change.before.id) != change.before.id
    ]


LEAVE_PLACES: Final = f"""
UPDATE {_F} SET singleton = NULL
WHERE namespace = $1 AND id = ANY ($2::text[])
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
