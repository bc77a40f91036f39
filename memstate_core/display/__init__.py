"""How facts and what became of them look in notebooks and in terminals.

Nothing here reads a store: it shows what was read, so it serves both flavours alike. In HTML everything is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memstate_core.display import _facts as tables
from memstate_core.display._table import Table
from memstate_core.display._tree import SessionTree
from memstate_core.display._tree import session_tree as _tree_of
from memstate_core.facts import Change, Fact, Moved, ScoredFact, Transaction
from memstate_core.verification import Drift, Report

__all__ = ["Diff", "SessionTree", "Shown", "diff", "session_tree", "show"]


class Shown:
    """A value's looks: a table in a notebook, and plain text where it is printed."""

    __slots__ = ("_table",)

    def __init__(self, table: Table) -> None:
        self._table = table

    @property
    def html(self) -> str:
        return self._table.html

    @property
    def text(self) -> str:
        return self._table.text

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.html


def show(value: Any) -> Shown:
    """Show what a store returns: a fact or many, search results, a history, changes, what a move moved, a report.

    :raises TypeError: it is nothing of the kind.
    """
    table = table_of(value)
    if table is None and (value is None or _is_empty(value)):
        table = Table("nothing", (), ())
    if table is None:
        raise TypeError(
            "show() takes what a store's methods return, such as facts, a history or a report, "
            f"not {type(value).__name__}"
        )
    return Shown(table)


def table_of(value: Any) -> Table | None:
    """The table that shows a value, or None where it is no value of a store's."""
    match value:
        case Fact():
            return tables.fact_table(tables.data_of(value))
        case Change():
            return tables.changes_table([value], "")
        case Transaction():
            return tables.transaction_table(value)
        case ScoredFact():
            return tables.scored_table([value])
        case Report():
            return tables.report_table(value)
        case Drift():
            return tables.report_table(Report([value]))
        case Moved():
            return tables.moved_table(value)
        case Mapping():
            return tables.fact_table(value) if _is_fact(value) else None
        case str() | bytes():
            return None
        case Sequence():
            return _table_of_many(value)
    return None


def _table_of_many(values: Sequence[Any]) -> Table | None:
    """The table of a list; an empty one could be anything."""

    def are(kind: type) -> bool:
        return all(isinstance(value, kind) for value in values)

    if not values:
        return None
    if are(Transaction):
        return tables.history_table(values)
    if are(Change):
        return tables.changes_table(values)
    if are(ScoredFact):
        return tables.scored_table(values)
    if are(Fact):
        return tables.facts_table([tables.data_of(fact) for fact in values])
    return tables.facts_table(values) if all(map(_is_fact, values)) else None


def _is_empty(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and not value


def _is_fact(value: Any) -> bool:
    """Whether it is a fact as plain data."""
    return isinstance(value, Mapping) and value.keys() == tables.FACT_KEYS and isinstance(value["payload"], Mapping)


def session_tree(history: Sequence[Transaction], title: str | None = None) -> SessionTree:
    """A picture of a session's transactions, branches that were left included, and of where the session stands.

    :param history: what ``store.history(session_id=…)`` returns; with a ``limit`` the tree begins at the oldest of it.
    :raises ValueError: transactions of several sessions.
    """
    return _tree_of(history, title)


class Diff(list[Change]):
    """What became of each fact between two reads; looks like a table."""

    def _repr_html_(self) -> str:
        return tables.changes_table(self).html

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def __str__(self) -> str:
        return tables.changes_table(self).text


def diff(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Diff:
    """What became of each fact from one read to another: ``diff(store.at("lunch", "chat").query(), store.query())``.

    Give both reads the same conditions, or what only one of them left out looks like a change. Facts that
    have another version, but are the same otherwise, are no difference.
    """
    old, new = ({fact["id"]: Fact(**fact) for fact in facts} for facts in (before, after))
    changes = [Change(id_, old.get(id_), new.get(id_)) for id_ in dict.fromkeys((*old, *new))]
    return Diff(change for change in changes if tables.content(change.before) != tables.content(change.after))
