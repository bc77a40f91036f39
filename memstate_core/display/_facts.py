"""Facts, changes, transactions and reports as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from memstate_core.display._table import Cell, Table, Tone, some
from memstate_core.display._words import counted, payload_text, short_id, shortened, value_text, visible
from memstate_core.facts import Change, Fact, Moved, Operation, ScoredFact, Transaction
from memstate_core.verification import Report

# More would make a notebook hard to read, and large.
ROWS: Final = 50
_FIELDS: Final = 8
_SIGNS: Final[dict[Operation, tuple[str, Tone]]] = {
    Operation.COMMIT: ("+", "added"),
    Operation.UPDATE: ("~", "changed"),
    Operation.DELETE: ("−", "removed"),
}
FACT_KEYS: Final = frozenset(("id", "type", "payload", "source", "session_id", "ts", "version", "ephemeral"))


def data_of(fact: Fact) -> dict[str, Any]:
    """A fact as the plain data that :meth:`MemoryStore.get` gives; one that no store has checked may have anything."""
    data = {name: getattr(fact, name) for name in FACT_KEYS}
    for name in ("id", "type", "source", "session_id"):
        if data[name] is not None:
            data[name] = str(data[name])
    if not isinstance(data["payload"], Mapping):
        data["payload"] = {"payload": data["payload"]}
    return data


def fact_table(fact: Mapping[str, Any]) -> Table:
    """A single fact, with a line for each of its fields."""
    rows = [(Cell(visible(str(key)), "muted"), Cell(_whole(value))) for key, value in fact["payload"].items()]
    told = [
        visible(fact["id"]),
        f"version {fact['version']}",
        _session(fact["session_id"]),
        *([f"from {visible(fact['source'])}"] if fact["source"] else []),
        *(["ephemeral"] if fact["ephemeral"] else []),
        *([_time(fact["ts"])] if fact["ts"] else []),
    ]
    return Table(visible(fact["type"]), (), rows, [" · ".join(told)])


def facts_table(facts: Sequence[Mapping[str, Any]], scores: Sequence[float] = ()) -> Table:
    """Many facts, with a line for each; with a column for each field, where they are of one type and it has few."""
    shown = facts[:ROWS]
    types = {fact["type"] for fact in facts}
    fields = list(dict.fromkeys(key for fact in shown for key in fact["payload"])) if len(types) == 1 else []
    spread = 0 < len(fields) <= _FIELDS
    columns = [
        *(["score"] if scores else []),
        "id",
        *(["type"] if len(types) != 1 else []),
        *([visible(str(key)) for key in fields] if spread else ["payload"]),
        "session",
        "version",
    ]
    rows: list[list[Cell]] = []
    for number, fact in enumerate(shown):
        payload = fact["payload"]
        rows.append(
            [
                *([Cell(f"{scores[number]:.2f}", "muted")] if scores else []),
                _id_cell(fact["id"]),
                *([Cell(visible(fact["type"]))] if len(types) != 1 else []),
                *(
                    [Cell(value_text(payload[key]) if key in payload else "") for key in fields]
                    if spread
                    else [Cell(payload_text(payload))]
                ),
                _session_cell(fact["session_id"]),
                Cell(str(fact["version"]), "muted"),
            ]
        )
    of_type = f" of type {visible(next(iter(types)))}" if len(types) == 1 else ""
    return Table(counted(len(facts), "fact") + of_type, columns, rows, some(len(facts), len(shown), "fact"))


def scored_table(found: Sequence[ScoredFact]) -> Table:
    return facts_table([data_of(one.fact) for one in found], [one.score for one in found])


def changes_table(changes: Sequence[Change], title: str | None = None) -> Table:
    """What became of each fact; of an update only the fields that differ."""
    shown = changes[:ROWS]
    if title is None:
        title = counted(len(changes), "change") if changes else "no difference"
    rows = [_change_row(change) for change in shown]
    return Table(title, ("", "id", "type", "before", "after"), rows, some(len(changes), len(shown), "change"))


def transaction_table(transaction: Transaction) -> Table:
    return changes_table(transaction.changes, " · ".join(_told(transaction)))


def history_table(transactions: Sequence[Transaction], title: str | None = None) -> Table:
    """Transactions, with a line for each."""
    shown = transactions[:ROWS]
    rows = [
        [
            Cell(one.id, "id"),
            Cell(one.operation),
            _session_cell(one.session_id),
            Cell(change_summary(one)),
            Cell(visible(one.actor or ""), "muted"),
            Cell(visible(shortened(one.reason or "")), "muted"),
            Cell(visible(shortened(one.mark or "")), "muted"),
            Cell(one.ts.strftime("%H:%M:%S"), "muted", one.ts.isoformat()),
        ]
        for one in shown
    ]
    columns = ["transaction", "operation", "session", "changes", "actor", "reason", "mark", "time"]
    # Columns in which nothing stands only take room.
    kept = [number for number in range(len(columns)) if not rows or any(row[number].text for row in rows)]
    return Table(
        counted(len(transactions), "transaction") if title is None else title,
        [columns[number] for number in kept],
        [[row[number] for number in kept] for row in rows],
        some(len(transactions), len(shown), "transaction"),
    )


def report_table(report: Report) -> Table:
    """What :meth:`MemoryStore.verify` found, or :meth:`MemoryStore.repair` mended."""
    rows: list[list[Cell]] = []
    notes = [f"{visible(hook)} cannot be listed, so it was not compared" for hook in report.unlisted]
    for drift in report:
        rows.append(
            [
                Cell("drift" if drift else "no drift", "removed" if drift else "added"),
                Cell(visible(drift.hook)),
                *(Cell(f"{len(ids):,}", "removed" if ids else "plain") for ids in drift.by_kind().values()),
                Cell(f"{drift.facts:,}", "muted"),
                Cell(f"{drift.entries:,}", "muted"),
            ]
        )
        for kind, ids in drift.by_kind().items():
            if ids:
                more = f" and {len(ids) - _FIELDS:,} more" if len(ids) > _FIELDS else ""
                notes.append(f"{kind} in {visible(drift.hook)}: {', '.join(map(short_id, ids[:_FIELDS]))}{more}")
    title = "" if report else "no index to compare"
    return Table(title, ("", "index", "missing", "stale", "orphaned", "facts", "entries"), rows, notes)


def change_summary(transaction: Transaction) -> str:
    """What a transaction changed, in a few words."""
    changes = transaction.changes
    if len(changes) != 1:
        return counted(len(changes), "fact")
    change = changes[0]
    fact = change.after or change.before
    assert fact is not None
    sign, _ = _SIGNS[change.operation]
    return f"{sign} {visible(fact.type)} ({payload_text(fact.payload, 48)})"


def _told(transaction: Transaction) -> list[str]:
    told = [transaction.id, str(transaction.operation), _session(transaction.session_id)]
    told += [counted(len(transaction.changes), "change")]
    return told + [visible(shortened(one)) for one in (transaction.actor, transaction.reason) if one]


def _change_row(change: Change) -> list[Cell]:
    sign, tone = _SIGNS[change.operation]
    before, after = change.before, change.after
    fact = after or before
    assert fact is not None
    told: list[str] = []
    if before is not None and after is not None:
        told = list(_differing(before, after))
    else:
        told = [payload_text(fact.payload), ""] if after is None else ["", payload_text(fact.payload)]
    return [
        Cell(sign, tone),
        _id_cell(change.fact_id),
        Cell(visible(fact.type)),
        Cell(told[0], "removed" if told[0] else "plain"),
        Cell(told[1], "added" if told[1] else "plain"),
    ]


def _differing(before: Fact, after: Fact) -> tuple[str, str]:
    """The fields in which two versions differ, on each side; a session is told where it is all there is."""
    keys = [
        key for key in dict.fromkeys((*before.payload, *after.payload)) if _field(before, key) != _field(after, key)
    ]
    sides = [{key: fact.payload[key] for key in keys if key in fact.payload} for fact in (before, after)]
    told = [payload_text(side) for side in sides]
    if before.session_id != after.session_id:
        sessions = (_session(before.session_id), _session(after.session_id))
        told = [" · ".join(filter(None, parts)) for parts in zip(told, sessions, strict=True)]
    return told[0], told[1]


def _field(fact: Fact, key: str) -> str | None:
    """A field's value as JSON, in which 1 and true differ, as they do not in Python."""
    return json.dumps(fact.payload[key], sort_keys=True, default=str) if key in fact.payload else None


def _whole(value: Any) -> str:
    """A value in full, but for what would fill pages."""
    return value_text(value, 2000)


def _id_cell(fact_id: str) -> Cell:
    short = short_id(fact_id)
    return Cell(short, "id", visible(fact_id) if short != fact_id else "")


def _session(session_id: str | None) -> str:
    return "long-term" if session_id is None else f"session {visible(shortened(session_id))}"


def _session_cell(session_id: str | None) -> Cell:
    return Cell("long-term" if session_id is None else visible(shortened(session_id)), "muted")


def _time(ts: Any) -> str:
    """Of facts the time is a datetime, of their plain data a text."""
    return str(ts)[:19].replace("T", " ")


def content(fact: Fact | None) -> str | None:
    """What two versions of a fact are compared by."""
    if fact is None:
        return None
    whole = (fact.type, fact.session_id, fact.source, fact.ephemeral, fact.payload)
    return json.dumps(whole, sort_keys=True, default=str)


def moved_table(moved: Moved) -> Table:
    """What a rollback, redo or checkout undid and did again."""
    parts = [
        f"{counted(len(some_), 'transaction')} {what}"
        for some_, what in ((moved.undone, "undone"), (moved.redone, "done again"))
        if some_
    ]
    table = history_table(moved, ", ".join(parts) or "nothing moved")
    kept = [f"left as another session has made it: {', '.join(map(short_id, moved.kept))}"] if moved.kept else []
    return Table(table.title, table.columns, table.rows, [*table.notes, *kept])
