"""What a package's root names is imported when it is first asked for: a program pays for what it uses, and importing a
root imports no vendor.

IPython is one; it asks for the functions of ``%load_ext memstate``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final

_NAMES: Final[Mapping[str, Sequence[str]]] = {
    "async_store": ("AsyncMemoryStore",),
    "async_transaction_block": ("AsyncTransactionBlock",),
    "delivery": ("Lag",),
    "display.ipython": ("load_ipython_extension", "unload_ipython_extension"),
    "embedding": ("LexicalEmbedder",),
    "errors": (
        "BusyError",
        "ClosedError",
        "ConflictError",
        "HookError",
        "HookTimeoutError",
        "ImmutableError",
        "MemStateError",
        "MemoryStoreError",
        "NotFoundError",
        "StorageError",
        "TransientError",
        "UnavailableError",
        "ValidationFailed",
    ),
    "facts": (
        "UNSET",
        "Change",
        "Fact",
        "Moved",
        "Operation",
        "ScoredFact",
        "SearchResult",
        "Transaction",
        "TransactionContext",
    ),
    "filters": ("NativeFilter",),
    "protocols": ("Hook", "Record", "Storage"),
    "recovery": ("Recovered",),
    "schemas": ("Constraint", "SchemaRegistry"),
    "storages.memory": ("AsyncInMemoryStorage", "InMemoryStorage"),
    "storages.postgres": ("AsyncPostgresStorage", "PostgresStorage"),
    "storages.redis": ("AsyncRedisStorage", "RedisStorage"),
    "storages.sqlite": ("AsyncSQLiteStorage", "SQLiteStorage"),
    "store": ("MemoryStore",),
    "transaction_block": ("TransactionBlock",),
    "verification": ("Drift", "Report"),
    "views": ("AsyncMemoryView", "MemoryView"),
}
_MODULES: Final = {name: f"memstate_core.{module}" for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """For packages to import; see :pep:`562`."""
    if name == "__version__":
        from importlib.metadata import version

        return version("memstate")
    if name not in _MODULES:
        raise AttributeError(f"memstate has no {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """For packages to import, so that a shell can complete the names."""
    return ["__version__", *sorted(_MODULES)]
