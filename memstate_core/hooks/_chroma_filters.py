"""Filters as Chroma's ``where``. Pure."""

from __future__ import annotations

import math
from typing import Any

from memstate_core.hooks._filters import indexed_alike, is_exact_number, may_be_json
from memstate_core.hooks._vector_hook import Wanted

Where = dict[str, Any]


def where_of(wanted: Wanted) -> Where | None:
    clauses = [{key: value} for key, value in wanted.equal.items()] + list(wanted.clauses)
    return {"$and": clauses} if len(clauses) > 1 else clauses[0] if clauses else None


class Dialect:
    """Chroma's ``where`` on scalars; a text in it may stand for a list or an object, as JSON."""

    def __init__(self, fields: frozenset[str]) -> None:
        self._fields = fields

    def field(self, path: str, operator: str, operand: Any, negated: bool) -> Where | None:
        if path not in self._fields:
            return None
        if operator == "$eq":
            return self._one_of(path, [operand], negated)
        if operator == "$in":
            return self._one_of(path, list(operand), negated)
        if operator in ("$gt", "$gte", "$lt", "$lte") and is_exact_number(operand) and not negated:
            if operand % 1:  # which Chroma cuts off where it compares with integers
                above = operator in ("$gt", "$gte")
                operator, operand = ("$gte", math.floor(operand)) if above else ("$lte", math.ceil(operand))
            return {path: {operator: operand}}
        return None

    def _one_of(self, path: str, operands: list[Any], negated: bool) -> Where | None:
        if not operands or not all(map(indexed_alike, operands)):
            return None
        if negated and any(may_be_json(one) if isinstance(one, str) else one % 1 for one in operands):
            return None
        # Chroma takes lists of one type only.
        kinds: dict[type, list[Any]] = {}
        for operand in operands:
            kinds.setdefault(type(operand), []).append(operand)
        clauses: list[Where] = [{path: {"$nin" if negated else "$in": some}} for some in kinds.values()]
        if len(clauses) == 1:
            return clauses[0]
        return self.all_of(clauses) if negated else self.any_of(clauses)

    def all_of(self, clauses: list[Where]) -> Where:
        return {"$and": clauses}

    def any_of(self, clauses: list[Where]) -> Where:
        return {"$or": clauses}
