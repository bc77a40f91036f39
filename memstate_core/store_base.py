"""What both stores do without waiting for anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from memstate_core._bridge import Runtime
from memstate_core.engine import ContextProvider, Engine
from memstate_core.errors import ClosedError, NotFoundError
from memstate_core.facts import (
    StoredFact,
)
from memstate_core.filters import compile_filter
from memstate_core.hooks._adapter import DeliveryMode, HookAdapter
from memstate_core.intents import Discard, MigrateFacts, Promote, Selector
from memstate_core.past import Past, located
from memstate_core.protocols import Storage
from memstate_core.schemas import Constraint, Migrate, SchemaRegistry
from memstate_core.values import check_identifier

Patch = Mapping[str, Any]
Filters = Mapping[str, Any]


class StoreBase:
    """A store's engine, its registrations, and the checks before a call."""

    _is_async: bool

    def __init__(
        self,
        runtime: Runtime,
        storage: Storage,
        hooks: Sequence[Any],
        namespace: str,
        registry: SchemaRegistry | None,
        allow_unregistered: bool,
        context: ContextProvider | None,
        clock: Callable[[], datetime],
        claim_timeout: float,
        lease: float,
        delivery: DeliveryMode,
    ) -> None:
        flavour = type(self).__name__
        if getattr(storage, "is_async", None) is not runtime.is_async:
            raise TypeError(
                f"{flavour} needs {'an async' if runtime.is_async else 'a sync'} storage, such as "
                f"{'AsyncSQLiteStorage' if runtime.is_async else 'SQLiteStorage'}, not {type(storage).__name__}"
            )
        if not isinstance(hooks, Iterable):
            raise TypeError(f"hooks takes a list of hooks, not {hooks!r}; write hooks=[…]")
        self.storage = storage
        self._engine = Engine(
            storage,
            runtime,
            namespace=namespace,
            registry=registry,
            allow_unregistered=allow_unregistered,
            context=context,
            clock=clock,
            claim_timeout=claim_timeout,
            lease=lease,
        )
        self._closed = False
        for hook in hooks:
            self.add_hook(hook, delivery=delivery)

    def add_hook(self, hook: Any, *, delivery: DeliveryMode = "commit") -> None:
        """Let a hook take part in every transaction from now on.

        :param delivery: ``"commit"``: it is told in the commit, which fails with it; ``"deferred"``: :meth:`deliver` or
            a worker tells it afterwards.
        :raises TypeError: it is no hook, or an asynchronous one in a sync store.
        """
        adapter = HookAdapter(hook, delivery, self.namespace)
        if adapter.is_async and not self._engine.runtime.is_async:
            raise TypeError(
                f"hook {adapter.name!r} is asynchronous; use it with AsyncMemoryStore, or pass its sync twin"
            )
        self._use().add_hook(adapter)

    @property
    def has_deferred_hooks(self) -> bool:
        return bool(self._engine.deliverer.hooks)

    @property
    def hook_names(self) -> tuple[str, ...]:
        """The hooks' names, by which :meth:`reindex` and the reports know them."""
        return tuple(self._engine.recovery.hooks)

    @property
    def engine(self) -> Engine:
        """The rules behind the store, for integrations."""
        return self._use()

    @property
    def namespace(self) -> str:
        return self._engine.namespace

    def register_schema(
        self,
        typename: str,
        model: type[BaseModel],
        constraint: Constraint | None = None,
        *,
        index: Iterable[str] = (),
        migrate: Migrate | None = None,
        version: int = 1,
    ) -> None:
        """Say what the facts of a type look like. The same name again replaces the registration.

        What it demands is kept in storage and holds for every process; it takes effect at the next call.

        :param constraint: which facts exclude each other, and whether they can be changed.
        :param index: payload fields (dotted paths) that queries filter on; singleton keys are indexed by themselves.
        :param migrate: ``migrate(payload)`` or ``migrate(payload, version)`` returns an older payload in today's form;
            it is applied whenever such a fact is read, and for good by :meth:`migrate_facts`.
        :param version: the version of the payload's form; raise it together with ``migrate``.
        :raises ValidationFailed: the model, or a field that is named, does not exist.
        """
        self._use().register_schema(typename, model, constraint, index, migrate, version)

    def _use(self) -> Engine:
        if self._closed:
            raise ClosedError(f"this {type(self).__name__} was closed; make a new one")
        return self._engine

    def past(self, where: Any, session_id: str | None) -> Past:
        """The past of a session at a place, or at what an integration takes for one."""
        engine = self._use()
        for locator in engine.locators:
            found = locator(where)
            if found is not None:
                return Past(engine, *found)
        return Past(engine, session_id, located(session_id, where))

    def promotion(self, session_id: str, selector: Selector | Filters | None) -> Promote:
        check_identifier("session_id", session_id)
        chosen = compile_filter(selector) if isinstance(selector, Mapping) else selector
        return Promote(session_id, chosen)

    def discarding(self, session_id: str) -> Discard:
        check_identifier("session_id", session_id)
        return Discard(session_id)

    def as_dict(self, fact: StoredFact | None) -> dict[str, Any] | None:
        return None if fact is None else fact.to_dict(self._engine.registry.decode(fact))

    def as_model(self, fact_id: str, fact: StoredFact | None) -> BaseModel:
        if fact is None:
            raise NotFoundError(f"there is no fact {fact_id!r}")
        return self._engine.registry.load(fact)

    def _migration(self, typename: str | None) -> MigrateFacts:
        return MigrateFacts(self._engine.registry.typenames() if typename is None else [typename])
