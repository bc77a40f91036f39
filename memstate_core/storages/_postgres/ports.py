"""What a statement runs on, and where it comes from: the only part that is written for both flavours.

A *source* gives out *ports*. Its methods are coroutine functions; those of the sync sources never suspend. The sources
are in :mod:`.sync_sources` and :mod:`.async_sources`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import psycopg
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.rows import tuple_row

from memstate_core.errors import StorageError, UnavailableError

Rows = Sequence[Sequence[Any]]

IDLE: Final = TransactionStatus.IDLE
_USABLE: Final = (IDLE, TransactionStatus.INTRANS, TransactionStatus.INERROR)
_GREETING: Final = (
    "SELECT pg_backend_pid(), current_setting('server_encoding'), current_setting('transaction_isolation')"
)


class Port(Protocol):
    """A connection while somebody has it.

    ``read_committed`` says whether a statement by itself runs at that isolation, which somebody may have changed.
    """

    connection: Any
    read_committed: bool

    async def execute(self, text: str | bytes, values: Sequence[Any] = ()) -> Rows: ...

    async def script(self, text: str) -> None:
        """Statements without values or answers, in one go."""
        ...


class Source(Protocol):
    """Where ports come from; ``shown`` names it in errors.

    ``idle_at_most`` is how many connections may have to be found broken, one by one, before there is a new one.
    """

    shown: str
    idle_at_most: int

    async def acquire(self, timeout: float) -> Port: ...

    async def release(self, port: Port, *, broken: bool) -> None: ...

    async def sleep(self, seconds: float) -> None: ...

    async def aclose(self) -> None: ...


def is_lost(connection: Any) -> bool:
    """Whether a connection has ended, or its next answer would be that of something else."""
    return bool(connection.closed) or connection.pgconn.transaction_status not in _USABLE


def refuse_transaction(connection: Any) -> None:
    if connection.closed:
        raise UnavailableError("the given connection is closed, by the caller or by the server; make a new storage")
    if connection.pgconn.transaction_status != IDLE:
        raise StorageError("the given connection is in the midst of a transaction; commit or roll it back first")


class _Greeting(NamedTuple):
    prepares: bool
    read_committed: bool


# What is known of connections, for those that come again.
_greeted: Final[weakref.WeakKeyDictionary[Any, _Greeting]] = weakref.WeakKeyDictionary()


def _greeting_of(answer: Sequence[Any], connection: Any, wanted: bool | None) -> _Greeting:
    """Whether statements may be prepared on a connection, and are READ COMMITTED.

    A pooler between us and the server gives out process ids of its own, and may hand our next statement to
    a server process that does not know what was prepared, or knows another statement by the name.
    """
    pid, encoding, isolation = answer
    if encoding != "UTF8":
        raise StorageError(f"the database is encoded in {encoding}, which cannot hold every text; make one in UTF8")
    prepares = pid == connection.pgconn.backend_pid if wanted is None else wanted
    return _Greeting(prepares, isolation == "read committed")


def _has_rows(cursor: Any) -> bool:
    """``cursor.description`` says the same, and takes as long as the rest of a short statement."""
    return bool(cursor.pgresult.status == ExecStatus.TUPLES_OK)


class SyncPort:
    """A port on a :class:`psycopg.Connection`."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.handle: Any = None  # what the connection came in, or the turn in which it was taken
        self.restore = not connection.autocommit
        self.read_committed = False
        self._cursor = psycopg.RawCursor(connection, row_factory=tuple_row)
        self._prepare: bool | None = False

    def greet(self, prepare: bool | None) -> None:
        if self.restore:
            self.connection.autocommit = True
        known = _greeted.get(self.connection)
        if known is None:
            answer = self._cursor.execute(_GREETING, prepare=False).fetchall()
            known = _greeted[self.connection] = _greeting_of(answer[0], self.connection, prepare)
        self.read_committed = known.read_committed
        self._prepare = None if known.prepares and prepare is not False else False

    async def execute(self, text: str | bytes, values: Sequence[Any] = ()) -> Rows:
        cursor = self._cursor
        cursor.execute(text, values, prepare=self._prepare)
        return cursor.fetchall() if _has_rows(cursor) else ()

    async def script(self, text: str) -> None:
        self._cursor.execute(text, prepare=False)


class AsyncPort:
    """A port on a :class:`psycopg.AsyncConnection`."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self.connection = connection
        self.handle: Any = None
        self.restore = not connection.autocommit
        self._cursor = psycopg.AsyncRawCursor(connection, row_factory=tuple_row)
        self._prepare: bool | None = False
        self.read_committed = False

    async def greet(self, prepare: bool | None) -> None:
        if self.restore:
            await self.connection.set_autocommit(True)
        known = _greeted.get(self.connection)
        if known is None:
            answer = await (await self._cursor.execute(_GREETING, prepare=False)).fetchall()
            known = _greeted[self.connection] = _greeting_of(answer[0], self.connection, prepare)
        self.read_committed = known.read_committed
        self._prepare = None if known.prepares and prepare is not False else False

    async def execute(self, text: str | bytes, values: Sequence[Any] = ()) -> Rows:
        cursor = self._cursor
        await cursor.execute(text, values, prepare=self._prepare)
        return await cursor.fetchall() if _has_rows(cursor) else ()

    async def script(self, text: str) -> None:
        await self._cursor.execute(text, prepare=False)
