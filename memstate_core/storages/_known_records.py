"""Small records, as far as this process knows: a guess that saves a question, and is checked when it is used."""

from __future__ import annotations

import enum
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

Place = tuple[str, str]

_MOST: Final = 10_000
LONGEST: Final = 256  # bytes of a value


class _Trust(enum.Enum):
    KNOWN = enum.auto()
    DOUBTED = enum.auto()  # it was guessed at in a transaction that was refused, perhaps for something else
    SHARED = enum.auto()  # others change it: a guess that fails costs more than a question


class KnownRecords:
    """A bounded memory of records, also of those that are not there; threads may share it."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, Place], tuple[bytes | None, _Trust]] = OrderedDict()
        self._guard = threading.Lock()

    def guess(
        self, namespace: object, places: Sequence[Place], *, are_new: bool = False
    ) -> dict[Place, bytes | None] | None:
        """What some records are, if that is known of all.

        ``are_new``: those of which nothing is known are not there.
        """
        found: dict[Place, bytes | None] = {}
        unknown = None, _Trust.KNOWN if are_new else _Trust.DOUBTED
        with self._guard:
            for place in places:
                value, trust = self._known.get((namespace, place), unknown)
                if trust is not _Trust.KNOWN:
                    return None
                found[place] = value
        return found

    def learn(self, namespace: object, records: Mapping[Place, bytes | None]) -> None:
        with self._guard:
            for place, value in records.items():
                key = namespace, place
                old, trust = self._known.get(key, (None, _Trust.KNOWN))
                if trust is _Trust.SHARED:
                    continue
                if trust is _Trust.DOUBTED and value != old:
                    self._put(key, None, _Trust.SHARED)
                elif value is not None and len(value) > LONGEST:
                    self._known.pop(key, None)
                else:
                    self._put(key, value, _Trust.KNOWN)

    def _put(self, key: tuple[object, Place], value: bytes | None, trust: _Trust) -> None:
        self._known[key] = value, trust
        self._known.move_to_end(key)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)

    def doubt(self, namespace: object, places: Collection[Place]) -> None:
        """One of these may not be as it was guessed: look before the next guess."""
        with self._guard:
            for place in places:
                value, trust = self._known.get((namespace, place), (None, _Trust.KNOWN))
                if trust is _Trust.KNOWN:
                    self._put((namespace, place), value, _Trust.DOUBTED)

    def forget(self, namespace: object, places: Iterable[Place]) -> None:
        """Whether they were changed by our own doing cannot be told."""
        with self._guard:
            for place in places:
                if self._known.get((namespace, place), (None, _Trust.SHARED))[1] is not _Trust.SHARED:
                    del self._known[namespace, place]

    def after_fork(self) -> None:
        self._guard = threading.Lock()
