"""What a package's root names is imported when it is first asked for: a program pays for what it uses, and importing a
root imports no vendor.

IPython is one; it asks for the functions of ``%load_ext memstate``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
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


# Not even named by ``dir()``: what asks for all that it names, such as ``help()``, would need every vendor.
_UNLISTED: Final = ("display.ipython", "storages.postgres", "storages.redis")
_LISTED: Final = frozenset(
    name for module, names in _NAMES.items() if module not in _UNLISTED for name in ("__version__", *names)
)


def attributes_of(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package, see :pep:`562`; its modules are found too, when asked for."""

    def get(name: str) -> Any:
        root = sys.modules[package]
        if name == "__version__":
            from importlib.metadata import version

            found: Any = version("memstate")
        elif name in _MODULES:
            found = getattr(import_module(_MODULES[name]), name)
        elif not name.startswith("__") and find_spec(f"{package}.{name}") is not None:
            return import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=root)
        setattr(root, name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *_LISTED})

    return get, names
