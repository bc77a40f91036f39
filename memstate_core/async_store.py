"""The async store: the same rules as :mod:`memstate_core.store`, awaited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel

from memstate_core import moves, search
from memstate_core._async_bridge import AsyncRuntime
from memstate_core.async_transaction_block import AsyncTransactionBlock
from memstate_core.block import Block, plain, record_deletion, record_write
from memstate_core.delivery import Lag
from memstate_core.engine import ContextProvider, OnConflict, now_utc
from memstate_core.facts import (
    UNSET,
    Fact,
    Moved,
    Operation,
    ScoredFact,
    Transaction,
    Unset,
)
from memstate_core.hooks._adapter import DeliveryMode
from memstate_core.intents import Selector
from memstate_core.moves import Target
from memstate_core.progress import Progress, shown
from memstate_core.protocols import Record, Storage
from memstate_core.recovery import Recovered
from memstate_core.schemas import SchemaRegistry
from memstate_core.store_base import Filters, Patch, StoreBase
from memstate_core.verification import Report
from memstate_core.views import AsyncMemoryView


class AsyncMemoryStore(StoreBase):
    """Same as :class:`~memstate_core.MemoryStore`, awaited.

    Takes async storages, and hooks of both kinds: sync ones run in a thread, so that they hold up nobody. May be used
    by many tasks at once.
    """

    def __init__(
        self,
        storage: Storage,
        hooks: Sequence[Any] = (),
        *,
        namespace: str = "default",
        registry: SchemaRegistry | None = None,
        allow_unregistered: bool = False,
        context: ContextProvider | None = None,
        clock: Callable[[], datetime] = now_utc,
        claim_timeout: float = 10.0,
        lease: float = 30.0,
        delivery: DeliveryMode = "commit",
    ) -> None:
        super().__init__(
            AsyncRuntime(),
            storage,
            hooks or (),
            namespace,
            registry,
            allow_unregistered,
            context,
            clock,
            claim_timeout,
            lease,
            delivery,
        )

    # Writing

    async def commit(
        self,
        fact: Fact,
        session_id: str | None | Unset = UNSET,
        ephemeral: bool = False,
        actor: str | None = None,
        reason: str | None = None,
        *,
        expected_version: int | None = None,
    ) -> str:
        """Same as :meth:`MemoryStore.commit`, awaited."""
        engine = self._use()
        intent = engine.put(fact, session_id, ephemeral, expected_version)
        result: str = await engine.do(intent, Operation.COMMIT, actor, reason)
        return result

    async def commit_model(
        self,
        model: BaseModel,
        fact_id: str | None = None,
        source: str | None = None,
        session_id: str | None | Unset = UNSET,
        ephemeral: bool = False,
        actor: str | None = None,
        reason: str | None = None,
        *,
        typename: str | None = None,
        expected_version: int | None = None,
    ) -> str:
        """Same as :meth:`MemoryStore.commit_model`, awaited."""
        engine = self._use()
        intent = engine.put_model(model, fact_id, typename, source, session_id, ephemeral, expected_version)
        result: str = await engine.do(intent, Operation.COMMIT, actor, reason)
        return result

    async def update(
        self,
        fact_id: str,
        patch: Patch,
        actor: str | None = None,
        reason: str | None = None,
        *,
        deep: bool = False,
        expected_version: int | None = None,
    ) -> str:
        """Same as :meth:`MemoryStore.update`, awaited."""
        engine = self._use()
        intent = engine.patch(fact_id, patch, deep, expected_version)
        result: str = await engine.do(intent, Operation.UPDATE, actor, reason)
        return result

    async def delete(
        self,
        fact_id: str,
        session_id: str | None | Unset = UNSET,
        actor: str | None = None,
        reason: str | None = None,
        *,
        expected_version: int | None = None,
    ) -> str:
        """Same as :meth:`MemoryStore.delete`, awaited."""
        engine = self._use()
        intent = engine.remove(fact_id, session_id, expected_version)
        result: str = await engine.do(intent, Operation.DELETE, actor, reason)
        return result

    def transaction(
        self,
        session_id: str | None | Unset = UNSET,
        *,
        actor: str | None = None,
        reason: str | None = None,
        mark: str | None = None,
    ) -> AsyncTransactionBlock:
        """Same as :meth:`MemoryStore.transaction`, for ``async with``."""
        return AsyncTransactionBlock(self, Block(self._use(), session_id, actor, reason, mark))

    async def promote_session(
        self,
        session_id: str,
        selector: Selector | Filters | None = None,
        actor: str | None = None,
        reason: str | None = None,
    ) -> list[str]:
        """Same as :meth:`MemoryStore.promote_session`, awaited."""
        engine = self._use()
        result: list[str] = await engine.do(self.promotion(session_id, selector), Operation.PROMOTE, actor, reason)
        return result

    async def discard_session(self, session_id: str, actor: str | None = None, reason: str | None = None) -> int:
        """Same as :meth:`MemoryStore.discard_session`, awaited."""
        engine = self._use()
        result: int = await engine.do(self.discarding(session_id), Operation.DISCARD_SESSION, actor, reason)
        return result

    async def migrate_facts(
        self, typename: str | None = None, actor: str | None = None, reason: str | None = None
    ) -> int:
        """Same as :meth:`MemoryStore.migrate_facts`, awaited."""
        engine = self._use()
        result: int = await engine.do(self._migration(typename), Operation.MIGRATE, actor, reason)
        return result

    # Going back

    async def rollback(
        self,
        session_id: str | None | int = None,
        steps: int = 1,
        to: Target | None = None,
        *,
        on_conflict: OnConflict = "raise",
        actor: str | None = None,
        reason: str | None = None,
    ) -> Moved:
        """Same as :meth:`MemoryStore.rollback`, awaited."""
        if isinstance(session_id, int):
            steps, session_id = session_id, None
        return await moves.rollback(self._use(), session_id, steps, to, on_conflict, actor, reason)

    async def redo(
        self,
        session_id: str | None = None,
        steps: int = 1,
        *,
        on_conflict: OnConflict = "raise",
        actor: str | None = None,
        reason: str | None = None,
    ) -> Moved:
        """Same as :meth:`MemoryStore.redo`, awaited."""
        return await moves.redo(self._use(), session_id, steps, on_conflict, actor, reason)

    async def checkout(
        self,
        session_id: str | None,
        transaction_id: str | Transaction | None,
        *,
        on_conflict: OnConflict = "raise",
        actor: str | None = None,
        reason: str | None = None,
    ) -> Moved:
        """Same as :meth:`MemoryStore.checkout`, awaited."""
        return await moves.checkout(self._use(), session_id, transaction_id, on_conflict, actor, reason)

    async def savepoint(self, session_id: str | None, name: str) -> str | None:
        """Same as :meth:`MemoryStore.savepoint`, awaited."""
        return await self._use().set_savepoint(session_id, name)

    async def history(
        self,
        session_id: str | None | Unset = UNSET,
        *,
        fact_id: str | None = None,
        mark: str | None = None,
        limit: int | None = 100,
        before: str | int | Transaction | None = None,
    ) -> list[Transaction]:
        """Same as :meth:`MemoryStore.history`, awaited."""
        return await self._use().history(session_id, fact_id, mark, limit, before)

    # Reading

    async def get(self, fact_id: str) -> dict[str, Any] | None:
        """Same as :meth:`MemoryStore.get`, awaited."""
        return self.as_dict(await self._use().get(fact_id))

    async def get_model(self, fact_id: str) -> Any:
        """Same as :meth:`MemoryStore.get_model`, awaited."""
        return self.as_model(fact_id, await self._use().get(fact_id))

    async def query(
        self,
        typename: str | None = None,
        filters: Filters | None = None,
        session_id: str | None | Unset = UNSET,
        limit: int | None = None,
        offset: int = 0,
        order_by: str | Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Same as :meth:`MemoryStore.query`, awaited."""
        engine = self._use()
        facts = await engine.query(typename, filters, session_id, limit, offset, order_by)
        return plain(facts, engine.registry.decode)

    async def count(
        self, typename: str | None = None, filters: Filters | None = None, session_id: str | None | Unset = UNSET
    ) -> int:
        """Same as :meth:`MemoryStore.count`, awaited."""
        return await self._use().count(typename, filters, session_id)

    async def search(
        self,
        query: str,
        limit: int = 5,
        filters: search.SearchFilters | None = None,
        score_threshold: float | None = None,
        session_id: str | None | Unset = UNSET,
        typename: str | None = None,
    ) -> list[ScoredFact]:
        """Same as :meth:`MemoryStore.search`, awaited."""
        return await search.search(self._use(), query, limit, filters, score_threshold, session_id, typename)

    def at(self, where: Any, session_id: str | None = None) -> AsyncMemoryView:
        """Same as :meth:`MemoryStore.at`; its view's methods are awaited."""
        return AsyncMemoryView(self, self.past(where, session_id))

    # Records

    async def put_record(self, collection: str, key: str, value: bytes) -> None:
        """Same as :meth:`MemoryStore.put_record`, awaited."""
        await self._use().write_record(record_write(collection, key, value))

    async def delete_record(self, collection: str, key: str) -> None:
        """Same as :meth:`MemoryStore.delete_record`, awaited."""
        await self._use().write_record(record_deletion(collection, key))

    async def get_record(self, collection: str, key: str) -> bytes | None:
        """Same as :meth:`MemoryStore.get_record`, awaited."""
        return await self._use().read_record(collection, key)

    async def scan_records(
        self,
        collection: str,
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Record]:
        """Same as :meth:`MemoryStore.scan_records`, awaited."""
        return await self._use().scan_records(collection, start, end, limit, reverse)

    # Indexes

    async def recover(self) -> Recovered:
        """Same as :meth:`MemoryStore.recover`, awaited."""
        return await self._use().recovery.heal_abandoned()

    async def verify(self, *, progress: Progress | bool | None = None) -> Report:
        """Same as :meth:`MemoryStore.verify`, awaited."""
        with shown(progress) as told:
            return await self._use().verify(told)

    async def repair(self, *, progress: Progress | bool | None = None) -> Report:
        """Same as :meth:`MemoryStore.repair`, awaited."""
        with shown(progress) as told:
            return await self._use().repair(told)

    async def reindex(
        self, hook: str | None = None, *, into: Any = None, progress: Progress | bool | None = None
    ) -> int:
        """Same as :meth:`MemoryStore.reindex`, awaited."""
        with shown(progress) as told:
            return await self._use().reindex(hook, into, told)

    # Deferred delivery

    async def deliver(self, limit: int | None = None) -> int:
        """Same as :meth:`MemoryStore.deliver`, awaited."""
        return await self._use().deliver(limit)

    async def lag(self) -> list[Lag]:
        """Same as :meth:`MemoryStore.lag`, awaited."""
        return await self._use().deliverer.lag()

    # Opening and closing

    async def close(self) -> None:
        """Same as :meth:`MemoryStore.close`, awaited."""
        self._closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
