"""What a storage and a hook must be. Both can be tried against :mod:`memstate_core.testing`."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, TypeVar, runtime_checkable

from memstate_core.facts import (
    UNSET,
    Change,
    ChangedVersions,
    Entry,
    FactChange,
    IndexEntry,
    Operation,
    SearchResult,
    StoredFact,
    Unset,
)
from memstate_core.filters import Order, Predicate

T = TypeVar("T")

Decode = Callable[[StoredFact], dict[str, Any]]


class Position(NamedTuple):
    """Where a session stands, and what a writer must know before it writes.

    ``head`` is the seq of the session's last transaction (0: none), ``redo`` the seq to which ``redo`` leads
    back (0: nothing to redo), ``generation`` that of the definitions, and ``claimed`` whether any
    claim is held in the namespace.
    """

    head: int
    redo: int
    generation: int
    claimed: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """Which facts to read: all conditions hold, ``session_id`` :data:`UNSET` means any session.

    ``decode`` gives a fact's payload as its schema reads it now; ``predicate`` and ``order`` are
    applied to that. Without an order, facts come in the order of their ordinals; ``after`` leaves out those up to an
    ordinal, such as the last one of the page before. ``indexed`` are the paths that are declared for ``typename``, so
    that ranges on them may be answered by an index. ``as_stored`` says that ``decode`` changes nothing about a
    payload, so that an index on payloads themselves may narrow.
    """

    decode: Decode
    typename: str | None = None
    session_id: str | None | Unset = UNSET
    predicate: Predicate | None = None
    order: tuple[Order, ...] = ()
    limit: int | None = None
    offset: int = 0
    after: int | None = None
    indexed: tuple[str, ...] = ()
    as_stored: bool = False


class NewEntry(NamedTuple):
    """A transaction to be recorded; storage gives it its seq. See :class:`~memstate_core.facts.Entry`.

    ``head`` is where the session's head goes; None: to the new transaction itself. ``redo`` is the session's new redo
    target. ``seq`` asks for a seq, above all that the namespace has: what was recorded elsewhere keeps its own (0: the
    next one).
    """

    session_id: str | None
    operation: Operation
    actor: str | None
    reason: str | None
    mark: str | None
    ts: str
    parent: int
    head: int | None = None
    redo: int = 0
    seq: int = 0


class Claim(NamedTuple):
    """A row, unique per ``key``, by which one transaction with hooks owns a fact between its storage transactions.

    ``key`` is ``"fact:<id>"``, ``"key:<singleton>"``, ``"session:<id>"`` or, by who rebuilds it, ``"index:<hook>"``;
    ``owner`` names the transaction and its process, ``expires`` is Unix time in seconds, ``hooks`` the names of the
    hooks that may have been told.
    """

    key: str
    owner: str
    expires: float
    hooks: tuple[str, ...]


class ClaimsLost(Exception):
    """A transaction's claims are not all its own any more, so that it must not be written."""


class Savepoint(NamedTuple):
    session_id: str | None
    name: str
    seq: int


class RecordWrite(NamedTuple):
    """A record to be put, or deleted when ``value`` is None."""

    collection: str
    key: str
    value: bytes | None


class Record(NamedTuple):
    key: str
    value: bytes


class Lane(NamedTuple):
    """A part of a hook's outbox. All changes of one fact go through one lane, in order; see :func:`lane_of`."""

    hook: str
    number: int


# So many workers can deliver to one hook at a time. Fixed: entries of one fact must stay in one lane.
LANES: Final = 16


def lane_of(hook: str, fact_id: str) -> Lane:
    return Lane(hook, zlib.crc32(fact_id.encode()) % LANES)


class Deferred(NamedTuple):
    """A change of the batch that is put into the outbox; ``at`` is Unix time in seconds."""

    lane: Lane
    change: ChangedVersions
    at: float


class Delivery(NamedTuple):
    """A change in the outbox, still to be delivered.

    ``seq`` is that of its transaction, ``at`` when it was put in, ``attempts`` how often its delivery failed, ``due``
    when it may be tried again (both Unix time in seconds; 0: at once), ``error`` what the last attempt ended with.
    """

    seq: int
    change: ChangedVersions
    at: float
    attempts: int = 0
    due: float = 0.0
    error: str | None = None


class LaneState(NamedTuple):
    """How a lane stands: how many deliveries it has, the oldest one, who holds it until when (Unix time in seconds).

    ``failing`` is how many of them have failed before. A lane without deliveries and without an owner is not there.
    """

    lane: Lane
    pending: int
    oldest: Delivery | None
    failing: int
    owner: str | None
    expires: float


class Settlement(NamedTuple):
    """What came of the deliveries of a lane that ``owner`` holds.

    ``delivered`` are removed; ``postponed`` get the attempts, due and error that they have here. ``expires`` is the new
    end of the lease, or 0 to let the lane go.
    """

    lane: Lane
    owner: str
    expires: float
    delivered: Sequence[Delivery] = ()
    postponed: Sequence[Delivery] = ()


@dataclass(slots=True)
class Batch:
    """All that one storage transaction writes, in this order of meaning.

    ``restores`` says that every ``after`` is a version that the journal has already, with the place and index entries
    that it has now: storage makes it current again instead of storing it twice. ``definitions`` (by type) raise the
    generation. ``drop_claims_of`` drops all claims of an owner; when ``dropped`` is given and they are not as many,
    :class:`ClaimsLost` is raised and nothing written. ``claims`` are inserted, or replaced where their key is held.
    ``deferred`` goes to the outbox with the entry's seq; ``settlement`` raises :class:`ClaimsLost` when its owner does
    not hold the lane any more (a lease that has ended but was not taken over is still held).
    ``seq`` is set when it has been written: that of its entry, 0 without one.
    """

    entry: NewEntry | None = None
    changes: Sequence[FactChange] = ()
    restores: bool = False
    savepoint: Savepoint | None = None
    records: Sequence[RecordWrite] = ()
    definitions: Mapping[str, str] = field(default_factory=dict)
    claims: Sequence[Claim] = ()
    drop_claims_of: str | None = None
    dropped: int | None = None
    deferred: Sequence[Deferred] = ()
    settlement: Settlement | None = None
    seq: int = 0


class StorageTransaction(Protocol):
    """One transaction on one namespace. All methods are coroutines; those of sync storages never suspend.

    :meth:`reindex` and :meth:`write` come last, when all has been read. Sequences in answers are the caller's own.
    ``is_serial``: between what one that writes reads, whatever it is, and what it writes nobody else writes anything.
    ``moment``: where two that write have the same one before they write, nobody has written anything between them, so
    that what the first one has read is so still; None: that cannot be told.
    """

    is_serial: bool

    @property
    def moment(self) -> object: ...

    # Facts
    async def facts(self, ids: Sequence[str]) -> dict[str, StoredFact]:
        """The current facts among ``ids``."""
        ...

    async def latest_versions(self, ids: Sequence[str]) -> dict[str, int]:
        """The highest version that each of ``ids`` had before, also those that are gone; missing: none.

        The current one need not be counted in: whoever asks knows it.
        """
        ...

    async def holders(self, singletons: Sequence[str]) -> dict[str, StoredFact]:
        """The current facts that hold these singleton places, by place."""
        ...

    async def versions(self, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], StoredFact]:
        """Past or current versions of facts, by (id, version)."""
        ...

    async def select(self, selection: Selection) -> list[StoredFact]: ...

    async def count(self, selection: Selection) -> int: ...

    # Journal
    async def position(self, session_id: str | None) -> Position: ...

    async def entries(self, seqs: Sequence[int]) -> dict[int, Entry]: ...

    async def line(self, seq: int, *, above: int = 0, limit: int | None = None) -> list[Entry]:
        """The transaction ``seq`` and its ancestors, newest first, as long as their seq is greater than ``above``."""
        ...

    async def history(
        self,
        *,
        session_id: str | None | Unset = UNSET,
        fact_id: str | None = None,
        mark: str | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[Entry]:
        """Journal entries newest first: those that fulfil every condition given, with a seq below ``before``."""
        ...

    async def savepoint(self, session_id: str | None, name: str) -> int | None:
        """The seq at which the session stood when the savepoint was set, or None."""
        ...

    async def savepoints(self, known: Sequence[str | None]) -> list[Savepoint]:
        """All savepoints. A storage that has digests in place of long session ids tells those of ``known`` sessions."""
        ...

    # Records
    async def collections(self) -> list[str]:
        """The names of all collections that have records, in order.

        :raises StorageError: the storage has digests in place of long names.
        """
        ...

    async def record(self, collection: str, key: str, *, is_new: bool = False) -> bytes | None:
        """A record, or None.

        ``is_new``: most likely it is not there; a storage that looks at what was relied on when it writes need not ask.
        """
        ...

    async def records(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
        """Those of some records that there are, by (collection, key), as one question."""
        ...

    async def scan(
        self,
        collection: str,
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Record]:
        """Records with ``start <= key < end`` by code point, descending when ``reverse``."""
        ...

    # The outbox
    async def lanes(self) -> list[LaneState]:
        """All lanes that have deliveries or an owner, by hook and number."""
        ...

    async def deliveries(self, lane: Lane, limit: int) -> list[Delivery]:
        """The oldest deliveries of a lane, in the order of their transactions."""
        ...

    async def take_lane(
        self, hooks: Sequence[str], owner: str, now: float, expires: float, *, gone: Sequence[str] = ()
    ) -> Lane | None:
        """Lease a lane of one of ``hooks`` that has something due now and that nobody holds, the one with the oldest
        first; None: there is none. A lane whose lease has ended, or whose owner is in ``gone``, is held by nobody.

        A write, and the only one of its transaction. Two workers never get one lane.
        """
        ...

    # Claims and definitions
    async def claims(self, keys: Sequence[str] | None = None) -> list[Claim]:
        """The claims on ``keys``, or all of the namespace."""
        ...

    async def definitions(self) -> dict[str, str]:
        """What was registered for each type, as text that only the engine reads."""
        ...

    async def reindex(
        self, typename: str, compute: Callable[[StoredFact], tuple[str | None, tuple[IndexEntry, ...]]]
    ) -> None:
        """Give every current fact of a type the singleton place and index entries that ``compute`` returns.

        :raises ConflictError: two current facts would have one place.
        """
        ...

    async def write(self, batch: Batch) -> None:
        """Write. Called at most once in a transaction, last; a storage may put it off until the work has returned, and
        commit by it. New facts (``ordinal`` -1) get ordinals in the order of the batch.

        :raises ConflictError: two facts would have one singleton place, or the seq that is asked for is taken.
        :raises ClaimsLost: see :class:`Batch`.
        """
        ...


Work = Callable[[StorageTransaction], Awaitable[T]]


@runtime_checkable
class Storage(Protocol):
    """Where facts, journal, records and claims live.

    A ``work`` is a coroutine function that awaits nothing but the methods of the transaction it is given. A storage
    whose conflicts are found late (optimistic ones) may call it again; it therefore has no effects of its own.
    """

    is_async: bool

    async def read(self, namespace: str, work: Work[T], *, snapshot: bool = False) -> T:
        """Run ``work`` with a transaction that only reads; ``snapshot``: all its reads see one moment."""
        ...

    async def write(self, namespace: str, work: Work[T]) -> T:
        """Run ``work`` with exclusive right to write; commit when it returns, leave no trace when it raises."""
        ...

    async def namespaces(self) -> list[str]:
        """The names of the namespaces that have transactions, savepoints, records or definitions, in order.

        :raises StorageError: the storage has digests in place of long names.
        """
        ...

    async def open(self) -> None:
        """Connect and make or migrate the tables, if that has not happened; everything else does this by itself."""
        ...

    async def aclose(self) -> None: ...


class Scope(NamedTuple):
    """What a search is confined to.

    A hook may narrow by ``typename``, ``session_id`` and ``filters`` (see :mod:`memstate_core.filters`); the store
    checks every result again. ``native`` is a filter in the index's own language, which only the hook can apply (None:
    none).
    """

    typename: str | None = None
    session_id: str | None | Unset = UNSET
    filters: Mapping[str, Any] | None = None
    native: Any = None


class Hook(Protocol):
    """An external index that takes part in transactions.

    Only :meth:`apply` is needed. A hook may also have ``name`` (by which facts in doubt are
    matched to it after a crash; default: its class or function name), ``target_types`` (it is told of no other),
    :meth:`prepare`, :meth:`search`, :meth:`scan` and :meth:`lookup`. All may be coroutine functions in an
    :class:`~memstate_core.AsyncMemoryStore`. A hook whose index several tenants may share has ``for_namespace(name)``,
    which returns the hook that the store of that namespace uses. One that takes filters in the index's own language has
    ``native_filters``, the type of those, and one to whose index filters cost many times a search is ``dear_filters``.
    """

    def apply(self, changes: Sequence[Change]) -> Any:
        """Make the index what ``after`` says for each change, whatever it was: idempotent, keyed by fact id."""
        ...


@runtime_checkable
class PreparingHook(Protocol):
    def prepare(self, changes: Sequence[Change]) -> Any:
        """Do what is slow and invisible (embed); what it returns is passed to ``apply`` in place of the changes."""
        ...


@runtime_checkable
class SearchingHook(Protocol):
    def search(self, query: str, limit: int, scope: Scope) -> Any:
        """Up to ``limit`` :class:`~memstate_core.facts.SearchResult`, best first (or an awaitable of them)."""
        ...


@runtime_checkable
class ScanningHook(Protocol):
    def scan(self) -> Any:
        """Everything in the index: ``{fact id: version}``, or an iterable of such pairs (or an awaitable of either).

        An iterable, in an :class:`~memstate_core.AsyncMemoryStore` perhaps an async one, need not hold all of it at
        once. What is written meanwhile may be in it or not.
        """
        ...


@runtime_checkable
class RebuildableHook(Protocol):
    """What :meth:`~memstate_core.MemoryStore.reindex` needs to rebuild an index beside the one in use."""

    def beside(self) -> Any:
        """A hook like this one (or an awaitable of it) on a new index, which takes the place of one left unfinished.

        It must fail, and not make the index anew, when another one has taken its index's place.
        """
        ...

    def swap(self, beside: Any) -> Any:
        """Put the index of a hook that :meth:`beside` returned in the place of the index in use, which goes (or an
        awaitable of it).

        Afterwards this hook is on the new index. The hooks of other stores and processes that were on the old one must
        be so too when they are used next, or fail.

        What fails or dies half-way leaves one of the two in use, for those who come to it anew. A hook that may leave
        the other one behind, for those who know it, has ``settle()``, which goes to the one in use and removes the
        other.
        """
        ...


@runtime_checkable
class LookupHook(Protocol):
    def lookup(self, ids: Sequence[str]) -> Any:
        """``{fact id: version}`` of what the index has of ``ids`` (or an awaitable of it).

        Without it, :meth:`~memstate_core.MemoryStore.verify` keeps the ids of the whole index in memory, and scans it
        once more when something differs.
        """
        ...


__all__ = [
    "LANES",
    "Batch",
    "Change",
    "ChangedVersions",
    "Claim",
    "Decode",
    "Deferred",
    "Delivery",
    "Entry",
    "Hook",
    "Lane",
    "LaneState",
    "LookupHook",
    "NewEntry",
    "Position",
    "PreparingHook",
    "RebuildableHook",
    "Record",
    "RecordWrite",
    "Savepoint",
    "ScanningHook",
    "Scope",
    "SearchResult",
    "SearchingHook",
    "Selection",
    "Settlement",
    "Storage",
    "StorageTransaction",
    "Work",
    "lane_of",
]
