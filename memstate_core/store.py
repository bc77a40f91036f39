"""The sync store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel

from memstate_core import moves, search
from memstate_core._bridge import Runtime, SyncRuntime, run
from memstate_core.block import Block, Kept, plain, record_write
from memstate_core.engine import ContextProvider, Engine, OnConflict, now_utc
from memstate_core.errors import ClosedError, NotFoundError
from memstate_core.facts import (
    UNSET,
    Fact,
    Moved,
    Operation,
    ScoredFact,
    StoredFact,
    Transaction,
    Unset,
)
from memstate_core.filters import compile_filter
from memstate_core.hooks._adapter import HookAdapter
from memstate_core.intents import Discard, MigrateFacts, Promote, Selector
from memstate_core.moves import Target
from memstate_core.protocols import Record, Storage
from memstate_core.recovery import Drift, Recovered
from memstate_core.schemas import Constraint, Migrate, SchemaRegistry
from memstate_core.values import check_identifier

Patch = Mapping[str, Any]
Filters = Mapping[str, Any]


class StoreBase:
    """What both stores do without waiting for anything."""

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
    ) -> None:
        flavour = type(self).__name__
        if getattr(storage, "is_async", None) is not runtime.is_async:
            other = "an async" if runtime.is_async else "a sync"
            raise TypeError(f"{flavour} needs {other} storage, not {type(storage).__name__}")
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
            self.add_hook(hook)

    def add_hook(self, hook: Any) -> None:
        """Let a hook take part in every transaction from now on.

        :raises TypeError: it is no hook, or an asynchronous one in a sync store.
        """
        adapter = HookAdapter(hook)
        if adapter.is_async and not self._engine.runtime.is_async:
            raise TypeError(
                f"hook {adapter.name!r} is asynchronous; use it with AsyncMemoryStore, or pass its sync twin"
            )
        self._engine.add_hook(adapter)

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
        self._engine.register_schema(typename, model, constraint, index, migrate, version)

    def _use(self) -> Engine:
        if self._closed:
            raise ClosedError(f"this {type(self).__name__} was closed; make a new one")
        return self._engine

    def _promote(self, session_id: str, selector: Selector | Filters | None) -> Promote:
        check_identifier("session_id", session_id)
        chosen = compile_filter(selector) if isinstance(selector, Mapping) else selector
        return Promote(session_id, chosen)

    def _discard(self, session_id: str) -> Discard:
        check_identifier("session_id", session_id)
        return Discard(session_id)

    def _dict(self, fact: StoredFact | None) -> dict[str, Any] | None:
        return None if fact is None else fact.to_dict(self._engine.registry.decode(fact))

    def _model(self, fact_id: str, fact: StoredFact | None) -> BaseModel:
        if fact is None:
            raise NotFoundError(f"there is no fact {fact_id!r}")
        return self._engine.registry.load(fact)

    def _migration(self, typename: str | None) -> MigrateFacts:
        return MigrateFacts(self._engine.registry.typenames() if typename is None else [typename])


class MemoryStore(StoreBase):
    """Typed, transactional, reversible memory.

    :param storage: where everything is kept; the caller's, who closes it.
    :param hooks: indexes that take part in every transaction: objects with ``apply(changes)``, or callables
        ``(operation, fact_id, fact)``.
    :param namespace: a tenant; stores with different namespaces on one storage see nothing of each other.
    :param registry: schemas shared with other stores; by default the store has its own.
    :param allow_unregistered: accept facts of types that no schema was registered for.
    :param context: called at every write; supplies session, mark and actor where the call does not say.
    :param clock: the time, as an aware datetime.
    :param claim_timeout: seconds to wait for a transaction of another store that holds the same facts.
    :param lease: seconds for which a transaction with hooks owns its facts; renewed as long as it lives.

    May be shared by threads, and by forked processes.
    """

    def __init__(
        self,
        storage: Storage,
        hooks: Sequence[Any] = (),
        *,
        namespace: str = "default",
        registry: SchemaRegistry | None = None,
        allow_unregistered: bool = False,
        context: ContextProvider | None = None,
        clock: Callable[[], datetime] = now_utc,
        claim_timeout: float = 10.0,
        lease: float = 30.0,
    ) -> None:
        super().__init__(
            SyncRuntime(),
            storage,
            hooks or (),
            namespace,
            registry,
            allow_unregistered,
            context,
            clock,
            claim_timeout,
            lease,
        )

    # Writing

    def commit(
        self,
        fact: Fact,
        session_id: str | None | Unset = UNSET,
        ephemeral: bool = False,
        actor: str | None = None,
        reason: str | None = None,
        *,
        expected_version: int | None = None,
    ) -> str:
        """Commit a fact; returns its id.

        A fact with a known id, or one that meets the singleton of its type, becomes an update of that fact: the
        payload is replaced, and the session becomes the caller's.

        :param session_id: default: the fact's own, else the context's, else None, the long-term memory.
        :param ephemeral: working memory of the session: not promoted unless selected.
        :param expected_version: the version that the fact must have now (0: it must not exist).
        :raises ValidationFailed: the payload does not fit its schema.
        :raises ConflictError: another version, another type, or two facts in one singleton place.
        :raises ImmutableError: the fact exists and its type is immutable.
        :raises HookError: an index could not follow; nothing was committed.
        """
        engine = self._use()
        intent = engine.put(fact, session_id, ephemeral, expected_version)
        result: str = run(engine.do(intent, Operation.COMMIT, actor, reason))
        return result

    def commit_model(
        self,
        model: BaseModel,
        fact_id: str | None = None,
        source: str | None = None,
        session_id: str | None | Unset = UNSET,
        ephemeral: bool = False,
        actor: str | None = None,
        reason: str | None = None,
        *,
        typename: str | None = None,
        expected_version: int | None = None,
    ) -> str:
        """Commit an instance of a registered model; returns the fact's id. Otherwise like :meth:`commit`.

        :param fact_id: default: a new UUID.
        :param typename: which registration is meant, when the model has several.
        """
        engine = self._use()
        intent = engine.put_model(model, fact_id, typename, source, session_id, ephemeral, expected_version)
        result: str = run(engine.do(intent, Operation.COMMIT, actor, reason))
        return result

    def update(
        self,
        fact_id: str,
        patch: Patch,
        actor: str | None = None,
        reason: str | None = None,
        *,
        deep: bool = False,
        expected_version: int | None = None,
    ) -> str:
        """Change fields of a fact's payload; the whole is validated again. Returns the fact's id.

        :param patch: the fields to change (``{"payload": {…}}`` is accepted too).
        :param deep: merge as a JSON merge patch (RFC 7396): into nested objects, None removes.
        :raises NotFoundError: there is no such fact.

        Recorded under the fact's own session. Other errors as in :meth:`commit`.
        """
        engine = self._use()
        intent = engine.patch(fact_id, patch, deep, expected_version)
        result: str = run(engine.do(intent, Operation.UPDATE, actor, reason))
        return result

    def delete(
        self,
        fact_id: str,
        session_id: str | None | Unset = UNSET,
        actor: str | None = None,
        reason: str | None = None,
        *,
        expected_version: int | None = None,
    ) -> str:
        """Delete a fact; returns its id.

        :param session_id: the session whose history records it; default: the fact's own.
        :raises NotFoundError: there is no such fact. Other errors as in :meth:`commit`.
        """
        engine = self._use()
        intent = engine.remove(fact_id, session_id, expected_version)
        result: str = run(engine.do(intent, Operation.DELETE, actor, reason))
        return result

    def transaction(
        self,
        session_id: str | None | Unset = UNSET,
        *,
        actor: str | None = None,
        reason: str | None = None,
        mark: str | None = None,
    ) -> TransactionBlock:
        """``with store.transaction(...) as tx``: several calls as one transaction.

        They become one journal entry, one batch for the hooks and one rollback step of ``session_id``. Reads inside see
        what was written inside; nobody else does before the end. An exception undoes everything.
        """
        return TransactionBlock(self, Block(self._use(), session_id, actor, reason, mark))

    def promote_session(
        self,
        session_id: str,
        selector: Selector | Filters | None = None,
        actor: str | None = None,
        reason: str | None = None,
    ) -> list[str]:
        """Make a session's facts long-term (``session_id=None``), in one transaction; returns their ids.

        :param selector: a filter, or a function of the fact's dict; default: all but the ephemeral ones.
        :raises ConflictError: two facts would have one singleton value.
        """
        engine = self._use()
        result: list[str] = run(engine.do(self._promote(session_id, selector), Operation.PROMOTE, actor, reason))
        return result

    def discard_session(self, session_id: str, actor: str | None = None, reason: str | None = None) -> int:
        """Delete all facts of a session, in one transaction; returns how many there were.

        :raises ImmutableError: one of them is immutable.
        """
        engine = self._use()
        result: int = run(engine.do(self._discard(session_id), Operation.DISCARD_SESSION, actor, reason))
        return result

    def migrate_facts(self, typename: str | None = None, actor: str | None = None, reason: str | None = None) -> int:
        """Rewrite the facts whose schema has a newer version; returns how many.

        One transaction, which the history of the long-term line records.
        """
        engine = self._use()
        result: int = run(engine.do(self._migration(typename), Operation.MIGRATE, actor, reason))
        return result

    # Going back

    def rollback(
        self,
        session_id: str | None | int = None,
        steps: int = 1,
        to: Target | None = None,
        *,
        on_conflict: OnConflict = "raise",
        actor: str | None = None,
        reason: str | None = None,
    ) -> Moved:
        """Undo a session's last transactions; returns them, newest first. None is the long-term line.

        One transaction with one batch for the hooks; if a hook fails, nothing is rolled back.

        :param steps: how many; fewer there: all of them. (``rollback(1)`` means one step of the long-term line.)
        :param to: undo what came after this: a transaction or its id, a savepoint's name, a mark, or an aware datetime.
        :param on_conflict: ``"keep"``: leave facts that another session has changed since; ``kept`` names them.
        :raises ConflictError: another session has changed one of the facts since; nothing was changed.
        :raises NotFoundError: ``to`` is not in the session's past.
        :raises ValueError: ``steps`` is not a whole number from 0.
        """
        if isinstance(session_id, int):
            steps, session_id = session_id, None
        return run(moves.rollback(self._use(), session_id, steps, to, on_conflict, actor, reason))

    def redo(
        self,
        session_id: str | None = None,
        steps: int = 1,
        *,
        on_conflict: OnConflict = "raise",
        actor: str | None = None,
        reason: str | None = None,
    ) -> Moved:
        """Do again what the last rollback undid, as long as nothing was committed since; returns it, oldest first."""
        return run(moves.redo(self._use(), session_id, steps, on_conflict, actor, reason))

    def checkout(
        self,
        session_id: str | None,
        transaction_id: str | Transaction | None,
        *,
        on_conflict: OnConflict = "raise",
        actor: str | None = None,
        reason: str | None = None,
    ) -> Moved:
        """Go to any transaction of a session, also on a line that was left (None: before the first).

        What lies between is undone back to the common ancestor, and then done again; a savepoint or mark names one too.

        :raises NotFoundError: the session has no such transaction.
        """
        return run(moves.checkout(self._use(), session_id, transaction_id, on_conflict, actor, reason))

    def savepoint(self, session_id: str | None, name: str) -> str | None:
        """Name the place where a session stands, for :meth:`rollback`; the same name again moves it.

        Returns the id of the transaction on which it stands (None: before the first).
        """
        return run(self._use().set_savepoint(session_id, name))

    def history(
        self,
        session_id: str | None | Unset = UNSET,
        *,
        fact_id: str | None = None,
        mark: str | None = None,
        limit: int | None = 100,
        before: str | int | Transaction | None = None,
    ) -> list[Transaction]:
        """Transactions, newest first, rollbacks included: of a session, of a fact, with a mark, or all.

        :param fact_id: only those that changed this fact, with that change alone.
        :param limit: how many at most; the next page is ``before=`` the last one of this.
        """
        return run(self._use().history(session_id, fact_id, mark, limit, before))

    # Reading

    def get(self, fact_id: str) -> dict[str, Any] | None:
        """A fact as plain data, or None: ``id type payload source session_id ts version ephemeral``."""
        return self._dict(run(self._use().get(fact_id)))

    def get_model(self, fact_id: str) -> Any:
        """A fact's payload as an instance of its model.

        :raises NotFoundError: there is no such fact, or its type is not registered.
        :raises ValidationFailed: it does not fit the model (any more).
        """
        return self._model(fact_id, run(self._use().get(fact_id)))

    def query(
        self,
        typename: str | None = None,
        filters: Filters | None = None,
        session_id: str | None | Unset = UNSET,
        limit: int | None = None,
        offset: int = 0,
        order_by: str | Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Facts as plain data, in the order in which they were made unless ``order_by`` says otherwise.

        :param filters: see :mod:`memstate_core.filters`.
        :param session_id: default: all sessions; None: long-term facts only.
        :param order_by: ``"ts"``, ``"-payload.age"``, or several; see :func:`memstate_core.filters.compile_order`.
        :raises ValueError: an unknown operator, a negative limit or offset.
        """
        engine = self._use()
        facts = run(engine.query(typename, filters, session_id, limit, offset, order_by))
        return plain(facts, engine.registry.decode)

    def count(
        self, typename: str | None = None, filters: Filters | None = None, session_id: str | None | Unset = UNSET
    ) -> int:
        """How many facts :meth:`query` would return."""
        return run(self._use().count(typename, filters, session_id))

    def search(
        self,
        query: str,
        limit: int = 5,
        filters: Filters | None = None,
        score_threshold: float | None = None,
        session_id: str | None | Unset = UNSET,
        typename: str | None = None,
    ) -> list[ScoredFact]:
        """The facts most similar to a text, best first, as they are committed now.

        :param score_threshold: the least similarity; higher is better, on every index.
        :raises HookError: no hook can search, or one failed to.

        The other parameters are those of :meth:`query`. Several indexes are merged by reciprocal rank.
        """
        return run(search.search(self._use(), query, limit, filters, score_threshold, session_id, typename))

    # Records

    def put_record(self, collection: str, key: str, value: bytes) -> None:
        """Keep an opaque value under a collection and key. Records are not versioned and not rolled back."""
        run(self._use().write_record(record_write(collection, key, value)))

    def delete_record(self, collection: str, key: str) -> None:
        """Forget a record, if there is one."""
        run(self._use().write_record(record_write(collection, key, None)))

    def get_record(self, collection: str, key: str) -> bytes | None:
        """A record's value, or None."""
        return run(self._use().read_record(collection, key))

    def scan_records(
        self,
        collection: str,
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Record]:
        """Records ``(key, value)`` with ``start <= key < end``, by code point of the key."""
        return run(self._use().scan_records(collection, start, end, limit, reverse))

    # Indexes

    def recover(self) -> Recovered:
        """Heal facts that a crash or a failed hook left in doubt. The first call of a store with hooks does it too.

        :raises HookError: a hook failed again; the facts stay in doubt.
        """
        return run(self._use().recovery.heal_abandoned())

    def verify(self) -> list[Drift]:
        """How each index differs from storage; an empty :class:`Drift` is falsy."""
        return run(self._use().verify())

    def repair(self) -> list[Drift]:
        """Mend what :meth:`verify` finds; returns it."""
        return run(self._use().repair())

    def reindex(self, hook: str | None = None) -> int:
        """Give a hook (by name; None: all) every fact anew; returns how many facts there are."""
        return run(self._use().reindex(hook))

    # Opening and closing

    def close(self) -> None:
        """End the store's use. The storage and the hooks' clients are their owners' to close."""
        self._closed = True
        self._engine.runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class TransactionBlock:
    """Several calls as one transaction; see :meth:`MemoryStore.transaction`.

    Its methods are those of :class:`MemoryStore`; ``session_id`` defaults to the block's.
    """

    def __init__(self, store: MemoryStore, block: Block) -> None:
        self._store = store
        self._block = block

    @property
    def transaction_id(self) -> str | None:
        """The id of the transaction, when the block has ended and had changed something."""
        return self._block.transaction_id

    def __enter__(self) -> Self:
        run(self._block.begin())
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            run(self._block.commit())
        else:
            self._block.abandon()

    def commit(
        self,
        fact: Fact,
        session_id: str | None | Unset = UNSET,
        ephemeral: bool = False,
        *,
        expected_version: int | None = None,
    ) -> str:
        """Same as :meth:`MemoryStore.commit`, in this transaction."""
        result: str = run(self._block.do(self._block.put(fact, session_id, ephemeral, expected_version)))
        return result

    def commit_model(
        self,
        model: BaseModel,
        fact_id: str | None = None,
        source: str | None = None,
        session_id: str | None | Unset = UNSET,
        ephemeral: bool = False,
        *,
        typename: str | None = None,
        expected_version: int | None = None,
    ) -> str:
        """Same as :meth:`MemoryStore.commit_model`, in this transaction."""
        intent = self._block.put_model(model, fact_id, typename, source, session_id, ephemeral, expected_version)
        result: str = run(self._block.do(intent))
        return result

    def update(self, fact_id: str, patch: Patch, *, deep: bool = False, expected_version: int | None = None) -> str:
        """Same as :meth:`MemoryStore.update`, in this transaction."""
        result: str = run(self._block.do(self._block.engine.patch(fact_id, patch, deep, expected_version)))
        return result

    def delete(self, fact_id: str, *, expected_version: int | None = None) -> str:
        """Same as :meth:`MemoryStore.delete`, in this transaction."""
        result: str = run(self._block.do(self._block.engine.remove(fact_id, UNSET, expected_version)))
        return result

    def promote_session(self, session_id: str, selector: Selector | Filters | None = None) -> list[str]:
        """Same as :meth:`MemoryStore.promote_session`, in this transaction."""
        result: list[str] = run(self._block.do(self._store._promote(session_id, selector)))
        return result

    def discard_session(self, session_id: str) -> int:
        """Same as :meth:`MemoryStore.discard_session`, in this transaction."""
        result: int = run(self._block.do(self._store._discard(session_id)))
        return result

    def get(self, fact_id: str) -> dict[str, Any] | None:
        """Same as :meth:`MemoryStore.get`, with this transaction's changes."""
        return self._store._dict(run(self._block.get(fact_id)))

    def get_model(self, fact_id: str) -> Any:
        """Same as :meth:`MemoryStore.get_model`, with this transaction's changes."""
        return self._store._model(fact_id, run(self._block.get(fact_id)))

    def query(
        self,
        typename: str | None = None,
        filters: Filters | None = None,
        session_id: str | None | Unset = UNSET,
        limit: int | None = None,
        offset: int = 0,
        order_by: str | Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Same as :meth:`MemoryStore.query`, with this transaction's changes."""
        engine = self._block.engine
        facts = run(self._block.select(engine.selection(typename, filters, session_id, limit, offset, order_by)))
        return plain(facts, engine.registry.decode)

    def count(
        self, typename: str | None = None, filters: Filters | None = None, session_id: str | None | Unset = UNSET
    ) -> int:
        """Same as :meth:`MemoryStore.count`, with this transaction's changes."""
        return run(self._block.count(self._block.engine.selection(typename, filters, session_id)))

    def put_record(self, collection: str, key: str, value: bytes) -> None:
        """Same as :meth:`MemoryStore.put_record`, in this transaction."""
        self._block.put_record(record_write(collection, key, value))

    def delete_record(self, collection: str, key: str) -> None:
        """Same as :meth:`MemoryStore.delete_record`, in this transaction."""
        self._block.put_record(record_write(collection, key, None))

    def get_record(self, collection: str, key: str) -> bytes | None:
        """Same as :meth:`MemoryStore.get_record`, with this transaction's changes."""
        return run(self._block.record(collection, key))

    def scan_records(
        self,
        collection: str,
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[Record]:
        """Same as :meth:`MemoryStore.scan_records`, with this transaction's changes."""
        return run(self._block.scan(collection, start, end, limit, reverse))

    def savepoint(self) -> BlockSavepoint:
        """Remember the state of this transaction; an exception in ``with tx.savepoint():`` goes back to it, and on."""
        return BlockSavepoint(self._block)


class BlockSavepoint:
    """A place inside of a transaction block. Works the same in both flavours: nothing waits."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._kept: Kept = block.keep()

    def rollback(self) -> None:
        """Undo what the block has done since."""
        self._block.go_back(self._kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is not None:
            self.rollback()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, traceback)
