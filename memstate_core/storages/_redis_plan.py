"""What the script that writes is told: what must still be so, and what then is to be done. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic_core import to_json

from memstate_core.facts import FactChange
from memstate_core.protocols import Batch, Lane
from memstate_core.storages._ordinals import ordinal
from memstate_core.storages._redis_keys import hex_of, session_key
from memstate_core.storages._redis_outbox import put_outbox
from memstate_core.storages._redis_schema import FORMAT
from memstate_core.storages._redis_transaction import RedisTransaction, record_field, savepoint_field
from memstate_core.storages._redis_values import NOWHERE, claim_text, entry_tail, fact_body, where


def assumptions_of(tx: RedisTransaction, lock: str | None, *, strict: bool) -> dict[str, Any]:
    """What the transaction read and believed. ``strict``: nothing at all was written since its first read."""
    plan: dict[str, Any] = {"format": str(FORMAT)}
    if lock is not None:
        plan["lock"] = lock
    if strict and tx.first_stamp is not None:
        plan["stamp"] = tx.first_stamp.decode()
    if tx.positions:
        plan["nowhere"] = NOWHERE
        plan["positions"] = [[key, where(one.head, one.redo)] for key, one in tx.positions.items()]
        plan["generation"] = next(iter(tx.positions.values())).generation
        if any(not one.claimed for one in tx.positions.values()):
            plan["unclaimed"] = True
    if tx.claims_seen:
        plan["claims_seen"] = [[key, raw.decode()] for key, raw in tx.claims_seen.items()]
    if tx.claims_count is not None:
        plan["claims"] = tx.claims_count
    if tx.places_seen:
        plan["places_seen"] = list(tx.places_seen.items())
    if tx.spans_seen:
        plan["spans"] = [[low.decode(), high.decode(), size] for (low, high), size in tx.spans_seen.items()]
    changed = {change.fact_id for change in tx.batch.changes} if tx.batch is not None else ()
    seen = {id_: stamp for id_, stamp in tx.seen.items() if id_ not in changed}  # the others are with their changes
    if seen:
        plan["seen"] = [list(seen), list(seen.values())]
    return plan


def verification(tx: RedisTransaction, lock: str | None) -> bytes:
    """A plan that writes nothing: it finds out whether all that the transaction was told is so at one moment."""
    return to_json(assumptions_of(tx, lock, strict=True))


class Plan(NamedTuple):
    """What to write, as JSON; bodies of facts and transaction; values of records; lanes whose streams it uses."""

    text: bytes
    bodies: bytes
    values: list[bytes]
    lanes: list[Lane]


def plan_of(tx: RedisTransaction, lock: str | None) -> Plan | None:
    """The plan; None when there is nothing to write."""
    writes: dict[str, Any] = {}
    bodies: list[bytes] = []
    values: list[bytes] = []
    lanes: list[Lane] = []
    if tx.batch is not None:
        bodies = _put_batch(writes, tx.batch, tx.seen)
        values = _put_records(writes, tx.batch)
        lanes = put_outbox(writes, tx.batch)
    if tx.described:
        writes["described"] = tx.described
    if tx.lease is not None:
        writes["lease"] = tx.lease
    if not writes:
        return None
    text = to_json({**assumptions_of(tx, lock, strict=tx.strict), **writes, "writes": True})
    return Plan(text, b"".join(bodies), values, lanes)


def _put_batch(plan: dict[str, Any], batch: Batch, seen: Mapping[str, str]) -> list[bytes]:
    """Put what the batch writes into the plan, records and the outbox aside; returns the bodies.

    ``seen`` are the stamps of facts that were read.
    """
    bodies: list[bytes] = []
    if batch.changes:
        ordinal(0, len(batch.changes) - 1)  # refuses more than there are ordinals for
        plan["changes"] = [_change(change, seen.get(change.fact_id), bodies) for change in batch.changes]
        if batch.restores:
            plan["restores"] = True
    if batch.entry is not None:
        entry = batch.entry
        bodies.append(entry_tail(entry, batch.changes).encode())
        plan["entry"] = (
            session_key(entry.session_id),
            hex_of(entry.parent),
            "" if entry.head is None else hex_of(entry.head),
            hex_of(entry.redo),
            entry.mark or "",
            len(bodies[-1]),
        )
    if batch.savepoint is not None:
        session_id, name, seq = batch.savepoint
        plan["savepoint"] = savepoint_field(session_id, name), hex_of(seq)
    if batch.definitions:
        plan["definitions"] = [text for item in batch.definitions.items() for text in item]
    if batch.drop_claims_of is not None:
        plan["drop"] = batch.drop_claims_of
        if batch.dropped is not None:
            plan["dropped"] = batch.dropped
    if batch.claims:
        plan["claim"] = [(claim.key, claim.owner, claim_text(claim)) for claim in batch.claims]
    return bodies


def _put_records(plan: dict[str, Any], batch: Batch) -> list[bytes]:
    """Put records into the plan; returns their values."""
    values: list[bytes] = []
    if batch.records:
        last = {record_field(record.collection, record.key): record.value for record in batch.records}
        plan["records"] = records = []
        for field, value in last.items():
            if value is not None:
                values.append(bytes(value))
            # The values come behind the plan, the number of the attempt and the bodies.
            records.append((field, 0 if value is None else len(values) + 3))
    return values


def _change(change: FactChange, seen: str | None, bodies: list[bytes]) -> tuple[Any, ...]:
    before, after, fields = change
    version = 0 if before is None else before.version
    stamp = () if seen is None else (seen,)
    if after is None:
        return change.fact_id, version, 0, "", False, *stamp
    bodies.append(fact_body(after, fields).encode())
    return (
        after.id,
        version,
        after.version,
        "" if after.ordinal < 0 else f"{after.ordinal:016x}",
        len(bodies[-1]),
        *stamp,
    )
