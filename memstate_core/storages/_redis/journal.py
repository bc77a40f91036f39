"""Reading the journal: where sessions stand, what they did, and their savepoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from memstate_core.facts import UNSET, Entry, Unset
from memstate_core.protocols import Position, Savepoint
from memstate_core.storages._redis import scripts
from memstate_core.storages._redis.asking import COUNT, ROOM, divided
from memstate_core.storages._redis.facts import FactReading
from memstate_core.storages._redis.keys import Span, hex_of, session_key, span
from memstate_core.storages._redis.values import entry_of, fact_of, head_and_redo

# No seq is above this.
_NEWEST: Final = (1 << 44) - 1


class JournalReading(FactReading):
    """Whoever goes back needs the facts of what is undone, so they are read along."""

    async def position(self, session_id: str | None) -> Position:
        key = session_key(session_id)
        if key in self.positions:
            return self.positions[key]
        guess = self._known.position(session_id) if self._predicting else None
        if guess is not None:
            self.guesses = True
            return self.positions.setdefault(key, guess)
        answer = await self._ask(scripts.POSITION, (self._keys.meta, self._keys.claims), key.encode())
        generation, place, claims = answer
        head, redo = head_and_redo(place.decode()) if place else (0, 0)
        position = Position(head, redo, int(generation), claims > 0)
        stamp = int(self._last_stamp)
        self._known.learn(stamp, claimed=position.claimed, generation=position.generation)
        self._known.learn_place(session_id, head, redo, stamp)
        return self.positions.setdefault(key, position)

    async def entries(self, seqs: Sequence[int]) -> dict[int, Entry]:
        wanted = [seq for seq in seqs if 0 < seq <= _NEWEST]
        found = await self._fields(self._keys.journal, [hex_of(seq) for seq in wanted])
        return {seq: entry_of(seq, raw) for seq, raw in zip(wanted, found, strict=True) if raw is not None}

    async def line(self, seq: int, *, above: int = 0, limit: int | None = None) -> list[Entry]:
        keys = self._keys
        found: list[Entry] = []
        following = hex_of(seq)
        while following and seq > above and (limit is None or len(found) < limit):
            count = COUNT if limit is None else min(COUNT, limit - len(found))
            next_, entries, facts, versions = await self._ask(
                scripts.LINE,
                (keys.meta, keys.journal, keys.facts, keys.versions),
                following,
                hex_of(above),
                count,
                ROOM,
                int(self._writing),
            )
            found += _entries(divided(entries))
            facts, versions = divided(facts), divided(versions)
            for place in range(0, len(facts), 3):
                id_ = facts[place].decode()
                if id_ not in self._facts:  # whoever goes back will ask for them next
                    self._take(id_, facts[place + 1] or None, facts[place + 2])
            for place in range(0, len(versions), 3):
                id_, version = versions[place].decode(), int(versions[place + 1])
                self._archived[id_, version] = fact_of(id_, versions[place + 2])[0]
            following = next_.decode()
        return found

    async def history(
        self,
        *,
        session_id: str | None | Unset = UNSET,
        fact_id: str | None = None,
        mark: str | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[Entry]:
        # A session's history changes only with its head, which is verified.
        if isinstance(session_id, Unset) or session_key(session_id) not in self.positions:
            self.strict = True
        newest = _NEWEST if before is None else max(0, min(before, _NEWEST))
        bounds, following = None, b"%d" % newest
        if fact_id is not None:
            following = hex_of(newest).encode()
        elif mark is not None or not isinstance(session_id, Unset):
            looked_for = ("M", mark) if mark is not None else ("S", session_key(session_id))  # type: ignore[arg-type]
            bounds = Span(span(*looked_for).low, f"({''.join(looked_for)}\0{hex_of(newest)}".encode())
        found: list[Entry] = []
        while limit is None or len(found) < limit:
            most = COUNT if limit is None else min(COUNT, max(limit - len(found), 1))
            answer = await self._history_piece(fact_id, bounds, following, most)
            found += [
                entry
                for entry in _entries(answer[1:])
                if (isinstance(session_id, Unset) or entry.session_id == session_id) and mark in (None, entry.mark)
            ]
            following = answer[0]
            if not following:
                break
            if bounds is not None:
                bounds = Span(bounds.low, following)
        return found[:limit]

    async def _history_piece(self, fact_id: str | None, bounds: Span | None, following: bytes, count: int) -> list[Any]:
        keys = self._keys
        if fact_id is not None:
            return await self._ask(
                scripts.FACT_HISTORY,
                (keys.meta, keys.journal, keys.index, keys.facts, keys.versions),
                fact_id.encode(),
                following,
                count,
                ROOM,
            )
        if bounds is None:
            return await self._ask(scripts.JOURNAL, (keys.meta, keys.journal), following, count, ROOM)
        return await self._ask(
            scripts.HISTORY, (keys.meta, keys.journal, keys.index), bounds.low, bounds.high, count, ROOM
        )

    async def savepoint(self, session_id: str | None, name: str) -> int | None:
        self.strict = True  # it is set without moving the head
        (raw,) = await self._fields(self._keys.meta, [savepoint_field(session_id, name)])
        return None if raw is None else int(raw, 16)

    async def savepoints(self, known: Sequence[str | None]) -> list[Savepoint]:
        self.strict = True
        (answer,) = await self._ask(scripts.WHOLE, (self._keys.meta, self._keys.meta))
        found = []
        for field, raw in zip(answer[::2], answer[1::2], strict=True):
            if field[:1] == b"p":
                session, _, name = field.decode()[1:].partition("\0")
                found.append(Savepoint(session[1:] if session else None, name, int(raw, 16)))
        return found


def savepoint_field(session_id: str | None, name: str) -> str:
    return f"p{session_key(session_id)}\0{name}"


def _entries(pairs: Sequence[bytes]) -> list[Entry]:
    return [entry_of(int(pairs[place], 16), pairs[place + 1]) for place in range(0, len(pairs), 2)]
