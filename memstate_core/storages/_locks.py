"""One thread at a time, and a clear error instead of a transaction within a transaction."""

from __future__ import annotations

import threading

from memstate_core.errors import StorageError


class Exclusive:
    """A lock, and whether its holder is in the midst of a transaction.

    Use it as ``with exclusive.lock: exclusive.enter() … finally: exclusive.leave()``: an interruption (Ctrl-C) can
    come between any two instructions of Python code, and only the interpreter's own lock is sure to be released then.
    """

    __slots__ = ("inside", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.inside = False

    def enter(self) -> None:
        """:raises StorageError: the thread is inside already."""
        if self.inside:
            raise StorageError(
                "the store was called from within one of its own transactions, by a validator, a selector or a "
                "migration; such functions must not use the store"
            )
        self.inside = True

    def leave(self) -> None:
        self.inside = False
