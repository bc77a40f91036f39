"""The one filter language: what a filter means, on every storage.

A filter is a mapping. Its keys are dotted paths into the payload (``"role"``, ``"payload.role"``,
``"address.city"``, ``"tags.0"``) or ``"$and"``, ``"$or"`` (lists of filters) and ``"$not"`` (a filter). Its
values are a JSON value, which means equality, or a mapping of operators, all of which must hold:

=============  =======================================================================
``$eq $ne``    equal as JSON, or not (a missing field is not equal to anything)
``$gt $gte``   both numbers, or both strings by code point; anything else: false
``$lt $lte``
``$in $nin``   equal to one of a list, or to none
``$exists``    the path is there (a null is there)
``$contains``  a list has an equal item, a string has the substring, an object the key
``$not``       a condition that must not hold
=============  =======================================================================

Equality is that of JSON: ``1`` equals ``1.0`` but neither ``"1"`` nor ``True``; objects compare without
order. A mapping whose keys do not begin with ``$`` is a value. Storages may narrow by an index
(:attr:`Predicate.ranges`), but what matches is decided by :meth:`Predicate.__call__`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, NamedTuple

from memstate_core.facts import IndexEntry, StoredFact

MISSING: Final = object()

# An index keeps this many characters of a text; longer ones agree in order and are compared again in full.
INDEXED_LENGTH: Final = 200
_CUT: Final = "\x01"

NULL, BOOLEAN, NUMBER, STRING, ARRAY, OBJECT = range(6)
# The kind of an index entry that says that there is no value at its path.
ABSENT: Final = -1

Test = Callable[[Any], bool]

_encode: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
_encode_text: Final = json.encoder.encode_basestring_ascii  # what _encode comes to for a text


def kind_of(value: Any) -> int:
    """The JSON kind of a value, in the order by which :func:`sort_key` sorts kinds."""
    if isinstance(value, str):
        return STRING
    if value is None:
        return NULL
    if isinstance(value, bool):
        return BOOLEAN
    if isinstance(value, int | float):
        return NUMBER
    if isinstance(value, list | tuple):
        return ARRAY
    if isinstance(value, Mapping):
        return OBJECT
    raise ValueError(f"{value!r} is a {type(value).__name__}, not a JSON value; pass what the payload's JSON holds")


def canonical(value: Any) -> str:
    """JSON text that is the same for equal values (``1`` and ``1.0``; objects in any order)."""
    return _encode_text(value) if isinstance(value, str) else _encode(_canonical(value))


def _canonical(value: Any) -> Any:
    kind = kind_of(value)
    if kind == NUMBER:
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if kind == ARRAY:
        return [_canonical(item) for item in value]
    if kind == OBJECT:
        return {str(key): _canonical(item) for key, item in value.items()}
    return value


def equal(left: Any, right: Any) -> bool:
    """Equality as JSON has it."""
    kind = kind_of(left)
    if kind != kind_of(right):
        return False
    if kind == ARRAY:
        return len(left) == len(right) and all(map(equal, left, right))
    if kind == OBJECT:
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    return bool(left == right)


@functools.lru_cache(maxsize=1024)
def split_path(path: str) -> tuple[str, ...]:
    """The parts of a dotted path into the payload; a leading ``payload.`` is dropped."""
    if not isinstance(path, str) or not path:
        raise ValueError(f"a filter's key must be a dotted path such as 'role' or 'payload.role', not {path!r}")
    return tuple(path.removeprefix("payload.").split("."))


def lookup(payload: Any, parts: Sequence[str]) -> Any:
    """The value at a path, or :data:`MISSING`; a number as a part indexes a list."""
    value = payload
    for part in parts:
        if type(value) is dict or isinstance(value, Mapping):  # asking the abstract class takes five times as long
            value = value.get(part, MISSING)
            if value is MISSING:
                return MISSING
        elif (
            isinstance(value, list) and part.isascii() and part.isdigit() and len(part) < 19 and int(part) < len(value)
        ):
            value = value[int(part)]
        else:
            return MISSING
    return value


def declared(payload: Mapping[str, Any], path: str) -> Any:
    """The value at a path of a definition, which begins in the payload whatever its first part is called."""
    if "." not in path and type(payload) is dict:
        return payload.get(path, MISSING)
    return lookup(payload, path.split("."))


def index_key(value: Any) -> tuple[int, str | int | float]:
    """``(kind, key)`` such that equal values have equal keys, and keys order numbers and strings as filters do.

    Keys may agree where values do not (long texts, integers beyond 64 bits): an index narrows, it does not decide.
    """
    kind = kind_of(value)
    if kind == STRING:
        text = value
    elif kind == NULL:
        return kind, 0
    elif kind == BOOLEAN:
        return kind, int(value)
    elif kind == NUMBER:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            try:
                return kind, float(value)
            except OverflowError:
                return kind, float("inf") if value > 0 else float("-inf")
        return kind, value
    else:
        text = canonical(value)
    if len(text) <= INDEXED_LENGTH and "\0" not in text:
        return kind, text
    # Some databases end a text at a NUL and all dislike long keys. What is cut ends in U+0001: that keeps the order,
    # and a text that is whole can only equal another whole one.
    return kind, text[:INDEXED_LENGTH].partition("\0")[0] + _CUT


def index_entries(payload: Mapping[str, Any], paths: Iterable[str]) -> tuple[IndexEntry, ...]:
    """The index entries of a payload, one for each declared path; a missing field's is of kind ABSENT."""
    entries = []
    for path in paths:
        value = declared(payload, path)
        kind, key = (ABSENT, 0) if value is MISSING else index_key(value)
        entries.append(IndexEntry(path, kind, key))
    return tuple(entries)


class Range(NamedTuple):
    """What every match has at ``path``: a key of ``kind`` between ``low`` and ``high``, both included.

    ``exact`` says that nothing else matches, so an index on the path decides the condition by itself.
    """

    path: str
    kind: int
    low: str | int | float | None
    high: str | int | float | None
    exact: bool


@dataclass(frozen=True, slots=True)
class NativeFilter:
    """A filter in an index's own language, which is passed on as it is: Chroma's ``where``, say."""

    filter: Any


class Predicate:
    """A compiled filter: call it with a payload.

    ``ranges`` are conditions that every match fulfils, for storages that have an index on one of their paths;
    ``conditions`` counts the top-level conditions, so that an exact range known to be the only one
    decides alone.
    """

    __slots__ = ("conditions", "ranges", "test")

    def __init__(self, test: Test, ranges: Sequence[Range], conditions: int) -> None:
        self.test = test
        self.ranges = tuple(ranges)
        self.conditions = conditions

    def __call__(self, payload: Mapping[str, Any]) -> bool:
        return self.test(payload)

    def decided_by(self, range_: Range) -> bool:
        return range_.exact and self.conditions == 1


def compile_filter(filters: Mapping[str, Any] | None) -> Predicate | None:
    """Compile a filter; None when it accepts everything.

    :raises ValueError: an unknown operator, or a value that is not JSON.
    """
    if not filters:
        return None
    tests: list[Test] = []
    ranges: list[Range] = []
    _compile_all(filters, tests, ranges)
    if len(tests) == 1:
        return Predicate(tests[0], ranges, 1)
    return Predicate(lambda payload: all(test(payload) for test in tests), ranges, len(tests))


def also(predicate: Predicate | None, test: Test) -> Predicate:
    """A predicate that asks ``test`` as well, by which no index can narrow."""
    if predicate is None:
        return Predicate(test, (), 1)
    return Predicate(lambda payload: predicate(payload) and test(payload), predicate.ranges, predicate.conditions + 1)


def _compile_all(filters: Mapping[str, Any], tests: list[Test], ranges: list[Range]) -> None:
    if not isinstance(filters, Mapping):
        raise ValueError(f"a filter must be a mapping of paths to conditions, not {filters!r}")
    for key, condition in filters.items():
        if key == "$and":
            for part in _filters_of(key, condition):
                _compile_all(part, tests, ranges)
        elif key == "$or":
            tests.append(_any_of([_compile_test(part) for part in _filters_of(key, condition)]))
        elif key == "$not":
            tests.append(_negate(_compile_test(condition)))
        elif isinstance(key, str) and key.startswith("$"):
            raise ValueError(f"unknown operator {key!r} at the top of a filter; there are $and, $or and $not")
        else:
            _compile_path(key, condition, tests, ranges)


def _filters_of(operator: str, value: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{operator} takes a list of filters, not {value!r}")
    return value


def _compile_test(filters: Mapping[str, Any]) -> Test:
    tests: list[Test] = []
    _compile_all(filters, tests, [])
    return lambda payload: all(test(payload) for test in tests)


def _any_of(tests: Sequence[Test]) -> Test:
    return lambda payload: any(test(payload) for test in tests)


def _negate(test: Test) -> Test:
    return lambda value: not test(value)


def _compile_path(path: str, condition: Any, tests: list[Test], ranges: list[Range]) -> None:
    parts = split_path(path)
    name = ".".join(parts)
    for operator, operand in operators_of(condition).items():
        if operator not in _CONDITIONS:
            known = " ".join(_CONDITIONS)
            raise ValueError(f"unknown operator {operator!r} for {path!r}; there are {known} (and $and, $or, $not)")
        test = _CONDITIONS[operator](operand)
        tests.append(lambda payload, test=test: test(lookup(payload, parts)))  # type: ignore[misc]
        range_ = _range_of(name, operator, operand)
        if range_ is not None:
            ranges.append(range_)


def operators_of(condition: Any) -> Mapping[str, Any]:
    """A condition as a mapping of operators; a plain value means ``$eq``."""
    if isinstance(condition, Mapping) and condition:
        marked = [isinstance(key, str) and key.startswith("$") for key in condition]
        if all(marked):
            return condition
        if any(marked):
            raise ValueError(f"a condition is a value or a mapping of operators, not a mixture: {condition!r}")
    return {"$eq": condition}


def _eq(operand: Any) -> Test:
    kind = kind_of(operand)
    if kind == STRING:  # by far the most frequent, and str never equals another kind
        return lambda value: value == operand
    return lambda value: value is not MISSING and equal(value, operand)


def _comparison(accepts: Callable[[Any, Any], bool]) -> Callable[[Any], Test]:
    def compile_comparison(operand: Any) -> Test:
        kind = kind_of(operand)
        if kind not in (NUMBER, STRING):
            raise ValueError(f"$gt, $gte, $lt and $lte compare with a number or a string, not {operand!r}")
        return lambda value: value is not MISSING and kind_of(value) == kind and accepts(value, operand)

    return compile_comparison


def _in(operand: Any) -> Test:
    if not isinstance(operand, list | tuple | set | frozenset):
        raise ValueError(f"$in and $nin take a list of values, not {operand!r}")
    wanted = {canonical(item) for item in operand}
    return lambda value: value is not MISSING and canonical(value) in wanted


def _exists(operand: Any) -> Test:
    if not isinstance(operand, bool):
        raise ValueError(f"$exists takes True or False, not {operand!r}")
    return lambda value: (value is not MISSING) is operand


def _contains(operand: Any) -> Test:
    kind = kind_of(operand)

    def contains(value: Any) -> bool:
        if isinstance(value, list):
            return any(equal(item, operand) for item in value)
        return kind == STRING and isinstance(value, str | Mapping) and operand in value

    return contains


def _not(operand: Any) -> Test:
    tests = []
    for operator, value in operators_of(operand).items():
        if operator not in _CONDITIONS:
            raise ValueError(f"unknown operator {operator!r} under $not; there are {' '.join(_CONDITIONS)}")
        tests.append(_CONDITIONS[operator](value))
    return lambda value: not all(test(value) for test in tests)


_CONDITIONS: Final[dict[str, Callable[[Any], Test]]] = {
    "$eq": _eq,
    "$ne": lambda operand: _negate(_eq(operand)),
    "$gt": _comparison(lambda value, operand: value > operand),
    "$gte": _comparison(lambda value, operand: value >= operand),
    "$lt": _comparison(lambda value, operand: value < operand),
    "$lte": _comparison(lambda value, operand: value <= operand),
    "$in": _in,
    "$nin": lambda operand: _negate(_in(operand)),
    "$exists": _exists,
    "$contains": _contains,
    "$not": _not,
}


def _range_of(path: str, operator: str, operand: Any) -> Range | None:
    if isinstance(operand, str) and not operand.isascii() and not encodes(operand):
        return None  # no stored text has a lone surrogate, and no database takes one as a parameter
    if operator == "$eq":
        kind, key = index_key(operand)
        exact = _CUT not in key if isinstance(key, str) else abs(key) < 2**53
        return Range(path, kind, key, key, exact)
    if operator in ("$gt", "$gte"):
        kind, key = index_key(operand)
        return Range(path, kind, key, None, False)
    if operator in ("$lt", "$lte"):
        kind, key = index_key(operand)
        return Range(path, kind, None, key, False)
    return None


def encodes(text: str) -> bool:
    """Whether it is Unicode text, without lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


FACT_FIELDS: Final = ("id", "type", "source", "session_id", "ts", "version")


class Order(NamedTuple):
    """One part of an ordering: a field of the fact itself, or the parts of a path into the payload."""

    field: str | None
    parts: tuple[str, ...]
    descending: bool


def compile_order(order_by: str | Sequence[str] | None) -> tuple[Order, ...]:
    """``"role"``, ``"-payload.age"``, ``"ts"`` or several of them; a leading ``-`` means descending.

    ``id type source session_id ts version`` are the fact's own; everything else is a path into the
    payload, as is anything behind ``payload.``. Facts that lack the field come last either way, and equal ones stay
    in the order in which they were made.

    :raises ValueError: not a string or a list of strings.
    """
    if order_by is None:
        return ()
    if not isinstance(order_by, str | list | tuple):
        raise ValueError(f"order_by takes a field name or a list of them, not {order_by!r}")
    names = [order_by] if isinstance(order_by, str) else order_by
    orders = []
    for name in names:
        if not isinstance(name, str) or not name.removeprefix("-"):
            raise ValueError(f"order_by takes field names such as 'ts' or '-payload.age', not {name!r}")
        path = name.removeprefix("-")
        field = path if path in FACT_FIELDS else None
        orders.append(Order(field, () if field else split_path(path), name.startswith("-")))
    return tuple(orders)


def compare(left: Any, right: Any) -> int:
    """-1, 0 or 1: null < booleans < numbers < strings < arrays < objects, each by value."""
    kind = kind_of(left)
    other = kind_of(right)
    if kind != other:
        return -1 if kind < other else 1
    if kind in (ARRAY, OBJECT):
        left, right = canonical(left), canonical(right)
    elif kind == NULL:
        return 0
    return int(left > right) - int(left < right)


_sort_key: Final[Callable[[Any], Any]] = functools.cmp_to_key(compare)


def sort_facts(
    facts: Iterable[StoredFact], order: Sequence[Order], decode: Callable[[StoredFact], dict[str, Any]]
) -> list[StoredFact]:
    """Sort as :func:`compile_order` says; without an order, as the facts were made."""
    ordered = sorted(facts, key=attrgetter("ordinal"))
    for part in reversed(order):

        def value_of(fact: StoredFact, part: Order = part) -> Any:
            if part.field:
                value = getattr(fact, part.field)
                return MISSING if value is None else value
            return lookup(decode(fact), part.parts)

        keyed: list[tuple[Any, StoredFact]] = [(value_of(fact), fact) for fact in ordered]
        present = [pair for pair in keyed if pair[0] is not MISSING]
        present.sort(key=lambda pair: _sort_key(pair[0]), reverse=part.descending)
        ordered = [fact for _, fact in present] + [fact for value, fact in keyed if value is MISSING]
    return ordered
