"""How a batch becomes one statement that writes all of it, or nothing when what it builds on has changed.

Each part is a data-modifying common table expression. Rows that are changed are found by their version and stamp: where
another transaction has changed one since, READ COMMITTED looks at it again when that one has ended, and leaves it out.
So the parts count, and the statement's end compares the counts; where they are not as expected, it casts a word
to a number, which undoes everything and says what was wrong (see :mod:`~memstate_core.storages._postgres.parts`).

A session's row comes first and facts in their order, so that transactions wait for each other rather than deadlock.
Parts run when they are first asked for, and conditions are looked at in their order.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic_core import to_json

from memstate_core.filters import ABSENT
from memstate_core.protocols import Batch
from memstate_core.storages._postgres import tables
from memstate_core.storages._postgres.fact_writes import (
    entering,
    fact_input,
    field_key,
    numeric,
    write_facts,
)
from memstate_core.storages._postgres.other_writes import (
    put_into_outbox,
    settle,
    write_claims,
    write_definitions,
    write_records,
)
from memstate_core.storages._postgres.parts import Ground, WriteStatement, array_text, whole
from memstate_core.storages._postgres.tables import SEQUENCE, name_of, session_key

_T: Final = name_of(tables.TRANSACTIONS)
_S: Final = name_of(tables.SESSIONS)
_C: Final = name_of(tables.CLAIMS)


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
    made = WriteStatement(namespace, shared=shared)
    _check_ground(made, batch, ground)
    _write_entry(made, batch, token, latest)
    if batch.changes or ground.facts:
        write_facts(made, batch, ground)
    if batch.savepoint is not None:
        session_id, name, seq = batch.savepoint
        made.part(
            "saved",
            f"INSERT INTO {name_of(tables.SAVEPOINTS)} (namespace, session, name, seq) "
            f"SELECT $1, {made.value(session_key(session_id))}, {made.value(name)}, {made.value(seq, 'bigint')} "
            "ON CONFLICT (namespace, session, name) DO UPDATE SET seq = excluded.seq",
        )
    if batch.deferred:
        put_into_outbox(made, batch)
    if batch.settlement is not None:
        settle(made, batch.settlement)
    if batch.records or ground.records:
        write_records(made, batch, ground)
    if batch.definitions:
        write_definitions(made, batch)
    if batch.claims or batch.drop_claims_of is not None or ground.claims:
        write_claims(made, batch, ground)
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
        or new.seq
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
        if ground.facts or after.ordinal >= 0 or after.version > 1:
            return None
    elif before.ordinal != after.ordinal or len(ground.facts) != 1 or ground.facts.get(before.id) is None:
        return None
    places = entering(batch.changes)
    shape = (before is None, new.head is None, len(entries), shared, bool(places))
    text = _texts.get(shape)
    if text is None:
        text = _texts[shape] = _built(batch, namespace, token, ground, latest, shared=shared)[0]
    session_id, operation, actor, reason, mark, ts, parent, head, redo, _ = new
    changes = ((after.id, 0 if before is None else before.version, after.version),)
    values: list[Any] = [
        namespace,
        whole(position.generation),
        session_key(session_id),
        whole(latest),
        token,
        session_id,
        whole(parent),
        None if head is None else whole(head),
        operation.value,
        actor,
        reason,
        mark,
        ts,
        to_json(changes).decode(),
    ]
    if head is not None:
        values.append(whole(head))
    values.append(whole(redo))
    if before is not None:
        values.append(before.id)
    values += [whole(value) if type(value) is int else value for value in fact_input(after, 0)]
    known = None if after.ordinal < 0 else whole(after.ordinal)
    if before is not None:
        values += (whole(before.ordinal), whole(before.version), whole(ground.facts[before.id]))  # type: ignore[arg-type]
    for path, kind, value in entries:
        number, words = (None, value) if isinstance(value, str) else (numeric(value), None)
        values += (known, whole(0), field_key(namespace, after.type, path), whole(kind), number, words)
    if places:
        values += (array_text([]), array_text(places))
    return text, values


def _check_ground(made: WriteStatement, batch: Batch, ground: Ground) -> None:
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


def _write_entry(made: WriteStatement, batch: Batch, token: str, latest: int) -> None:
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
    gated = False
    if latest:
        known = f"namespace = $1 AND session = {session} AND latest = {made.value(latest, 'bigint')}"
        # What is looked at before the session's row is moved must not be locked before it, either.
        gated = batch.drop_claims_of is not None or batch.settlement is not None
    if gated:
        made.part("gate", f"SELECT 1 FROM {_S} WHERE {known} FOR UPDATE")
    changes = [
        ((before or after).id, before.version if before else 0, after.version if after else 0)  # type: ignore[union-attr]
        for before, after, _ in batch.changes
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
    columns = "namespace, token, session_id, parent, head, operation, actor, reason, mark, ts, changes"
    values = f"$1, {given}"
    sources = ["gate"] if gated else []
    if new.seq:
        # What gives out seqs is moved on, by what it does itself: so it never goes back, whoever asks it meanwhile.
        seq = made.value(new.seq, "bigint")
        sources.append(
            f"(SELECT count(nextval(s)) AS n FROM (SELECT {SEQUENCE} AS s) q, "
            f"generate_series(coalesce(pg_sequence_last_value(s), 0) + 1, {seq})) skipped"
        )
        columns, values = f"seq, {columns}", f"{seq} + 0 * skipped.n, {values}"
    source = f" FROM {', '.join(sources)}" if sources else ""
    made.part("entry", f"INSERT INTO {_T} ({columns}) SELECT {values}{source} RETURNING seq")
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
