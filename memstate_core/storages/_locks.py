"""One thread at a time, and a clear error instead of a deadlock."""

from __future__ import annotations

import threading
from types import TracebackType

from memstate_core.errors import StorageError


class Exclusive:
    """A lock that refuses the thread that holds it already.

    That happens only when a function of the user's (a validator, a selector, a migration) that a transaction calls
    uses the store itself.
    """

    __slots__ = ("_holder", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder = 0

    def __enter__(self) -> None:
        me = threading.get_ident()
        if self._holder == me:
            raise StorageError(
                "the store was called from within one of its own transactions, by a validator, a selector or a "
                "migration; such functions must not use the store"
            )
        self._lock.acquire()
        self._holder = me

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._holder = 0
        self._lock.release()

    def pause(self) -> bool:
        """Take the lock for a fork; False when the forking thread holds it already, and so must not wait for it."""
        return self._holder != threading.get_ident() and self._lock.acquire()

    def resume(self) -> None:
        self._lock.release()
