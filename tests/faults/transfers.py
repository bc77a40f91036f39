"""What the processes of ``test_transfers.py`` do: move amounts between accounts, or add all of them up, for ever."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memstate_core import ConflictError, Fact, MemoryStore
from tests.faults.races import Shared
from tests.forking import Log

ACCOUNTS = [f"account {number}" for number in range(8)]
AMOUNT = 100
SUM = AMOUNT * len(ACCOUNTS)


def open_accounts(store: MemoryStore) -> None:
    with store.transaction(session_id="bank") as tx:
        for account in ACCOUNTS:
            tx.commit(Fact("note", {"text": account, "number": AMOUNT}, id=account))


def transfer(directory: str, number: int, times: int, index: Any) -> None:
    shared = Shared(directory, index)
    store = shared.open()
    rng = random.Random(number)
    shared.wait_for_the_others(number)
    refused = 0
    for turn in range(times):
        here, there = rng.sample(ACCOUNTS, 2)
        amount = rng.randint(1, 20)
        while not _move(store, here, there, amount, f"session {number} {turn % 2}"):
            refused += 1
        if turn % 10 == 9:  # takes the last one back, unless others have moved on since
            try:
                store.rollback(f"session {number} {turn % 2}")
            except ConflictError:
                refused += 1
    Log(Path(directory) / "refused").write(refused)


def _move(store: MemoryStore, here: str, there: str, amount: int, session: str) -> bool:
    """Whether nobody else came in between."""
    try:
        with store.transaction(session_id=session) as tx:
            balances = [tx.get(account) for account in (here, there)]
            left, right = (fact["payload"]["number"] for fact in balances if fact is not None)
            tx.update(here, {"number": left - amount})
            tx.update(there, {"number": right + amount})
    except ConflictError:
        return False
    return True


def add_up(directory: str, number: int, index: Any) -> None:
    """Until told to end: every answer, however it is asked for, is of one moment."""
    shared = Shared(directory, index)
    store = shared.open()
    shared.wait_for_the_others(number)
    sums = 0
    while not (Path(directory) / "enough").exists():
        check_sum(store.query())
        check_sum(store.query("note"))
        check_sum(store.query("note", {"number": {"$gt": -(10**6)}}, order_by="number"))
        for entry in store.history(limit=5):
            changes = [(c.before, c.after) for c in entry.changes]
            moved = sum((a.payload["number"] if a else 0) - (b.payload["number"] if b else 0) for b, a in changes)
            assert moved in (0, SUM), entry
        with store.transaction() as tx:
            check_sum(tx.query("note"))
        sums += 1
    Log(Path(directory) / "sums").write(sums)


def check_sum(facts: Sequence[dict[str, Any]]) -> None:
    assert len(facts) == len(ACCOUNTS)
    found = {fact["id"]: fact["payload"]["number"] for fact in facts}
    assert sum(found.values()) == SUM, found
