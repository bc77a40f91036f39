"""The sync store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel

from memstate_core import moves, search
from memstate_core._bridge import SyncRuntime, run
from memstate_core.block import Block, plain, record_deletion, record_write
from memstate_core.delivery import Lag
from memstate_core.engine import ContextProvider, OnConflict, now_utc
from memstate_core.facts import (
    UNSET,
    Fact,
    Moved,
    Operation,
    ScoredFact,
    Transaction,
    Unset,
)
from memstate_core.hooks._adapter import DeliveryMode
from memstate_core.intents import Selector
from memstate_core.moves import Target
from memstate_core.progress import Progress, shown
from memstate_core.protocols import Record, Storage
from memstate_core.recovery import Recovered
from memstate_core.schemas import SchemaRegistry
from memstate_core.store_base import Filters, Patch, StoreBase
from memstate_core.transaction_block import TransactionBlock
from memstate_core.verification import Report
from memstate_core.views import MemoryView


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
    :param delivery: ``"commit"``: the hooks take part in every commit, which fails with them; ``"deferred"``: a commit
        puts what they are to be told into the outbox, and :meth:`deliver` or ``memstate worker`` tells them.

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
        delivery: DeliveryMode = "commit",
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
            delivery,
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
        result: list[str] = run(engine.do(self.promotion(session_id, selector), Operation.PROMOTE, actor, reason))
        return result

    def discard_session(self, session_id: str, actor: str | None = None, reason: str | None = None) -> int:
        """Delete all facts of a session, in one transaction; returns how many there were.

        :raises ImmutableError: one of them is immutable.
        """
        engine = self._use()
        result: int = run(engine.do(self.discarding(session_id), Operation.DISCARD_SESSION, actor, reason))
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
        return self.as_dict(run(self._use().get(fact_id)))

    def get_model(self, fact_id: str) -> Any:
        """A fact's payload as an instance of its model.

        :raises NotFoundError: there is no such fact, or its type is not registered.
        :raises ValidationFailed: it does not fit the model (any more).
        """
        return self.as_model(fact_id, run(self._use().get(fact_id)))

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
        filters: search.SearchFilters | None = None,
        score_threshold: float | None = None,
        session_id: str | None | Unset = UNSET,
        typename: str | None = None,
    ) -> list[ScoredFact]:
        """The facts most similar to a text, best first, as they are committed now.

        :param filters: see :mod:`memstate_core.filters`; or a filter in the index's own language, such as Qdrant's
            ``models.Filter``. What is a dict there as well comes in a :class:`~memstate_core.NativeFilter`.
        :param score_threshold: the least similarity; higher is better, on every index.
        :raises HookError: no hook can search, or one failed to.

        The other parameters are those of :meth:`query`. Several indexes are merged by reciprocal rank.
        """
        return run(search.search(self._use(), query, limit, filters, score_threshold, session_id, typename))

    def at(self, where: Any, session_id: str | None = None) -> MemoryView:
        """The facts as they were when a session stood elsewhere: a view with ``get``, ``query``, ``count``, ``search``.

        :param where: a transaction or its id, a savepoint or a mark (None: before the session's first transaction), or
            what an integration adds, such as the config of a LangGraph checkpoint, which names its session itself.
        :raises NotFoundError: by the view's methods; the session has no such place.

        What other sessions have changed since is as it is now.
        """
        return MemoryView(self, self.past(where, session_id))

    # Records

    def put_record(self, collection: str, key: str, value: bytes) -> None:
        """Keep an opaque value under a collection and key. Records are not versioned and not rolled back."""
        run(self._use().write_record(record_write(collection, key, value)))

    def delete_record(self, collection: str, key: str) -> None:
        """Forget a record, if there is one."""
        run(self._use().write_record(record_deletion(collection, key)))

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

    def verify(self, *, progress: Progress | bool | None = None) -> Report:
        """How each index differs from storage: a list with a :class:`Drift` for each, falsy where nothing differs.

        Others may write meanwhile; what they are changing is no drift. Reads in batches. The facts of what seems to
        differ are claimed for a moment to look at it again, so their writers may have to wait that long.

        :param progress: True: bars, on a terminal or in a notebook, which need rich (``memstate[cli]``); or called with
            a hook's name, how much is done, and how much there is in all, as far as is known.
        :raises HookError: a hook failed to list its index.
        """
        with shown(progress) as told:
            return run(self._use().verify(told))

    def repair(self, *, progress: Progress | bool | None = None) -> Report:
        """Mend what :meth:`verify` finds, in batches and beside other writers; returns what that was.

        :raises HookError: a hook failed; the facts that it was being told are in doubt. Call it again to go on.
        :raises BusyError: another transaction held one of the facts for too long.
        """
        with shown(progress) as told:
            return run(self._use().repair(told))

    def reindex(self, hook: str | None = None, *, into: Any = None, progress: Progress | bool | None = None) -> int:
        """Give a hook (by name; None: all) every fact anew; returns how many facts there are.

        For a hook that has just been added to the store, or whose entries are to be made otherwise than before.
        Otherwise like :meth:`repair`.

        :param into: rebuild the index beside the one in use, as this hook makes it (one with another embedding model,
            say, on the same index), and put it in that one's place, and this hook in the other's. Until then the old
            index answers, and when this fails it stays in use. Others may write all the time. It waits for the
            transactions under way, so no hook may wait for it.
        :raises BusyError: or the index is being rebuilt by someone else.
        :raises MemoryStoreError: a hook calls it that is being told of a transaction.
        """
        with shown(progress) as told:
            return run(self._use().reindex(hook, into, told))

    # Deferred delivery

    def deliver(self, limit: int | None = None) -> int:
        """Tell deferred hooks what they are still to be told and what is due now; returns how many changes that were.

        Any number of processes may do this at once. A hook that fails is no error here: what it could not be told is
        due again after a pause, which :meth:`lag` shows.

        :param limit: about how many changes at most.
        """
        return run(self._use().deliver(limit))

    def lag(self) -> list[Lag]:
        """How far each deferred hook is behind."""
        return run(self._use().deliverer.lag())

    # Opening and closing

    def close(self) -> None:
        """End the store's use. The storage and the hooks' clients are their owners' to close."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
