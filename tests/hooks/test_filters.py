"""Filters in an index's language: nothing that matches is left out, whatever an index can say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memstate_core.filters import compile_filter
from memstate_core.hooks._filters import translated

Clause = Callable[[dict[str, Any]], bool]


class Knowing:
    """The language of an index that knows some fields, and of them some operators; it says what it was asked."""

    def __init__(self, fields: set[str], operators: set[str], negates: bool) -> None:
        self.fields = fields
        self.operators = operators
        self.negates = negates

    def field(self, path: str, operator: str, operand: Any, negated: bool) -> Clause | None:
        assert operator not in ("$ne", "$nin", "$not")
        if path not in self.fields or operator not in self.operators or (negated and not self.negates):
            return None
        test = compile_filter({path: {operator: operand}})
        assert test is not None
        return (lambda payload: not test(payload)) if negated else test

    def all_of(self, clauses: list[Clause]) -> Clause:
        assert len(clauses) > 1
        return lambda payload: all(clause(payload) for clause in clauses)

    def any_of(self, clauses: list[Clause]) -> Clause:
        assert len(clauses) > 1
        return lambda payload: any(clause(payload) for clause in clauses)


FIELDS = ("a", "b", "c.d")
OPERATORS = ("$eq", "$in", "$gt", "$lte", "$contains", "$exists")
values = st.sampled_from([0, 1, 2.0, "1", "x", None, True, ["x"]])
payloads = st.dictionaries(st.sampled_from(["a", "b"]), values).flatmap(
    lambda payload: values.map(lambda value: {**payload, "c": {"d": value}})
)
conditions = st.one_of(
    values,
    st.fixed_dictionaries({}, optional={"$eq": values, "$ne": values, "$contains": values}).filter(bool),
    st.fixed_dictionaries(
        {}, optional={"$in": st.lists(values), "$nin": st.lists(values), "$exists": st.booleans()}
    ).filter(bool),
    st.fixed_dictionaries({"$gt": st.sampled_from([0, 1, "1"])}, optional={"$lte": st.sampled_from([1, 2, "x"])}),
)
conditions |= conditions.map(lambda condition: {"$not": condition})


def filters(least: int) -> st.SearchStrategy[dict[str, Any]]:
    """Filters with at least so many parts at every place."""
    return st.recursive(
        st.dictionaries(st.sampled_from([*FIELDS, "payload.a"]), conditions, min_size=least, max_size=2),
        lambda inner: st.one_of(
            st.lists(inner, min_size=least, max_size=3).map(lambda parts: {"$and": parts}),
            st.lists(inner, min_size=least, max_size=3).map(lambda parts: {"$or": parts}),
            inner.map(lambda part: {"$not": part}),
            st.tuples(inner, inner).map(lambda pair: {**pair[0], **pair[1]}),
        ),
        max_leaves=6,
    )


@given(
    filters(0),
    st.lists(payloads, max_size=6),
    st.sets(st.sampled_from(FIELDS)),
    st.sets(st.sampled_from(OPERATORS)),
    st.booleans(),
)
def test_all_that_matches_is_let_through(
    wanted: dict[str, Any], candidates: list[dict[str, Any]], fields: set[str], operators: set[str], negates: bool
) -> None:
    clause = translated(wanted, Knowing(fields, operators, negates))
    matches = compile_filter(wanted)
    for payload in candidates:
        if clause is not None and (matches is None or matches(payload)):
            assert clause(payload)


@given(filters(1), st.lists(payloads, max_size=6))
def test_an_index_that_knows_everything_decides(wanted: dict[str, Any], candidates: list[dict[str, Any]]) -> None:
    clause = translated(wanted, Knowing(set(FIELDS), set(OPERATORS), True))
    matches = compile_filter(wanted)
    for payload in candidates:
        assert clause is not None
        assert matches is not None
        assert clause(payload) == matches(payload)


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"b": 1},
        {"$or": [{"a": 1}, {"b": 1}]},
        {"$not": {"a": 1, "b": 1}},
        {"$and": []},
        {"$or": []},
    ],
)
def test_what_cannot_be_said_narrows_nothing(wanted: dict[str, Any]) -> None:
    assert translated(wanted, Knowing({"a"}, set(OPERATORS), True)) is None


def test_what_can_be_said_narrows() -> None:
    clause = translated({"a": {"$gt": 0, "$ne": 2}, "b": 1}, Knowing({"a"}, {"$gt", "$eq"}, True))
    assert clause is not None
    assert [clause({"a": value}) for value in (0, 1, 2, 3)] == [False, True, False, True]
