"""What cannot be brought about on every storage: a verifier that is stopped while facts are claimed for it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from memstate_core import Fact, HookError, InMemoryStorage, MemoryStore, Operation, SQLiteStorage
from memstate_core._bridge import run
from memstate_core.protocols import Batch, Claim
from memstate_core.testing.index import AsyncListingHook, Index, IndexHook, ListingHook


def test_who_lost_the_claims_looks_again() -> None:
    """Stopped for longer than the lease, it has compared facts with entries of another moment."""
    storage, index, looks = InMemoryStorage(), Index(), list[Sequence[str]]()

    class Stopped(ListingHook):
        def lookup(self, ids: Sequence[str]) -> dict[str, int]:
            found = super().lookup(ids)
            looks.append(ids)
            if len(looks) == 2:  # the first is that of the walk
                (claim,) = claims(storage)
                run(storage.write("default", lambda tx: tx.write(Batch(drop_claims_of=claim.owner))))
                index.entries["a"] = index.entries["b"]
            return found

    store = MemoryStore(storage, [Stopped(index)], allow_unregistered=True)
    for id_ in "ab":
        store.commit(Fact("note", {"text": id_}, id=id_))
    del index.entries["a"]
    assert [len(drift) for drift in store.verify()] == [0]
    assert looks == [["a", "b"], ["a"], ["a"]]
    assert claims(storage) == []


def test_claims_that_a_dead_verifier_left_hold_up_nobody() -> None:
    storage, index = InMemoryStorage(), Index()
    store = MemoryStore(storage, [IndexHook(index)], allow_unregistered=True)
    store.commit(Fact("note", {"text": "a"}, id="a"))
    left = Claim("fact:a", "gone", 0.0, ())
    run(storage.write("default", lambda tx: tx.write(Batch(claims=[left]))))
    MemoryStore(storage, allow_unregistered=True, claim_timeout=0).update("a", {"text": "without the hook"})
    assert claims(storage) == []


def test_an_asynchronous_scan_is_refused_by_a_sync_store() -> None:
    hook = ListingHook(Index())
    hook.scan = AsyncListingHook(Index()).scan  # type: ignore[method-assign]
    with pytest.raises(HookError, match="use AsyncMemoryStore"):
        MemoryStore(InMemoryStorage(), [hook]).verify()


def test_memory_stays_flat(tmp_path: Path) -> None:
    """Four times as many facts take no more memory to compare, or to find nothing to mend."""

    def scan() -> Iterator[tuple[str, int]]:
        return ((f"n{number}", 1) for number in range(count))

    def lookup(ids: Sequence[str]) -> dict[str, int]:
        return dict.fromkeys(ids, 1)

    def hook(operation: Operation, fact_id: str, fact: Fact | None) -> None: ...

    hook.scan, hook.lookup = scan, lookup  # type: ignore[attr-defined]
    peaks, count = [], 0
    with SQLiteStorage(tmp_path / "memory.db") as storage:
        store = MemoryStore(storage, [hook], allow_unregistered=True)
        for until in (3000, 12000):
            with store.transaction() as tx:
                for number in range(count, until):
                    tx.commit(Fact("note", {"text": "some text"}, id=f"n{number}"))
            count = until
            tracemalloc.start()
            try:
                (drift,) = store.repair()
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
            assert (len(drift), drift.facts, drift.entries) == (0, until, until)
    assert peaks[1] < 1.3 * peaks[0], peaks


def claims(storage: InMemoryStorage) -> list[Claim]:
    return run(storage.read("default", lambda tx: tx.claims()))
