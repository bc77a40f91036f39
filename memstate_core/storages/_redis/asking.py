"""What a transaction in Redis asks of the server, and what it assumes of what it was told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar

from memstate_core.facts import StoredFact
from memstate_core.protocols import Position
from memstate_core.storages._known_records import Place
from memstate_core.storages._redis import scripts
from memstate_core.storages._redis.keys import Span
from memstate_core.storages._redis.known import Known
from memstate_core.storages._redis.scripts import CHUNK, DIVIDER, Script

T = TypeVar("T")

# So much is fetched at a time: facts or entries, and bytes.
COUNT: Final = 500
ROOM: Final = 4_000_000
UNLIMITED: Final = 1 << 53  # Lua has no larger integers
# What takes several round trips begins again when there was a write meanwhile; then it takes one.
PATIENCE: Final = 2


class Server(Protocol):
    """What a transaction asks."""

    async def call(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any: ...

    async def plain(self, *command: Any) -> Any: ...


class Asking:
    """Asks, and remembers what it was told.

    :param stamped: all answers carry the stamp of the namespace, so that one can see whether they are of one moment.
    :param writing: what is read is remembered, to be verified when it is written.
    :param predicting: positions and records may be what was known before.
    """

    def __init__(
        self,
        server: Server,
        known: Known,
        *,
        stamped: bool = True,
        writing: bool = False,
        predicting: bool = False,
    ) -> None:
        self._server = server
        self._keys = known.keys
        self._known = known
        self._stamped = stamped
        self._writing = writing
        self._predicting = predicting
        self._facts: dict[str, StoredFact | None] = {}
        self._latest: dict[str, int] = {}
        self._archived: dict[tuple[str, int], StoredFact] = {}
        self.first_stamp: bytes | None = None
        # What was read, as the script that writes compares it.
        self.guesses = False
        self.torn = False
        self.strict = False
        self.positions: dict[str, Position] = {}
        self.seen: dict[str, str] = {}
        self.places_seen: dict[str, str] = {}
        # Ranges of the index that were read to the end, and how much was in them: as long as that is so many and all of
        # it is unchanged, nothing has come in.
        self.spans_seen: dict[Span, int] = {}
        self.records_seen: dict[Place, bytes | None] = {}
        self.records_guessed: set[Place] = set()
        self.claims_seen: dict[str, bytes] = {}
        self.claims_count: int | None = None

    @property
    def sure(self) -> bool:
        """Whether all that it was told is of one moment."""
        return not self.guesses and not self.torn

    @property
    def assumes(self) -> bool:
        """Whether anything was read or believed that might not hold any more."""
        return self.first_stamp is not None or self.guesses

    async def _ask(self, script: Script, keys: Sequence[bytes], *arguments: Any) -> list[Any]:
        """The answer without its stamp."""
        answer = await self._server.call(script, keys, arguments)
        if self.first_stamp is None:
            self.first_stamp = answer[0]
        elif answer[0] != self.first_stamp:
            self.torn = True
        self._last_stamp: bytes = answer[0]
        found: list[Any] = answer[1:]
        return found

    async def _fields(self, key: bytes, names: Sequence[str]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for some in chunks(names):
            found += await self._ask(scripts.FIELDS, (self._keys.meta, key), *encoded(some))
        return found


def divided(joined: bytes) -> list[bytes]:
    return joined.split(DIVIDER) if joined else []


def encoded(texts: Sequence[str]) -> list[bytes]:
    return [text.encode() for text in texts]


def chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]
