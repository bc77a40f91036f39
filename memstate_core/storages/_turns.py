"""So many at a time, whatever interrupts them.

Ctrl-C can come between any two instructions of Python code, also in those of :mod:`threading`'s semaphores and
conditions. A turn is therefore an object, and what counts is how many of them somebody still has.
"""

from __future__ import annotations

import collections
import contextlib
import threading
import time
import weakref
from typing import Final

# Nobody says that a turn was lost.
_LOOKS: Final = 0.1


class Turn:
    """Ends when it is given back, or when nobody has it any more."""

    __slots__ = ("__weakref__",)


class Turns:
    """Gives out up to ``most`` turns at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: weakref.WeakSet[Turn] = weakref.WeakSet()
        self._guard = threading.Lock()
        self._waiting: collections.deque[threading.Lock] = collections.deque()

    def take(self, timeout: float) -> Turn | None:
        """A turn; None: there was none for ``timeout`` seconds."""
        deadline = None
        while True:
            turn = Turn()
            with self._guard:
                if len(self._taken) < self._most:
                    self._taken.add(turn)
                    return turn
            now = time.monotonic()
            deadline = now + timeout if deadline is None else deadline
            if now >= deadline:
                return None
            bell = threading.Lock()
            bell.acquire()
            self._waiting.append(bell)
            bell.acquire(timeout=min(deadline - now, _LOOKS))
            with contextlib.suppress(ValueError):
                self._waiting.remove(bell)

    def give_back(self, turn: Turn) -> None:
        with self._guard:
            self._taken.discard(turn)
        with contextlib.suppress(IndexError):
            self._waiting.popleft().release()
