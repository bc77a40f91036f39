"""The whole store as plain Python: slow, simple, and written from the meaning of each call, not from the engine.

The journal keeps full images before and after each change, so going back is putting images back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from memstate_core.errors import ConflictError, ImmutableError, NotFoundError, ValidationFailed
from memstate_core.testing.models import Draft, Law, Note, Title, User

MODELS: dict[str, type[BaseModel]] = {
    "note": Note,
    "memo": Note,
    "user": User,
    "draft": Draft,
    "law": Law,
    "title": Title,
}
IMMUTABLE = {"law", "title"}
_KEYS = {"user": "email", "draft": "topic", "title": "name"}

Session = str | None


class Image(NamedTuple):
    """One version of a fact; ``made`` orders facts by when they were made."""

    id: str
    type: str
    payload: dict[str, Any]
    source: str | None
    session_id: Session
    version: int
    ephemeral: bool
    made: tuple[int, int]


class Refused(Exception):
    """The call must fail with this error and change nothing."""

    def __init__(self, error: type[Exception], fact_ids: Iterable[str] = ()) -> None:
        super().__init__(error.__name__)
        self.error = error
        self.fact_ids = set(fact_ids)


def place(image: Image) -> tuple[Any, ...] | None:
    """What only one fact may have."""
    if image.type not in _KEYS:
        return None
    value = image.payload[_KEYS[image.type]]
    if value is None:
        return None
    kind = "boolean" if isinstance(value, bool) else "number" if isinstance(value, int | float) else "text"
    return (image.type, kind, value, image.session_id) if image.type == "draft" else (image.type, kind, value)


def validated(typename: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return MODELS[typename].model_validate(payload).model_dump(mode="json")
    except ValidationError:
        raise Refused(ValidationFailed) from None


@dataclass(slots=True)
class Entry:
    """A transaction; entries are numbered from 1, and 0 is the place before the first."""

    number: int
    session_id: Session
    parent: int
    head: int
    operation: str
    mark: str | None
    changes: dict[str, tuple[Image | None, Image | None]]
    id: str = ""  # what the store calls it, and when it happened: not the model's to know beforehand
    ts: Any = None


class Unit:
    """What one transaction does, before it is recorded."""

    def __init__(self, model: Model) -> None:
        self.start = model.facts
        self.facts = dict(model.facts)
        self.records = dict(model.records)
        self._latest = model.latest
        self._number = len(model.journal) + 1
        self._made = 0

    def copy(self) -> tuple[dict[str, Image], dict[tuple[str, str], bytes], int]:
        return dict(self.facts), dict(self.records), self._made

    def back_to(self, kept: tuple[dict[str, Image], dict[tuple[str, str], bytes], int]) -> None:
        self.facts, self.records, self._made = dict(kept[0]), dict(kept[1]), kept[2]

    def version(self, fact_id: str) -> int:
        """One transaction makes one version, and it is one that the fact never had."""
        return self._latest.get(fact_id, 0) + 1

    def holder(self, image: Image) -> Image | None:
        """The other fact with the same singleton value."""
        mine = place(image)
        if mine is None:
            return None
        return next((one for one in self.facts.values() if one.id != image.id and place(one) == mine), None)

    def put(
        self,
        fact_id: str,
        typename: str,
        payload: Mapping[str, Any],
        session_id: Session,
        source: str | None = None,
        ephemeral: bool = False,
        expected: int | None = None,
    ) -> str:
        if ephemeral and session_id is None:
            raise Refused(ValidationFailed)
        stored = validated(typename, payload)
        self._made += 1
        new = Image(fact_id, typename, stored, source, session_id, 0, ephemeral, (self._number, self._made))
        holder = self.holder(new)
        existing = self.facts.get(fact_id)
        if existing is not None and existing.type != typename:
            raise Refused(ConflictError, [fact_id])
        if existing is not None and holder is not None:
            raise Refused(ConflictError, [holder.id])
        existing = existing or holder
        check_version(existing.id if existing else fact_id, existing, expected)
        if existing is not None:
            check_mutable(existing)
            new = new._replace(id=existing.id, made=existing.made)
        self.facts[new.id] = new._replace(version=self.version(new.id))
        return new.id

    def update(self, fact_id: str, patch: Mapping[str, Any], deep: bool = False, expected: int | None = None) -> str:
        image = self._there(fact_id)
        check_version(fact_id, image, expected)
        check_mutable(image)
        merged = _merged(image.payload, patch) if deep else {**image.payload, **patch}
        self._replace(image, payload=validated(image.type, merged))
        return fact_id

    def delete(self, fact_id: str, expected: int | None = None) -> str:
        image = self._there(fact_id)
        check_version(fact_id, image, expected)
        check_mutable(image)
        del self.facts[fact_id]
        return fact_id

    def promote(self, session_id: str, selects: Callable[[Image], bool] | None) -> list[str]:
        selects = selects or (lambda image: not image.ephemeral)
        chosen = [image for image in self.of_session(session_id) if selects(image)]
        for image in chosen:
            self._replace(image, session_id=None, ephemeral=False)
        return [image.id for image in chosen]

    def discard(self, session_id: str) -> int:
        facts = self.of_session(session_id)
        for image in facts:
            check_mutable(image)
        for image in facts:
            del self.facts[image.id]
        return len(facts)

    def of_session(self, session_id: Session) -> list[Image]:
        return in_order(image for image in self.facts.values() if image.session_id == session_id)

    def _there(self, fact_id: str) -> Image:
        if fact_id not in self.facts:
            raise Refused(NotFoundError)
        return self.facts[fact_id]

    def _replace(self, image: Image, **changed: Any) -> None:
        new = image._replace(**changed, version=self.version(image.id))
        holder = self.holder(new)
        if holder is not None:
            raise Refused(ConflictError, [holder.id])
        self.facts[image.id] = new


@dataclass(slots=True)
class Model:
    """A store's whole content."""

    facts: dict[str, Image] = field(default_factory=dict)
    latest: dict[str, int] = field(default_factory=dict)
    journal: list[Entry] = field(default_factory=list)
    heads: dict[Session, int] = field(default_factory=dict)
    future: dict[Session, list[int]] = field(default_factory=dict)  # what redo does again, the next one first
    savepoints: dict[tuple[Session, str], int] = field(default_factory=dict)
    records: dict[tuple[str, str], bytes] = field(default_factory=dict)

    def copy(self) -> Model:
        return Model(
            dict(self.facts),
            dict(self.latest),
            list(self.journal),
            dict(self.heads),
            dict(self.future),
            dict(self.savepoints),
            dict(self.records),
        )

    # Writing

    def finish(self, unit: Unit, session_id: Session, operation: str, mark: str | None = None) -> None:
        """Record a unit as one transaction; one that came to nothing is none."""
        self.records = unit.records
        changes = _changes(self.facts, unit.facts)
        if changes:
            self._record(session_id, operation, changes, None, mark)
            self.future[session_id] = []

    def _record(
        self,
        session_id: Session,
        operation: str,
        changes: dict[str, tuple[Image | None, Image | None]],
        head: int | None,
        mark: str | None = None,
    ) -> None:
        number = len(self.journal) + 1
        parent = self.heads.get(session_id, 0)
        head = number if head is None else head
        self.journal.append(Entry(number, session_id, parent, head, operation, mark, changes))
        self.heads[session_id] = head
        for fact_id, (_, after) in changes.items():
            if after is None:
                self.facts.pop(fact_id, None)
            else:
                self.facts[fact_id] = after
                self.latest[fact_id] = max(after.version, self.latest.get(fact_id, 0))

    # Going back and forth

    def line(self, number: int) -> list[Entry]:
        """A transaction and its ancestors, newest first."""
        found = []
        while number:
            found.append(self.journal[number - 1])
            number = self.journal[number - 1].parent
        return found

    def rollback(self, session_id: Session, steps: int, keep: bool) -> tuple[list[int], set[str]]:
        up = self.line(self.heads.get(session_id, 0))[:steps]
        return self._back(session_id, up, keep)

    def rollback_to(self, session_id: Session, number: int, keep: bool) -> tuple[list[int], set[str]]:
        up = []
        for entry in self.line(self.heads.get(session_id, 0)):
            if entry.number == number:
                break
            up.append(entry)
        else:
            if number:
                raise Refused(NotFoundError)
        return self._back(session_id, up, keep)

    def rollback_to_time(self, session_id: Session, ts: Any, keep: bool) -> tuple[list[int], set[str]]:
        up = []
        for entry in self.line(self.heads.get(session_id, 0)):
            if entry.ts <= ts:
                break
            up.append(entry)
        return self._back(session_id, up, keep)

    def _back(self, session_id: Session, up: list[Entry], keep: bool) -> tuple[list[int], set[str]]:
        kept = self._move(session_id, "ROLLBACK", up, [], keep)
        self.future[session_id] = [entry.number for entry in reversed(up)] + self.future.get(session_id, [])
        return [entry.number for entry in up], kept

    def redo(self, session_id: Session, steps: int, keep: bool) -> tuple[list[int], set[str]]:
        numbers = self.future.get(session_id, [])[:steps]
        kept = self._move(session_id, "REDO", [], [self.journal[number - 1] for number in numbers], keep)
        self.future[session_id] = self.future.get(session_id, [])[steps:]
        return numbers, kept

    def checkout(self, session_id: Session, number: int, keep: bool) -> tuple[list[int], set[str]]:
        here = self.line(self.heads.get(session_id, 0))
        there = self.line(number)
        common = {entry.number for entry in here} & {entry.number for entry in there}
        up = [entry for entry in here if entry.number not in common]
        down = [entry for entry in reversed(there) if entry.number not in common]
        kept = self._move(session_id, "CHECKOUT", up, down, keep)
        future = self.future.get(session_id, [])
        way = [entry.number for entry in down]
        if not down:
            future = [entry.number for entry in reversed(up)] + future
        elif not up and future[: len(way)] == way:
            future = future[len(way) :]
        else:
            future = []
        self.future[session_id] = future
        return [entry.number for entry in up] + way, kept

    def _move(self, session_id: Session, operation: str, up: list[Entry], down: list[Entry], keep: bool) -> set[str]:
        if not up and not down:
            return set()
        moved = dict(self.facts)
        kept: set[str] = set()
        touched = list(dict.fromkeys(id_ for entry in [*up, *down] for id_ in entry.changes))

        def step(fact_id: str, expected: Image | None, target: Image | None) -> None:
            now = moved.get(fact_id)
            if (now.version if now else 0) != (expected.version if expected else 0):
                kept.add(fact_id)
            if fact_id in kept:
                return
            moved.pop(fact_id, None)
            if target is not None:
                moved[fact_id] = target

        for entry in up:
            for fact_id, (before, after) in entry.changes.items():
                step(fact_id, after, before)
        for entry in down:
            for fact_id, (before, after) in entry.changes.items():
                step(fact_id, before, after)
        while True:
            for fact_id in kept:
                moved.pop(fact_id, None)
                if fact_id in self.facts:
                    moved[fact_id] = self.facts[fact_id]
            blocked = {
                image.id
                for image in moved.values()
                if image != self.facts.get(image.id)
                for other in moved.values()
                if other.id != image.id and place(image) is not None and place(other) == place(image)
                if other == self.facts.get(other.id)
            }
            taken: dict[Any, str] = {}
            for image in (moved[id_] for id_ in touched if id_ in moved and moved[id_] != self.facts.get(id_)):
                # Of two that would come back to one place, the first one on the way has it.
                if place(image) is not None and taken.setdefault(place(image), image.id) != image.id:
                    blocked.add(image.id)
            if not blocked:
                break
            kept |= blocked
        if kept and not keep:
            raise Refused(ConflictError, kept)
        head = down[-1].number if down else up[-1].parent
        self._record(session_id, operation, _changes(self.facts, moved), head)
        return kept

    def marked(self, session_id: Session, mark: str, *, on_line: bool) -> int:
        """The newest transaction with a mark, among all of the session's or those behind the head."""
        entries = self.line(self.heads.get(session_id, 0)) if on_line else self.journal[::-1]
        for entry in entries:
            if entry.mark == mark and entry.session_id == session_id and entry.head == entry.number:
                return entry.number
        raise Refused(NotFoundError)


def in_order(images: Iterable[Image]) -> list[Image]:
    return sorted(images, key=lambda image: image.made)


def check_version(fact_id: str, image: Image | None, expected: int | None) -> None:
    if expected is not None and expected != (image.version if image else 0):
        raise Refused(ConflictError, [fact_id])


def check_mutable(image: Image) -> None:
    if image.type in IMMUTABLE:
        raise Refused(ImmutableError, [image.id])


def _changes(before: Mapping[str, Image], after: Mapping[str, Image]) -> dict[str, tuple[Image | None, Image | None]]:
    ids = [*before, *(fact_id for fact_id in after if fact_id not in before)]
    return {id_: (before.get(id_), after.get(id_)) for id_ in ids if before.get(id_) != after.get(id_)}


def _merged(payload: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(payload) if isinstance(payload, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged
