"""What a process believes of its namespaces, so that it need not ask before it writes; what writes verifies it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from memstate_core.facts import StoredFact
from memstate_core.protocols import Position
from memstate_core.storages._known_records import KnownRecords, Place
from memstate_core.storages._redis.keys import Keys, session_key

T = TypeVar("T")

# For all namespaces of a storage together.
_SESSIONS: Final = 20_000
_HOLDERS: Final = 10_000
_NAMESPACES: Final = 1_000
_PAYLOAD: Final = 2_000  # characters; larger facts are read each time


class _Recent(Generic[T]):
    """The values that were used last, with the stamp at which they were so; what is older replaces nothing."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._gate = threading.Lock()
        self._values: OrderedDict[tuple[Any, ...], tuple[int, T]] = OrderedDict()

    def get(self, key: tuple[Any, ...]) -> T | None:
        with self._gate:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[1]

    def put(self, key: tuple[Any, ...], stamp: int, value: T) -> None:
        with self._gate:
            found = self._values.get(key)
            if found is not None and found[0] > stamp:
                return
            self._values[key] = stamp, value
            self._values.move_to_end(key)
            if len(self._values) > self._most:
                self._values.popitem(last=False)


class Holder(NamedTuple):
    """The fact that has a singleton place (None: it is free), with its stamp and the highest version before it."""

    fact: StoredFact | None
    stamp: str
    latest: int


class Known:
    """What is known of one namespace. All of it is forgotten when some of it was found wrong."""

    def __init__(
        self, keys: Keys, places: _Recent[tuple[int, int]], holders: _Recent[Holder], records: KnownRecords
    ) -> None:
        self.keys = keys
        self.is_open = False
        self._gate = threading.Lock()
        self._places = places
        self._holders = holders
        self._records = records
        self._generation: int | None = None
        self._claimed = True
        self._stamp = -1
        self._age = 0

    def position(self, session_id: str | None) -> Position | None:
        """Where the session stands, if that is known."""
        place = self._places.get((self.keys.base, self._age, session_key(session_id)))
        with self._gate:
            if place is None or self._generation is None:
                return None
            return Position(*place, self._generation, self._claimed)

    def holder(self, place: str) -> Holder | None:
        return self._holders.get((self.keys.base, self._age, place))

    def guess_records(self, places: Sequence[Place], *, are_new: bool = False) -> dict[Place, bytes | None] | None:
        """What some records are, if that is known of all; see :class:`KnownRecords`."""
        return self._records.guess(self.keys.base, places, are_new=are_new) if places else None

    def learn_records(self, records: Mapping[Place, bytes | None]) -> None:
        self._records.learn(self.keys.base, records)

    def doubt_records(self, places: Collection[Place]) -> None:
        self._records.doubt(self.keys.base, places)

    def forget_records(self, places: Iterable[Place]) -> None:
        self._records.forget(self.keys.base, places)

    def learn(self, stamp: int, *, claimed: bool, generation: int | None = None, raised: bool = False) -> None:
        """Learn what an answer with this stamp says; ``raised``: it was a write that raised the generation."""
        with self._gate:
            if stamp < self._stamp:
                return
            self._stamp = stamp
            self._claimed = claimed
            if raised:
                self._generation = None
                self._age += 1  # reindexing changes what facts hold
            elif generation is not None:
                self._generation = generation

    def learn_place(self, session_id: str | None, head: int, redo: int, stamp: int) -> None:
        """Where a session stands."""
        self._places.put((self.keys.base, self._age, session_key(session_id)), stamp, (head, redo))

    def learn_holder(self, place: str, holder: Holder, stamp: int) -> None:
        if holder.fact is None or len(holder.fact.payload) <= _PAYLOAD:
            self._holders.put((self.keys.base, self._age, place), stamp, holder)

    def forget(self) -> None:
        """What was believed was wrong."""
        with self._gate:
            self._age += 1
            self._generation = None
            self._stamp = -1


class Namespaces:
    """The namespaces of a storage that were used lately."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._gate = threading.Lock()
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._places: _Recent[tuple[int, int]] = _Recent(_SESSIONS)
        self._holders: _Recent[Holder] = _Recent(_HOLDERS)
        self._records = KnownRecords()

    def get(self, namespace: str) -> Known:
        with self._gate:
            known = self._known.get(namespace)
            if known is None:
                known = self._known[namespace] = Known(
                    Keys(self._prefix, namespace), self._places, self._holders, self._records
                )
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
