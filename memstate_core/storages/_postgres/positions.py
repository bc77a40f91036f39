"""Where sessions stand, as far as this process knows: a guess that saves a question, and is checked when it is used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, TypeVar

from memstate_core.protocols import Position

K = TypeVar("K")
V = TypeVar("V")

_MOST: Final = 10_000


class Positions:
    """A bounded memory of positions, and of the seq of each session's last transaction; threads may share it."""

    def __init__(self) -> None:
        self._grounds: OrderedDict[str, tuple[int, bool]] = OrderedDict()
        self._sessions: OrderedDict[tuple[str, str | None], tuple[int, int, int]] = OrderedDict()
        self._guard = threading.Lock()

    def guess(self, namespace: str, session_id: str | None) -> tuple[Position, int] | None:
        """The position and the last seq of a session, if they are known."""
        with self._guard:
            ground = self._grounds.get(namespace)
            session = self._sessions.get((namespace, session_id))
            if ground is None or session is None:
                return None
            self._sessions.move_to_end((namespace, session_id))
        head, redo, latest = session
        return Position(head, redo, *ground), latest

    def learn(self, namespace: str, session_id: str | None, position: Position, latest: int) -> None:
        with self._guard:
            self._put(self._grounds, namespace, (position.generation, position.claimed))
            self._put(self._sessions, (namespace, session_id), (position.head, position.redo, latest))

    def seen(self, namespace: str, session_id: str | None, position: Position, latest: int) -> None:
        """The same from one that only reads, and may have read what was long ago: it counts where nothing is known.

        Of a session also where it is newer, since the seq of its last transaction only grows.
        """
        with self._guard:
            if namespace not in self._grounds:
                self._put(self._grounds, namespace, (position.generation, position.claimed))
            old = self._sessions.get((namespace, session_id))
            if old is None or old[2] < latest:
                self._put(self._sessions, (namespace, session_id), (position.head, position.redo, latest))

    def moved(
        self,
        namespace: str,
        session_id: str | None,
        head: int,
        redo: int,
        latest: int,
        ground: Position | None = None,
    ) -> None:
        """A session has moved by our own doing, which relied on a ``ground``."""
        with self._guard:
            if ground is not None:
                self._put(self._grounds, namespace, (ground.generation, ground.claimed))
            old = self._sessions.get((namespace, session_id))
            if old is None or old[2] < latest:
                self._put(self._sessions, (namespace, session_id), (head, redo, latest))

    def forget(self, namespace: str, session_id: str | None) -> None:
        with self._guard:
            self._sessions.pop((namespace, session_id), None)

    def forget_ground(self, namespace: str) -> None:
        """Definitions or claims have changed."""
        with self._guard:
            self._grounds.pop(namespace, None)

    @staticmethod
    def _put(known: OrderedDict[K, V], key: K, value: V) -> None:
        known[key] = value
        known.move_to_end(key)
        if len(known) > _MOST:
            known.popitem(last=False)

    def after_fork(self) -> None:
        self._guard = threading.Lock()
