"""What commands show, as plain data for ``--json``, and as text that a terminal cannot take for anything else."""

from __future__ import annotations

import json
from typing import Any

from memstate_core.facts import Change, Fact, Moved, Transaction


def print_json(command: str, **content: Any) -> None:
    print(json.dumps({"command": command, **content}, ensure_ascii=False))


def fact_data(fact: Fact | None) -> dict[str, Any] | None:
    """A fact as :meth:`~memstate_core.MemoryStore.get` returns it."""
    if fact is None:
        return None
    return {
        "id": fact.id,
        "type": fact.type,
        "payload": fact.payload,
        "source": fact.source,
        "session_id": fact.session_id,
        "ts": None if fact.ts is None else fact.ts.isoformat(),
        "version": fact.version,
        "ephemeral": fact.ephemeral,
    }


def change_data(change: Change) -> dict[str, Any]:
    return {"fact_id": change.fact_id, "before": fact_data(change.before), "after": fact_data(change.after)}


def transaction_data(transaction: Transaction) -> dict[str, Any]:
    return {
        "id": transaction.id,
        "session_id": transaction.session_id,
        "operation": transaction.operation.value,
        "actor": transaction.actor,
        "reason": transaction.reason,
        "mark": transaction.mark,
        "ts": transaction.ts.isoformat(),
        "parent": transaction.parent,
        "position": transaction.position,
        "changes": [change_data(change) for change in transaction.changes],
    }


def moved_data(moved: Moved) -> dict[str, Any]:
    return {
        "transaction": moved.transaction_id,
        "undone": [one.id for one in moved.undone],
        "redone": [one.id for one in moved.redone],
        "kept": list(moved.kept),
    }


def text_of(text: str | None) -> str:
    """A text from a store on one line; what steers a terminal is spelled out."""
    return "".join(one if one.isprintable() else _spelled(one) for one in text or "")


def value_of(value: Any) -> str:
    """A value of a payload."""
    return text_of(json.dumps(value, ensure_ascii=False))


def session_name(session_id: str | None) -> str:
    return "long-term memory" if session_id is None else f"session {text_of(session_id)}"


def count_of(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode()
