"""What is in the hashes: texts whose parts are divided by NULs, which none of the parts but the last can contain.

A fact is ``stamp version made_by ordinal type session place fields source ts ephemeral schema_version payload``. The
*stamp* is the number of the write that made it current, so that a fact which was changed and changed back is told from
one that was not. ``made_by`` is the seq of the transaction that made the version. ``fields`` are its index entries as a
JSON list. Its *head*, from the type on, is what facts that are written together often share; its *content*, from the
schema version on, often stays when the head changes. A
transaction is ``parent head session operation actor reason mark ts changes``, a claim ``owner expires hooks``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from pydantic_core import from_json, to_json

from memstate_core.facts import ChangedVersions, Entry, FactChange, IndexEntry, StoredFact
from memstate_core.protocols import Claim, NewEntry
from memstate_core.storages._redis.keys import field_keys, hex_of, session_key

# Where a session stands that never wrote: its head and its redo target.
NOWHERE: Final = hex_of(0) * 2


def _optional(text: str | None) -> str:
    return "" if text is None else f"={text}"


def _or_none(text: str) -> str | None:
    return text[1:] if text else None


def fact_head(fact: StoredFact, fields: tuple[IndexEntry, ...]) -> str:
    """The head of a fact, with the NUL that divides it from the content."""
    return "\0".join(
        (
            fact.type,
            session_key(fact.session_id),
            _optional(fact.singleton),
            fields_text(fields),
            _optional(fact.source),
            fact.ts,
            "1\0" if fact.ephemeral else "\0",
        )
    )


def fact_content(fact: StoredFact) -> str:
    return f"{fact.schema_version}\0{fact.payload}"


def content_length(fact: StoredFact) -> int:
    """Of :func:`fact_content`, in bytes."""
    payload = fact.payload
    return len(str(fact.schema_version)) + 1 + (len(payload) if payload.isascii() else len(payload.encode()))


def fields_text(fields: tuple[IndexEntry, ...]) -> str:
    keys = field_keys(fields) if fields else []
    return json.dumps(keys, ensure_ascii=False, separators=(",", ":")) if keys else ""


def place_text(place: str | None) -> str:
    return _optional(place)


def fact_of(fact_id: str, raw: bytes) -> tuple[StoredFact, str]:
    """A fact, and its stamp."""
    stamp, version, _, ordinal, type_, session, place, _, source, ts, ephemeral, schema_version, payload = (
        raw.decode().split("\0", 12)
    )
    fact = StoredFact(
        fact_id,
        type_,
        payload,
        source[1:] if source else None,
        session[1:] if session else None,
        ts,
        int(version),
        bool(ephemeral),
        int(schema_version),
        place[1:] if place else None,
        int(ordinal, 16),
    )
    return fact, stamp


def entry_tail(entry: NewEntry, changes: Sequence[FactChange]) -> str:
    """A transaction as it is stored, behind its parent and head, which the script puts before it."""
    versions = [
        ((before or after).id, before.version if before else 0, after.version if after else 0)  # type: ignore[union-attr]
        for before, after, _ in changes
    ]
    return "\0".join(
        (
            session_key(entry.session_id),
            entry.operation.value,
            _optional(entry.actor),
            _optional(entry.reason),
            _optional(entry.mark),
            entry.ts,
            to_json(versions).decode(),
        )
    )


def entry_of(seq: int, raw: bytes) -> Entry:
    parent, head, session, operation, actor, reason, mark, ts, changes = raw.decode().split("\0", 8)
    return Entry(
        seq,
        _or_none(session),
        int(parent, 16),
        int(head, 16),
        operation,
        _or_none(actor),
        _or_none(reason),
        _or_none(mark),
        ts,
        tuple([ChangedVersions(*change) for change in from_json(changes)]),
    )


def claim_text(claim: Claim) -> str:
    return "\0".join((claim.owner, repr(claim.expires), json.dumps(claim.hooks, ensure_ascii=False)))


def claim_of(key: str, raw: bytes) -> Claim:
    owner, expires, hooks = raw.decode().split("\0", 2)
    return Claim(key, owner, float(expires), tuple(json.loads(hooks)))


def where(head: int, redo: int) -> str:
    return hex_of(head) + hex_of(redo)


def head_and_redo(text: str) -> tuple[int, int]:
    half = len(text) // 2
    return int(text[:half], 16), int(text[half:], 16)


def texts(raw: Sequence[Any]) -> list[str]:
    return [one.decode() for one in raw]
