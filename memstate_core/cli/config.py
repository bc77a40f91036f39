"""``memstate.toml``: which store the commands of a directory are about."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from memstate_core.cli.errors import UsageError

FILE: Final = "memstate.toml"


class Config(NamedTuple):
    """What the file says; ``hooks`` are written ``MODULE:NAME``, and ``options`` are those of the storage."""

    store: str
    namespace: str | None = None
    hooks: tuple[str, ...] = ()
    delivery: str = "commit"
    options: Mapping[str, Any] = {}


def read_config() -> Config | None:
    """What ``memstate.toml`` in this directory says; None: there is none.

    :raises UsageError: it cannot be read, or says what is not understood.
    """
    try:
        data = tomllib.loads(Path(FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{FILE} cannot be read: {error}") from error
    unknown = sorted(data.keys() - set(Config._fields))
    if unknown:
        raise UsageError(f"{FILE} says {unknown[0]!r}, which is not known; it may say {', '.join(Config._fields)}")
    config = Config(**{"store": None, **data})
    if not isinstance(config.store, str):
        raise UsageError(f'{FILE} names no store; write store = "sqlite:///memory.db", another URL, or "MODULE:NAME"')
    if config.namespace is not None and not isinstance(config.namespace, str):
        raise UsageError(f"namespace in {FILE} is a string, not {config.namespace!r}")
    if not isinstance(config.hooks, list | tuple) or not all(isinstance(one, str) for one in config.hooks):
        raise UsageError(f'hooks in {FILE} is a list such as ["myapp.memory:index"], not {config.hooks!r}')
    if config.delivery not in ("commit", "deferred"):
        raise UsageError(f'delivery in {FILE} is "commit" or "deferred", not {config.delivery!r}')
    if not isinstance(config.options, Mapping):
        raise UsageError(f"options in {FILE} is a table of the storage's options, not {config.options!r}")
    return config._replace(hooks=tuple(config.hooks))
