"""Where the async flavour's connections come from; the same as in :mod:`.sync_sources`, awaited."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from memstate_core.errors import ValidationFailed
from memstate_core.storages._postgres.ports import AsyncPort, Port, Source, refuse_transaction
from memstate_core.storages._postgres.sources import connect_arguments, exhausted, is_a, size_of, url_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class _AsyncSource:
    def __init__(self, shown: str, prepare: bool | None) -> None:
        self.shown = shown
        self.idle_at_most = 0
        self._prepare = prepare

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _lend(self, connection: psycopg.AsyncConnection[Any]) -> AsyncPort:
        refuse_transaction(connection)
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
            raise exhausted(self.shown, timeout) from None
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
        self.idle_at_most = size_of(engine.pool)

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
                raise exhausted(self.shown, timeout) from None
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


async def _in_greenlet(function: Any) -> None:
    from sqlalchemy.util import greenlet_spawn

    await greenlet_spawn(function)


def source_of(database: Any, pool_size: int, prepare: bool | None, options: dict[str, Any]) -> Source:
    """What a storage was given, as a source.

    :raises ValidationFailed: it is nothing that connections come from.
    """
    if isinstance(database, str):
        url = url_of(database, "AsyncPostgresStorage")
        return AsyncOwnSource(url, options, pool_size, prepare)
    if is_a(database, "AsyncEngine"):
        if database.sync_engine.driver != "psycopg":
            raise ValidationFailed(f"AsyncPostgresStorage takes an engine for postgresql+psycopg, not {database.url!r}")
        return AsyncEngineSource(database, prepare)
    if isinstance(database, psycopg.AsyncConnection):
        return AsyncConnectionSource(database, prepare)
    if is_a(database, "AsyncConnectionPool"):
        return AsyncPoolSource(database, prepare)
    raise ValidationFailed(
        "AsyncPostgresStorage takes a URL, an AsyncEngine, a psycopg.AsyncConnection or an AsyncConnectionPool, "
        f"not {database!r}"
    )
