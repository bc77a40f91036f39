"""Transactional, typed, reversible memory for AI agents; knows no framework and imports no vendor."""

from typing import TYPE_CHECKING

from memstate_core._lazy import attributes_of as _attributes_of

if TYPE_CHECKING:  # names with "as" are no part of ``import *``, which would import the vendors
    from memstate_core.async_store import AsyncMemoryStore
    from memstate_core.async_transaction_block import AsyncTransactionBlock
    from memstate_core.delivery import Lag
    from memstate_core.embedding import LexicalEmbedder
    from memstate_core.errors import (
        BusyError,
        ClosedError,
        ConflictError,
        HookError,
        HookTimeoutError,
        ImmutableError,
        MemoryStoreError,
        MemStateError,
        NotFoundError,
        StorageError,
        TransientError,
        UnavailableError,
        ValidationFailed,
    )
    from memstate_core.facts import (
        UNSET,
        Change,
        Fact,
        Moved,
        Operation,
        ScoredFact,
        SearchResult,
        Transaction,
        TransactionContext,
    )
    from memstate_core.filters import NativeFilter
    from memstate_core.protocols import Hook, Record, Storage
    from memstate_core.recovery import Recovered
    from memstate_core.schemas import Constraint, SchemaRegistry
    from memstate_core.storages.memory import AsyncInMemoryStorage, InMemoryStorage
    from memstate_core.storages.postgres import AsyncPostgresStorage as AsyncPostgresStorage
    from memstate_core.storages.postgres import PostgresStorage as PostgresStorage
    from memstate_core.storages.redis import AsyncRedisStorage as AsyncRedisStorage
    from memstate_core.storages.redis import RedisStorage as RedisStorage
    from memstate_core.storages.sqlite import AsyncSQLiteStorage, SQLiteStorage
    from memstate_core.store import MemoryStore
    from memstate_core.transaction_block import TransactionBlock
    from memstate_core.verification import Drift, Report
    from memstate_core.views import AsyncMemoryView, MemoryView

if not TYPE_CHECKING:  # or any name would do
    __getattr__, __dir__ = _attributes_of(__name__)

__all__ = [
    "UNSET",
    "AsyncInMemoryStorage",
    "AsyncMemoryStore",
    "AsyncMemoryView",
    "AsyncSQLiteStorage",
    "AsyncTransactionBlock",
    "BusyError",
    "Change",
    "ClosedError",
    "ConflictError",
    "Constraint",
    "Drift",
    "Fact",
    "Hook",
    "HookError",
    "HookTimeoutError",
    "ImmutableError",
    "InMemoryStorage",
    "Lag",
    "LexicalEmbedder",
    "MemStateError",
    "MemoryStore",
    "MemoryStoreError",
    "MemoryView",
    "Moved",
    "NativeFilter",
    "NotFoundError",
    "Operation",
    "Record",
    "Recovered",
    "Report",
    "SQLiteStorage",
    "SchemaRegistry",
    "ScoredFact",
    "SearchResult",
    "Storage",
    "StorageError",
    "Transaction",
    "TransactionBlock",
    "TransactionContext",
    "TransientError",
    "UnavailableError",
    "ValidationFailed",
]
