"""Filters in the language of an index: what it may leave out, since no fact there can match.

An index keeps a part of a fact, in its own types. So a filter is translated to one that all that matches fulfils, and
perhaps more: what the index cannot say is left to the store, which checks every result against the fact itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol, TypeVar

from memstate_core.filters import encodes, operators_of, split_path

C = TypeVar("C")

# Indexes compare numbers as 64 bit floats at times, which are exact up to here.
_EXACT: Final = 2**53

_NEGATIONS: Final = {"$ne": "$eq", "$nin": "$in"}


class Dialect(Protocol[C]):
    """An index's own clauses. Those of :meth:`field` may select more than the condition does, never less."""

    def field(self, path: str, operator: str, operand: Any, negated: bool) -> C | None:
        """What the facts fulfil for which the condition holds (``negated``: does not hold); None: it cannot be said.

        The operators are those of :mod:`memstate_core.filters` without ``$ne``, ``$nin`` and ``$not``.
        """
        ...

    def all_of(self, clauses: list[C]) -> C: ...

    def any_of(self, clauses: list[C]) -> C: ...


def translated(filters: Mapping[str, Any], dialect: Dialect[C], *, negated: bool = False) -> C | None:
    """What everything that matches fulfils in the index; None: the index cannot narrow.

    :param filters: a filter that :func:`memstate_core.filters.compile_filter` takes.
    """
    parts: list[C | None] = []
    for key, condition in filters.items():
        if key in ("$and", "$or"):
            parts.append(
                _joined(
                    [translated(part, dialect, negated=negated) for part in condition],
                    dialect,
                    all_hold=(key == "$and") is not negated,
                )
            )
        elif key == "$not":
            parts.append(translated(condition, dialect, negated=not negated))
        else:
            parts.append(_translated_path(".".join(split_path(key)), condition, dialect, negated))
    return _joined(parts, dialect, all_hold=not negated)


def _translated_path(path: str, condition: Any, dialect: Dialect[C], negated: bool) -> C | None:
    parts: list[C | None] = []
    for operator, operand in operators_of(condition).items():
        if operator == "$not":
            parts.append(_translated_path(path, operand, dialect, not negated))
        elif operator in _NEGATIONS:
            parts.append(dialect.field(path, _NEGATIONS[operator], operand, not negated))
        else:
            parts.append(dialect.field(path, operator, operand, negated))
    return _joined(parts, dialect, all_hold=not negated)


def _joined(parts: Iterable[C | None], dialect: Dialect[C], *, all_hold: bool) -> C | None:
    """All parts, or any of them. Of what must all hold, the parts that cannot be said are left out."""
    parts = list(parts)
    clauses = [part for part in parts if part is not None]
    if not clauses or (not all_hold and len(clauses) < len(parts)):
        return None
    if len(clauses) == 1:
        return clauses[0]
    return dialect.all_of(clauses) if all_hold else dialect.any_of(clauses)


def indexed_alike(operand: Any) -> bool:
    """Whether every index finds a value by this operand: a text, a boolean, or a number that is exact as a float."""
    if isinstance(operand, str):
        return encodes(operand)
    return isinstance(operand, bool) or is_exact_number(operand)


def is_exact_number(operand: Any) -> bool:
    if isinstance(operand, bool) or not isinstance(operand, int | float):
        return False
    return math.isfinite(operand) and abs(operand) < _EXACT


def may_be_json(text: str) -> bool:
    """Whether a text in the index may stand for a list or an object."""
    return text.startswith(("[", "{"))
