"""What a process believes of a namespace, so that it need not ask before it writes; what writes verifies it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, NamedTuple

from memstate_core.protocols import Position
from memstate_core.storages._redis_keys import Keys, session_key

_SESSIONS: Final = 10_000
_NAMESPACES: Final = 1_000


class _Place(NamedTuple):
    head: int
    redo: int
    stamp: int


class Known:
    """What is known of one namespace. What is learnt late does not replace what is newer."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.is_open = False
        self._gate = threading.Lock()
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._generation: int | None = None
        self._claimed = True
        self._stamp = -1

    def position(self, session_id: str | None) -> Position | None:
        """Where the session stands, if that is known."""
        with self._gate:
            place = self._places.get(session_key(session_id))
            if place is None or self._generation is None:
                return None
            return Position(place.head, place.redo, self._generation, self._claimed)

    def learn(self, stamp: int, *, claimed: bool, generation: int | None = None, raised: bool = False) -> None:
        """Learn what an answer with this stamp says; ``raised``: it was a write that raised the generation."""
        with self._gate:
            if stamp < self._stamp:
                return
            self._stamp = stamp
            self._claimed = claimed
            if raised:
                self._generation = None
            elif generation is not None:
                self._generation = generation

    def learn_place(self, session_id: str | None, head: int, redo: int, stamp: int) -> None:
        key = session_key(session_id)
        with self._gate:
            place = self._places.get(key)
            if place is not None and place.stamp > stamp:
                return
            self._places[key] = _Place(head, redo, stamp)
            self._places.move_to_end(key)
            if len(self._places) > _SESSIONS:
                self._places.popitem(last=False)

    def forget(self) -> None:
        """What was believed was wrong."""
        with self._gate:
            self._places.clear()
            self._generation = None
            self._stamp = -1


class Namespaces:
    """The namespaces of a storage that were used lately."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._gate = threading.Lock()
        self._known: OrderedDict[str, Known] = OrderedDict()

    def get(self, namespace: str) -> Known:
        with self._gate:
            known = self._known.get(namespace)
            if known is None:
                known = self._known[namespace] = Known(Keys(self._prefix, namespace))
                if len(self._known) > _NAMESPACES:
                    self._known.popitem(last=False)
            else:
                self._known.move_to_end(namespace)
            return known


class Slot:
    """Where the server keeps what the last attempt of a writer came to."""

    __slots__ = ("attempt", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.attempt = 0
