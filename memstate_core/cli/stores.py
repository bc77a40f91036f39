"""The store that a subcommand works on: a URL, or where an application's code has it."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import memstate_core
from memstate_core import AsyncMemoryStore, MemoryStore, SQLiteStorage
from memstate_core._bridge import run as drive
from memstate_core.all_namespaces import is_waiting
from memstate_core.cli.config import FILE, Config, read_config
from memstate_core.cli.errors import UsageError
from memstate_core.importing import unfinished

T = TypeVar("T")

Store = MemoryStore | AsyncMemoryStore

_STORAGES: Final = {
    "sqlite": "SQLiteStorage",
    "postgresql": "PostgresStorage",
    "postgres": "PostgresStorage",
    "redis": "RedisStorage",
    "rediss": "RedisStorage",
    "unix": "RedisStorage",
}
WITHOUT_HOOKS: Final = "make the store with hooks=[…], or name its hooks in memstate.toml"
_PLACE_IN_CODE: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def with_store(
    name: str | None,
    work: Callable[[Store], Coroutine[Any, Any, T]],
    *,
    namespace: str | None = None,
    make: bool = False,
    importing: bool = False,
) -> T:
    """Call ``work`` with the store that ``name`` means: a URL, or ``MODULE:NAME`` for a store in an application's code
    or a function that returns one; None: what ``memstate.toml`` says.

    :param make: a database may be made that is not there.
    :param importing: nothing need be said of an import that is not complete.
    :raises UsageError: there is no such thing.
    """
    config = read_config()
    if name is None:
        if config is None:
            raise UsageError(
                f"say which store: a URL such as sqlite:///memory.db, MODULE:NAME, or write it to {FILE} "
                "(memstate init does)"
            )
        name = config.store
    ours = config if config is not None and config.store == name else None
    with ExitStack() as stack:
        made: Any
        if is_url(name):
            made = _opened(
                stack,
                name,
                (ours or Config(name))._replace(namespace=namespace or (ours and ours.namespace)),
                make=make,
            )
        elif namespace is not None:
            raise UsageError("--namespace is for stores that are named by a URL; one in your code has its own")
        else:
            made = named(name)

        async def whole() -> T:
            store = await awaited(made)
            if not isinstance(store, MemoryStore | AsyncMemoryStore):
                raise UsageError(f"{name} is {store!r}, and neither a store nor a function that makes one")
            if not importing:
                await _warn(store, called(name))
            return await work(store)

        return drive(whole()) if isinstance(made, MemoryStore) else asyncio.run(whole())


async def _warn(store: Store, name: str) -> None:
    """Say that an import into the store was interrupted, if one was."""
    place = f"warning: {name}, namespace {store.namespace!r}, "
    if await unfinished(store.storage, store.namespace):
        print(
            f"{place}has only a part of an import that was interrupted; memstate import with the same file goes on",
            file=sys.stderr,
        )
    elif await is_waiting(store.storage, store.namespace):
        print(
            f"{place}is from an import of all namespaces that was interrupted; memstate import with the same file goes "
            "on, and with --namespace is content with this one. Until then let nobody write to it: that may take the "
            "numbers of transactions that are still to come",
            file=sys.stderr,
        )


def is_url(text: str) -> bool:
    return "://" in text


def names_storage(text: str) -> bool:
    """Whether a word is the URL of a storage, and hardly anything else."""
    return is_url(text) and text.partition(":")[0] in _STORAGES


def is_store(text: str) -> bool:
    """Whether a word on the command line looks like a store."""
    return is_url(text) or _PLACE_IN_CODE.fullmatch(text) is not None


def called(name: str | None) -> str:
    """A store's name to be shown: without the password that a URL may have in it."""
    if name is None:
        config = read_config()
        name = FILE if config is None else config.store
    if not is_url(name):
        return name
    place = urlsplit(name)
    return place._replace(netloc=place.netloc.rpartition("@")[2]).geturl() if place.netloc else name


def _opened(stack: ExitStack, url: str, config: Config, *, make: bool) -> MemoryStore:
    """A store on the storage of a URL, in which facts of any type are as they are stored."""
    scheme = url.partition(":")[0].lower()
    kind = _STORAGES.get(scheme)
    if kind is None:
        raise UsageError(f"{called(url)}: no storage is called {scheme}://; there are sqlite, postgresql and redis")
    try:
        storage_class: Any = SQLiteStorage if kind == "SQLiteStorage" else getattr(memstate_core, kind)
    except ImportError as error:
        raise UsageError(str(error)) from error
    if kind == "SQLiteStorage":
        path = url.removeprefix("sqlite://").removeprefix("/")
        if path in ("", ":memory:"):
            raise UsageError("a database in memory ends with its process; name a file: sqlite:///memory.db")
        if not make and not Path(path).expanduser().exists():
            raise UsageError(f"there is no database {path}; memstate init {url} makes one")
    try:
        storage = stack.enter_context(storage_class(url, **config.options))
        return MemoryStore(
            storage,
            [named(hook, "hook") for hook in config.hooks],
            namespace=config.namespace or "default",
            allow_unregistered=True,
            delivery=config.delivery,  # type: ignore[arg-type]
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"{called(url)}: {error}") from error


async def awaited(result: Any) -> Any:
    """The result of a store's method, of either flavour."""
    return await result if inspect.isawaitable(result) else result


def named(name: str, what: str = "store") -> Any:
    """What ``MODULE:NAME`` names, or what the function returns that it names.

    :raises UsageError: there is no such thing.
    """
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise UsageError(f"{name!r} names no {what}; write MODULE:NAME, such as myapp.memory:{what}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UsageError(
            f"there is no module {error.name!r}; start the command where your code can be imported"
        ) from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise UsageError(f"{module_name!r} has no {path!r}") from error
    return found() if callable(found) and not hasattr(found, "apply") else found  # a hook may be callable
