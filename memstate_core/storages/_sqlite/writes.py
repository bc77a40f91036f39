"""How a batch's changes of facts become rows, in as few statements as there are kinds of change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from memstate_core.facts import FactChange, IndexEntry, StoredFact
from memstate_core.filters import ABSENT
from memstate_core.storages._ordinals import ordinal
from memstate_core.storages._sqlite import statements as sql
from memstate_core.storages._sqlite.connection import Connection


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
