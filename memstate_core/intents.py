"""What a caller wants done, as small values, and what each comes to on the facts as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from pydantic_core import from_json

from memstate_core.errors import ConflictError, ImmutableError, NotFoundError, ValidationFailed
from memstate_core.facts import UNSET, FactChange, IndexEntry, StoredFact, Unset
from memstate_core.filters import Predicate, sort_facts
from memstate_core.protocols import Selection, StorageTransaction
from memstate_core.schemas import NO_DEFINITION, Definition, SchemaRegistry, describe
from memstate_core.values import merge

Selector = Callable[[dict[str, Any]], Any]


class Workspace:
    """The facts as a transaction sees them: storage's, with the transaction's own changes laid over.

    Facts keep the state in which the workspace first read them, so that :meth:`changes` can say what became of each.
    """

    __slots__ = ("_latest", "_places", "base", "definitions", "index", "line", "now", "registry", "ts", "tx")

    def __init__(
        self, tx: StorageTransaction, registry: SchemaRegistry, definitions: Mapping[str, Definition], ts: str
    ) -> None:
        self.tx = tx
        self.registry = registry
        self.definitions = definitions
        self.ts = ts
        self.base: dict[str, StoredFact | None] = {}
        self.now: dict[str, StoredFact | None] = {}
        self.index: dict[str, tuple[IndexEntry, ...]] = {}
        self._places: dict[str, str] = {}
        self._latest: dict[str, int] = {}
        # The session whose history records a call made outside of a transaction block.
        self.line: str | None = None

    def copy(self) -> Workspace:
        """An independent one in the same state."""
        twin = Workspace(self.tx, self.registry, self.definitions, self.ts)
        twin.base, twin.now, twin.index = dict(self.base), dict(self.now), dict(self.index)
        twin._places, twin._latest, twin.line = dict(self._places), dict(self._latest), self.line
        return twin

    def know(self, facts: Sequence[StoredFact]) -> list[StoredFact]:
        """Take selected facts into the workspace."""
        base, now = self.base, self.now
        for fact in facts:
            if fact.id not in now:
                base[fact.id] = now[fact.id] = fact
        return [now[fact.id] or fact for fact in facts]

    def definition(self, typename: str) -> Definition:
        return self.definitions.get(typename, NO_DEFINITION)

    def describe(
        self, typename: str, payload: Mapping[str, Any], session_id: str | None
    ) -> tuple[str | None, tuple[IndexEntry, ...]]:
        """A payload's singleton place and index entries."""
        return describe(self.definition(typename), typename, payload, session_id)

    async def get(self, fact_id: str) -> StoredFact | None:
        if fact_id in self.now:
            return self.now[fact_id]
        found = (await self.tx.facts((fact_id,))).get(fact_id)
        self.base[fact_id] = self.now[fact_id] = found
        return found

    async def read(self, fact_ids: Sequence[str]) -> None:
        """Get facts, all at once."""
        unread = [id_ for id_ in fact_ids if id_ not in self.now]
        found = await self.tx.facts(unread) if unread else {}
        for id_ in unread:
            self.base[id_] = self.now[id_] = found.get(id_)

    async def holder(self, place: str) -> StoredFact | None:
        """The fact that has a singleton place, if any."""
        mine = self.now.get(self._places.get(place, ""))
        if mine is not None and mine.singleton == place:
            return mine
        found = (await self.tx.holders((place,))).get(place)
        if found is None:
            return None
        if found.id not in self.now:
            self.base[found.id] = self.now[found.id] = found
        now = self.now[found.id]
        return now if now is not None and now.singleton == place else None

    async def next_version(self, fact_id: str) -> int:
        """The version that the transaction gives a fact: one more than it ever had."""
        if fact_id not in self._latest:
            now = self.now.get(fact_id)
            if now is None or now is self.base.get(fact_id):
                self._latest[fact_id] = (await self.tx.latest_versions((fact_id,))).get(fact_id, 0)
        return self.version_read(fact_id)

    def version_read(self, fact_id: str) -> int:
        """The same for a fact whose versions have been read."""
        before = self.base.get(fact_id)
        now = self.now.get(fact_id)
        if now is not None and now is not before:
            return now.version  # one transaction makes one version
        latest = self._latest[fact_id]
        return (latest if before is None or latest > before.version else before.version) + 1

    async def read_versions(self, fact_ids: Sequence[str]) -> None:
        self._latest.update(dict.fromkeys(fact_ids, 0))
        self._latest.update(await self.tx.latest_versions(fact_ids))

    def add(self, fact: StoredFact, index: tuple[IndexEntry, ...]) -> None:
        """Add a fact whose id is new by construction."""
        self.base[fact.id] = None
        self.put(fact, index)

    def put(self, fact: StoredFact, index: tuple[IndexEntry, ...]) -> None:
        if fact.ordinal < 0 and self.now.get(fact.id) is None:
            self.now.pop(fact.id, None)  # what is made now comes last, also if its id was looked for before
        self.now[fact.id] = fact
        self.index[fact.id] = index
        if fact.singleton is not None:
            self._places[fact.singleton] = fact.id

    def remove(self, fact_id: str) -> None:
        self.now[fact_id] = None

    async def select(self, selection: Selection) -> list[StoredFact]:
        """:meth:`StorageTransaction.select` with the transaction's changes laid over."""
        mine = {id_ for id_, fact in self.now.items() if fact is not self.base.get(id_)}
        if not mine:
            return await self.tx.select(selection)
        wide = selection.limit if selection.limit is None else selection.limit + selection.offset + len(mine)
        stored = await self.tx.select(_replace(selection, limit=wide, offset=0))
        added = [
            fact for id_, fact in self.now.items() if id_ in mine and fact is not None and matches(fact, selection)
        ]
        facts = [fact for fact in stored if fact.id not in mine]
        # New facts have no ordinal yet; they come last, in the order in which they were made.
        new = [fact for fact in added if fact.ordinal < 0]
        top = max((fact.ordinal for fact in [*facts, *added]), default=0)
        numbered = {fact.id: fact._replace(ordinal=top + 1 + place) for place, fact in enumerate(new)}
        merged = sort_facts(
            [*facts, *(numbered.get(fact.id, fact) for fact in added)], selection.order, selection.decode
        )
        return merged[selection.offset :][: selection.limit]

    async def count(self, selection: Selection) -> int:
        if all(fact is self.base.get(id_) for id_, fact in self.now.items()):
            return await self.tx.count(selection)
        return len(await self.select(_replace(selection, limit=None, offset=0)))

    def changes(self) -> list[FactChange]:
        """What became of each fact, for those that changed."""
        changes = []
        for id_, fact in self.now.items():
            before = self.base.get(id_)
            if fact is not before:
                changes.append(FactChange(before, fact, self.index.get(id_, ())))
        return changes


def matches(fact: StoredFact, selection: Selection) -> bool:
    """Whether a fact fulfils a selection's conditions (its limit and order aside)."""
    return (
        (selection.typename is None or fact.type == selection.typename)
        and (selection.after is None or fact.ordinal > selection.after)
        and (selection.session_id is UNSET or fact.session_id == selection.session_id)
        and (selection.predicate is None or selection.predicate(selection.decode(fact)))
    )


def _replace(selection: Selection, *, limit: int | None, offset: int) -> Selection:
    return Selection(
        decode=selection.decode,
        typename=selection.typename,
        session_id=selection.session_id,
        predicate=selection.predicate,
        order=selection.order,
        limit=limit,
        offset=offset,
        after=selection.after,
        indexed=selection.indexed,
        as_stored=selection.as_stored,
    )


class Intent(Protocol):
    async def apply(self, space: Workspace) -> Any:
        """Do it in the workspace; returns what the caller is told."""
        ...


def _check_version(fact_id: str, fact: StoredFact | None, expected: int | None) -> None:
    actual = fact.version if fact else 0
    if expected is not None and expected != actual:
        raise ConflictError(
            f"fact {fact_id!r} is at version {actual}, not {expected}; read it again and decide anew"
            if actual
            else f"fact {fact_id!r} does not exist (expected version {expected})",
            fact_id=fact_id,
            expected_version=expected,
            actual_version=actual,
        )


def _check_mutable(space: Workspace, fact: StoredFact, verb: str) -> None:
    if space.definition(fact.type).immutable:
        raise ImmutableError(
            f"fact {fact.id!r} cannot be {verb}: {fact.type!r} is registered as immutable; commit a new fact instead",
            fact_id=fact.id,
            session_id=fact.session_id,
        )


async def _check_place(space: Workspace, fact_id: str, place: str | None) -> None:
    if place is None:
        return
    holder = await space.holder(place)
    if holder is not None and holder.id != fact_id:
        raise ConflictError(
            f"fact {fact_id!r} would have the singleton value of fact {holder.id!r} ({place}); "
            "change or delete that one first",
            fact_id=holder.id,
            session_id=holder.session_id,
        )


class Put(NamedTuple):
    """Commit a fact: a new one, or an update of the one with its id or singleton place.

    ``generated`` says that the id was just made, so that no fact can have it.
    """

    fact_id: str
    generated: bool
    typename: str
    payload: str
    schema_version: int
    source: str | None
    session_id: str | None
    ts: str | None
    ephemeral: bool
    expected_version: int | None

    async def apply(self, space: Workspace) -> str:
        fact_id, generated, typename, payload, schema_version, source, session_id, ts, ephemeral, expected = self
        space.line = session_id
        place: str | None = None
        index: tuple[IndexEntry, ...] = ()
        holder = None
        definition = space.definition(typename)
        if definition.indexed:
            place, index = describe(definition, typename, from_json(payload), session_id)
            if place is not None:
                holder = await space.holder(place)
        existing = None if generated else await space.get(fact_id)
        if existing is not None:
            if existing.type != typename:
                raise ConflictError(
                    f"fact {fact_id!r} is a {existing.type!r}, not a {typename!r}; a fact keeps its type",
                    fact_id=fact_id,
                    session_id=existing.session_id,
                )
            await _check_place(space, existing.id, place)
        existing = existing or holder
        if expected is not None:
            _check_version(existing.id if existing else fact_id, existing, expected)
        version, ordinal = 1, -1
        if existing is not None:
            _check_mutable(space, existing, "committed again")
            fact_id, ordinal = existing.id, existing.ordinal
        if not generated or existing is not None:
            version = await space.next_version(fact_id)
        stored = StoredFact(
            fact_id,
            typename,
            payload,
            source,
            session_id,
            ts or space.ts,
            version,
            ephemeral,
            schema_version,
            place,
            ordinal,
        )
        if existing is None and generated:
            space.add(stored, index)
        else:
            space.put(stored, index)
        return fact_id


@dataclass(frozen=True, slots=True)
class Patch:
    """Update a fact's payload."""

    fact_id: str
    patch: Mapping[str, Any]
    deep: bool
    expected_version: int | None

    async def apply(self, space: Workspace) -> str:
        fact = await _existing(space, self.fact_id)
        space.line = fact.session_id
        _check_version(self.fact_id, fact, self.expected_version)
        _check_mutable(space, fact, "updated")
        payload = merge(space.registry.decode(fact), self._fields(space, fact), deep=self.deep)
        try:
            text = space.registry.encode(fact.type, payload)
        except ValidationFailed as error:
            raise ValidationFailed(
                f"fact {fact.id!r}: {error}", typename=error.typename, path=error.path, errors=error.errors
            ) from error
        await _rewrite(space, fact, text)
        return self.fact_id

    def _fields(self, space: Workspace, fact: StoredFact) -> Mapping[str, Any]:
        if list(self.patch) == ["payload"] and isinstance(self.patch["payload"], Mapping):
            schema = space.registry.get(fact.type)
            if schema is None or "payload" not in schema.model.model_fields:
                inner: Mapping[str, Any] = self.patch["payload"]
                return inner
        return self.patch


async def _existing(space: Workspace, fact_id: str) -> StoredFact:
    fact = await space.get(fact_id)
    if fact is None:
        raise NotFoundError(f"there is no fact {fact_id!r}")
    return fact


async def _rewrite(space: Workspace, fact: StoredFact, text: str) -> None:
    """Give a fact a new payload, in its session and place in the order."""
    schema = space.registry.get(fact.type)
    id_, typename, _, source, session_id, _, _, ephemeral, schema_version, _, ordinal = fact
    place: str | None = None
    fields: tuple[IndexEntry, ...] = ()
    if space.definition(typename).indexed:
        place, fields = space.describe(typename, from_json(text), session_id)
        await _check_place(space, id_, place)
    version = await space.next_version(id_)
    if schema is not None:
        schema_version = schema.definition.schema_version
    space.put(
        StoredFact(
            id_, typename, text, source, session_id, space.ts, version, ephemeral, schema_version, place, ordinal
        ),
        fields,
    )


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete a fact; ``session_id`` UNSET: its own session records it."""

    fact_id: str
    session_id: str | None | Unset
    expected_version: int | None

    async def apply(self, space: Workspace) -> str:
        fact = await _existing(space, self.fact_id)
        space.line = fact.session_id if isinstance(self.session_id, Unset) else self.session_id
        _check_version(self.fact_id, fact, self.expected_version)
        _check_mutable(space, fact, "deleted")
        space.remove(self.fact_id)
        return self.fact_id


@dataclass(frozen=True, slots=True)
class Promote:
    """Make a session's facts long-term."""

    session_id: str
    selector: Selector | Predicate | None

    async def apply(self, space: Workspace) -> list[str]:
        space.line = self.session_id
        promoted = []
        facts = await _session_facts(space, self.session_id)
        selected = [fact for fact in facts if self._selects(space, fact)]
        await space.read_versions([fact.id for fact in selected])
        for fact in selected:
            # Taken apart and made anew: _replace takes three times as long, and a session may have many facts.
            id_, typename, payload, source, _, _, _, _, schema_version, singleton, ordinal = fact
            place: str | None = None
            fields: tuple[IndexEntry, ...] = ()
            if space.definition(typename).indexed:
                place, fields = space.describe(typename, space.registry.decode(fact), None)
                if place != singleton:
                    await _check_place(space, id_, place)
            version = space.version_read(id_)
            space.put(
                StoredFact(
                    id_, typename, payload, source, None, space.ts, version, False, schema_version, place, ordinal
                ),
                fields,
            )
            promoted.append(id_)
        return promoted

    def _selects(self, space: Workspace, fact: StoredFact) -> bool:
        if self.selector is None:
            return not fact.ephemeral
        payload = space.registry.decode(fact)
        if isinstance(self.selector, Predicate):
            return self.selector(payload)
        return bool(self.selector(fact.to_dict(payload)))


@dataclass(frozen=True, slots=True)
class Discard:
    """Delete all facts of a session."""

    session_id: str

    async def apply(self, space: Workspace) -> int:
        space.line = self.session_id
        facts = await _session_facts(space, self.session_id)
        for fact in facts:
            _check_mutable(space, fact, "discarded with its session")
            space.remove(fact.id)
        return len(facts)


@dataclass(frozen=True, slots=True)
class MigrateFacts:
    """Rewrite the facts whose schema has moved on; ``typenames`` are the types to look at."""

    typenames: Sequence[str]

    async def apply(self, space: Workspace) -> int:
        space.line = None
        rewritten = 0
        for typename in self.typenames:
            schema = space.registry.get(typename)
            if schema is None:
                raise NotFoundError(f"type {typename!r} is not registered")
            facts = await space.select(Selection(decode=space.registry.decode, typename=typename))
            old = [fact for fact in facts if fact.schema_version < schema.definition.schema_version]
            for fact in space.know(old):
                await _rewrite(space, fact, schema.encode(space.registry.decode(fact)))
            rewritten += len(old)
        return rewritten


async def _session_facts(space: Workspace, session_id: str) -> list[StoredFact]:
    selection = Selection(decode=space.registry.decode, session_id=session_id)
    return space.know(await space.select(selection))
