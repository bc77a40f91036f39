"""How what else is in a batch becomes parts of the statement that writes: outbox, records, definitions, claims."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from memstate_core.protocols import Batch, Settlement
from memstate_core.storages._postgres import tables
from memstate_core.storages._postgres.parts import Ground, WriteStatement
from memstate_core.storages._postgres.tables import key_of, name_of

_C: Final = name_of(tables.CLAIMS)

# So many records, as a checkpoint has, are given one by one, by a statement for each number of them. To make arrays of
# them and to take those apart again takes longer than to write them.
_FEW: Final = 8

_CLAIM_INPUT: Final = (("key", "text"), ("owner", "text"), ("expires", "double precision"), ("hooks", "text"))


def put_into_outbox(made: WriteStatement, batch: Batch) -> None:
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


def settle(made: WriteStatement, settlement: Settlement) -> None:
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


def write_records(made: WriteStatement, batch: Batch, ground: Ground) -> None:
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
        collection, name = made.value(key_of(key[0])), made.value(key[1])
        where = f"namespace = $1 AND collection = {collection} AND key = {name}"
        value = writes.get(key)
        if old is None and value is None:
            made.ground.append(f"NOT EXISTS (SELECT 1 FROM {table} WHERE {where})")
            continue
        if old is None:
            text = (
                f"INSERT INTO {table} (namespace, collection, key, value) SELECT $1, {collection}, {name}, "
                f"{made.value(value, 'bytea')} "
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


def _records(made: WriteStatement, puts: Sequence[tuple[str, str, bytes]]) -> str:
    if len(puts) <= _FEW:
        rows = [
            f"({made.value(key_of(collection))}, {made.value(key)}, {made.value(value, 'bytea')})"
            for collection, key, value in puts
        ]
        return f"(VALUES {', '.join(rows)}) AS x (collection, key, value)"
    columns: list[list[Any]] = [[key_of(one[0]) for one in puts], [one[1] for one in puts], [one[2] for one in puts]]
    typed = zip(columns, ("text[]", "text[]", "bytea[]"), strict=True)
    given = ", ".join(made.value(one, type_) for one, type_ in typed)
    return f"unnest({given}) AS x (collection, key, value)"


def write_definitions(made: WriteStatement, batch: Batch) -> None:
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


def write_claims(made: WriteStatement, batch: Batch, ground: Ground) -> None:
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
            made.claims.append(made.numbered("dropped", batch.dropped))
    free = [key for key, claim in seen.items() if claim is None and key not in keys]
    if free:
        made.ground.append(f"NOT EXISTS (SELECT 1 FROM {_C} WHERE namespace = $1 AND key = ANY ({made.array(free)}))")
