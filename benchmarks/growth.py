"""Whether what an operation costs grows with what is stored: small against large, memstate against itself.

Full scans are left out: they grow by what they are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from benchmarks.bench import Bench, say
from benchmarks.measure import Row, Side, compared, in_turn, settle
from benchmarks.storages import StorageKind
from benchmarks.subjects import MemStateSubject
from benchmarks.workload import OPERATIONS, SESSION_SIZE, TEXT, Loaded, Note, Operation, commit_notes, fresh
from memstate_core import MemoryStore

FACTS: Final = "Growth with facts"
JOURNAL: Final = "Growth with the journal"
FACTOR: Final = 2.0


def _store(loaded: Loaded) -> MemoryStore:
    assert isinstance(loaded.subject, MemStateSubject)
    return loaded.subject.store


def _of_facts(call: Callable[[MemoryStore, str], object]) -> Callable[[Loaded], Side]:
    """An operation on notes of the store, taken at random."""

    def side(loaded: Loaded) -> Side:
        store, numbers = _store(loaded), random.Random(4)
        notes = [id_ for number, id_ in enumerate(loaded.ids) if number % 10 < 7]
        return Side(lambda calls: numbers.choices(notes, k=calls), lambda id_: call(store, id_))

    return side


def _of_sessions(call: Callable[[MemoryStore, str], object]) -> Callable[[Loaded], Side]:
    """An operation on a session of the store, taken at random."""

    def side(loaded: Loaded) -> Side:
        store, numbers = _store(loaded), random.Random(5)
        count = max(1, loaded.size // SESSION_SIZE)
        return Side(
            lambda calls: [f"session-{numbers.randrange(count)}" for _ in range(calls)],
            lambda session_id: call(store, session_id),
        )

    return side


def _delete(loaded: Loaded) -> Side:
    session_id = fresh("deleted")
    return Side(lambda calls: commit_notes(loaded.subject, session_id, calls), _store(loaded).delete)


def _discard(loaded: Loaded) -> Side:
    def sessions(calls: int) -> Sequence[str]:
        names = [fresh("discarded") for _ in range(calls)]
        for name in names:
            commit_notes(loaded.subject, name, 10)
        return names

    return Side(sessions, _store(loaded).discard_session)


def _redo(loaded: Loaded) -> Side:
    session_id, store = fresh("redone"), _store(loaded)

    def undone(calls: int) -> Sequence[Any]:
        commit_notes(loaded.subject, session_id, calls)
        for _ in range(calls):
            store.rollback(session_id)
        return range(calls)

    return Side(undone, lambda _: store.redo(session_id))


def _block(loaded: Loaded) -> Side:
    session_id, store = fresh("block"), _store(loaded)

    def write(_: Any) -> None:
        with store.transaction(session_id) as tx:
            for number in range(10):
                tx.commit_model(Note(text=f"{TEXT} ({number})"))

    return Side(range, write)


MORE: Final = (
    Operation("update", 10, _of_facts(lambda store, id_: store.update(id_, {"confidence": 0.5}))),
    Operation("delete", 10, _delete),
    Operation("transaction of 10 commits", 2, _block),
    Operation("redo of 1", 10, _redo),
    Operation("discard a session of 10", 2, _discard),
    Operation("query of a session of 100", 2, _of_sessions(lambda store, name: store.query(session_id=name))),
    Operation("query of a type, limit 10", 10, _of_facts(lambda store, _: store.query("note", limit=10))),
    Operation("query, any type, limit 10", 10, _of_facts(lambda store, _: store.query(limit=10))),
    Operation(
        "count on a declared index", 10, _of_facts(lambda store, _: store.count("preference", {"topic": "topic-7"}))
    ),
    Operation("history of a fact", 10, _of_facts(lambda store, id_: store.history(fact_id=id_, limit=10))),
    Operation("history of a session, limit 10", 10, _of_sessions(lambda store, name: store.history(name, limit=10))),
    Operation("history of all, limit 10", 10, _of_sessions(lambda store, _: store.history(limit=10))),
)


def rows(bench: Bench) -> Iterator[Row]:
    for kind in bench.kinds:
        yield from _with_facts(bench, kind)
        yield from _with_journal(bench, kind)


def _with_facts(bench: Bench, kind: StorageKind) -> Iterator[Row]:
    small, large = bench.memstate(kind, bench.sizes.few_facts), bench.memstate(kind, bench.sizes.facts)
    for operation in (*OPERATIONS, *MORE):
        say(f"{kind.name}, {small.size:,} and {large.size:,} facts: {operation.name}")
        timing = in_turn(operation.side(small), operation.side(large), calls=operation.calls, effort=bench.effort)
        yield compared(FACTS, operation.name, kind.name, timing, FACTOR)


def _with_journal(bench: Bench, kind: StorageKind) -> Iterator[Row]:
    session_id = "long"
    short, long = (
        _with_transactions(bench, kind, session_id, count) for count in (bench.sizes.short_journal, bench.sizes.journal)
    )

    def commit(loaded: Loaded) -> Side:
        return Side(range, lambda _: loaded.subject.commit(Note(text=TEXT), session_id))

    def rollback(loaded: Loaded) -> Side:
        return Side(
            lambda calls: commit_notes(loaded.subject, session_id, calls),
            lambda _: loaded.subject.rollback(session_id, 1),
        )

    for name, side in (
        ("commit, new", commit),
        ("rollback of 1", rollback),
        ("update", _of_facts(lambda store, id_: store.update(id_, {"confidence": 0.5}))),
        ("history, limit 10", lambda loaded: Side(range, lambda _: _store(loaded).history(session_id, limit=10))),
    ):
        say(f"{kind.name}, {bench.sizes.short_journal:,} and {bench.sizes.journal:,} transactions: {name}")
        timing = in_turn(side(short), side(long), calls=10, effort=bench.effort)
        yield compared(JOURNAL, name, kind.name, timing, FACTOR)


def _with_transactions(bench: Bench, kind: StorageKind, session_id: str, count: int) -> Loaded:
    """A store with few facts, all of one session, and that many transactions."""
    say(f"making {count:,} transactions in {kind.name}")
    subject = MemStateSubject(kind.storage(bench.directory()))
    bench.closing(subject.close)
    ids = commit_notes(subject, session_id, min(count, bench.sizes.short_journal) // 2)
    for number in range(count - len(ids)):
        subject.store.update(ids[number % len(ids)], {"confidence": number / count})
    settle()
    return Loaded(subject, len(ids), ids, 1, 1)
