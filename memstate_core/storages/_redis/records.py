"""Reading records, claims and definitions."""

from __future__ import annotations

from collections.abc import Sequence

from memstate_core.protocols import Claim, Record
from memstate_core.storages._known_records import LONGEST
from memstate_core.storages._redis import scripts
from memstate_core.storages._redis.asking import COUNT, PATIENCE, ROOM, UNLIMITED, Asking, chunks, encoded
from memstate_core.storages._redis.keys import Span, span
from memstate_core.storages._redis.values import claim_of


class RecordReading(Asking):
    async def record(self, collection: str, key: str, *, is_new: bool = False) -> bytes | None:
        if not self._stamped:
            plain: bytes | None = await self._server.plain(
                "HGET", self._keys.records, record_field(collection, key).encode()
            )
            return plain
        return (await self._records([(collection, key)], are_new=is_new)).get((collection, key))

    async def records(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
        if self._stamped:
            return await self._records(wanted)
        raws: list[bytes | None] = []
        for some in chunks([record_field(*place) for place in wanted]):
            raws += await self._server.plain("HMGET", self._keys.records, *encoded(some))
        return {place: raw for place, raw in zip(wanted, raws, strict=True) if raw is not None}

    async def _records(
        self, wanted: Sequence[tuple[str, str]], *, are_new: bool = False
    ) -> dict[tuple[str, str], bytes]:
        """Read or guess; short ones are verified by what they are, others by nothing having been written since."""
        guesses = self._known.guess_records(wanted, are_new=are_new) if self._predicting else None
        if guesses is not None:
            self.guesses = True
            self.records_guessed.update(guesses)
            found: dict[tuple[str, str], bytes | None] = guesses
        else:
            raws = await self._fields(self._keys.records, [record_field(*place) for place in wanted])
            found = dict(zip(wanted, raws, strict=True))
        for place, raw in found.items():
            if raw is not None and len(raw) > LONGEST:
                self.strict = True
            else:
                self.records_seen.setdefault(place, raw)
        return {place: raw for place, raw in found.items() if raw is not None}

    async def scan(
        self,
        collection: str,
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Record]:
        self.strict = True
        low, high = span("r", collection)
        if start is not None:
            low = f"[r{record_field(collection, start)}".encode()
        if end is not None:
            high = f"(r{record_field(collection, end)}".encode()
        for _ in range(PATIENCE):
            found = await self._scan_in_pieces(Span(low, high), limit, reverse=reverse)
            if found is not None:
                return found
        most = UNLIMITED if limit is None else min(limit, UNLIMITED)
        return (await self._scan_piece(Span(low, high), most, UNLIMITED, reverse=reverse))[1]

    async def _scan_in_pieces(self, bounds: Span, limit: int | None, *, reverse: bool) -> list[Record] | None:
        """Records in several answers; None when there was a write between two of them."""
        found: list[Record] = []
        stamp = None
        while limit is None or len(found) < limit:
            count = COUNT if limit is None else min(COUNT, limit - len(found))
            following, records = await self._scan_piece(bounds, count, ROOM, reverse=reverse)
            if stamp not in (None, self._last_stamp):
                return None
            stamp = self._last_stamp
            found += records
            if not following:
                break
            bounds = Span(bounds.low, following) if reverse else Span(following, bounds.high)
        return found

    async def _scan_piece(self, bounds: Span, count: int, room: int, *, reverse: bool) -> tuple[bytes, list[Record]]:
        """The bound to go on from, and records."""
        keys = self._keys
        following, *pairs = await self._ask(
            scripts.SCAN, (keys.meta, keys.records, keys.index), *bounds, count, room, int(reverse)
        )
        return following, [Record(pairs[place].decode(), pairs[place + 1]) for place in range(0, len(pairs), 2)]

    async def collections(self) -> list[str]:
        self.strict = True
        found: list[str] = []
        bound = b"[r"
        while True:
            names = (await self._ask(scripts.COLLECTIONS, (self._keys.meta, self._keys.index), bound, COUNT))[0]
            found += [name.decode() for name in names]
            if len(names) < COUNT:
                return found
            bound = b"[r" + names[-1] + b"\x01"

    async def claims(self, keys: Sequence[str] | None = None) -> list[Claim]:
        raws: list[bytes | None]
        if keys is None:
            (answer,) = await self._ask(scripts.WHOLE, (self._keys.meta, self._keys.claims))
            names = [name.decode() for name in answer[::2]]
            raws = answer[1::2]
            self.claims_count = len(names)
        else:
            names = list(keys)
            raws = await self._fields(self._keys.claims, names)
        for name, raw in zip(names, raws, strict=True):
            self.claims_seen.setdefault(name, raw or b"")
        return [claim_of(name, raw) for name, raw in zip(names, raws, strict=True) if raw is not None]

    async def definitions(self) -> dict[str, str]:
        (answer,) = await self._ask(scripts.WHOLE, (self._keys.meta, self._keys.definitions))
        return {answer[place].decode(): answer[place + 1].decode() for place in range(0, len(answer), 2)}


def record_field(collection: str, key: str) -> str:
    return f"{collection}\0{key}"
