"""Storage in Redis 6.2 or newer, or Valkey, plain or as a cluster; no modules needed.

A transaction is one script on the server, which verifies what the transaction was computed from and then writes all of
it: whole, or not at all. A transaction that reads nothing is one round trip.

What returned survives the death of this process. Whether it survives the death of the server is for the server's
settings to say: with ``appendonly yes`` and ``appendfsync always`` it does, with ``everysec`` the last second may be
lost, with snapshots alone all since the last one. A failover may lose what the new master had not received:
``wait_replicas=`` waits until so many replicas have it, ``min-replicas-to-write`` keeps a master without replicas from
taking writes, and neither makes Redis a consensus system.
"""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

try:
    import redis as driver
    import redis.asyncio as async_driver
except ImportError as error:
    raise ImportError('RedisStorage needs the redis package; install it with: pip install "memstate[redis]"') from error
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry

from memstate_core._bridge import run
from memstate_core.errors import ValidationFailed
from memstate_core.protocols import Work
from memstate_core.storages._forks import tell_of_forks
from memstate_core.storages._locks import refuse_nesting
from memstate_core.storages._redis.core import Core
from memstate_core.storages._redis.port import AsyncPort, Port, SyncPort
from memstate_core.values import check_identifier

T = TypeVar("T")

_SCHEMES = ("redis://", "rediss://", "unix://")


class RedisStorage:
    """Storage in Redis.

    :param server: a URL (``redis://``, ``rediss://`` or ``unix://``), or a :class:`redis.Redis` or
        :class:`redis.RedisCluster` that the caller owns and closes.
    :param prefix: what all keys begin with; storages with different prefixes share nothing.
    :param timeout: seconds for which a call tries again when the server is away or others keep changing the same
        facts, before :class:`UnavailableError`.
    :param wait_replicas: how many replicas must have received a write before it returns. When they have not after
        ``wait_timeout`` seconds, which is less than ``timeout``, it raises :class:`UnavailableError`.

    Threads may share a storage object; a forked process goes on with connections of its own.
    """

    is_async = False

    def __init__(
        self,
        server: str | driver.Redis | RedisCluster,
        *,
        prefix: str = "memstate",
        timeout: float = 10.0,
        wait_replicas: int = 0,
        wait_timeout: float = 1.0,
    ) -> None:
        _check(server, (driver.Redis, RedisCluster), "RedisStorage", prefix, timeout, wait_replicas, wait_timeout)
        name = _name_of(server)
        owned = isinstance(server, str)
        # Whoever sends a write again must know for how long; the driver's own retries do not ask.
        client = (
            driver.Redis.from_url(
                server, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
            )
            if isinstance(server, str)
            else server
        )
        self._port = SyncPort(client, name, owned=owned)
        self._core = Core(
            lambda: self._port,
            name=name,
            prefix=prefix,
            timeout=timeout,
            wait_replicas=wait_replicas,
            wait_timeout=wait_timeout,
        )
        self._here = threading.local()
        tell_of_forks(self)

    def before_fork(self) -> None:
        """The driver looks at the process before it uses a connection."""

    def after_fork(self, *, in_child: bool) -> None:
        if in_child:
            self._core.start_anew()

    def _mine(self) -> threading.RLock:
        """A lock of this very thread, which says whether it is in a transaction."""
        lock: threading.RLock | None = getattr(self._here, "lock", None)
        if lock is None:
            lock = self._here.lock = threading.RLock()
        refuse_nesting(lock)
        return lock

    async def open(self) -> None:
        """Reach the server, and refuse it when it would lose facts."""
        await self._core.open()

    async def read(self, namespace: str, work: Work[T], *, snapshot: bool = False) -> T:
        with self._mine():
            return await self._core.read(namespace, work, snapshot=snapshot)

    async def write(self, namespace: str, work: Work[T]) -> T:
        with self._mine():
            return await self._core.write(namespace, work)

    async def namespaces(self) -> list[str]:
        """Walks all keys of the server, those of others too, a thousand at a time."""
        with self._mine():
            return await self._core.namespaces()

    async def aclose(self) -> None:
        await self._core.aclose()

    def close(self) -> None:
        """Close what this storage opened; a given client stays open."""
        run(self.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncRedisStorage:
    """The same for an :class:`~memstate_core.AsyncMemoryStore`; given clients are those of :mod:`redis.asyncio`.

    Connections belong to the event loop that made them. With a URL the storage may be used by one loop after another.
    """

    is_async = True

    def __init__(
        self,
        server: str | async_driver.Redis | AsyncRedisCluster,
        *,
        prefix: str = "memstate",
        timeout: float = 10.0,
        wait_replicas: int = 0,
        wait_timeout: float = 1.0,
    ) -> None:
        _check(
            server,
            (async_driver.Redis, AsyncRedisCluster),
            "AsyncRedisStorage",
            prefix,
            timeout,
            wait_replicas,
            wait_timeout,
        )
        self._server = server
        self._name = _name_of(server)
        self._timeout = timeout
        self._port: Port | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._core = Core(
            self._port_here,
            name=self._name,
            prefix=prefix,
            timeout=timeout,
            wait_replicas=wait_replicas,
            wait_timeout=wait_timeout,
        )
        tell_of_forks(self)

    def before_fork(self) -> None:
        """A child has no event loop of its parent's, and makes connections of its own."""

    def after_fork(self, *, in_child: bool) -> None:
        if in_child:
            self._core.start_anew()

    def _port_here(self) -> Port:
        loop = asyncio.get_running_loop()
        if self._port is None or (loop is not self._loop and isinstance(self._server, str)):
            client = (
                async_driver.Redis.from_url(
                    self._server,
                    socket_timeout=self._timeout,
                    socket_connect_timeout=self._timeout,
                    retry=AsyncRetry(NoBackoff(), 0),
                )
                if isinstance(self._server, str)
                else self._server
            )
            self._port = AsyncPort(client, self._name, owned=isinstance(self._server, str))
            self._loop = loop
        return self._port

    async def open(self) -> None:
        """Reach the server, and refuse it when it would lose facts."""
        await self._core.open()

    async def connect(self) -> None:
        """Open explicitly; everything else does it on first use."""
        await self.open()

    async def create_tables(self) -> None:
        """Nothing to create; here so that storages can be exchanged."""
        await self.open()

    async def read(self, namespace: str, work: Work[T], *, snapshot: bool = False) -> T:
        return await self._core.read(namespace, work, snapshot=snapshot)

    async def write(self, namespace: str, work: Work[T]) -> T:
        return await self._core.write(namespace, work)

    async def namespaces(self) -> list[str]:
        """Walks all keys of the server, those of others too, a thousand at a time."""
        return await self._core.namespaces()

    async def aclose(self) -> None:
        """Close what this storage opened; a given client stays open."""
        await self._core.aclose()

    async def close(self) -> None:
        """The same as :meth:`aclose`."""
        await self.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _check(
    server: Any,
    kinds: tuple[type, ...],
    role: str,
    prefix: Any,
    timeout: float,
    wait_replicas: int,
    wait_timeout: float,
) -> None:
    if isinstance(server, str):
        if not server.startswith(_SCHEMES):
            raise ValidationFailed(f"{role} takes a URL that begins with {', '.join(_SCHEMES)}, not {server!r}")
    elif not isinstance(server, kinds):
        wanted = " or ".join(f"{kind.__module__.partition('.client')[0]}.{kind.__name__}" for kind in kinds)
        raise ValidationFailed(f"{role} takes a URL or a {wanted}, not {server!r}")
    check_identifier("prefix", prefix)
    if wait_replicas and not 0.001 <= wait_timeout < timeout:
        # To the server 0 ms means for ever, and a reply that takes longer than ``timeout`` is taken for lost.
        raise ValidationFailed(
            f"wait_timeout must be at least 0.001 s and less than timeout={timeout:g}, not {wait_timeout!r}"
        )
    if wait_replicas and isinstance(server, RedisCluster | AsyncRedisCluster):
        raise ValidationFailed(
            "wait_replicas needs a client of one server; on a cluster set min-replicas-to-write instead"
        )


def _name_of(server: Any) -> str:
    """The server for messages, without its password."""
    if isinstance(server, str):
        url = urlsplit(server)
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    pool = getattr(server, "connection_pool", None)
    if pool is None:
        return "the given Redis Cluster"
    given = pool.connection_kwargs
    return f"Redis at {given['path']}" if "path" in given else f"Redis at {given.get('host')}:{given.get('port')}"
