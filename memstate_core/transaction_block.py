"""``with store.transaction()``."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel

from memstate_core._bridge import run
from memstate_core.block import Block, Kept, plain, record_deletion, record_write
from memstate_core.facts import (
    UNSET,
    Fact,
    Unset,
)
from memstate_core.intents import Selector
from memstate_core.protocols import Record
from memstate_core.store_base import Filters, Patch, StoreBase


class TransactionBlock:
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

    def __enter__(self) -> Self:
        run(self._block.begin())
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            run(self._block.commit())
        else:
            self._block.abandon()

    def commit(
        self,
        fact: Fact,
        session_id: str | None | Unset = UNSET,
        ephemeral: bool = False,
        *,
        expected_version: int | None = None,
    ) -> str:
        """Same as :meth:`MemoryStore.commit`, in this transaction."""
        result: str = run(self._block.do(self._block.put(fact, session_id, ephemeral, expected_version)))
        return result

    def commit_model(
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
        """Same as :meth:`MemoryStore.commit_model`, in this transaction."""
        intent = self._block.put_model(model, fact_id, typename, source, session_id, ephemeral, expected_version)
        result: str = run(self._block.do(intent))
        return result

    def update(self, fact_id: str, patch: Patch, *, deep: bool = False, expected_version: int | None = None) -> str:
        """Same as :meth:`MemoryStore.update`, in this transaction."""
        result: str = run(self._block.do(self._block.engine.patch(fact_id, patch, deep, expected_version)))
        return result

    def delete(self, fact_id: str, *, expected_version: int | None = None) -> str:
        """Same as :meth:`MemoryStore.delete`, in this transaction."""
        result: str = run(self._block.do(self._block.engine.remove(fact_id, UNSET, expected_version)))
        return result

    def promote_session(self, session_id: str, selector: Selector | Filters | None = None) -> list[str]:
        """Same as :meth:`MemoryStore.promote_session`, in this transaction."""
        result: list[str] = run(self._block.do(self._store.promotion(session_id, selector)))
        return result

    def discard_session(self, session_id: str) -> int:
        """Same as :meth:`MemoryStore.discard_session`, in this transaction."""
        result: int = run(self._block.do(self._store.discarding(session_id)))
        return result

    def get(self, fact_id: str) -> dict[str, Any] | None:
        """Same as :meth:`MemoryStore.get`, with this transaction's changes."""
        return self._store.as_dict(run(self._block.get(fact_id)))

    def get_model(self, fact_id: str) -> Any:
        """Same as :meth:`MemoryStore.get_model`, with this transaction's changes."""
        return self._store.as_model(fact_id, run(self._block.get(fact_id)))

    def query(
        self,
        typename: str | None = None,
        filters: Filters | None = None,
        session_id: str | None | Unset = UNSET,
        limit: int | None = None,
        offset: int = 0,
        order_by: str | Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Same as :meth:`MemoryStore.query`, with this transaction's changes."""
        engine = self._block.engine
        facts = run(self._block.select(engine.selection(typename, filters, session_id, limit, offset, order_by)))
        return plain(facts, engine.registry.decode)

    def count(
        self, typename: str | None = None, filters: Filters | None = None, session_id: str | None | Unset = UNSET
    ) -> int:
        """Same as :meth:`MemoryStore.count`, with this transaction's changes."""
        return run(self._block.count(self._block.engine.selection(typename, filters, session_id)))

    def put_record(self, collection: str, key: str, value: bytes) -> None:
        """Same as :meth:`MemoryStore.put_record`, in this transaction."""
        self._block.put_record(record_write(collection, key, value))

    def delete_record(self, collection: str, key: str) -> None:
        """Same as :meth:`MemoryStore.delete_record`, in this transaction."""
        self._block.put_record(record_deletion(collection, key))

    def get_record(self, collection: str, key: str) -> bytes | None:
        """Same as :meth:`MemoryStore.get_record`, with this transaction's changes."""
        return run(self._block.record(collection, key))

    def scan_records(
        self,
        collection: str,
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Record]:
        """Same as :meth:`MemoryStore.scan_records`, with this transaction's changes."""
        return run(self._block.scan(collection, start, end, limit, reverse))

    def savepoint(self) -> BlockSavepoint:
        """Remember the state of this transaction; an exception in ``with tx.savepoint():`` goes back to it, and on."""
        return BlockSavepoint(self._block)


class BlockSavepoint:
    """A place inside of a transaction block. Works the same in both flavours: nothing waits."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._kept: Kept = block.keep()

    def rollback(self) -> None:
        """Undo what the block has done since."""
        self._block.go_back(self._kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is not None:
            self.rollback()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, traceback)
