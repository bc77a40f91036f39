"""Imports of all namespaces that come to their end in several attempts; what a copy is worth is the kit's to test."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memstate_core import (
    ConflictError,
    Fact,
    InMemoryStorage,
    MemoryStore,
    RedisStorage,
    SQLiteStorage,
    UnavailableError,
    ValidationFailed,
    exporting,
)
from memstate_core._bridge import run
from memstate_core.all_namespaces import export_all, import_all, is_waiting
from memstate_core.exporting import Line
from memstate_core.importing import unfinished
from memstate_core.testing import Fault, FaultyStorage

NAMES = ["a", "b", "c"]


@pytest.fixture(params=["memory", "sqlite"])
def new(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], FaultyStorage]:
    """Makes storages that fail when they are told to."""
    files = (tmp_path / f"{number}.db" for number in itertools.count())
    return lambda: FaultyStorage(InMemoryStorage() if request.param == "memory" else SQLiteStorage(next(files)))


def lines_of(storage: Any) -> list[Line]:
    lines: list[Line] = []
    run(export_all(storage, lines.append, lambda: lambda: None))
    return json.loads(json.dumps(lines))


def filled(storage: Any) -> list[Line]:
    for text in ("tea", "coffee"):
        for name in NAMES:
            store = MemoryStore(storage, namespace=name, allow_unregistered=True)
            store.commit(Fact("note", {"text": text}, id=text))
            store.put_record("c", text, name.encode())
    return lines_of(storage)


def content(lines: list[Line]) -> list[Line]:
    """What does not depend on which export it is."""
    return [line for line in lines if "memstate" not in line]


def attempt(storage: Any, lines: list[Line]) -> str:
    """What an import comes to."""
    try:
        run(import_all(storage, lines))
    except UnavailableError:
        return "failed"
    except ConflictError as error:
        return str(error)
    return "done"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_fault_at_every_call(new: Callable[[], FaultyStorage], when: Any) -> None:
    """Twice in a row; whether the call took effect or not, what is tried again goes on to the same end."""
    lines = filled(new())
    for at in itertools.count(1):
        copy = new()
        said = []
        for _ in range(2):
            copy.fault = Fault(at, when)
            said.append(attempt(copy, lines))
        copy.fault = None
        said.append(attempt(copy, lines))
        # The last one that was needed took effect, or its reply was lost.
        assert said[-1] == "done" or "namespace 'a' is not empty" in said[-1]
        assert "done" in said or when == "after"
        assert content(lines_of(copy)) == content(lines)
        assert [run(copy.read(name, lambda tx: tx.collections())) for name in NAMES] == [["c"]] * 3
        if said[0] == "done":
            break
    assert at > 20


def test_what_is_cut_off_goes_on(new: Callable[[], FaultyStorage]) -> None:
    lines = filled(new())
    copy = new()
    (_, first, second, third) = (place for place, line in enumerate(lines) if "memstate" in line)
    for end, complete in (
        (0, 0),
        (1, 0),
        (first + 2, 0),
        (second, 1),
        (second + 2, 1),
        (third, 2),
        (len(lines) - 1, 3),
    ):
        with pytest.raises(ValidationFailed, match="this is no export" if end == 0 else "the export is not complete"):
            run(import_all(copy, lines[:end]))
        stores = [MemoryStore(copy, namespace=name, allow_unregistered=True) for name in NAMES]
        assert [store.count() for store in stores][:complete] == [2] * complete
        assert sum(run(unfinished(copy, name)) for name in NAMES) == (end not in (0, 1, second, third, len(lines) - 1))
    # Some may be missing, which what would take all of them for a whole must know.
    assert [run(is_waiting(copy, name)) for name in NAMES] == [True] * 3
    with pytest.raises(ConflictError, match="'a' is of an import of all namespaces that is not complete"):
        lines_of(copy)
    # What was written meanwhile took no number that was to come.
    stores[0].commit(Fact("note", {"text": "more"}, id="more"))
    assert run(import_all(copy, lines)) == {}
    assert [store.count() for store in stores] == [3, 2, 2]
    assert {line.get("record") for line in lines_of(copy)} == {None, "c"}
    with pytest.raises(ConflictError, match="namespace 'a' is not empty"):
        run(import_all(copy, lines))


def test_one_is_enough_after_all(tmp_path: Path) -> None:
    """A number of what is to come is taken, so it cannot go on; the one that is there can be kept."""
    lines = filled(InMemoryStorage())
    copy = SQLiteStorage(tmp_path / "copy.db")
    (_, _, second, _) = (place for place, line in enumerate(lines) if "memstate" in line)
    with pytest.raises(ValidationFailed, match="the export is not complete"):
        run(import_all(copy, lines[: second + 3]))
    for _ in range(2):
        MemoryStore(copy, namespace="a", allow_unregistered=True).commit(Fact("note", {}))
    with pytest.raises(ConflictError, match="namespace 'c' cannot be imported here: transaction 6 is taken"):
        run(import_all(copy, lines))
    with pytest.raises(ConflictError, match="import again to go on with it, or this one alone"):
        lines_of(copy)
    assert run(import_all(copy, lines, only="a")) == {}
    assert not run(is_waiting(copy, "a"))
    copy.close()


@pytest.mark.parametrize("order", ["aaabaabbabbbba", "aaaaaabaaa", "ab", "a", "abbbba", "aabbbbaa"])
def test_few_numbers_and_many(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pages of two: a namespace with most of the numbers, or with some, in any place."""
    monkeypatch.setattr(exporting, "PAGE", 2)
    storage = InMemoryStorage()
    for name in order:
        MemoryStore(storage, namespace=name, allow_unregistered=True).commit(Fact("note", {}))
    lines = content(lines_of(storage))
    seqs = [line["transaction"] for line in lines if "transaction" in line]
    places = list(enumerate(order, 1))
    assert seqs == [seq for name in "ab" for seq, its in places if its == name]


def test_it_is_refused_before_anything_is_written(new: Callable[[], FaultyStorage]) -> None:
    lines = filled(new())
    copy = new()
    MemoryStore(copy, namespace="c").put_record("mine", "k", b"v")
    with pytest.raises(ConflictError, match="namespace 'c' is not empty"):
        run(import_all(copy, lines))
    assert run(copy.namespaces()) == ["c"]


def test_numbers_that_only_some_storages_give_out_twice(redis: Any, tmp_path: Path) -> None:
    with RedisStorage(redis.url, prefix=str(tmp_path)) as original, SQLiteStorage(tmp_path / "copy.db") as copy:
        lines = filled(original)
        with pytest.raises(ConflictError, match="namespace 'b' cannot be imported here: transaction 1 is taken"):
            run(import_all(copy, lines))
        assert run(copy.namespaces()) == ["a"]
        for name in NAMES:
            with SQLiteStorage(tmp_path / f"{name}.db") as one:
                assert list(run(import_all(one, lines, only=name))) == [name]
                assert run(one.namespaces()) == [name]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"namespaces": "a"}, "line 1: not what"),
        ({"namespaces": ["a", "a"]}, "line 1: not what"),
        ({"namespaces": ["a", ""]}, "line 1: a namespace must not be empty"),
        ({"namespaces": ["b", "a", "c"]}, "the export is not complete, or not as"),
        ({"export": "another"}, "the export is not complete, or not as"),
        ({"export": None}, "line 1: not what"),
        ({"memstate": 2}, "an export of format 2"),
    ],
)
def test_lines_that_are_no_export(given: Line, complaint: str) -> None:
    lines = filled(InMemoryStorage())
    with pytest.raises(ValidationFailed, match=complaint):
        run(import_all(InMemoryStorage(), [lines[0] | given, *lines[1:]]))


def test_an_export_of_nothing() -> None:
    lines = lines_of(InMemoryStorage())
    assert run(import_all(InMemoryStorage(), lines)) == {}
    with pytest.raises(ValidationFailed, match=r"has no namespace 'a'; it has none$"):
        run(import_all(InMemoryStorage(), lines, only="a"))


def test_numbers_of_lines_are_those_of_the_whole() -> None:
    lines = filled(InMemoryStorage())
    place = next(place for place, line in enumerate(lines) if line.get("namespace") == "b") + 1
    lines[place] = {"what": 1}
    with pytest.raises(ValidationFailed, match=f"line {place + 1}: not what"):
        run(import_all(InMemoryStorage(), lines))
