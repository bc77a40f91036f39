"""What is stored, and the operations that every side must be able to do.

A store of n facts holds 70 % notes, 20 % preferences (ten for each topic, which is a declared index) and 10 % settings
(one for each name, which is a singleton), 100 facts to a session, each committed by itself, so that the journal has n
transactions too.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pydantic import BaseModel

from benchmarks.measure import Side

SESSION_SIZE: Final = 100
PER_TOPIC: Final = 10
TEXT: Final = "The user would rather have the window seat, unless the flight takes off before seven in the morning."


class Note(BaseModel):
    text: str
    role: str = "user"
    confidence: float = 1.0


class Preference(BaseModel):
    topic: str
    text: str
    confidence: float = 1.0


class Setting(BaseModel):
    name: str
    value: str
    confidence: float = 1.0


TYPES: Final[dict[type[BaseModel], str]] = {Note: "note", Preference: "preference", Setting: "setting"}
INDEXED: Final = "topic"
SINGLETON: Final = "name"


def payload_of(model: BaseModel) -> str:
    """For floors: the least by which what is stored is sure to be valid.

    An instance may have been changed since it was made, or made without validation, so its fields are validated as they
    are now, and what comes of that is dumped. NaN, which JSON cannot hold, is dumped as null, which no field here is.
    """
    valid = model.__pydantic_validator__.validate_python(model.__dict__)
    payload: str = valid.__pydantic_serializer__.to_json(valid).decode()
    if "null" in payload and not math.isfinite(valid.confidence):
        raise ValueError(f"{valid.confidence} is not a number that JSON can hold")
    return payload


def check_name(name: str) -> None:
    """For floors: the least by which a session's id is sure to be one that every storage can keep."""
    if not 0 < len(name) <= 512 or "\0" in name or not (name.isascii() or name.encode()):
        raise ValueError(f"{name!r} cannot be a session's id")


class Subject(Protocol):
    """A store of facts: memstate's, a floor, or a peer.

    What each call must leave behind, or return, is the same for all: facts with id, type, payload, source, session,
    time and version; a journal that says of every transaction what was before and after; the session's place in it.
    """

    def commit(self, model: BaseModel, session_id: str) -> str:
        """Store a fact, or update the one with the same singleton value."""
        ...

    def get(self, fact_id: str) -> Any: ...

    def query(self, topic: str) -> Sequence[Any]:
        """The preferences on a topic."""
        ...

    def rollback(self, session_id: str, steps: int) -> Sequence[Any]:
        """Undo transactions; returns them, with the facts that they changed."""
        ...

    def promote(self, session_id: str) -> Sequence[str]:
        """Make a session's facts long-term; returns their ids."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A subject with facts in it, and what the operations need to know of them."""

    subject: Subject
    size: int
    ids: Sequence[str]
    topics: int
    settings: int


_fresh = itertools.count()


def fresh(prefix: str) -> str:
    """A name that was not used before."""
    return f"{prefix}-new-{next(_fresh)}"


def model_of(number: int) -> BaseModel:
    """The model of the fact with this number in a loaded store."""
    kind = number % 10
    if kind < 7:
        return Note(text=f"{TEXT} ({number})")
    if kind < 9:
        return Preference(topic=f"topic-{(number // 10 * 2 + kind - 7) // PER_TOPIC}", text=TEXT)
    return Setting(name=f"name-{number // 10}", value=TEXT)


def load(subject: Subject, size: int) -> Loaded:
    ids = [subject.commit(model_of(number), f"session-{number // SESSION_SIZE}") for number in range(size)]
    return Loaded(subject, size, ids, max(1, size // 5 // PER_TOPIC), max(1, size // 10))


def _commit_new(loaded: Loaded) -> Side:
    session_id = fresh("commits")
    commit = loaded.subject.commit
    return Side(range, lambda number: commit(Note(text=f"{TEXT} ({number})"), session_id))


def _commit_singleton(loaded: Loaded) -> Side:
    session_id = fresh("settings")
    commit, numbers = loaded.subject.commit, random.Random(1)
    return Side(
        lambda calls: [f"name-{numbers.randrange(loaded.settings)}" for _ in range(calls)],
        lambda name: commit(Setting(name=name, value=TEXT), session_id),
    )


def _get(loaded: Loaded) -> Side:
    numbers = random.Random(2)
    return Side(lambda calls: numbers.choices(loaded.ids, k=calls), loaded.subject.get)


def _query(loaded: Loaded) -> Side:
    numbers = random.Random(3)
    return Side(
        lambda calls: [f"topic-{numbers.randrange(loaded.topics)}" for _ in range(calls)],
        loaded.subject.query,
    )


def _rollback_one(loaded: Loaded) -> Side:
    session_id = fresh("undone")
    rollback = loaded.subject.rollback
    return Side(lambda calls: commit_notes(loaded.subject, session_id, calls), lambda _: rollback(session_id, 1))


def _rollback_hundred(loaded: Loaded) -> Side:
    rollback = loaded.subject.rollback
    return Side(lambda calls: sessions(loaded.subject, calls), lambda session_id: rollback(session_id, SESSION_SIZE))


def _promote_hundred(loaded: Loaded) -> Side:
    return Side(lambda calls: sessions(loaded.subject, calls), loaded.subject.promote)


def commit_notes(subject: Subject, session_id: str, count: int) -> list[str]:
    return [subject.commit(Note(text=f"{TEXT} ({number})"), session_id) for number in range(count)]


def sessions(subject: Subject, count: int) -> list[str]:
    """New sessions of 100 notes."""
    names = [fresh("session") for _ in range(count)]
    for name in names:
        commit_notes(subject, name, SESSION_SIZE)
    return names


@dataclass(frozen=True, slots=True)
class Operation:
    """``calls``: so many to a round; what is measured is ``side`` of a loaded subject."""

    name: str
    calls: int
    side: Callable[[Loaded], Side]


OPERATIONS: Final = (
    Operation("commit, new", 10, _commit_new),
    Operation("commit, singleton", 10, _commit_singleton),
    Operation("get", 100, _get),
    Operation("query on a declared index", 20, _query),
    Operation("rollback of 1", 10, _rollback_one),
    Operation("rollback of 100", 1, _rollback_hundred),
    Operation("promote 100 facts", 1, _promote_hundred),
)
