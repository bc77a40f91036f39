"""Storage in PostgreSQL, for many processes and machines: SQLAlchemy's engines and psycopg 3.

Everything of a transaction is written by one statement, which checks what the transaction relied on. The common
commit is one round trip, and locks are held for as long as the statement takes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

try:
    import psycopg
    import sqlalchemy as sa
except ImportError as error:
    raise ImportError('storage in PostgreSQL needs its drivers: pip install "memstate[postgres]"') from error

from memstate_core._bridge import run
from memstate_core.errors import ValidationFailed
from memstate_core.protocols import Work
from memstate_core.storages._forks import tell_of_forks
from memstate_core.storages._postgres import async_sources, sync_sources
from memstate_core.storages._postgres.ports import Source
from memstate_core.storages._postgres.runner import Runner
from memstate_core.storages._postgres.tables import quoted

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")

_IDENTIFIER_BYTES: Final = 63


class PostgresStorage:
    """Storage in a PostgreSQL database (14 or newer).

    :param database: a URL (``postgresql://user@host/database``), or what the caller owns and closes: a SQLAlchemy
        :class:`~sqlalchemy.Engine`, a :class:`psycopg.Connection`, or a ``psycopg_pool.ConnectionPool``. A given
        connection serves one thread at a time, and must not be in a transaction.
    :param schema: the schema that the tables are in, made if it is missing; None: the first of the search path.
    :param pool_size: how many connections are opened at the most (for a URL).
    :param timeout: seconds to wait for a free connection, for other writers that are in the way, and for a server
        that went away in the midst of a transaction, before :class:`UnavailableError`.
    :param prepare: whether the server keeps statements prepared; None: unless a pooler stands in between, such as
        PgBouncer, which may give each transaction another server process.
    :param payload_index: keep a GIN index on payloads, which narrows equalities on fields that no schema declares. It
        takes a commit of a small payload 6 % longer, and one of many fields more than that; large tables that have none
        yet are locked against writers while it is made.
    :param distributed: for databases that speak PostgreSQL's protocol but have no advisory locks and no LOCK
        TABLE, such as CockroachDB and YugabyteDB: migrations and definitions are guarded by locked rows. CockroachDB
        also needs ``enable_multiple_modifications_of_table``, and YugabyteDB sequences that are not cached.
    :param connect_options: further options of :func:`psycopg.connect` (for a URL, whose own come first).

    Threads, processes and machines may share a database, and threads and forked processes a storage object. The
    isolation is that of a snapshot, and no update is lost: what a transaction changes, and the facts, records and
    claims that it asked for by name, are as it saw them when it is written.
    """

    is_async = False

    def __init__(
        self,
        database: str | sa.Engine | psycopg.Connection[Any] | Any,
        *,
        schema: str | None = None,
        pool_size: int = 10,
        timeout: float = 30.0,
        prepare: bool | None = None,
        payload_index: bool = True,
        distributed: bool = False,
        connect_options: Mapping[str, Any] | None = None,
    ) -> None:
        prefix = _prefix(schema)
        self._make_source: Callable[[], Source] = lambda: sync_sources.source_of(
            database, pool_size, prepare, _options(connect_options, timeout)
        )
        self._runner = Runner(
            self._make_source(),
            "PostgresStorage",
            prefix,
            timeout=timeout,
            payload_index=payload_index and not distributed,
            distributed=distributed,
            refuse_nested=True,
        )
        self._left_behind: list[object] = []
        self._renews = isinstance(database, str)
        tell_of_forks(self)

    def before_fork(self) -> None:
        """Connections stay the parent's; the child opens its own."""

    def after_fork(self, *, in_child: bool) -> None:
        if in_child and self._renews:
            self._left_behind.append(self._runner.source)  # to end those connections would end the parent's
            self._runner.source = self._make_source()
            self._runner.after_fork()

    async def open(self) -> None:
        """Connect and make or migrate the tables, if that has not happened."""
        await self._runner.open()

    async def read(self, namespace: str, work: Work[T], *, snapshot: bool = False) -> T:
        return await self._runner.read(namespace, work, snapshot=snapshot)

    async def write(self, namespace: str, work: Work[T]) -> T:
        return await self._runner.write(namespace, work)

    async def namespaces(self) -> list[str]:
        return await self._runner.namespaces()

    async def aclose(self) -> None:
        await self._runner.aclose()

    def close(self) -> None:
        """Close what this storage opened; what was given stays open."""
        run(self.aclose())

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncPostgresStorage:
    """The same for an :class:`~memstate_core.AsyncMemoryStore`, on psycopg's async connections.

    ``database`` is a URL, an :class:`~sqlalchemy.ext.asyncio.AsyncEngine`, a :class:`psycopg.AsyncConnection` or a
    ``psycopg_pool.AsyncConnectionPool``; the options are those of :class:`PostgresStorage`. A storage belongs to one
    event loop.
    """

    is_async = True

    def __init__(
        self,
        database: str | AsyncEngine | psycopg.AsyncConnection[Any] | Any,
        *,
        schema: str | None = None,
        pool_size: int = 10,
        timeout: float = 30.0,
        prepare: bool | None = None,
        payload_index: bool = True,
        distributed: bool = False,
        connect_options: Mapping[str, Any] | None = None,
    ) -> None:
        prefix = _prefix(schema)
        self._make_source: Callable[[], Source] = lambda: async_sources.source_of(
            database, pool_size, prepare, _options(connect_options, timeout)
        )
        self._runner = Runner(
            self._make_source(),
            "AsyncPostgresStorage",
            prefix,
            timeout=timeout,
            payload_index=payload_index and not distributed,
            distributed=distributed,
            refuse_nested=False,
        )
        self._left_behind: list[object] = []
        self._renews = isinstance(database, str)
        tell_of_forks(self)

    def before_fork(self) -> None:
        """Connections stay the parent's; the child opens its own."""

    def after_fork(self, *, in_child: bool) -> None:
        if in_child and self._renews:
            self._left_behind.append(self._runner.source)
            self._runner.source = self._make_source()
            self._runner.after_fork()

    async def open(self) -> None:
        """Connect and make or migrate the tables, if that has not happened."""
        await self._runner.open()

    async def connect(self) -> None:
        """Open explicitly; everything else does it on first use."""
        await self.open()

    async def create_tables(self) -> None:
        """Make the tables explicitly; everything else does it on first use."""
        await self.open()

    async def read(self, namespace: str, work: Work[T], *, snapshot: bool = False) -> T:
        return await self._runner.read(namespace, work, snapshot=snapshot)

    async def write(self, namespace: str, work: Work[T]) -> T:
        return await self._runner.write(namespace, work)

    async def namespaces(self) -> list[str]:
        return await self._runner.namespaces()

    async def aclose(self) -> None:
        """Close what this storage opened; what was given stays open."""
        await self._runner.aclose()

    async def close(self) -> None:
        """The same as :meth:`aclose`."""
        await self.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _prefix(schema: str | None) -> str:
    if schema is None:
        return ""
    if not isinstance(schema, str) or not schema or "\0" in schema or len(schema.encode()) > _IDENTIFIER_BYTES:
        raise ValidationFailed(f"schema is the name of a schema, of at most 63 bytes, not {schema!r}")
    return quoted(schema)


def _options(options: Mapping[str, Any] | None, timeout: float) -> dict[str, Any]:
    return {"connect_timeout": max(2, math.ceil(timeout)), **(options or {})}
