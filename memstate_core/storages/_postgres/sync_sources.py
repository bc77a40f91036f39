"""Where the sync flavour's connections come from."""

from __future__ import annotations

import collections
import contextlib
import time
from typing import Any

import psycopg
import sqlalchemy as sa

from memstate_core.errors import ValidationFailed
from memstate_core.storages._postgres.ports import Port, Source, SyncPort, refuse_transaction
from memstate_core.storages._postgres.sources import connect_arguments, exhausted, is_a, size_of, url_of
from memstate_core.storages._turns import Turns


class _SyncSource:
    def __init__(self, shown: str, prepare: bool | None) -> None:
        self.shown = shown
        self.idle_at_most = 0
        self._prepare = prepare

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def _lend(self, connection: psycopg.Connection[Any]) -> SyncPort:
        """A caller's connection, made autocommitting for a while."""
        refuse_transaction(connection)
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
            raise exhausted(self.shown, timeout)
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
        self.idle_at_most = size_of(engine.pool)

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
            raise exhausted(self.shown, timeout)
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


def source_of(database: Any, pool_size: int, prepare: bool | None, options: dict[str, Any]) -> Source:
    """What a storage was given, as a source.

    :raises ValidationFailed: it is nothing that connections come from.
    """
    if isinstance(database, str):
        url = url_of(database, "PostgresStorage")
        return SyncOwnSource(url, options, pool_size, prepare)
    if isinstance(database, sa.Engine):
        if database.driver != "psycopg":
            raise ValidationFailed(f"PostgresStorage takes an engine for postgresql+psycopg, not {database.url!r}")
        return SyncEngineSource(database, prepare)
    if isinstance(database, psycopg.Connection):
        return SyncConnectionSource(database, prepare)
    if is_a(database, "ConnectionPool"):
        return SyncPoolSource(database, prepare)
    raise ValidationFailed(
        f"PostgresStorage takes a URL, an Engine, a psycopg.Connection or a ConnectionPool, not {database!r}"
    )
