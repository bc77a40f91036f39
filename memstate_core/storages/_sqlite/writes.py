"""How a batch becomes rows; its changes of facts in as few statements as there are kinds of change."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from memstate_core.facts import FactChange, IndexEntry, StoredFact
from memstate_core.filters import ABSENT
from memstate_core.protocols import Batch, ClaimsLost
from memstate_core.storages._ordinals import ordinal, taken_seq
from memstate_core.storages._sqlite import outbox
from memstate_core.storages._sqlite import statements as sql
from memstate_core.storages._sqlite.connection import Connection


def session_key(session_id: str | None) -> str:
    """A session id as a key that is never NULL: NULLs are distinct from each other in a primary key."""
    return "" if session_id is None else f"={session_id}"


def write_batch(connection: Connection, namespace: str, batch: Batch) -> None:
    """Write all that a batch says, and give it the seq of its journal entry.

    :raises ClaimsLost: the claims to drop are not all there.
    """
    execute, executemany = connection.execute, connection.executemany
    seq = batch.seq = 0 if batch.entry is None else _write_entry(connection, namespace, batch)
    if batch.changes:
        write_facts(connection, namespace, batch.changes, seq, batch.restores)
    if batch.savepoint is not None:
        session_id, name, at = batch.savepoint
        execute(
            "INSERT OR REPLACE INTO memstate_savepoints (namespace, session, name, seq) VALUES (?, ?, ?, ?)",
            (namespace, session_key(session_id), name, at),
        )
    if batch.records:
        _write_records(connection, namespace, batch)
    if batch.definitions:
        _write_definitions(connection, namespace, batch)
    if batch.drop_claims_of is not None:
        dropped = execute(
            "DELETE FROM memstate_claims WHERE namespace = ? AND owner = ?", (namespace, batch.drop_claims_of)
        ).rowcount
        if batch.dropped not in (None, dropped):
            raise ClaimsLost
    if batch.claims:
        executemany(
            sql.PUT_CLAIM,
            [(namespace, claim.key, claim.owner, claim.expires, _names(claim.hooks)) for claim in batch.claims],
        )
    if batch.deferred:
        outbox.put(connection, namespace, batch.deferred, seq)
    if batch.settlement is not None:
        outbox.settle(connection, namespace, batch.settlement)


def _write_entry(connection: Connection, namespace: str, batch: Batch) -> int:
    entry = batch.entry
    assert entry is not None
    changes = ", ".join([_versions(change) for change in batch.changes])
    session = session_key(entry.session_id)
    if entry.seq and connection.execute("SELECT 1 FROM memstate_transactions WHERE seq = ?", (entry.seq,)).fetchone():
        raise taken_seq(entry.seq)
    seq = connection.execute(
        sql.INSERT_TRANSACTION,
        (
            entry.seq or None,
            namespace,
            entry.session_id,
            namespace,
            session,
            entry.parent,
            entry.head,
            str(entry.operation),
            entry.actor,
            entry.reason,
            entry.mark,
            entry.ts,
            f"[{changes}]",
        ),
    ).lastrowid
    assert seq is not None
    no_version = [change.fact_id for change in batch.changes if batch.restores or change.after is None]
    if no_version:
        connection.executemany(sql.INSERT_TOUCHED, [(namespace, fact_id, seq) for fact_id in no_version])
    head = seq if entry.head is None else entry.head
    connection.execute(sql.MOVE_HEAD, (namespace, session, head, entry.redo, seq))
    return seq


def _versions(change: FactChange) -> str:
    """A change in a journal entry, as JSON; what ``json.dumps`` does first of all takes longer than this."""
    before, after, _ = change
    versions = before.version if before is not None else 0, after.version if after is not None else 0
    return f"[{quoted(change.fact_id)}, {versions[0]}, {versions[1]}]"


def _write_records(connection: Connection, namespace: str, batch: Batch) -> None:
    # Of two writes of one record the later one counts.
    writes = {(write.collection, write.key): write.value for write in batch.records}
    puts = [(namespace, *place, value) for place, value in writes.items() if value is not None]
    if puts:
        connection.executemany(sql.PUT_RECORD, puts)
    if len(puts) < len(writes):
        removals = [(namespace, *place) for place, value in writes.items() if value is None]
        connection.executemany(sql.DELETE_RECORD, removals)


def _write_definitions(connection: Connection, namespace: str, batch: Batch) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO memstate_definitions (namespace, type, definition) VALUES (?, ?, ?)",
        [(namespace, typename, text) for typename, text in batch.definitions.items()],
    )
    connection.execute(
        "INSERT INTO memstate_generations (namespace, generation) VALUES (?, 1) "
        "ON CONFLICT (namespace) DO UPDATE SET generation = generation + 1",
        (namespace,),
    )


@lru_cache(maxsize=64)
def _names(hooks: tuple[str, ...]) -> str:
    return json.dumps(hooks)


def write_facts(
    connection: Connection, namespace: str, changes: Sequence[FactChange], seq: int, restores: bool
) -> None:
    """Make the facts what the changes say; ``restores``: every ``after`` is an archived version."""
    made: list[StoredFact] = []
    changed: dict[tuple[bool, bool, bool], list[tuple[Any, ...]]] = {}
    archived: list[tuple[int]] = []
    removed: list[tuple[int]] = []
    leaving: list[tuple[int]] = []
    fields: list[tuple[StoredFact, tuple[IndexEntry, ...]]] = []
    for place, (before, new, entries) in enumerate(changes):
        after = new
        if new is not None and new.ordinal < 0:
            after = StoredFact._make((*new[:-1], ordinal(seq, place)))  # _replace takes ten times as long
        if before is not None:
            archived.append((before.ordinal,))
            if after is None or after.ordinal != before.ordinal:
                removed.append((before.ordinal,))
            elif before.singleton is not None and before.singleton != after.singleton:
                leaving.append((before.ordinal,))
        if after is None:
            continue
        if before is not None and before.ordinal == after.ordinal:
            how = before.session_id != after.session_id, before.singleton != after.singleton, restores
            changed.setdefault(how, []).append(_row(namespace, after, seq, *how))
        else:
            made.append(after)
        if entries:
            fields.append((after, entries))
    _run(connection, sql.ARCHIVE, archived)
    _run(connection, sql.DELETE_FACT, removed)
    _run(connection, sql.LEAVE_PLACE, leaving)  # two facts may exchange their places
    for kind, rows in changed.items():
        _run(connection, sql.UPDATE_FACT[kind], rows)
    if restores:
        _run(connection, sql.INSERT_FACT_AGAIN, [(*fact, namespace, namespace, fact.id, fact.version) for fact in made])
    else:
        _run(connection, sql.INSERT_FACT, [(*fact, namespace, seq) for fact in made])
    if fields:
        write_fields(connection, namespace, fields)


def _row(namespace: str, fact: StoredFact, seq: int, session: bool, singleton: bool, again: bool) -> tuple[Any, ...]:
    """The parameters of :data:`~memstate_core.storages._sqlite.statements.UPDATE_FACT`."""
    row: list[Any] = [fact.payload, fact.source, fact.ts, fact.version, fact.ephemeral, fact.schema_version]
    if session:
        row.append(fact.session_id)
    if singleton:
        row.append(fact.singleton)
    row += (namespace, fact.id, fact.version) if again else (seq,)
    return *row, fact.ordinal


def write_fields(
    connection: Connection,
    namespace: str,
    fields: Iterable[tuple[StoredFact, Sequence[IndexEntry]]],
) -> None:
    """Make the index entries of facts what is given, without touching those that are right already."""
    put = []
    gone = []
    for fact, entries in fields:
        for path, kind, value in entries:
            if kind == ABSENT:
                gone.append((fact.ordinal, path))
            else:
                put.append((fact.ordinal, path, namespace, fact.type, kind, value))
    _run(connection, sql.PUT_FIELD, put)
    _run(connection, sql.DELETE_FIELD, gone)


def _run(connection: Connection, statement: str, rows: Sequence[Sequence[Any]]) -> None:
    if len(rows) == 1:
        connection.execute(statement, rows[0])
    elif rows:
        connection.executemany(statement, rows)
