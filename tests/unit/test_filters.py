"""The filter language, compared with a second reading of its definition, and the keys by which indexes narrow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memstate_core.facts import StoredFact
from memstate_core.filters import (
    ABSENT,
    ARRAY,
    MISSING,
    NUMBER,
    STRING,
    canonical,
    compare,
    compile_filter,
    compile_order,
    equal,
    index_entries,
    index_key,
    kind_of,
    lookup,
    operators_of,
    sort_facts,
    split_path,
)
from memstate_core.testing.profiles import tries

TEXTS = ["", "a", "b", "ab", "A", "é", "e\u0301", "\U0001d11e", "\uffff", "\0", "a\0b", "a\x01", "1"]
TEXTS += ["x" * 199, "x" * 200, "x" * 201, "x" * 200 + "\0", "x" * 200 + "\x01", "x" * 300, "x" * 300 + "y"]
NUMBERS: list[Any] = [0, 1, -1, 1.0, 0.5, -0.0, 0.1, 2**53, 2**53 + 1, float(2**53), 2**63 - 1, 2**63, 2**64, 2**64 + 1]
NUMBERS += [-(2**63), -(2**63) - 1, 1e19, 1e308, -1e308, 10**400, 10**400 + 1, -(10**400), 5e-324]
scalars = st.sampled_from([None, True, False, *TEXTS, *NUMBERS])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "0"]), inner, max_size=2),
    max_leaves=5,
)
comparable = st.sampled_from([*TEXTS, *NUMBERS, float("inf"), float("nan"), "lone \ud800"])
conditions = st.deferred(
    lambda: (
        values
        | st.fixed_dictionaries({}, optional={"$eq": values, "$ne": values, "$exists": st.booleans()})
        | st.fixed_dictionaries({}, optional=dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), comparable))
        | st.fixed_dictionaries({}, optional=dict.fromkeys(("$in", "$nin"), st.lists(values, max_size=3)))
        | st.fixed_dictionaries({"$contains": values})
        | st.fixed_dictionaries({"$not": conditions})
    )
)
paths = st.sampled_from(["a", "payload.a", "b", "a.b", "a.0", "a.0.a", "nothing"])
filters = st.recursive(
    st.dictionaries(paths, conditions, max_size=2),
    lambda inner: (
        st.dictionaries(st.sampled_from(["$and", "$or"]), st.lists(inner, max_size=2), max_size=2)
        | st.fixed_dictionaries({"$not": inner})
    ),
    max_leaves=3,
)
payloads = st.fixed_dictionaries({}, optional={"a": values, "b": values})


# A second reading of the definition in memstate_core.filters' docstring: by exact numbers, and without compiling.


def exact(value: Any) -> Any:
    """A value whose equality in Python is that of JSON."""
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, int | float):
        return ("number", Decimal(value))
    if isinstance(value, list):
        return ("array", tuple(map(exact, value)))
    if isinstance(value, Mapping):
        return ("object", frozenset((key, exact(item)) for key, item in value.items()))
    return (type(value).__name__, value)


def reference(condition: Any, there: bool, value: Any) -> bool:
    """Whether a value, or a missing one, fulfils a condition."""
    if not (isinstance(condition, dict) and condition and all(key.startswith("$") for key in condition)):
        condition = {"$eq": condition}

    def holds(operator: str, operand: Any) -> bool:
        if operator in ("$eq", "$in"):
            wanted = [operand] if operator == "$eq" else operand
            return there and exact(value) in map(exact, wanted)
        if operator in ("$ne", "$nin"):
            return not holds({"$ne": "$eq", "$nin": "$in"}[operator], operand)
        if operator == "$exists":
            return there is operand
        if operator == "$not":
            return not reference(operand, there, value)
        if operator == "$contains":
            if isinstance(value, list):
                return exact(operand) in map(exact, value)
            return isinstance(value, str | dict) and isinstance(operand, str) and operand in value
        kinds = {type(exact(one)[1]) for one in (value, operand)} if there else set()
        if kinds not in ({Decimal}, {str}) or exact(value)[0] not in ("number", "str"):
            return False
        if operand != operand:
            return False
        left, right = exact(value)[1], exact(operand)[1]
        return {"$gt": left > right, "$gte": left >= right, "$lt": left < right, "$lte": left <= right}[operator]

    return all(holds(operator, operand) for operator, operand in condition.items())


def reference_filter(one: Mapping[str, Any], payload: dict[str, Any]) -> bool:
    def holds(key: str, part: Any) -> bool:
        if key == "$and":
            return all(reference_filter(inner, payload) for inner in part)
        if key == "$or":
            return any(reference_filter(inner, payload) for inner in part)
        if key == "$not":
            return not reference_filter(part, payload)
        value: Any = payload
        for name in key.removeprefix("payload.").split("."):
            if isinstance(value, dict) and name in value:
                value = value[name]
            elif isinstance(value, list) and name in map(str, range(len(value))):
                value = value[int(name)]
            else:
                return reference(part, False, None)
        return reference(part, True, value)

    return all(holds(key, part) for key, part in one.items())


@tries(150, 50_000)
@given(filters, payloads)
def test_a_filter_means_what_its_definition_says(one: dict[str, Any], payload: dict[str, Any]) -> None:
    predicate = compile_filter(one)
    assert (predicate is None or predicate(payload)) == reference_filter(one, payload)


@tries(150, 50_000)
@given(filters, payloads)
def test_what_an_index_narrows_to_holds_every_match(one: dict[str, Any], payload: dict[str, Any]) -> None:
    predicate = compile_filter(one)
    if predicate is None:
        return
    for range_ in predicate.ranges:
        ((path, kind, key),) = index_entries(payload, [range_.path])
        assert path == range_.path
        inside = kind == range_.kind and all(
            (bound is None or (bound <= key if low else key <= bound))  # type: ignore[operator]
            for bound, low in ((range_.low, True), (range_.high, False))
        )
        if predicate(payload):
            assert inside
        if inside and predicate.decided_by(range_):
            assert predicate(payload)


@tries(150, 50_000)
@given(values, values)
def test_equality_has_three_names(left: Any, right: Any) -> None:
    same = exact(left) == exact(right)
    assert equal(left, right) is same
    assert (canonical(left) == canonical(right)) is same
    assert (compare(left, right) == 0) is same
    if same:
        assert index_key(left) == index_key(right)


@tries(150, 50_000)
@given(st.lists(values, min_size=3, max_size=3))
def test_compare_is_an_order(three: list[Any]) -> None:
    one, two, three_ = three
    assert compare(one, two) == -compare(two, one)
    if compare(one, two) <= 0 and compare(two, three_) <= 0:
        assert compare(one, three_) <= 0


@tries(150, 50_000)
@given(st.lists(st.sampled_from(TEXTS), max_size=8) | st.lists(st.sampled_from(NUMBERS), max_size=8))
def test_keys_order_as_values_do(several: list[Any]) -> None:
    for left, right in pairwise(sorted(several)):
        assert index_key(left)[1] <= index_key(right)[1]  # type: ignore[operator]


@tries(200, 20_000)
@given(values)
def test_canonical_text_is_json_of_an_equal_value(value: Any) -> None:
    assert equal(json.loads(canonical(value)), value)


def test_keys_are_short_and_without_nul() -> None:
    for text in TEXTS:
        kind, key = index_key(text)
        assert kind == STRING
        assert isinstance(key, str)
        assert len(key) <= 201
        assert "\0" not in key
    assert index_key(list(range(1000)))[0] == ARRAY
    assert index_key(10**400) == (NUMBER, float("inf"))
    assert index_key(-(10**400)) == (NUMBER, float("-inf"))


def test_what_is_not_json_has_no_kind() -> None:
    for value in (object(), {1, 2}, b"bytes", Decimal(1), MISSING):
        with pytest.raises(ValueError, match="JSON"):
            kind_of(value)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a", ("a",)),
        ("payload.a", ("a",)),
        ("payload", ("payload",)),
        ("payload.payload.a", ("payload", "a")),
        ("a.b.0", ("a", "b", "0")),
        ("a..b", ("a", "", "b")),
        (".", ("", "")),
        ("payload.", ("",)),
        ("$", ("$",)),
    ],
)
def test_paths(path: str, parts: tuple[str, ...]) -> None:
    assert split_path(path) == parts


@pytest.mark.parametrize("path", ["", None, 5, ("a",)])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(ValueError, match="dotted path"):
        split_path(path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("list.0", "first"),
        ("list.1.x", 1),
        ("list.2", MISSING),
        ("list.-1", MISSING),
        ("list.first", MISSING),
        ("list.²", MISSING),
        ("list." + "9" * 5000, MISSING),
        ("object.0", "zero"),
        ("object.none", None),
        ("object.none.x", MISSING),
        ("text.0", MISSING),
        ("number.real", MISSING),
        ("nothing", MISSING),
    ],
)
def test_lookup(path: str, value: Any) -> None:
    payload = {"list": ["first", {"x": 1}], "object": {"0": "zero", "none": None}, "text": "text", "number": 1}
    assert lookup(payload, split_path(path)) is value or lookup(payload, split_path(path)) == value


def test_index_entries_tell_of_every_path() -> None:
    entries = index_entries({"a": 1, "b": {"c": None}}, ["a", "b.c", "nothing"])
    assert [(entry.path, entry.kind) for entry in entries] == [
        ("a", NUMBER),
        ("b.c", kind_of(None)),
        ("nothing", ABSENT),
    ]


def test_empty_filters_accept_everything() -> None:
    assert compile_filter(None) is None
    assert compile_filter({}) is None
    everything = compile_filter({"$and": []})
    assert everything is not None
    assert everything({})
    assert operators_of({}) == {"$eq": {}}


def test_one_exact_range_decides_alone() -> None:
    for one, decided in (
        ({"a": 1}, True),
        ({"a": "text"}, True),
        ({"a": {"$eq": None}}, True),
        ({"a": 2**53}, False),
        ({"a": "x" * 300}, False),
        ({"a": "odd \x01"}, False),
        ({"a": {"$gt": 1}}, False),
        ({"a": 1, "b": {"$exists": True}}, False),
        ({"a": 1, "$or": [{"b": 1}]}, False),
        ({"$and": [{"a": 1}]}, True),
    ):
        predicate = compile_filter(one)
        assert predicate is not None
        assert predicate.decided_by(predicate.ranges[0]) is decided, one


def stored(number: int, payload: Mapping[str, Any], **options: Any) -> StoredFact:
    given_ = {"source": None, "session_id": None, "ts": "2030", "version": 1, "ephemeral": False} | options
    return StoredFact(
        id=str(number),
        type="note",
        payload=json.dumps(payload),
        schema_version=1,
        singleton=None,
        ordinal=number,
        **given_,
    )


def test_orders() -> None:
    assert compile_order(None) == ()
    one, two = compile_order(["-payload.ts", "ts"])
    assert (one.field, one.parts, one.descending) == (None, ("ts",), True)
    assert (two.field, two.descending) == ("ts", False)
    for wrong in ("", "-", 5, ["a", 5], {"a": 1}):
        with pytest.raises(ValueError, match="order_by"):
            compile_order(wrong)  # type: ignore[arg-type]


def test_sorting_is_stable_and_puts_missing_last_either_way() -> None:
    facts = [
        stored(4, {"a": 2}),
        stored(1, {"a": 1}, session_id="s"),
        stored(3, {"a": 2}, session_id="t"),
        stored(2, {}),
        stored(5, {"a": None}),
    ]

    def ids(*order: str) -> str:
        found = sort_facts(facts, compile_order(list(order)), lambda fact: json.loads(fact.payload))
        return "".join(fact.id for fact in found)

    assert ids() == "12345"
    assert ids("a") == "51342"
    assert ids("-a") == "34152"
    assert ids("session_id") == "13245"
    assert ids("-session_id") == "31245"
    assert ids("-a", "-id") == "43152"
