"""Which tests are tried with which storage or index: what does not depend on it need not be tried with all of them."""

from __future__ import annotations

import itertools
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import pytest

from memstate_core.testing.profiles import THOROUGH
from tests.storages import FACTORIES

# These are about what a storage itself does, or promised of every one.
_OF_STORAGES: Final = (
    *(f"tests/conformance/test_{name}.py" for name in ("opening", "outbox", "racing", "records", "storage_protocol")),
    "tests/langgraph/test_conformance.py",
    "tests/langgraph/test_rewind.py::test_memory_is_the_state",
)
# The two flavours of a storage differ in how they reach it, which is nothing to all other tests. Each of them is the
# sync one's on one storage of a pair, and the async one's on the other, in turns.
_PAIRS: Final = (("postgres", "redis"), ("memory", "sqlite-file"))
# Takes every second turn of another one, which it hardly differs from.
_STAND_IN: Final = ("sqlite-file-sync", "sqlite-memory-sync")

# An index in the same process is the same to a hook, wherever it keeps its data, and a server is the same to both
# flavours. Each test has one of these, in turns.
_INDEXES: Final = (("ephemeral", "persistent"), ("memory", "disk", "async memory"), ("http", "async http"))

# To a storage these look like commit, update or rollback; what differs is the engine's. Where they are tried at every
# step, one server is enough; and so it is for what only one flavour has.
_ALIKE: Final = ("commit again", "commit_model", "delete", "rollback to", "redo", "checkout")
_AT_EVERY_STEP: Final = ("test_with_hooks", "test_without_hooks", "test_at_every_await", "test_at_every_call")


def left_to_others(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """Tests that need not be run, since the same one is run with other storages."""
    if THOROUGH:
        return set()
    cases: defaultdict[str, dict[str, pytest.Item]] = defaultdict(dict)
    for item in items:
        kind = _kind(item)
        if kind and not item.nodeid.startswith(_OF_STORAGES):
            cases[item.nodeid.replace(kind, "*")][kind] = item
    return {kinds[kind] for case, kinds in cases.items() for kind in _left(case, kinds)}


_KINDS: Final = {*FACTORIES, *itertools.chain(*_INDEXES)}


def _kind(item: pytest.Item) -> str | None:
    """The storage or index that a test is run with."""
    case = getattr(item, "callspec", None)
    found = [value for value in case.params.values() if isinstance(value, str) and value in _KINDS] if case else []
    return found[0] if found else None


def _left(case: str, kinds: Mapping[str, pytest.Item]) -> set[str]:
    chance = zlib.crc32(case.encode())
    left: set[str] = set()
    for number, pair in enumerate(_PAIRS):
        flavours = ("sync", "async") if chance >> number & 1 else ("async", "sync")
        if all(f"{database}-{flavour}" in kinds for database in pair for flavour in flavours):
            left |= {f"{database}-{flavour}" for database, flavour in zip(pair, flavours, strict=True)}
    if all(kind in kinds for kind in _STAND_IN):
        left |= set(_STAND_IN) if _STAND_IN[0] in left else {_STAND_IN[chance >> 2 & 1]}
    for indexes in _INDEXES:
        there = [index for index in indexes if index in kinds]
        if len(there) > 1:
            left |= {*there} - {there[chance % len(there)]}
    one, other = _PAIRS[0] if chance >> 3 & 1 else _PAIRS[0][::-1]
    on_one = [kind for kind in kinds if kind.startswith(one)]
    on_other = [kind for kind in kinds if kind.startswith(other)]
    flavours_there = {kind.rpartition("-")[2] for kind in (*on_one, *on_other)}
    if on_one and (_is_alike(case) or len(flavours_there) == 1):
        left.update(on_other)
    return left


def _is_alike(case: str) -> bool:
    test, _, parameters = case.partition("[")
    return any(one in test for one in _AT_EVERY_STEP) and parameters.removeprefix("*-").startswith(_ALIKE)
