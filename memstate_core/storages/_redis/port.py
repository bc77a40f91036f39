"""The connection to Redis, in two flavours: all that differs between them is who waits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any, Final, Protocol

import redis as driver
from redis.exceptions import ResponseError

NEVER_DECODE: Final = "NEVER_DECODE"
_AT_ONCE: Final = 1000  # so many keys does the server look at before it serves others
# Older versions of the driver want to be told what a connection is for.
_NAMED: Final = () if tuple(map(int, driver.__version__.split(".")[:2])) >= (5, 3) else ("EVALSHA",)


def packed(command: tuple[Any, ...]) -> bytes:
    """A command in Redis's protocol. On connections of our own: the driver's way there takes as long as the server."""
    parts = [b"*%d\r\n" % len(command)]
    for argument in command:
        raw = argument if isinstance(argument, bytes) else str(argument).encode()
        parts += (b"$%d\r\n" % len(raw), raw, b"\r\n")
    return b"".join(parts)


def _as_bytes(key: str | bytes) -> bytes:
    """A key from a client that may decode."""
    return key.encode() if isinstance(key, str) else key


class Port(Protocol):
    """Commands to a client, whoever made it. Answers are bytes, also from a client that decodes."""

    where: str

    async def info(self) -> Any:
        """What the server says of itself."""
        ...

    async def execute(self, *command: Any) -> Any: ...

    async def keys(self, pattern: str) -> set[bytes]:
        """The keys that fit, of all servers of a cluster."""
        ...

    async def execute_and_wait(self, replicas: int, milliseconds: int, *command: Any) -> tuple[Any, int]:
        """The command's answer, and how many replicas have acknowledged it in time."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    async def disconnect(self) -> None:
        """Drop idle connections: they lead to a server that is not the master any more."""
        ...

    async def close(self) -> None: ...


class SyncPort:
    """A :class:`redis.Redis` or a :class:`redis.RedisCluster`; its coroutines never suspend."""

    def __init__(self, client: Any, where: str, *, owned: bool) -> None:
        self.client = client
        self.where = where
        self._owned = owned

    async def info(self) -> Any:
        return self.client.execute_command("INFO")

    async def execute(self, *command: Any) -> Any:
        if not self._owned:
            return self.client.execute_command(*command, **{NEVER_DECODE: True})
        pool = self.client.connection_pool
        connection = pool.get_connection(*_NAMED)
        try:
            connection.send_packed_command([packed(command)])
            return connection.read_response(disable_decoding=True)
        except ResponseError:
            raise
        except BaseException:
            connection.disconnect()  # or its next user would read the reply to this command
            raise
        finally:
            pool.release(connection)

    async def keys(self, pattern: str) -> set[bytes]:
        return {_as_bytes(key) for key in self.client.scan_iter(match=pattern, count=_AT_ONCE)}

    async def execute_and_wait(self, replicas: int, milliseconds: int, *command: Any) -> tuple[Any, int]:
        # WAIT is about what its own connection has written.
        with self.client.pipeline(transaction=False) as pipeline:
            pipeline.execute_command(*command, **{NEVER_DECODE: True})
            pipeline.execute_command("WAIT", replicas, milliseconds)
            answer, acknowledged = pipeline.execute()
        return answer, acknowledged

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - on purpose

    async def disconnect(self) -> None:
        pool = getattr(self.client, "connection_pool", None)
        if self._owned and pool is not None:
            pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        if self._owned:
            self.client.close()


@contextlib.contextmanager
def _no_cancellation_lost() -> Iterator[None]:
    """Raise a cancellation that the block has swallowed.

    The driver waits with :func:`asyncio.wait_for`, which until Python 3.12 forgets a cancellation that comes at the
    very moment at which what it waits for is done.
    """
    task = asyncio.current_task()
    asked = task.cancelling() if task is not None else 0
    yield
    if task is not None and task.cancelling() > asked:
        raise asyncio.CancelledError


class AsyncPort:
    """A :class:`redis.asyncio.Redis` or a :class:`redis.asyncio.RedisCluster`."""

    def __init__(self, client: Any, where: str, *, owned: bool) -> None:
        self.client = client
        self.where = where
        self._owned = owned

    async def info(self) -> Any:
        return await self.client.execute_command("INFO")

    async def execute(self, *command: Any) -> Any:
        with _no_cancellation_lost():
            if self._owned:
                return await self._execute_on_own_connection(command)
            return await self.client.execute_command(*command, **{NEVER_DECODE: True})

    async def _execute_on_own_connection(self, command: tuple[Any, ...]) -> Any:
        pool = self.client.connection_pool
        connection = await pool.get_connection(*_NAMED)
        try:
            await connection.send_packed_command([packed(command)])
            return await connection.read_response(disable_decoding=True)
        except ResponseError:
            raise
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)

    async def keys(self, pattern: str) -> set[bytes]:
        with _no_cancellation_lost():
            return {_as_bytes(key) async for key in self.client.scan_iter(match=pattern, count=_AT_ONCE)}

    async def execute_and_wait(self, replicas: int, milliseconds: int, *command: Any) -> tuple[Any, int]:
        with _no_cancellation_lost():
            return await self._execute_and_wait(replicas, milliseconds, *command)

    async def _execute_and_wait(self, replicas: int, milliseconds: int, *command: Any) -> tuple[Any, int]:
        async with self.client.pipeline(transaction=False) as pipeline:
            pipeline.execute_command(*command, **{NEVER_DECODE: True})
            pipeline.execute_command("WAIT", replicas, milliseconds)
            answer, acknowledged = await pipeline.execute()
        return answer, acknowledged

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def disconnect(self) -> None:
        pool = getattr(self.client, "connection_pool", None)
        if self._owned and pool is not None:
            await pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        if self._owned:
            await self.client.aclose()
