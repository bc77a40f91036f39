"""One thread at a time, and a clear error instead of a transaction within a transaction."""

from __future__ import annotations

import threading

from memstate_core.errors import StorageError


def is_held(lock: threading.RLock) -> bool:
    """Whether this very thread holds the lock.

    A flag of our own could not say it: Ctrl-C can come between any two instructions of Python code, and only what
    ``with`` does with the interpreter's own locks is sure to be undone then.
    """
    held: bool = lock._is_owned()  # type: ignore[attr-defined]
    return held


def refuse_nesting(lock: threading.RLock) -> None:
    """Call this before ``with lock``.

    :raises StorageError: this thread is inside already.
    """
    if is_held(lock):
        raise StorageError(
            "the store was called from within one of its own transactions, by a validator, a selector or a "
            "migration; such functions must not use the store"
        )
