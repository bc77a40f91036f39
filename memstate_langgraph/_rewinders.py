"""Rewinders that are to be told something, as long as they live."""

from __future__ import annotations

import threading
import weakref

from memstate_langgraph.rewind import Rewinder


class Rewinders:
    """Some rewinders, held weakly. Others may be added while one goes through them, which a ``WeakSet`` forbids."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._known: tuple[weakref.ref[Rewinder], ...] = ()

    def add(self, rewinder: Rewinder) -> None:
        with self._guard:
            self._known = (*(one for one in self._known if one() is not None), weakref.ref(rewinder))

    def alive(self) -> list[Rewinder]:
        return [rewinder for one in self._known if (rewinder := one()) is not None]
