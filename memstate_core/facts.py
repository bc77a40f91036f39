"""The values that a store takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple, overload

from pydantic_core import from_json

from memstate_core._displayed import Displayed
from memstate_core._random import random_bytes


class Unset:
    """The type of :data:`UNSET`: an argument that was not given, where ``None`` means something."""

    _instance: Unset | None = None

    def __new__(cls) -> Unset:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __repr__(self) -> str:
        return "UNSET"

    def __bool__(self) -> bool:
        return False


UNSET: Final = Unset()


class Operation(StrEnum):
    """What a change did to a fact, or a transaction to its session."""

    COMMIT = "COMMIT"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    TRANSACTION = "TRANSACTION"
    PROMOTE = "PROMOTE"
    DISCARD_SESSION = "DISCARD_SESSION"
    MIGRATE = "MIGRATE"
    ROLLBACK = "ROLLBACK"
    REDO = "REDO"
    CHECKOUT = "CHECKOUT"
    REPLAY = "REPLAY"


# A UUID's variant is two fixed bits and two random ones.
_VARIANT: Final = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))


def new_id() -> str:
    """A random UUID (version 4); ``str(uuid.uuid4())`` takes three times as long, which a commit in memory feels."""
    digits = random_bytes().hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"


@dataclass(slots=True)
class Fact(Displayed):
    """A typed record.

    ``payload`` is plain JSON data, validated by the model that is registered for ``type``. ``ts`` (aware)
    and ``version`` are the store's: what is given for ``version`` is not used, and ``ts`` is the time of the
    last change unless one is given.
    """

    type: str
    payload: dict[str, Any]
    id: str = field(default_factory=new_id)
    source: str | None = None
    session_id: str | None = None
    ts: datetime | None = None
    version: int = 0
    ephemeral: bool = False


class StoredFact(NamedTuple):
    """One version of a fact as storages keep it: ``payload`` is JSON text, ``ts`` ISO 8601 in UTC.

    ``schema_version`` is that of the schema that wrote it, ``singleton`` the place that only one current fact
    may have (see :func:`memstate_core.schemas.singleton_key`), and ``ordinal`` the order in which facts
    were made, which storage gives out with the first version and later versions keep.
    """

    id: str
    type: str
    payload: str
    source: str | None
    session_id: str | None
    ts: str
    version: int
    ephemeral: bool
    schema_version: int
    singleton: str | None
    ordinal: int

    def to_dict(self, payload: dict[str, Any] | None = None) -> dict[str, Any]:
        """Plain data of the caller's own; ``payload`` replaces the stored one (an upgraded one, say)."""
        return {
            "id": self.id,
            "type": self.type,
            "payload": from_json(self.payload) if payload is None else payload,
            "source": self.source,
            "session_id": self.session_id,
            "ts": self.ts,
            "version": self.version,
            "ephemeral": bool(self.ephemeral),
        }

    def to_fact(self, payload: dict[str, Any] | None = None) -> Fact:
        id_, typename, stored, source, session_id, ts, version, ephemeral, _, _, _ = self
        if payload is None:
            payload = from_json(stored)
        return Fact(typename, payload, id_, source, session_id, datetime.fromisoformat(ts), version, bool(ephemeral))


class IndexEntry(NamedTuple):
    """A declared field's value, in the order that filters compare (see :func:`memstate_core.filters.index_key`)."""

    path: str
    kind: int
    value: str | int | float


class FactChange(NamedTuple):
    """What a transaction does to one fact, as storages see it; ``fields`` are the index entries of ``after``."""

    before: StoredFact | None
    after: StoredFact | None
    fields: tuple[IndexEntry, ...] = ()

    @property
    def fact_id(self) -> str:
        return (self.after or self.before).id  # type: ignore[union-attr]


@dataclass(frozen=True, slots=True)
class Change(Displayed):
    """One fact's ``before`` and ``after``: ``before`` is None when it was made, ``after`` when it went."""

    fact_id: str
    before: Fact | None
    after: Fact | None

    @property
    def operation(self) -> Operation:
        if self.after is None:
            return Operation.DELETE
        return Operation.COMMIT if self.before is None else Operation.UPDATE

    @property
    def inverse(self) -> Change:
        return Change(self.fact_id, self.after, self.before)


class ChangedVersions(NamedTuple):
    """A change as the journal keeps it: the fact's version before and after, 0 where there is none."""

    fact_id: str
    before: int
    after: int


class Entry(NamedTuple):
    """A transaction as the journal keeps it.

    ``parent`` is the seq of the transaction that the session's head was on (0: none). ``head`` is where the
    head went; for what is not a rollback, redo or checkout that is ``seq`` itself.
    """

    seq: int
    session_id: str | None
    parent: int
    head: int
    operation: str
    actor: str | None
    reason: str | None
    mark: str | None
    ts: str
    changes: tuple[ChangedVersions, ...]


class LazyChanges(Sequence[Change]):
    """The changes of a transaction, read from the journal's images when they are first looked at."""

    __slots__ = ("_changes", "_count", "_read")

    def __init__(self, count: int, read: Callable[[], tuple[Change, ...]]) -> None:
        self._count = count
        self._read: Callable[[], tuple[Change, ...]] | None = read
        self._changes: tuple[Change, ...] = ()

    def _all(self) -> tuple[Change, ...]:
        if self._read is not None:
            self._changes, self._read = self._read(), None
        return self._changes

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Change: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Change, ...]: ...
    def __getitem__(self, index: int | slice) -> Change | tuple[Change, ...]:
        return self._all()[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._count)

    def __repr__(self) -> str:
        return repr(self._all())

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (self._all(),)


@dataclass(frozen=True, slots=True)
class Transaction(Displayed):
    """What changed together.

    ``seq`` orders all transactions of a namespace and ``id`` names this one; ``parent`` is the id of the
    transaction before it in its session (None: the first). For a rollback, redo or checkout,
    ``position`` is the id of the transaction on which the session then stood (None: before the first); for
    everything else it is ``id``.
    """

    id: str
    seq: int
    session_id: str | None
    operation: Operation
    actor: str | None
    reason: str | None
    mark: str | None
    ts: datetime
    parent: str | None
    position: str | None
    changes: Sequence[Change]


def transaction_id(seq: int) -> str | None:
    return f"tx-{seq}" if seq else None


def transaction_seq(text: str) -> int | None:
    """The seq that a transaction id carries, or None when the text is no transaction id."""
    prefix, _, digits = text.partition("-")
    if prefix != "tx" or not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        return None
    return int(digits)


class Moved(Displayed, list[Transaction]):
    """The transactions that a rollback undid or a redo did again, in the order in which that happened.

    ``undone`` and ``redone`` tell them apart after a checkout. ``kept`` are the ids of facts left as another
    session's later change made them (``on_conflict="keep"``). ``transaction_id`` names the
    transaction by which the move itself is recorded (None: there was nothing to do).
    """

    def __init__(
        self,
        undone: Iterable[Transaction] = (),
        redone: Iterable[Transaction] = (),
        kept: Sequence[str] = (),
        transaction_id: str | None = None,
    ) -> None:
        self.undone = list(undone)
        self.redone = list(redone)
        self.kept = tuple(kept)
        self.transaction_id = transaction_id
        self += self.undone
        self += self.redone


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a hook's search returns: a fact's id, its similarity (higher is better), and the version indexed."""

    fact_id: str
    score: float
    version: int | None = None


@dataclass(frozen=True, slots=True)
class ScoredFact(Displayed):
    """A fact found by search, as stored now; ``score`` is a similarity, higher is better."""

    fact: Fact
    score: float


@dataclass(frozen=True, slots=True)
class TransactionContext:
    """What an integration supplies for every write that does not say otherwise.

    ``session_id`` is also that of the history which records an update or deletion; without it, that of the fact.
    """

    session_id: str | None | Unset = UNSET
    mark: str | None = None
    actor: str | None = None
