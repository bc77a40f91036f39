"""Reading facts: by id, by place, by version, and those of a selection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memstate_core.facts import StoredFact, Unset
from memstate_core.filters import Range, sort_facts
from memstate_core.intents import matches
from memstate_core.protocols import Selection
from memstate_core.storages._redis import scripts
from memstate_core.storages._redis.asking import COUNT, PATIENCE, ROOM, UNLIMITED, Asking, chunks, divided, encoded
from memstate_core.storages._redis.keys import Span, behind, session_key, span, span_of_range
from memstate_core.storages._redis.known import Holder
from memstate_core.storages._redis.values import fact_of, place_text, texts


class FactReading(Asking):
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
        for some in chunks(ids):
            raws = await self._server.plain("HMGET", self._keys.facts, *encoded(some))
            found.update((id_, fact_of(id_, raw)[0]) for id_, raw in zip(some, raws, strict=True) if raw is not None)
        return found

    async def _fetch(self, ids: Sequence[str]) -> None:
        keys = self._keys
        for some in chunks(list(dict.fromkeys(ids))):
            answer = await self._ask(scripts.FACTS, (keys.meta, keys.facts, keys.versions), *encoded(some))
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

    async def holders(self, singletons: Sequence[str]) -> dict[str, StoredFact]:
        keys = self._keys
        known = {fact.singleton: fact for fact in self._facts.values() if fact is not None and fact.singleton}
        found = {place: known[place] for place in singletons if place in known}
        wanted = [place for place in singletons if place not in found]
        if self._predicting:
            wanted = [place for place in wanted if not self._guess_holder(place, found)]
        for some in chunks(wanted):
            answer = await self._ask(
                scripts.HOLDERS,
                (keys.meta, keys.facts, keys.versions, keys.places),
                *encoded([place_text(place) for place in some]),
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
            offset = min(selection.offset, UNLIMITED)
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
        for _ in range(PATIENCE):
            found = await self._in_pieces(spans, selection, decided, limit, offset)
            if found is not None:
                return found
        # Begun again too often: one answer, whatever its size.
        most = min(limit, UNLIMITED) if decided and limit is not None else UNLIMITED
        answer = await self._ask_select(offset, most, UNLIMITED, *(bound for one in spans for bound in one))
        facts = self._all(answer)
        self._read(spans[answer[0] - 1], len(facts), whole=most == UNLIMITED and not offset)
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
            count = COUNT if limit is None or not decided else min(COUNT, limit - len(found))
            answer = await self._ask_select(offset, count, ROOM, *bounds)
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
        parts = divided(answer[2])
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


def _is_one(range_: Range) -> bool:
    return range_.low is not None and range_.low == range_.high
