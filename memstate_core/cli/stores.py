"""The store that a subcommand works on, which is named by where an application's code has it."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from memstate_core import AsyncMemoryStore, MemoryStore
from memstate_core._bridge import run as drive
from memstate_core.cli.errors import UsageError

T = TypeVar("T")

Store = MemoryStore | AsyncMemoryStore


def with_store(name: str, work: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
    """Call ``work`` with the store that ``MODULE:NAME`` names, or that the function returns that it names.

    :raises UsageError: there is no such thing.
    """
    made = named(name)

    async def whole() -> T:
        store = await awaited(made)
        if not isinstance(store, MemoryStore | AsyncMemoryStore):
            raise UsageError(f"{name} is {store!r}, and neither a store nor a function that makes one")
        return await work(store)

    return drive(whole()) if isinstance(made, MemoryStore) else asyncio.run(whole())


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
