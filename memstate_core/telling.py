"""How hooks are told, and what is raised when one fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memstate_core._bridge import Runtime
from memstate_core.errors import HookError, HookTimeoutError
from memstate_core.facts import Change
from memstate_core.hooks._adapter import HookAdapter
from memstate_core.telemetry import step


def is_prepared(hook: HookAdapter, changes: Sequence[Change]) -> bool:
    """Whether a hook need not compute anything: there is nothing to embed of what goes."""
    return hook.prepare is None or all(change.after is None for change in changes)


async def prepare(runtime: Runtime, hook: HookAdapter, changes: list[Change]) -> Any:
    """What the hook's ``apply`` is to be given."""
    if hook.prepare is None:
        return changes
    try:
        with step("prepare", hook=hook.name, changes=len(changes)):
            return await runtime.call(hook.prepare, changes)
    except Exception as error:
        raise hook_error(hook, "prepare", len(changes), error) from error


async def apply(runtime: Runtime, hook: HookAdapter, batch: Any, changes: int) -> None:
    try:
        with step("apply", hook=hook.name, changes=changes):
            await runtime.call(hook.apply, batch)
    except Exception as error:
        raise hook_error(hook, "apply", changes, error) from error


def hook_error(hook: HookAdapter, operation: str, changes: int, error: Exception) -> HookError:
    kind = HookTimeoutError if isinstance(error, TimeoutError) else HookError
    reason = str(error) or type(error).__name__
    if not isinstance(error, HookError):
        reason = f"{type(error).__name__}: {reason}"
    return kind(
        f"hook {hook.name!r} failed to {operation} {changes} change{'' if changes == 1 else 's'}, "
        f"so the transaction was undone: {reason}",
        hook=hook.name,
        operation=operation,
    )
