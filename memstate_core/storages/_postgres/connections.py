"""Where connections come from, and how statements run on them: the only part that is written for both flavours.

A *source* gives out *ports*. Its methods are coroutine functions; those of the sync sources never suspend.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import psycopg
import sqlalchemy as sa
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.rows import tuple_row

from memstate_core.errors import StorageError, UnavailableError, ValidationFailed
from memstate_core.storages._turns import Turns

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

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


def _refuse_transaction(connection: Any) -> None:
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


class _SyncSource:
    def __init__(self, shown: str, prepare: bool | None) -> None:
        self.shown = shown
        self.idle_at_most = 0
        self._prepare = prepare

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def _lend(self, connection: psycopg.Connection[Any]) -> SyncPort:
        """A caller's connection, made autocommitting for a while."""
        _refuse_transaction(connection)
        port = SyncPort(connection)
        try:
            port.greet(self._prepare)
        except BaseException:
            self._give_back(port)
            raise
        return port

    @staticmethod
    def _give_back(port: Any) -> None:
        if port.restore and not port.connection.closed:
            with contextlib.suppress(psycopg.Error):
                port.connection.autocommit = False


class SyncConnectionSource(_SyncSource):
    """One given connection, which threads take in turn."""

    def __init__(self, connection: psycopg.Connection[Any], prepare: bool | None) -> None:
        super().__init__("the given connection", prepare)
        self._connection = connection
        self._turns = Turns(1)

    async def acquire(self, timeout: float) -> Port:
        turn = self._turns.take(timeout)
        if turn is None:
            raise _exhausted(self.shown, timeout)
        try:
            port = self._lend(self._connection)
            port.handle = turn
            return port
        except BaseException:
            self._turns.give_back(turn)
            raise

    async def release(self, port: Port, *, broken: bool) -> None:
        try:
            if broken and not port.connection.closed:
                with contextlib.suppress(psycopg.Error):
                    port.connection.rollback()
            self._give_back(port)
        finally:
            self._turns.give_back(port.handle)  # type: ignore[attr-defined]

    async def aclose(self) -> None:
        """It is the caller's."""


class SyncPoolSource(_SyncSource):
    """A given psycopg_pool.ConnectionPool."""

    def __init__(self, pool: Any, prepare: bool | None) -> None:
        super().__init__("the given pool", prepare)
        self._pool = pool
        self.idle_at_most = pool.max_size

    async def acquire(self, timeout: float) -> Port:
        connection = self._pool.getconn(timeout)
        try:
            return self._lend(connection)
        except BaseException:
            self._pool.putconn(connection)
            raise

    async def release(self, port: Port, *, broken: bool) -> None:
        if broken:
            port.connection.pgconn.finish()  # close() would give some pools' connections back
        self._give_back(port)
        self._pool.putconn(port.connection)

    async def aclose(self) -> None:
        """It is the caller's."""


class SyncEngineSource(_SyncSource):
    """A given engine's pool."""

    def __init__(self, engine: sa.Engine, prepare: bool | None) -> None:
        super().__init__(engine.url.render_as_string(hide_password=True), prepare)
        self._engine = engine
        self.idle_at_most = _size_of(engine.pool)

    async def acquire(self, timeout: float) -> Port:
        handle = self._engine.raw_connection()
        try:
            port = self._lend(handle.driver_connection)  # type: ignore[arg-type]
        except BaseException:
            handle.invalidate()
            raise
        port.handle = handle
        return port

    async def release(self, port: Port, *, broken: bool) -> None:
        handle = port.handle  # type: ignore[attr-defined]
        if broken:
            handle.invalidate()
            return
        self._give_back(port)
        handle.close()

    async def aclose(self) -> None:
        """It is the caller's."""


class SyncOwnSource(_SyncSource):
    """Connections of our own; SQLAlchemy reads the URL, but a checkout from its pool takes much of a read's time."""

    def __init__(self, url: sa.URL, options: dict[str, Any], pool_size: int, prepare: bool | None) -> None:
        super().__init__(url.render_as_string(hide_password=True), prepare)
        self._arguments = options | connect_arguments(url)
        self._idle: collections.deque[SyncPort] = collections.deque()
        self._turns = Turns(pool_size)
        self._closed = False

    async def acquire(self, timeout: float) -> Port:
        turn = self._turns.take(timeout)
        if turn is None:
            raise _exhausted(self.shown, timeout)
        try:
            try:
                port = self._idle.pop()
            except IndexError:
                port = self._connect()
            port.handle = turn
            return port
        except BaseException:
            self._turns.give_back(turn)
            raise

    def _connect(self) -> SyncPort:
        connection = psycopg.connect(autocommit=True, **self._arguments)
        try:
            port = SyncPort(connection)
            port.greet(self._prepare)
        except BaseException:
            connection.close()
            raise
        return port

    async def release(self, port: Port, *, broken: bool) -> None:
        assert isinstance(port, SyncPort)
        turn, port.handle = port.handle, None
        try:
            if broken:
                port.connection.close()
                self._end_idle()  # a server that ended one connection has ended the others too
            elif self._closed:
                port.connection.close()
            else:
                self._idle.append(port)
        finally:
            self._turns.give_back(turn)

    def _end_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().connection.close()

    async def aclose(self) -> None:
        self._closed = True
        self._end_idle()


class _AsyncSource:
    def __init__(self, shown: str, prepare: bool | None) -> None:
        self.shown = shown
        self.idle_at_most = 0
        self._prepare = prepare

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _lend(self, connection: psycopg.AsyncConnection[Any]) -> AsyncPort:
        _refuse_transaction(connection)
        port = AsyncPort(connection)
        try:
            await port.greet(self._prepare)
        except BaseException:
            await self._give_back(port)
            raise
        return port

    @staticmethod
    async def _give_back(port: Any) -> None:
        if port.restore and not port.connection.closed:
            with contextlib.suppress(psycopg.Error):
                await port.connection.set_autocommit(False)


class AsyncConnectionSource(_AsyncSource):
    """One given connection, which tasks take in turn."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], prepare: bool | None) -> None:
        super().__init__("the given connection", prepare)
        self._connection = connection
        self._lock = asyncio.Lock()

    async def acquire(self, timeout: float) -> Port:
        try:
            async with asyncio.timeout(timeout):
                await self._lock.acquire()
        except TimeoutError:
            raise _exhausted(self.shown, timeout) from None
        try:
            return await self._lend(self._connection)
        except BaseException:
            self._lock.release()
            raise

    async def release(self, port: Port, *, broken: bool) -> None:
        try:
            if broken and not port.connection.closed:
                with contextlib.suppress(psycopg.Error):
                    await port.connection.rollback()
            await self._give_back(port)
        finally:
            self._lock.release()

    async def aclose(self) -> None:
        """It is the caller's."""


class AsyncPoolSource(_AsyncSource):
    """A given psycopg_pool.AsyncConnectionPool."""

    def __init__(self, pool: Any, prepare: bool | None) -> None:
        super().__init__("the given pool", prepare)
        self._pool = pool
        self.idle_at_most = pool.max_size

    async def acquire(self, timeout: float) -> Port:
        connection = await self._pool.getconn(timeout)
        try:
            return await self._lend(connection)
        except BaseException:
            await self._pool.putconn(connection)
            raise

    async def release(self, port: Port, *, broken: bool) -> None:
        if broken:
            port.connection.pgconn.finish()
        await self._give_back(port)
        await self._pool.putconn(port.connection)

    async def aclose(self) -> None:
        """It is the caller's."""


class AsyncEngineSource(_AsyncSource):
    """A given engine's pool."""

    def __init__(self, engine: AsyncEngine, prepare: bool | None) -> None:
        super().__init__(engine.url.render_as_string(hide_password=True), prepare)
        self._engine = engine
        self.idle_at_most = _size_of(engine.pool)

    async def acquire(self, timeout: float) -> Port:
        handle = await self._engine.raw_connection()
        try:
            port = await self._lend(handle.driver_connection)  # type: ignore[arg-type]
        except BaseException:
            await _in_greenlet(handle.invalidate)
            raise
        port.handle = handle
        return port

    async def release(self, port: Port, *, broken: bool) -> None:
        handle = port.handle  # type: ignore[attr-defined]
        if broken:
            await port.connection.close()
            await _in_greenlet(handle.invalidate)
            return
        await self._give_back(port)
        await _in_greenlet(handle.close)

    async def aclose(self) -> None:
        """It is the caller's."""


class AsyncOwnSource(_AsyncSource):
    """Connections of our own; SQLAlchemy reads the URL, but a checkout from its pool takes longer than a commit."""

    def __init__(self, url: sa.URL, options: dict[str, Any], pool_size: int, prepare: bool | None) -> None:
        super().__init__(url.render_as_string(hide_password=True), prepare)
        self._arguments = options | connect_arguments(url)
        self._idle: collections.deque[AsyncPort] = collections.deque()
        self._free = asyncio.Semaphore(pool_size)
        self._closed = False

    async def acquire(self, timeout: float) -> Port:
        if self._free.locked():
            try:
                async with asyncio.timeout(timeout):
                    await self._free.acquire()
            except TimeoutError:
                raise _exhausted(self.shown, timeout) from None
        else:
            await self._free.acquire()
        try:
            return self._idle.pop() if self._idle else await self._connect()
        except BaseException:
            self._free.release()
            raise

    async def _connect(self) -> AsyncPort:
        connection = await psycopg.AsyncConnection.connect(autocommit=True, **self._arguments)
        try:
            port = AsyncPort(connection)
            await port.greet(self._prepare)
        except BaseException:
            await connection.close()
            raise
        return port

    async def release(self, port: Port, *, broken: bool) -> None:
        assert isinstance(port, AsyncPort)
        try:
            if broken or self._closed:
                # A server that ended one connection has ended the others too.
                idle, self._idle = self._idle, collections.deque()
                for one in (port, *idle):
                    await self._end(one)
            else:
                self._idle.append(port)
        finally:
            self._free.release()

    @staticmethod
    async def _end(port: AsyncPort) -> None:
        with contextlib.suppress(psycopg.Error):
            await port.connection.close()

    async def aclose(self) -> None:
        self._closed = True
        while self._idle:
            await self._end(self._idle.pop())


def connect_arguments(url: sa.URL) -> dict[str, Any]:
    """What :func:`psycopg.connect` takes, of a URL."""
    _, arguments = url.get_dialect()().create_connect_args(url)
    return dict(arguments)


async def _in_greenlet(function: Any) -> None:
    from sqlalchemy.util import greenlet_spawn

    await greenlet_spawn(function)


def _size_of(pool: sa.Pool) -> int:
    return pool.size() if isinstance(pool, sa.QueuePool) else 1


def _exhausted(shown: str, timeout: float) -> UnavailableError:
    return UnavailableError(
        f"all connections of {shown} were in use for {timeout:g} s; try again, or make the pool larger"
    )


def url_of(text: str, kind: str) -> sa.URL:
    """A database's URL, for psycopg.

    :raises ValidationFailed: it is none, or one of another database or driver.
    """
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError:
        raise ValidationFailed(f"{kind} takes a URL such as 'postgresql://user@host/database', not {text!r}") from None
    if url.drivername not in ("postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg_async"):
        raise ValidationFailed(f"{kind} takes postgresql:// or postgresql+psycopg://, not {url.drivername}://")
    return url.set(drivername="postgresql+psycopg")
