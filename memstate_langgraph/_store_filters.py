"""What LangGraph's store means by a filter and by a match condition. Pure.

A filter's keys are top-level keys of the value, a dot in them is a character like any other, and a value is compared as
Python does: ``1`` equals ``True``, and None what is not there. That is ``langgraph.store.memory``, whose comparisons
raise where there is nothing to compare; here, as in LangGraph's stores on databases, such items just do not match.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from langgraph.store.base import MatchCondition

from memstate_core.filters import Predicate, Test, also, compile_filter, encodes
from memstate_langgraph._store_items import INDEXED_DEPTH, prefix_path


def under(prefix: tuple[str, ...], filters: Mapping[str, Any] | None) -> tuple[dict[str, Any], Test | None]:
    """What finds the items under a prefix that match: a filter in the memory's language, and what is left of it.

    :raises ValueError: an operator that LangGraph does not know.
    """
    found: dict[str, Any] = {}
    tests: list[Test] = []
    path = prefix_path(prefix)
    if path is not None:
        found[path[0]] = path[1]
    if len(prefix) > INDEXED_DEPTH:
        labels = list(prefix)
        tests.append(lambda payload: payload["namespace"][: len(labels)] == labels)
    for key, condition in (filters or {}).items():
        if isinstance(condition, str) and isinstance(key, str) and _is_plain(key):
            found[f"value.{key}"] = condition
        else:
            tests.append(_of_key(key, _compiled(condition)))
    return found, (lambda payload: all(test(payload) for test in tests)) if tests else None


def predicate(filters: Mapping[str, Any], test: Test | None) -> Predicate | None:
    """The two parts of :func:`under` as one condition on payloads."""
    compiled = compile_filter(filters)
    return compiled if test is None else also(compiled, test)


def _is_plain(key: str) -> bool:
    """Whether a key is one part of a path."""
    return key != "" and "." not in key and encodes(key)


def _of_key(key: Any, test: Test) -> Test:
    return lambda payload: test(payload["value"].get(key))


def _compiled(condition: Any) -> Test:
    if isinstance(condition, Mapping):
        if any(isinstance(key, str) and key.startswith("$") for key in condition):
            return _all([_operator(name, operand) for name, operand in condition.items()])
        parts = [_part(key, _compiled(value)) for key, value in condition.items()]
        return lambda value: isinstance(value, dict) and all(part(value) for part in parts)
    if isinstance(condition, list | tuple):
        items = [_compiled(one) for one in condition]
        return lambda value: (
            isinstance(value, list)
            and len(value) == len(items)
            and all(test(one) for test, one in zip(items, value, strict=True))
        )
    return lambda value: bool(value == condition)


def _part(key: Any, test: Test) -> Test:
    return lambda value: test(value.get(key))


def _all(tests: Sequence[Test]) -> Test:
    return lambda value: all(test(value) for test in tests)


def _operator(name: Any, operand: Any) -> Test:
    if name not in _OPERATORS:
        raise ValueError(f"Unsupported operator: {name!r}; a store's filter has {' '.join(_OPERATORS)}")
    return _OPERATORS[name](operand)


def _equality(operand: Any) -> Test:
    operand = _as_json(operand)
    return lambda value: bool(value == operand)


def _as_json(operand: Any) -> Any:
    if isinstance(operand, list | tuple):
        return [_as_json(one) for one in operand]
    return operand


def _inequality(operand: Any) -> Test:
    equal = _equality(operand)
    return lambda value: not equal(value)


def _comparison(accepts: Callable[[Any, Any], bool]) -> Callable[[Any], Test]:
    def compiled(operand: Any) -> Test:
        number = _number(operand)

        def holds(value: Any) -> bool:
            if number is not None:
                other = _number(value)
                return other is not None and accepts(other, number)
            return isinstance(value, str) and isinstance(operand, str) and accepts(value, operand)

        return holds

    return compiled


def _number(value: Any) -> float | None:
    """What is a number, or a text that reads as one."""
    if not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


_OPERATORS: Final[dict[Any, Callable[[Any], Test]]] = {
    "$eq": _equality,
    "$ne": _inequality,
    "$gt": _comparison(lambda value, operand: value > operand),
    "$gte": _comparison(lambda value, operand: value >= operand),
    "$lt": _comparison(lambda value, operand: value < operand),
    "$lte": _comparison(lambda value, operand: value <= operand),
}


# Namespaces


def matches(condition: MatchCondition, namespace: Sequence[str]) -> bool:
    """Whether a namespace begins (``"prefix"``) or ends (``"suffix"``) with a path, in which ``"*"`` is any label."""
    path = condition.path
    if len(namespace) < len(path):
        return False
    if condition.match_type == "prefix":
        part = namespace[: len(path)]
    elif condition.match_type == "suffix":
        part = namespace[len(namespace) - len(path) :]
    else:
        raise ValueError(f"Unsupported match type: {condition.match_type!r}; there are 'prefix' and 'suffix'")
    return all(wanted in ("*", label) for wanted, label in zip(path, part, strict=True))


def common_prefix(conditions: Sequence[MatchCondition]) -> tuple[str, ...]:
    """Labels with which every namespace begins that fulfils all conditions."""
    longest: tuple[str, ...] = ()
    for condition in conditions:
        if condition.match_type == "prefix":
            path = tuple(condition.path)
            literal = path[: path.index("*")] if "*" in path else path
            longest = max(longest, literal, key=len)
    return longest
