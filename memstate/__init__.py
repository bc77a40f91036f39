"""Transactional memory for AI agents: facts and their search index change together or not at all.

What an application needs is named here; :mod:`memstate.backends` and :mod:`memstate.integrations` have the parts that
belong to one database or one index.
"""

from typing import TYPE_CHECKING

from memstate_core._lazy import attributes_of as _attributes_of

if TYPE_CHECKING:
    from memstate_core import (
        UNSET,
        AsyncInMemoryStorage,
        AsyncMemoryStore,
        AsyncMemoryView,
        AsyncSQLiteStorage,
        AsyncTransactionBlock,
        BusyError,
        Change,
        ClosedError,
        ConflictError,
        Constraint,
        Drift,
        Fact,
        Hook,
        HookError,
        HookTimeoutError,
        ImmutableError,
        InMemoryStorage,
        Lag,
        LexicalEmbedder,
        MemoryStore,
        MemoryStoreError,
        MemoryView,
        MemStateError,
        Moved,
        NativeFilter,
        NotFoundError,
        Operation,
        Record,
        Recovered,
        Report,
        SchemaRegistry,
        ScoredFact,
        SearchResult,
        SQLiteStorage,
        Storage,
        StorageError,
        Transaction,
        TransactionBlock,
        TransactionContext,
        TransientError,
        UnavailableError,
        ValidationFailed,
    )

    # No part of ``import *``, which would import the vendors.
    from memstate_core.storages.postgres import AsyncPostgresStorage as AsyncPostgresStorage
    from memstate_core.storages.postgres import PostgresStorage as PostgresStorage
    from memstate_core.storages.redis import AsyncRedisStorage as AsyncRedisStorage
    from memstate_core.storages.redis import RedisStorage as RedisStorage

    __version__: str

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
