"""What the processes of ``test_readers.py`` write while others read."""

from __future__ import annotations

import contextlib
import itertools

from memstate_core import ConflictError, Fact, MemoryStore
from tests.faults.races import Shared

PAIR = ("left", "right")


def write_pairs(directory: str, number: int) -> None:
    """Transactions for ever, each of which gives both facts of a pair the same number, or takes it from both."""
    store = Shared(directory).open()
    for turn in itertools.count(number, 2):
        write_pair(store, turn)


def write_pair(store: MemoryStore, turn: int) -> None:
    with contextlib.suppress(ConflictError):  # two writers
        if turn % 10 == 8:
            store.rollback("pairs", 2)
        else:
            with store.transaction(session_id="pairs") as tx:
                for name in PAIR:
                    if turn % 10 != 9:
                        tx.commit(Fact("note", {"text": name, "number": turn}, id=name))
                    elif tx.get(name) is not None:
                        tx.delete(name)
