"""A connection for as long as a work takes, and the transaction on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from memstate_core.storages._postgres.ports import IDLE, Port, Rows, Source, is_lost


@dataclass(slots=True)
class Lease:
    """A connection that is taken when it is first needed."""

    acquire: Callable[[], Awaitable[Port]]
    source: Source
    begin_writing: str
    port: Port | None = None
    asked: int = 0
    begun: bool = False

    async def get(self) -> Port:
        if self.port is None:
            self.port = await self.acquire()
        return self.port

    async def ask(self, text: bytes, values: Sequence[Any]) -> Rows:
        self.asked += 1
        return await (self.port or await self.get()).execute(text, values)

    async def begin(self, text: str | None = None) -> bool:
        """Begin a transaction, by default one that writes, unless one was begun; whether none was."""
        if self.begun:
            return False
        await (await self.get()).script(text or self.begin_writing)
        self.begun = True
        return True

    async def commit(self) -> None:
        if self.begun:
            await (await self.get()).script("COMMIT")
            self.begun = False

    async def roll_back(self) -> None:
        """Undo what was begun, if there is still a connection to do it on."""
        port = self.port
        if self.begun and port is not None and not is_lost(port.connection):
            await port.script("ROLLBACK")
        self.begun = False

    async def end(self) -> None:
        port = self.port
        if port is None:
            return
        try:
            await self.roll_back()
        finally:
            self.port = None
            await self.source.release(port, broken=not is_idle(port))


def is_idle(port: Port) -> bool:
    return not port.connection.closed and port.connection.pgconn.transaction_status == IDLE
