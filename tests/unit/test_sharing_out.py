"""Which tests are tried with which storage."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests import sharing_out
from tests.storages import FACTORIES

DATABASES = {"memory", "sqlite", "postgres", "redis"}


def tried(test: str, parameters: str = "", kinds: Any = FACTORIES) -> list[str]:
    """The storages that a test is tried with, of those that it could be."""
    items: list[Any] = [
        _Item(f"tests/{test}[{kind}{parameters}]", SimpleNamespace(params={"storages": kind, "other": 7}))
        for kind in kinds
    ]
    left = sharing_out.left_to_others(items)
    return [item.callspec.params["storages"] for item in items if item not in left]


class _Item:
    def __init__(self, nodeid: str, callspec: Any) -> None:
        self.nodeid = nodeid
        self.callspec = callspec


@pytest.fixture(autouse=True)
def usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing_out, "THOROUGH", False)


def test_each_is_tried_on_every_storage_and_in_both_flavours() -> None:
    seen = set()
    for number in range(100):
        found = tried(f"langgraph/test_store.py::test_{number}")
        assert {kind.partition("-")[0] for kind in found} == DATABASES
        assert len(found) == len(DATABASES)
        for pair in (DATABASES & {"memory", "sqlite"}, DATABASES & {"postgres", "redis"}):
            flavours = [kind.rpartition("-")[2] for kind in found if kind.partition("-")[0] in pair]
            assert sorted(flavours) == ["async", "sync"]
        seen |= set(found)
    assert seen == set(FACTORIES)


def test_where_it_is_about_the_storage_or_there_is_no_such_choice_nothing_is_left_out() -> None:
    assert tried("conformance/test_records.py::test_one") == list(FACTORIES)
    memory = ["memory-sync", "memory-async"]
    assert tried("langgraph/test_store.py::test_one", kinds=memory) == memory
    assert tried("langgraph/test_store.py::test_one", kinds=["postgres-async"]) == ["postgres-async"]


def test_what_looks_alike_to_a_storage_is_tried_at_every_step_on_one_server() -> None:
    for number in range(20):
        test = f"conformance/test_storage_faults.py::Test{number}::test_with_hooks"
        found = [kind.partition("-")[0] for kind in tried(test, "-redo-before")]
        assert found in (["memory", "sqlite", "postgres"], ["memory", "sqlite", "redis"])
        assert len(tried(test, "-commit-before")) == len(DATABASES)


def test_what_only_one_flavour_has_is_tried_on_one_server() -> None:
    kinds = [kind for kind in FACTORIES if kind.endswith("-async")]
    found = [
        tried(f"conformance/test_cancelling.py::{name}{number}", parameters, kinds)
        for name, parameters in (("test_", ""), ("Test::test_at_every_await", "-delete"))
        for number in range(20)
    ]
    for one in found:
        assert {"memory-async", "sqlite-file-async"} <= set(one)
        assert len(one) == 3
    assert {kind for one in found for kind in one} == set(kinds)


def test_one_index_in_this_process_and_one_that_is_served_are_enough() -> None:
    seen = set()
    for number in range(100):
        test = f"hooks/test_qdrant_conformance.py::test_{number}"
        (one, other) = tried(test, kinds=["memory", "disk", "async memory", "http", "async http"])
        assert one in ("memory", "disk", "async memory")
        assert other in ("http", "async http")
        seen |= {one, other}
    assert len(seen) == 5


def test_all_are_tried_where_it_is_to_be_thorough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing_out, "THOROUGH", True)
    assert tried("langgraph/test_store.py::test_one") == list(FACTORIES)
