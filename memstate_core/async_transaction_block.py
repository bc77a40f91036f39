"""``async with store.transaction()``: :mod:`memstate_core.transaction_block`, awaited."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel

from memstate_core.block import Block, plain, record_deletion, record_write
from memstate_core.facts import (
    UNSET,
    Fact,
    Unset,
)
from memstate_core.intents import Selector
from memstate_core.protocols import Record
from memstate_core.store_base import Filters, Patch, StoreBase
from memstate_core.transaction_block import BlockSavepoint


class AsyncTransactionBlock:
    """Several calls as one transaction; see :meth:`MemoryStore.transaction`.

    Its methods are those of :class:`MemoryStore`; ``session_id`` defaults to the block's.
    """

    def __init__(self, store: StoreBase, block: Block) -> None:
        self._store = store
        self._block = block

    @property
    def transaction_id(self) -> str | None:
        """The id of the transaction, when the block has ended and had changed something."""
        return self._block.transaction_id

    async def __aenter__(self) -> Self:
        await self._block.begin()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            await self._block.commit()
        else:
            self._block.abandon()

    async def commit(
        self,
        fact: Fact,
        session_id: str | None | Unset = UNSET,
        ephemeral: bool = False,
        *,
        expected_version: int | None = None,
    ) -> str:
        """Same as :meth:`TransactionBlock.commit`, awaited."""
        result: str = await self._block.do(self._block.put(fact, session_id, ephemeral, expected_version))
        return result

    async def commit_model(
        self,
        model: BaseModel,
        fact_id: str | None = None,
        source: str | None = None,
        session_id: str | None | Unset = UNSET,
        ephemeral: bool = False,
        *,
        typename: str | None = None,
        expected_version: int | None = None,
    ) -> str:
        """Same as :meth:`TransactionBlock.commit_model`, awaited."""
        intent = self._block.put_model(model, fact_id, typename, source, session_id, ephemeral, expected_version)
        result: str = await self._block.do(intent)
        return result

    async def update(
        self, fact_id: str, patch: Patch, *, deep: bool = False, expected_version: int | None = None
    ) -> str:
        """Same as :meth:`TransactionBlock.update`, awaited."""
        result: str = await self._block.do(self._block.engine.patch(fact_id, patch, deep, expected_version))
        return result

    async def delete(self, fact_id: str, *, expected_version: int | None = None) -> str:
        """Same as :meth:`TransactionBlock.delete`, awaited."""
        result: str = await self._block.do(self._block.engine.remove(fact_id, UNSET, expected_version))
        return result

    async def promote_session(self, session_id: str, selector: Selector | Filters | None = None) -> list[str]:
        """Same as :meth:`TransactionBlock.promote_session`, awaited."""
        result: list[str] = await self._block.do(self._store.promotion(session_id, selector))
        return result

    async def discard_session(self, session_id: str) -> int:
        """Same as :meth:`TransactionBlock.discard_session`, awaited."""
        result: int = await self._block.do(self._store.discarding(session_id))
        return result

    async def get(self, fact_id: str) -> dict[str, Any] | None:
        """Same as :meth:`TransactionBlock.get`, awaited."""
        return self._store.as_dict(await self._block.get(fact_id))

    async def get_model(self, fact_id: str) -> Any:
        """Same as :meth:`TransactionBlock.get_model`, awaited."""
        return self._store.as_model(fact_id, await self._block.get(fact_id))

    async def query(
        self,
        typename: str | None = None,
        filters: Filters | None = None,
        session_id: str | None | Unset = UNSET,
        limit: int | None = None,
        offset: int = 0,
        order_by: str | Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Same as :meth:`TransactionBlock.query`, awaited."""
        engine = self._block.engine
        facts = await self._block.select(engine.selection(typename, filters, session_id, limit, offset, order_by))
        return plain(facts, engine.registry.decode)

    async def count(
        self, typename: str | None = None, filters: Filters | None = None, session_id: str | None | Unset = UNSET
    ) -> int:
        """Same as :meth:`TransactionBlock.count`, awaited."""
        return await self._block.count(self._block.engine.selection(typename, filters, session_id))

    def put_record(self, collection: str, key: str, value: bytes) -> None:
        """Same as :meth:`TransactionBlock.put_record`."""
        self._block.put_record(record_write(collection, key, value))

    def delete_record(self, collection: str, key: str) -> None:
        """Same as :meth:`TransactionBlock.delete_record`."""
        self._block.put_record(record_deletion(collection, key))

    async def get_record(self, collection: str, key: str) -> bytes | None:
        """Same as :meth:`TransactionBlock.get_record`, awaited."""
        return await self._block.record(collection, key)

    async def scan_records(
        self,
        collection: str,
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Record]:
        """Same as :meth:`TransactionBlock.scan_records`, awaited."""
        return await self._block.scan(collection, start, end, limit, reverse)

    def savepoint(self) -> BlockSavepoint:
        """Same as :meth:`TransactionBlock.savepoint`."""
        return BlockSavepoint(self._block)
