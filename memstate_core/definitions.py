"""What storage knows of the registered types, so that every process that uses it enforces the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memstate_core.errors import ConflictError
from memstate_core.facts import IndexEntry, StoredFact
from memstate_core.protocols import Batch, Position, Storage, StorageTransaction
from memstate_core.schemas import Definition, Schema, SchemaRegistry, describe


class Definitions:
    """The definitions of a namespace: ours published, everybody's as far as read.

    ``by_type`` is that of ``generation``; whoever writes compares it with the generation in the same storage
    transaction (:meth:`refreshed`).
    """

    def __init__(self, storage: Storage, namespace: str, registry: SchemaRegistry) -> None:
        self.by_type: dict[str, Definition] = {}
        self.generation = -1
        self._storage = storage
        self._namespace = namespace
        self._registry = registry
        self._published: dict[str, Schema] = {}
        self._revision = 0

    @property
    def unpublished(self) -> bool:
        return self._revision != self._registry.revision

    async def publish(self) -> None:
        """Tell storage of the types that were registered since, and give their facts places and index entries.

        :raises ConflictError: existing facts break a constraint.
        """
        revision = self._registry.revision
        new_here = {
            typename: schema
            for typename, schema in self._registry.schemas().items()
            if self._published.get(typename) is not schema
        }
        mine = {typename: schema.definition for typename, schema in new_here.items()}

        def changed() -> dict[str, Definition]:
            merged = {name: definition.merged_over(self.by_type.get(name)) for name, definition in mine.items()}
            return {name: definition for name, definition in merged.items() if self.by_type.get(name) != definition}

        async def look(tx: StorageTransaction) -> dict[str, Definition]:
            await self.read(tx)
            return changed()

        async def write(tx: StorageTransaction) -> None:
            await self.read(tx)
            new = changed()
            for typename, definition in new.items():
                if not definition.indexes_like(self.by_type.get(typename)):
                    await self._reindex(tx, typename, definition)
            if new:
                await tx.write(Batch(definitions={name: definition.to_text() for name, definition in new.items()}))

        if await self._storage.read(self._namespace, look):
            await self._storage.write(self._namespace, write)
            await self._storage.read(self._namespace, self.read)
        self._published.update(new_here)
        self._revision = revision

    async def _reindex(self, tx: StorageTransaction, typename: str, definition: Definition) -> None:
        def compute(fact: StoredFact) -> Any:
            return describe(definition, typename, self._registry.decode(fact), fact.session_id)

        try:
            await tx.reindex(typename, compute)
        except ConflictError as error:
            raise ConflictError(
                f"{typename!r} cannot be registered with singleton_key {', '.join(definition.singleton)!r}: {error}; "
                "register it without the constraint, merge or delete the duplicates, and register it again",
                fact_id=error.fact_id,
            ) from error

    async def read(self, tx: StorageTransaction) -> Mapping[str, Definition]:
        """Read everybody's definitions."""
        position = await tx.position(None)  # first: what is read then may be newer, and is read again then
        self.by_type = {typename: Definition.from_text(text) for typename, text in (await tx.definitions()).items()}
        self.generation = position.generation
        return self.by_type

    async def known(self) -> None:
        """Read them if that never happened."""
        if self.generation < 0:
            await self._storage.read(self._namespace, self.read)

    async def refreshed(self, tx: StorageTransaction, position: Position) -> bool:
        """Read them again if they have changed before ``position`` was read; whether they had."""
        if position.generation == self.generation:
            return False
        await self.read(tx)
        return True

    def indexed(self, typename: str | None) -> tuple[str, ...]:
        """The paths of a type that have an index."""
        definition = self.by_type.get(typename) if typename is not None else None
        return definition.indexed if definition is not None else ()

    def described(self, fact: StoredFact) -> tuple[StoredFact, tuple[IndexEntry, ...]]:
        """A past version of a fact with the singleton place and index entries that it has today."""
        definition = self.by_type.get(fact.type)
        if definition is None or not definition.indexed:
            return fact, ()
        place, fields = describe(definition, fact.type, self._registry.decode(fact), fact.session_id)
        return fact._replace(singleton=place), fields
