"""Plain callables ``(operation, fact_id, fact) -> None`` as hooks.

They are called once per fact: ``COMMIT`` or ``UPDATE`` with the fact as it will be, ``DELETE`` with None. A rollback
calls them with what it restores, and so does the undoing of a failed transaction, so calls must be idempotent.
A callable may have ``search``, ``scan``, ``lookup``, ``target_types`` and ``name`` as attributes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from memstate_core.facts import Change, Fact, Operation

HookFunction = Callable[[Operation, str, Fact | None], Any]
AsyncHookFunction = Callable[[Operation, str, Fact | None], Awaitable[Any]]


class _Named:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        own = getattr(function, "name", None)
        self.name: str = own if isinstance(own, str) else getattr(function, "__qualname__", type(function).__qualname__)
        self.target_types: Any = getattr(function, "target_types", None)

    def __getattr__(self, name: str) -> Any:
        # Only what the hook protocol knows is passed on; a missing one is missing here too.
        if name in ("search", "scan", "lookup", "similarity"):
            return getattr(self.function, name)
        raise AttributeError(name)


class CallableHook(_Named):
    """A function as a hook."""

    function: HookFunction

    def apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self.function(change.operation, change.fact_id, change.after)


class AsyncCallableHook(_Named):
    """A coroutine function as a hook."""

    function: AsyncHookFunction

    async def apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            await self.function(change.operation, change.fact_id, change.after)
