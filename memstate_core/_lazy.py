"""What needs a vendor is imported when it is first asked for, so that importing a package's root imports none.

IPython is one; it asks for the functions of ``%load_ext memstate``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

_MODULES: Final = {
    "AsyncPostgresStorage": "memstate_core.storages.postgres",
    "AsyncRedisStorage": "memstate_core.storages.redis",
    "PostgresStorage": "memstate_core.storages.postgres",
    "RedisStorage": "memstate_core.storages.redis",
    "load_ipython_extension": "memstate_core.display.ipython",
    "unload_ipython_extension": "memstate_core.display.ipython",
}


def __getattr__(name: str) -> Any:
    """For packages to import; see :pep:`562`."""
    if name not in _MODULES:
        raise AttributeError(f"memstate has no {name!r}")
    return getattr(import_module(_MODULES[name]), name)
