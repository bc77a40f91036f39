"""What the script that writes is told: what must still be so, and what then is to be done. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from pydantic_core import to_json

from memstate_core.facts import StoredFact
from memstate_core.protocols import Batch, Lane
from memstate_core.storages._ordinals import ordinal
from memstate_core.storages._redis.journal import savepoint_field
from memstate_core.storages._redis.keys import hex_of, session_key
from memstate_core.storages._redis.outbox import put_outbox
from memstate_core.storages._redis.records import record_field
from memstate_core.storages._redis.schema import FORMAT
from memstate_core.storages._redis.transaction import RedisTransaction
from memstate_core.storages._redis.values import (
    NOWHERE,
    claim_text,
    content_length,
    entry_tail,
    fact_content,
    fact_head,
    where,
)

# The values come behind the plan, the number of the attempt and the bodies.
_BEFORE_VALUES: Final = 3


def assumptions_of(
    tx: RedisTransaction, lock: str | None, *, strict: bool, changed: Iterable[str] = ()
) -> dict[str, Any]:
    """What the transaction read and believed, except of the facts that are ``changed``.

    ``strict``: nothing at all was written since its first read.
    """
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
    unchanged = list(tx.seen.keys() - changed)
    if unchanged:
        plan["seen"] = [unchanged, [tx.seen[id_] for id_ in unchanged]]
    return plan


def verification(tx: RedisTransaction, lock: str | None) -> Plan:
    """A plan that writes nothing: it finds out whether all that the transaction was told is so at one moment."""
    assumed = assumptions_of(tx, lock, strict=True)
    values: list[bytes] = []
    _put_seen_records(assumed, tx, values)
    return Plan(to_json(assumed), b"", values, [])


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
        bodies = _put_batch(writes, tx.batch, tx)
        values = _put_records(writes, tx.batch)
        lanes = put_outbox(writes, tx.batch)
    if tx.described:
        writes["described"] = tx.described
    if tx.lease is not None:
        writes["lease"] = tx.lease
    if not writes:
        return None
    _put_seen_records(writes, tx, values)
    changed = writes["changes"][0] if "changes" in writes else ()  # their stamps are with their changes
    text = to_json({**assumptions_of(tx, lock, strict=tx.strict, changed=changed), **writes, "writes": True})
    return Plan(text, b"".join(bodies), values, lanes)


def _put_batch(plan: dict[str, Any], batch: Batch, tx: RedisTransaction) -> list[bytes]:
    """Put what the batch writes into the plan, records and the outbox aside; returns the bodies."""
    bodies: list[bytes] = []
    if batch.changes:
        ordinal(0, len(batch.changes) - 1)  # refuses more than there are ordinals for
        _put_changes(plan, batch, tx, bodies)
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
        if entry.seq:
            plan["seq"] = entry.seq
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
            records.append((field, 0 if value is None else len(values) + _BEFORE_VALUES))
    return values


def _put_seen_records(plan: dict[str, Any], tx: RedisTransaction, values: list[bytes]) -> None:
    """Put the records that were read into the plan, and what they were to the values."""
    if tx.records_seen:
        plan["records_seen"] = seen = []
        for place, value in tx.records_seen.items():
            if value is not None:
                values.append(value)
            seen.append((record_field(*place), 0 if value is None else len(values) + _BEFORE_VALUES))


def _put_changes(plan: dict[str, Any], batch: Batch, tx: RedisTransaction, bodies: list[bytes]) -> None:
    """Put the changes of facts into the plan, and what is new of their contents to the bodies."""
    changes: list[tuple[str, int, int, str, int, int, str | bool]] = []
    heads: dict[tuple[Any, ...], int] = {}  # numbered from 1
    plan["heads"] = []
    ahead = True
    for before, after, fields in batch.changes:
        known: StoredFact = after if before is None else before  # type: ignore[assignment]
        id_ = known.id
        stamp = tx.seen.get(id_, False)  # '' is of one that was not there
        version = 0 if before is None else before.version
        if after is None:
            changes.append((id_, version, 0, "", 0, 0, stamp))
            ahead = False
            continue
        _, type_, payload, source, session_id, ts, number, ephemeral, schema_version, singleton, ordinal_ = after
        key = (type_, session_id, singleton, fields, source, ts, ephemeral)
        head = heads.get(key)
        if head is None:
            head = heads[key] = len(heads) + 1
            plan["heads"].append(fact_head(after, fields))
        if (
            before is not None
            and stamp  # only then it is sure what is there
            and before.payload == payload
            and before.schema_version == schema_version
        ):
            length = -content_length(after)
        else:
            bodies.append(fact_content(after).encode())
            length = len(bodies[-1])
        ahead = ahead and bool(stamp) and version < number > (tx.latest_read(id_) or 0)
        if before is not None and before.ordinal == ordinal_ >= 0:
            place = "="
        else:
            place = "" if ordinal_ < 0 else f"{ordinal_:016x}"
        changes.append((id_, version, number, place, head, length, stamp))
    # Columns: Lua makes few long tables faster than many short ones.
    plan["changes"] = list(zip(*changes, strict=True))
    if ahead:
        plan["ahead"] = True  # and a fact whose stamp is still the same had no other versions meanwhile
