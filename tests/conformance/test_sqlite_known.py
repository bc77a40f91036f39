"""What SQLite's storages know without reading it must be what they would read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memstate_core import SQLiteStorage
from memstate_core._bridge import run
from memstate_core.facts import Operation
from memstate_core.protocols import Batch, Claim, NewEntry, Position, RecordWrite, StorageTransaction
from memstate_core.storages._sqlite.known import Known

NOW = "2030-01-01T00:00:00+00:00"


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[SQLiteStorage]:
    with SQLiteStorage(tmp_path / "memory.db") as storage:
        yield storage


@pytest.fixture
def other(tmp_path: Path) -> Iterator[SQLiteStorage]:
    with SQLiteStorage(tmp_path / "memory.db") as storage:
        yield storage


Seen = tuple[Position, list[Claim], bytes | None, dict[Any, bytes]]


async def look(tx: StorageTransaction) -> Seen:
    claims = await tx.claims(["fact:f", "fact:g"])
    return await tx.position("s"), claims, await tx.record("c", "k"), await tx.records([("c", "k"), ("c", "l")])


def seen(storage: SQLiteStorage) -> Seen:
    """What a transaction that writes is told."""
    return run(storage.write("n", look))


def read(storage: SQLiteStorage) -> Seen:
    """What one that only reads finds."""
    return run(storage.read("n", look))


def moment(storage: SQLiteStorage) -> object:
    async def work(tx: StorageTransaction) -> object:
        return tx.moment

    return run(storage.write("n", work))


def write(storage: SQLiteStorage, batch: Batch) -> None:
    run(storage.write("n", lambda tx: tx.write(batch)))


def commit(value: bytes | None = b"v", key: str = "k", session_id: str | None = "s", head: int | None = None) -> Batch:
    entry = NewEntry(session_id, Operation.COMMIT, None, None, None, NOW, 0, head)
    return Batch(entry, records=[RecordWrite("c", key, value)])


BATCHES = {
    "a transaction": commit,
    "a transaction of another session": lambda: commit(session_id=None),
    "a move": lambda: commit(head=1),
    "a record": lambda: Batch(records=[RecordWrite("c", "k", b"w")]),
    "a long record": lambda: Batch(records=[RecordWrite("c", "k", b"w" * 1000)]),
    "a record that is removed": lambda: Batch(records=[RecordWrite("c", "k", None)]),
    "another record": lambda: commit(key="l"),
    "a claim": lambda: Batch(claims=[Claim("fact:f", "o", 1.0, ())]),
    "claims of two": lambda: Batch(claims=[Claim("fact:f", "o", 1.0, ()), Claim("fact:g", "p", 1.0, ())]),
    "a claim in a transaction": lambda: Batch(commit().entry, claims=[Claim("fact:f", "o", 1.0, ("h",))]),
    "a definition": lambda: Batch(definitions={"t": "{}"}),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("by", ["itself", "another"])
def test_what_was_written_is_seen(storage: SQLiteStorage, other: SQLiteStorage, name: str, by: str) -> None:
    write(storage, commit(b"first"))
    before = seen(storage)
    assert before == read(storage)
    write(storage if by == "itself" else other, BATCHES[name]())
    assert seen(storage) == read(storage) == seen(other)
    write(storage, Batch(drop_claims_of="o"))
    assert seen(storage) == read(storage) == seen(other)
    write(storage, Batch(commit(b"last").entry, drop_claims_of="p"))
    assert seen(storage) == read(storage) == seen(other)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("by", ["itself", "another"])
def test_no_two_moments_are_the_same_if_anything_was_written_between_them(
    storage: SQLiteStorage, other: SQLiteStorage, name: str, by: str
) -> None:
    write(storage, commit(b"first"))
    before = moment(storage)
    assert before is not None
    assert moment(storage) == before
    write(storage if by == "itself" else other, BATCHES[name]())
    assert moment(storage) != before


def test_no_two_connections_have_the_same_moment(storage: SQLiteStorage, other: SQLiteStorage) -> None:
    run(storage.open())
    before = moment(other)
    write(storage, commit())
    other._disconnect()
    assert moment(other) != before


def test_what_is_known_is_not_read(storage: SQLiteStorage) -> None:
    write(storage, commit())
    found = seen(storage)
    assert storage._writer is not None
    statements: list[str] = []
    storage._writer.set_trace_callback(statements.append)
    assert seen(storage) == found
    assert [one for one in statements if "SELECT" in one] == []


def test_nothing_is_known_of_what_was_not_committed(storage: SQLiteStorage) -> None:
    write(storage, commit(b"first"))
    found = seen(storage)

    async def work(tx: StorageTransaction) -> None:
        await tx.position("s")
        await tx.write(commit(b"second"))
        raise LookupError

    with pytest.raises(LookupError):
        run(storage.write("n", work))
    assert seen(storage) == read(storage) == found


def test_who_is_interrupted_when_it_has_committed_looks_again(
    storage: SQLiteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(storage, commit(b"first"))
    found = seen(storage)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Known, "committed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(storage, commit(b"second"))
    assert seen(storage) == read(storage) != found


def test_what_is_known_has_bounds(storage: SQLiteStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memstate_core.storages._sqlite.known._MOST", 4)
    for number in range(20):
        write(storage, commit(b"%d" % number, f"k{number}", f"s{number}"))

        async def work(tx: StorageTransaction, number: int = number) -> Any:
            return (await tx.position(f"s{number}")).head, await tx.record("c", f"k{number}")

        assert run(storage.write("n", work)) == (number + 1, b"%d" % number)
    known: Any = storage._known
    assert len(known._records) <= 4
    assert len(known._positions) <= 4


def test_a_connection_of_the_callers_is_always_asked(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
    storage = SQLiteStorage(connection)
    write(storage, commit(b"first"))
    assert seen(storage)[2] == b"first"
    connection.execute("UPDATE memstate_records SET value = x'32'")
    assert seen(storage)[2] == b"2"
    assert moment(storage) is None
    connection.close()
