"""Planning before storage is asked anything, where nothing that it has can matter.

A transaction that only makes facts with ids that were just made depends on nothing but where its session stands, which
is found out when it claims them. So hooks can embed at once, and storage is asked twice instead of three times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from memstate_core.commit import Plan, Planner
from memstate_core.definitions import Definitions
from memstate_core.hooks._adapter import HookAdapter
from memstate_core.intents import Intent, Put
from memstate_core.protocols import Position, StorageTransaction
from memstate_core.schemas import NO_DEFINITION


class _NeedsStorage(Exception):
    """Something is to be read after all."""


class _Unread:
    """As much of a storage transaction as such a plan needs."""

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions

    async def position(self, session_id: str | None) -> Position:
        """Where the session may stand; the definitions are those that are known."""
        return Position(0, 0, self._definitions.generation, False)

    def __getattr__(self, name: str) -> Any:
        raise _NeedsStorage(name)


async def plan_ahead(planner: Planner, definitions: Definitions) -> Plan | None:
    """What such a transaction comes to; None: another thread has just learnt of newer definitions."""
    try:
        return await planner(cast(StorageTransaction, _Unread(definitions)))
    except _NeedsStorage:
        return None


def can_be_planned(intents: Sequence[Intent], definitions: Definitions, hooks: Sequence[HookAdapter]) -> bool:
    """Whether all that a transaction does is to make such facts, of which hooks are told."""
    return bool(intents) and all(
        isinstance(one, Put)
        and one.generated
        and any(hook.wants(one.typename) for hook in hooks)
        # Whether a place is free only storage can tell.
        and not definitions.by_type.get(one.typename, NO_DEFINITION).singleton
        for one in intents
    )
