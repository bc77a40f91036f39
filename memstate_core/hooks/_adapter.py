"""Every kind of hook behind one face: objects with ``apply``, and plain callables."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from memstate_core._bridge import Runtime
from memstate_core.facts import Change, Fact
from memstate_core.hooks.callables import AsyncCallableHook, CallableHook

# When a hook is told: in the commit, which fails with it, or by a worker afterwards.
DeliveryMode = Literal["commit", "deferred"]

# Types that begin with this are what integrations keep for themselves: no memory to be searched.
INTERNAL: Final = "memstate:"


class HookAdapter:
    """A hook as the store uses it; what a hook does not have is None."""

    def __init__(self, hook: Any, delivery: DeliveryMode = "commit", namespace: str = "default") -> None:
        if delivery not in ("commit", "deferred"):
            raise ValueError(f"delivery is 'commit' or 'deferred', not {delivery!r}")
        self.deferred = delivery == "deferred"
        if (for_namespace := getattr(hook, "for_namespace", None)) is not None:
            hook = for_namespace(namespace)
        if not callable(getattr(hook, "apply", None)):
            if not callable(hook):
                raise TypeError(
                    f"{hook!r} is no hook: pass an object with apply(changes), or a callable (operation, fact_id, fact)"
                )
            is_async = inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(getattr(hook, "__call__", None))
            hook = AsyncCallableHook(hook) if is_async else CallableHook(hook)
        self.hook = hook
        self.name: str = getattr(hook, "name", None) or type(hook).__qualname__
        types = getattr(hook, "target_types", None)
        self.target_types: frozenset[str] | None = frozenset(types) if types else None
        self.apply: Callable[..., Any] = hook.apply
        self.prepare: Callable[..., Any] | None = getattr(hook, "prepare", None)
        self.search: Callable[..., Any] | None = getattr(hook, "search", None)
        self.scan: Callable[..., Any] | None = getattr(hook, "scan", None)
        self.lookup: Callable[..., Any] | None = getattr(hook, "lookup", None)
        self.similarity: Callable[..., Any] | None = getattr(hook, "similarity", None)
        self.beside: Callable[..., Any] | None = getattr(hook, "beside", None)
        self.swap: Callable[..., Any] | None = getattr(hook, "swap", None)
        self.settle: Callable[..., Any] | None = getattr(hook, "settle", None)
        self.indexes: Callable[[Fact], bool] | None = getattr(hook, "indexes", None)
        self.dear_filters = bool(getattr(hook, "dear_filters", False))
        self.native_filters: type | tuple[type, ...] = getattr(hook, "native_filters", ())

        # Functions are told of every change; what takes whole batches, of what each fact has become.
        self._every_change = isinstance(hook, CallableHook | AsyncCallableHook)

        # The hook that has taken this one's place in the store, and whether one is about to.
        self.successor: HookAdapter | None = None
        self.swapping = False

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.apply)

    async def latest(self, runtime: Runtime) -> HookAdapter:
        """This hook, or the one that has taken its place, which may be under way."""
        while self.swapping:
            await runtime.sleep(0.005)
        return self if self.successor is None else await self.successor.latest(runtime)

    def wants(self, typename: str) -> bool:
        """Of what integrations keep for themselves, only a hook that names it is told."""
        if self.target_types is None:
            return not typename.startswith(INTERNAL)
        return typename in self.target_types

    def takes(self, native: Any) -> bool:
        """Whether a search may be given this filter in the index's own language."""
        return isinstance(native, self.native_filters)

    def wanted(self, changes: Sequence[Change]) -> list[Change]:
        """The changes as the hook is told of them: facts of types that it does not want do not exist for it."""
        told = []
        for change in changes:
            before, after = self._seen(change.before), self._seen(change.after)
            if before is change.before and after is change.after:
                told.append(change)
            elif before is not None or after is not None:
                told.append(Change(change.fact_id, before, after))
        return told

    def _seen(self, fact: Fact | None) -> Fact | None:
        return fact if fact is not None and self.wants(fact.type) else None

    def in_a_row(self, changes: Sequence[Change]) -> Sequence[Change]:
        """Successive changes of one fact, as the hook is told of them together."""
        if self._every_change or len(changes) == 1:
            return changes
        return [Change(changes[0].fact_id, changes[0].before, changes[-1].after)]

    def as_committed(self, fact_id: str, fact: Fact | None) -> Change:
        """The change that makes the index what is committed, whatever it was."""
        return Change(fact_id, None, self._seen(fact))
