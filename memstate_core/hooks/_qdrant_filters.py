"""Filters in Qdrant's language: built, and translated from ours."""

from __future__ import annotations

import re
from typing import Any, Final

from qdrant_client import models

from memstate_core.hooks import _mapping
from memstate_core.hooks._filters import indexed_alike, is_exact_number, may_be_json
from memstate_core.hooks._vector_hook import Wanted

_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


def filter_of(wanted: Wanted) -> models.Filter | None:
    clauses = [*(equal(key, value) for key, value in wanted.equal.items()), *wanted.clauses]
    return models.Filter(must=clauses) if clauses else None


def key_of(field: str) -> str | None:
    """A field as Qdrant is told of it, where a dot would lead into an object; None: it cannot be."""
    if _PLAIN_KEY.fullmatch(field):
        return field
    return None if '"' in field else f'"{field}"'


def equal(key: str, value: _mapping.Scalar) -> models.FieldCondition:
    """A value, or one in a list, that equals this one. The server matches no integer with a float, but ranges do."""
    if isinstance(value, str | bool):
        return models.FieldCondition(key=key, match=models.MatchValue(value=value))
    return between(key, gte=value, lte=value)


def between(key: str, **limits: float) -> models.FieldCondition:
    return models.FieldCondition(key=key, range=models.Range(**limits))


class Dialect:
    """Qdrant's conditions, which look into lists: a value that equals may be one of several.

    Other texts may stand for an object, or a list of what is no scalar, as JSON. Without ``negates`` nothing is said of
    what must not hold: in memory and on disk, older clients take booleans for numbers.
    """

    def __init__(self, fields: frozenset[str], *, negates: bool) -> None:
        self._fields = fields
        self._negates = negates

    def field(self, path: str, operator: str, operand: Any, negated: bool) -> models.Filter | None:
        key = key_of(path)
        if path not in self._fields or key is None or (negated and not self._negates):
            return None
        holds = _holds(key, operator, operand)
        if holds is None:
            return None
        is_list = models.FieldCondition(key=_mapping.LISTS, match=models.MatchValue(value=path))
        if operator == "$contains":
            # A text contains others and an object its keys, of which Qdrant knows nothing.
            return None if negated else models.Filter(should=[holds, models.Filter(must_not=[is_list])])
        if not negated:
            return models.Filter(must=[holds])
        operands = operand if operator == "$in" else [operand]
        if any(isinstance(one, str) and may_be_json(one) for one in operands):
            return None
        # A list is no equal of what is in it.
        return models.Filter(should=[models.Filter(must_not=[holds]), is_list])

    def all_of(self, clauses: list[models.Filter]) -> models.Filter:
        return models.Filter(must=list(clauses))

    def any_of(self, clauses: list[models.Filter]) -> models.Filter:
        return models.Filter(should=list(clauses))


def _holds(key: str, operator: str, operand: Any) -> models.FieldCondition | models.Filter | None:
    if operator in ("$eq", "$contains"):
        return equal(key, operand) if indexed_alike(operand) else None
    if operator == "$in":
        operands = list(operand)
        if not operands or not all(map(indexed_alike, operands)):
            return None
        texts = [one for one in operands if isinstance(one, str)]
        conditions: list[Any] = [equal(key, one) for one in operands if not isinstance(one, str)]
        if texts:
            conditions.append(models.FieldCondition(key=key, match=models.MatchAny(any=texts)))
        return models.Filter(should=conditions)
    if operator in ("$gt", "$gte", "$lt", "$lte") and is_exact_number(operand):
        return between(key, **{operator.removeprefix("$"): operand})
    return None
