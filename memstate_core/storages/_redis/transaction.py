"""One transaction on one namespace in Redis: the storage protocol in scripts, and what it assumes of what it read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar

from memstate_core.facts import UNSET, Entry, IndexEntry, StoredFact, Unset
from memstate_core.filters import Range, sort_facts
from memstate_core.intents import matches
from memstate_core.protocols import Batch, Claim, Delivery, Lane, LaneState, Position, Record, Savepoint, Selection
from memstate_core.storages._known_records import LONGEST, Place
from memstate_core.storages._places import refuse_shared_places
from memstate_core.storages._redis import outbox, scripts
from memstate_core.storages._redis.keys import (
    Span,
    behind,
    hex_of,
    lane_key,
    number_key,
    session_key,
    span,
    span_of_range,
)
from memstate_core.storages._redis.known import Holder, Known
from memstate_core.storages._redis.scripts import CHUNK, DIVIDER, Script
from memstate_core.storages._redis.values import (
    claim_of,
    entry_of,
    fact_of,
    fields_text,
    head_and_redo,
    place_text,
    texts,
)

T = TypeVar("T")

# So much is fetched at a time: facts or entries, and bytes.
_COUNT: Final = 500
_ROOM: Final = 4_000_000
_UNLIMITED: Final = 1 << 53  # Lua has no larger integers
_NEWEST: Final = (1 << 44) - 1  # no seq is above this
# A selection that takes several round trips begins again when there was a write meanwhile; then it takes one.
_PATIENCE: Final = 2


class Server(Protocol):
    """What a transaction asks."""

    async def call(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any: ...

    async def plain(self, *command: Any) -> Any: ...


class RedisTransaction:
    """Reads, and keeps the batch for the storage to write when the work has returned.

    :param stamped: all answers carry the stamp of the namespace, so that one can see whether they are of one moment.
    :param writing: what is read is remembered, to be verified when it is written.
    :param predicting: positions and records may be what was known before.
    """

    is_serial = False  # of the ranges that were read, only what is in them is looked at again

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
        self.batch: Batch | None = None
        self.described: list[tuple[str, str, str]] = []
        self.lease: tuple[str, str, str] | None = None
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

    # Facts

    def _take(self, fact_id: str, raw: bytes | None, latest: bytes | None) -> StoredFact | None:
        fact, stamp = (None, "") if raw is None else fact_of(fact_id, raw)
        self._saw((fact_id,), (stamp,))
        self._facts[fact_id] = fact
        self._latest[fact_id] = int(latest) if latest else 0
        return fact

    def _saw(self, ids: Sequence[str], stamps: Sequence[str]) -> None:
        seen = self.seen
        for fact_id, stamp in zip(ids, stamps, strict=True):
            if seen.setdefault(fact_id, stamp) != stamp:
                self.torn = True  # and what was seen first will be found wrong

    async def facts(self, ids: Sequence[str]) -> dict[str, StoredFact]:
        if not self._stamped:
            return await self._plain_facts(ids)
        await self._fetch([id_ for id_ in ids if id_ not in self._facts])
        return {id_: fact for id_ in ids if (fact := self._facts[id_]) is not None}

    async def _plain_facts(self, ids: Sequence[str]) -> dict[str, StoredFact]:
        if len(ids) == 1:
            raw = await self._server.plain("HGET", self._keys.facts, ids[0].encode())
            return {} if raw is None else {ids[0]: fact_of(ids[0], raw)[0]}
        found: dict[str, StoredFact] = {}
        for some in _chunks(ids):
            raws = await self._server.plain("HMGET", self._keys.facts, *_encoded(some))
            found.update((id_, fact_of(id_, raw)[0]) for id_, raw in zip(some, raws, strict=True) if raw is not None)
        return found

    async def _fetch(self, ids: Sequence[str]) -> None:
        keys = self._keys
        for some in _chunks(list(dict.fromkeys(ids))):
            answer = await self._ask(scripts.FACTS, (keys.meta, keys.facts, keys.versions), *_encoded(some))
            for place, id_ in enumerate(some):
                self._take(id_, answer[2 * place], answer[2 * place + 1])

    def latest_read(self, fact_id: str) -> int | None:
        """The highest version that a fact had before, if that was read."""
        return self._latest.get(fact_id)

    async def latest_versions(self, ids: Sequence[str]) -> dict[str, int]:
        missing = [id_ for id_ in ids if id_ not in self._latest]
        if missing and self._writing:
            await self._fetch(missing)
        elif missing:
            found = await self._fields(self._keys.versions, missing)
            self._latest.update((id_, int(raw or 0)) for id_, raw in zip(missing, found, strict=True))
        return {id_: latest for id_ in ids if (latest := self._latest[id_])}

    async def _fields(self, key: bytes, names: Sequence[str]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for some in _chunks(names):
            found += await self._ask(scripts.FIELDS, (self._keys.meta, key), *_encoded(some))
        return found

    async def holders(self, singletons: Sequence[str]) -> dict[str, StoredFact]:
        keys = self._keys
        known = {fact.singleton: fact for fact in self._facts.values() if fact is not None and fact.singleton}
        found = {place: known[place] for place in singletons if place in known}
        wanted = [place for place in singletons if place not in found]
        if self._predicting:
            wanted = [place for place in wanted if not self._guess_holder(place, found)]
        for some in _chunks(wanted):
            answer = await self._ask(
                scripts.HOLDERS,
                (keys.meta, keys.facts, keys.versions, keys.places),
                *_encoded([place_text(place) for place in some]),
            )
            for number, place in enumerate(some):
                id_, raw, latest = answer[3 * number : 3 * number + 3]
                self.places_seen.setdefault(place_text(place), (id_ or b"").decode())
                fact = self._take(id_.decode(), raw, latest) if id_ is not None else None
                if fact is not None:
                    found[place] = fact
                if self._writing and not self.torn:
                    holder = Holder(fact, self.seen[fact.id] if fact is not None else "", int(latest or 0))
                    self._known.learn_holder(place, holder, int(self._last_stamp))
        return found

    def _guess_holder(self, place: str, found: dict[str, StoredFact]) -> bool:
        """Take what is known of a place for what is there; whether anything is."""
        holder = self._known.holder(place)
        if holder is None:
            return False
        fact, stamp, latest = holder
        text = place_text(place)
        if text in self.places_seen or (fact is not None and fact.id in self.seen):
            return False  # it has been read already, and that is to be verified
        self.guesses = True
        self.places_seen[text] = "" if fact is None else fact.id
        if fact is not None:
            found[place] = self._facts[fact.id] = fact
            self.seen[fact.id] = stamp
            self._latest[fact.id] = latest
        return True

    async def versions(self, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], StoredFact]:
        found: dict[tuple[str, int], StoredFact] = {}
        missing = []
        for id_, version in wanted:
            fact = self._facts.get(id_)
            if fact is not None and fact.version == version:
                found[id_, version] = fact
            elif (id_, version) in self._archived:
                found[id_, version] = self._archived[id_, version]
            else:
                missing.append((id_, version))
        archived = await self._fields(self._keys.versions, [f"{id_}\0{version}" for id_, version in missing])
        current = []
        for (id_, version), raw in zip(missing, archived, strict=True):
            if raw is None:
                current.append((id_, version))
            else:
                found[id_, version] = fact_of(id_, raw)[0]
        if current:
            # One that is in neither was archived between the two, or has been asked for in vain.
            facts = await self._fields(self._keys.facts, [id_ for id_, _ in current])
            again = []
            for (id_, version), raw in zip(current, facts, strict=True):
                fact = None if raw is None else fact_of(id_, raw)[0]
                if fact is not None and fact.version == version:
                    found[id_, version] = fact
                else:
                    again.append((id_, version))
            archived = await self._fields(self._keys.versions, [f"{id_}\0{version}" for id_, version in again])
            for (id_, version), raw in zip(again, archived, strict=True):
                if raw is not None:
                    found[id_, version] = fact_of(id_, raw)[0]
        return found

    # Selections

    async def select(self, selection: Selection) -> list[StoredFact]:
        end = None if selection.limit is None else selection.offset + selection.limit
        if end == 0 or (selection.limit == 0):
            return []
        spans, ordered, decided = self._spans(selection)
        if selection.order or not ordered:
            found = await self._selected(spans, selection, decided, None)
            found = sort_facts(found, selection.order, selection.decode)
            return found[selection.offset : end]
        if decided and selection.offset:
            offset = min(selection.offset, _UNLIMITED)
            return await self._selected(spans, selection, decided, selection.limit, offset)
        return (await self._selected(spans, selection, decided, end))[selection.offset :]

    async def count(self, selection: Selection) -> int:
        self.strict = True
        spans, _, decided = self._spans(selection)
        if not decided:
            return len(await self._selected(spans, selection, decided, None))
        ((low, high),) = spans
        (count,) = await self._ask(scripts.COUNT, (self._keys.meta, self._keys.index), low, high)
        return int(count)

    def _spans(self, selection: Selection) -> tuple[list[Span], bool, bool]:
        """Ranges of the index each of which has all that is looked for, whether the facts in them are in the order of
        their ordinals, and whether nothing else is in them."""
        session = selection.session_id
        predicate = selection.predicate
        if selection.typename is not None and predicate is not None:
            usable = [range_ for range_ in predicate.ranges if range_.path in selection.indexed]
            exact = [range_ for range_ in usable if _is_one(range_)]
            if exact or usable:
                spans = [span_of_range(selection.typename, range_) for range_ in exact or usable]
                decided = len(spans) == 1 and predicate.decided_by((exact or usable)[0]) and isinstance(session, Unset)
                return spans, bool(exact), decided and selection.after is None
        spans = []
        if not isinstance(session, Unset):
            spans.append(span("s", session_key(session)))
        if selection.typename is not None:
            spans.append(span("t", selection.typename))
        decided = predicate is None and len(spans) < 2
        spans = spans or [span("o")]
        if selection.after is not None:
            spans = [behind(one, selection.after) for one in spans]
        return spans, True, decided

    async def _selected(
        self, spans: list[Span], selection: Selection, decided: bool, limit: int | None, offset: int = 0
    ) -> list[StoredFact]:
        """The facts in the least of the ranges that match, in its order; ``limit`` None: all of them."""
        for _ in range(_PATIENCE):
            found = await self._in_pieces(spans, selection, decided, limit, offset)
            if found is not None:
                return found
        # Begun again too often: one answer, whatever its size.
        most = min(limit, _UNLIMITED) if decided and limit is not None else _UNLIMITED
        answer = await self._ask_select(offset, most, _UNLIMITED, *(bound for one in spans for bound in one))
        facts = self._all(answer)
        self._read(spans[answer[0] - 1], len(facts), whole=most == _UNLIMITED and not offset)
        return self._matching(facts, selection, decided)[:limit]

    def _read(self, bounds: Span, size: int, *, whole: bool) -> None:
        """Remember a range, to be verified when there is a write."""
        if whole:
            self.spans_seen.setdefault(bounds, size)  # another size later would be found wrong
        else:
            self.strict = True

    async def _in_pieces(
        self, spans: list[Span], selection: Selection, decided: bool, limit: int | None, offset: int
    ) -> list[StoredFact] | None:
        """The same in several answers; None when there was a write between two of them.

        A fact may then have moved from where the next one looks to where the last one looked.
        """
        found: list[StoredFact] = []
        bounds = [bound for one in spans for bound in one]
        whole, used, size, stamp = not offset, None, 0, None
        while True:
            count = _COUNT if limit is None or not decided else min(_COUNT, limit - len(found))
            answer = await self._ask_select(offset, count, _ROOM, *bounds)
            if stamp not in (None, self._last_stamp):
                return None
            stamp = self._last_stamp
            used = used or spans[answer[0] - 1]
            facts = self._all(answer)
            size += len(facts)
            found += self._matching(facts, selection, decided)
            if not answer[1] or (limit is not None and len(found) >= limit):
                self._read(used, size, whole=whole and not answer[1])
                return found[:limit]
            bounds, offset = [answer[1], used.high], 0

    async def _ask_select(self, *arguments: Any) -> list[Any]:
        keys = self._keys
        offset, count, room, *bounds = arguments
        return await self._ask(
            scripts.SELECT,
            (keys.meta, keys.facts, keys.versions, keys.index),
            offset,
            count,
            room,
            int(self._writing),
            *bounds,
        )

    def _all(self, answer: Sequence[Any]) -> list[StoredFact]:
        """The facts of an answer."""
        parts = _divided(answer[2])
        ids = texts(parts[::2])
        found = list(map(fact_of, ids, parts[1::2]))
        facts = [fact for fact, _ in found]
        if self._writing:
            self._saw(ids, [stamp for _, stamp in found])
            self._facts.update(zip(ids, facts, strict=True))
            self._latest.update(dict.fromkeys(ids, 0))
            self._latest.update(zip(texts(answer[3][::2]), map(int, answer[3][1::2]), strict=True))
        return facts

    @staticmethod
    def _matching(facts: list[StoredFact], selection: Selection, decided: bool) -> list[StoredFact]:
        return facts if decided else [fact for fact in facts if matches(fact, selection)]

    # Journal

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
            count = _COUNT if limit is None else min(_COUNT, limit - len(found))
            next_, entries, facts, versions = await self._ask(
                scripts.LINE,
                (keys.meta, keys.journal, keys.facts, keys.versions),
                following,
                hex_of(above),
                count,
                _ROOM,
                int(self._writing),
            )
            found += _entries(_divided(entries))
            facts, versions = _divided(facts), _divided(versions)
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
            most = _COUNT if limit is None else min(_COUNT, max(limit - len(found), 1))
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
                _ROOM,
            )
        if bounds is None:
            return await self._ask(scripts.JOURNAL, (keys.meta, keys.journal), following, count, _ROOM)
        return await self._ask(
            scripts.HISTORY, (keys.meta, keys.journal, keys.index), bounds.low, bounds.high, count, _ROOM
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

    # The outbox

    async def lanes(self) -> list[LaneState]:
        keys = self._keys
        (answer,) = await self._ask(scripts.WHOLE, (keys.meta, keys.lanes))
        used = sorted(outbox.lane_of_key(name.decode()) for name in answer[::2])
        states = await self._ask(
            outbox.STATES,
            (keys.meta, keys.index, keys.outbox, keys.lanes, *map(keys.stream, used)),
            *[lane_key(lane).encode() for lane in used],
        )
        found = [outbox.state_of(lane, state) for lane, state in zip(used, states, strict=True)]
        return [state for state in found if state is not None]

    async def deliveries(self, lane: Lane, limit: int) -> list[Delivery]:
        keys = self._keys
        fresh, postponed = await self._ask(
            outbox.DELIVERIES,
            (keys.meta, keys.index, keys.outbox, keys.stream(lane)),
            *span("q", lane_key(lane)),
            limit,
        )
        return outbox.deliveries_of(fresh, postponed)[:limit]

    async def take_lane(
        self, hooks: Sequence[str], owner: str, now: float, expires: float, *, gone: Sequence[str] = ()
    ) -> Lane | None:
        keys = self._keys
        lanes = outbox.all_lanes(hooks)
        found, lease = await self._ask(
            outbox.FREE,
            (keys.meta, keys.index, keys.lanes, *map(keys.stream, lanes)),
            repr(now),
            number_key(now),
            len(gone),
            *_encoded(gone),
            *[lane_key(lane).encode() for lane in lanes],
        )
        if not found:
            return None
        taken: Lane = lanes[found - 1]
        self.lease = lane_key(taken), lease.decode(), outbox.lease_text(owner, expires)
        return taken

    # Records, claims and definitions

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
        for some in _chunks([record_field(*place) for place in wanted]):
            raws += await self._server.plain("HMGET", self._keys.records, *_encoded(some))
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
        for _ in range(_PATIENCE):
            found = await self._scan_in_pieces(Span(low, high), limit, reverse=reverse)
            if found is not None:
                return found
        most = _UNLIMITED if limit is None else min(limit, _UNLIMITED)
        return (await self._scan_piece(Span(low, high), most, _UNLIMITED, reverse=reverse))[1]

    async def _scan_in_pieces(self, bounds: Span, limit: int | None, *, reverse: bool) -> list[Record] | None:
        """Records in several answers; None when there was a write between two of them."""
        found: list[Record] = []
        stamp = None
        while limit is None or len(found) < limit:
            count = _COUNT if limit is None else min(_COUNT, limit - len(found))
            following, records = await self._scan_piece(bounds, count, _ROOM, reverse=reverse)
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
            names = (await self._ask(scripts.COLLECTIONS, (self._keys.meta, self._keys.index), bound, _COUNT))[0]
            found += [name.decode() for name in names]
            if len(names) < _COUNT:
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

    # Writing

    async def reindex(
        self, typename: str, compute: Callable[[StoredFact], tuple[str | None, tuple[IndexEntry, ...]]]
    ) -> None:
        facts = await self.select(Selection(decode=_never, typename=typename))
        described = [(fact, *compute(fact)) for fact in facts]
        refuse_shared_places((fact.id, place) for fact, place, _ in described)
        self.described += [(fact.id, place_text(place), fields_text(fields)) for fact, place, fields in described]

    async def write(self, batch: Batch) -> None:
        self.batch = batch


def savepoint_field(session_id: str | None, name: str) -> str:
    return f"p{session_key(session_id)}\0{name}"


def record_field(collection: str, key: str) -> str:
    return f"{collection}\0{key}"


def _never(fact: StoredFact) -> dict[str, Any]:
    raise AssertionError("a selection by type decodes nothing")


def _is_one(range_: Range) -> bool:
    return range_.low is not None and range_.low == range_.high


def _entries(pairs: Sequence[bytes]) -> list[Entry]:
    return [entry_of(int(pairs[place], 16), pairs[place + 1]) for place in range(0, len(pairs), 2)]


def _divided(joined: bytes) -> list[bytes]:
    return joined.split(DIVIDER) if joined else []


def _encoded(texts: Sequence[str]) -> list[bytes]:
    return [text.encode() for text in texts]


def _chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]
