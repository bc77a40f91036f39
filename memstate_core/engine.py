"""Every rule of the store, once, as coroutines over a storage.

The engine decides and the storage does: a *planner* reads through a storage transaction and returns a
:class:`~memstate_core.commit.Plan`, which :mod:`memstate_core.commit` carries out. The engine itself holds no lock, no
event loop and no connection.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel

from memstate_core._bridge import Runtime
from memstate_core.ahead import can_be_planned, plan_ahead
from memstate_core.changes import Images, images_of, to_transaction
from memstate_core.commit import Committer, Plan
from memstate_core.definitions import Definitions
from memstate_core.delivery import Deliverer
from memstate_core.errors import ValidationFailed
from memstate_core.facts import (
    UNSET,
    Entry,
    Fact,
    Operation,
    StoredFact,
    Transaction,
    TransactionContext,
    Unset,
    new_id,
    transaction_id,
)
from memstate_core.filters import compile_filter, compile_order
from memstate_core.hooks._adapter import HookAdapter
from memstate_core.intents import Intent, Patch, Put, Remove, Workspace
from memstate_core.progress import Progress
from memstate_core.protocols import (
    Batch,
    NewEntry,
    Position,
    Record,
    RecordWrite,
    Savepoint,
    Selection,
    Storage,
    StorageTransaction,
)
from memstate_core.rebuilding import Rebuilding
from memstate_core.recovery import Recovery
from memstate_core.reindexing import Reindexing
from memstate_core.schemas import Constraint, SchemaRegistry
from memstate_core.values import (
    check_identifier,
    check_range,
    check_text,
    count,
    count_or_none,
    seq_of,
    timestamp,
    timestamp_now,
)
from memstate_core.verification import Report, Verification

OnConflict = Literal["raise", "keep"]
ContextProvider = Callable[[], TransactionContext | None]
# The seq at which a session stood, found in the transaction that reads.
Locate = Callable[[StorageTransaction], Awaitable[int]]
# The session and the place that something names; None: it names none.
Locator = Callable[[Any], tuple[str | None, Locate] | None]


def now_utc() -> datetime:
    return datetime.now(UTC)


class Engine:
    """One store's rules on one namespace of a storage."""

    def __init__(
        self,
        storage: Storage,
        runtime: Runtime,
        *,
        namespace: str = "default",
        registry: SchemaRegistry | None = None,
        allow_unregistered: bool = False,
        context: ContextProvider | None = None,
        clock: Callable[[], datetime] = now_utc,
        claim_timeout: float = 10.0,
        lease: float = 30.0,
    ) -> None:
        check_identifier("namespace", namespace)
        self.storage = storage
        self.namespace = namespace
        self.runtime = runtime
        self.registry = registry or SchemaRegistry(allow_unregistered=allow_unregistered)
        self.hooks: list[HookAdapter] = []
        self._told_in_commits: list[HookAdapter] = []
        self.context = context
        # What integrations take for a place in a session's history, beside transactions, savepoints and marks.
        self.locators: list[Locator] = []
        self.clock = clock
        self.recovery = Recovery(storage, namespace, runtime, self.registry.decode, lease, claim_timeout)
        self.verification = Verification(self.recovery)
        rebuilding = Rebuilding(self.recovery, self.verification, self._replace_hook)
        self.recovery.catch_up = rebuilding.catch_up
        self.reindexing = Reindexing(self.recovery, rebuilding)
        self.deliverer = Deliverer(storage, namespace, runtime, self.registry.decode, self.recovery, lease)
        self.committer = Committer(
            storage,
            namespace,
            runtime,
            self._told_in_commits,
            self.deliverer.hooks,
            self.registry.decode,
            self.recovery,
            lease,
            claim_timeout,
        )
        self.definitions = Definitions(storage, namespace, self.registry)
        self._looked_for_doubt = True

    def add_hook(self, hook: HookAdapter) -> None:
        self.recovery.add(hook)
        self.hooks.append(hook)
        (self.deliverer.hooks if hook.deferred else self._told_in_commits).append(hook)
        self._looked_for_doubt = False

    def _replace_hook(self, old: HookAdapter, new: HookAdapter) -> None:
        """Let a hook take another one's place. Who uses the old one meanwhile finds that its successor has come."""
        old.successor = new
        self.recovery.hooks[old.name] = new
        for hooks in (self.hooks, self._told_in_commits, self.deliverer.hooks):
            hooks[:] = [new if hook is old else hook for hook in hooks]

    # Schemas

    def register_schema(
        self,
        typename: str,
        model: type[BaseModel],
        constraint: Constraint | None,
        index: Iterable[str],
        migrate: Callable[..., Mapping[str, Any]] | None,
        version: int,
    ) -> None:
        self.registry.register(typename, model, constraint, index=index, migrate=migrate, version=version)

    async def ready(self) -> None:
        """Before every call: storage knows our schemas, and what a crash left behind has been looked at once."""
        if self.definitions.unpublished:
            await self.definitions.publish()
        if not self._looked_for_doubt:
            self._looked_for_doubt = True
            await self.recovery.heal_in_passing()

    # Writing

    def put(
        self,
        fact: Fact,
        session_id: str | None | Unset,
        ephemeral: bool,
        expected_version: int | None,
    ) -> Put:
        """The intent of ``commit(fact)``."""
        if not isinstance(fact, Fact):
            raise ValidationFailed(f"commit takes a Fact, not {fact!r}; for a model instance there is commit_model")
        check_identifier("the fact's type", fact.type)
        check_identifier("the fact's id", fact.id)
        check_text("the fact's source", fact.source)
        if isinstance(session_id, Unset) and fact.session_id is not None:
            session_id = fact.session_id
        schema = self.registry.get(fact.type)
        return Put(
            fact.id,
            False,
            fact.type,
            self.registry.encode(fact.type, fact.payload),
            schema.definition.schema_version if schema else 1,
            fact.source,
            self._session(session_id, ephemeral or fact.ephemeral),
            None if fact.ts is None else timestamp("the fact's ts", fact.ts),
            ephemeral or fact.ephemeral,
            count_or_none("expected_version", expected_version),
        )

    def put_model(
        self,
        model: BaseModel,
        fact_id: str | None,
        typename: str | None,
        source: str | None,
        session_id: str | None | Unset,
        ephemeral: bool,
        expected_version: int | None,
    ) -> Put:
        """The intent of ``commit_model(model)``."""
        if not isinstance(model, BaseModel):
            raise ValidationFailed(
                f"commit_model takes a Pydantic model instance, not {model!r}; for plain data commit a Fact"
            )
        schema = self.registry.for_model(type(model), typename)
        if fact_id is not None:
            check_identifier("fact_id", fact_id)
        if source is not None:
            check_text("source", source)
        return Put(
            fact_id or new_id(),
            fact_id is None,
            schema.typename,
            schema.encode_model(model),
            schema.definition.schema_version,
            source,
            self._session(session_id, ephemeral),
            None,
            ephemeral,
            count_or_none("expected_version", expected_version),
        )

    def patch(self, fact_id: str, patch: Mapping[str, Any], deep: bool, expected_version: int | None) -> Patch:
        check_identifier("fact_id", fact_id)
        if not isinstance(patch, (dict, Mapping)):  # a dict is soon told, and mostly it is one
            raise ValidationFailed(f"a patch is a dict of the fields to change, not {patch!r}")
        return Patch(fact_id, patch, deep, count_or_none("expected_version", expected_version))

    def remove(self, fact_id: str, session_id: str | None | Unset, expected_version: int | None) -> Remove:
        check_identifier("fact_id", fact_id)
        if not isinstance(session_id, Unset):
            check_identifier("session_id", session_id, optional=True)
        return Remove(fact_id, session_id, count_or_none("expected_version", expected_version))

    def session_of(self, session_id: str | None | Unset) -> str | None:
        """The session of a write: the one given, else the context's, else none."""
        if isinstance(session_id, Unset):
            context = self.context() if self.context else None
            if context is None or isinstance(context.session_id, Unset):
                return None
            session_id = context.session_id
        if session_id is not None:
            check_identifier("session_id", session_id)
        return session_id

    def _session(self, session_id: str | None | Unset, ephemeral: bool) -> str | None:
        session_id = self.session_of(session_id)
        if session_id is None and ephemeral:
            raise ValidationFailed("an ephemeral fact belongs to a session; pass session_id")
        return session_id

    async def carry_out(
        self,
        intents: Sequence[Intent],
        operation: Operation,
        *,
        session_id: str | None | Unset = UNSET,
        actor: str | None = None,
        reason: str | None = None,
        mark: str | None = None,
        records: Sequence[RecordWrite] = (),
        check: Callable[[Workspace, list[Any]], None] | None = None,
    ) -> Plan:
        """Carry out intents as one transaction; the plan's ``result`` is the list of what each returned.

        ``session_id`` UNSET: the history of the session that the (single) intent names. ``check`` may refuse the
        outcome before anything is written.
        """
        await self.ready()
        actor, mark = self.attribution(actor, reason, mark)

        async def planner(tx: StorageTransaction) -> Plan:
            ts = self._now()
            while True:
                space = Workspace(tx, self.registry, self.definitions.by_type, ts)
                results, ids_are_new = [], True
                for intent in intents:
                    results.append(await intent.apply(space))
                    ids_are_new = ids_are_new and isinstance(intent, Put) and intent.generated
                line = space.line if isinstance(session_id, Unset) else session_id
                position = await tx.position(line)
                if position.generation == self.definitions.generation:
                    break
                await self.definitions.read(tx)
            if check is not None:
                check(space, results)
            changes = space.changes()
            entry = NewEntry(line, operation, actor, reason, mark, ts, position.head) if changes else None
            return Plan(position, results, line, Batch(entry, changes, records=records), ids_are_new)

        hooks = self._told_in_commits
        if hooks and can_be_planned(intents, self.definitions, hooks):
            return await self.committer.commit(planner, await plan_ahead(planner, self.definitions))
        return await self.committer.commit(planner)

    async def workspace(self, tx: StorageTransaction) -> Workspace:
        """A workspace outside of :meth:`carry_out`, with the definitions as they are."""
        return Workspace(tx, self.registry, await self.definitions.read(tx), self._now())

    async def do(self, intent: Intent, operation: Operation, actor: str | None, reason: str | None) -> Any:
        """Carry out one intent; returns what it returned."""
        line: str | None | Unset = UNSET
        if isinstance(intent, Patch) or (isinstance(intent, Remove) and isinstance(intent.session_id, Unset)):
            context = self.context() if self.context else None
            line = context.session_id if context is not None else UNSET
        plan = await self.carry_out((intent,), operation, session_id=line, actor=actor, reason=reason)
        return plan.result[0]

    async def set_savepoint(self, session_id: str | None, name: str) -> str | None:
        """Name the place where a session stands; returns the id of the transaction it stands on."""
        check_identifier("the savepoint's name", name)
        check_identifier("session_id", session_id, optional=True)
        await self.ready()

        async def planner(tx: StorageTransaction) -> Plan:
            position = await tx.position(session_id)
            savepoint = Savepoint(session_id, name, position.head)
            return Plan(position, transaction_id(position.head), session_id, Batch(savepoint=savepoint))

        result: str | None = (await self.committer.commit(planner)).result
        return result

    def _now(self) -> str:
        # The default clock is asked at every commit.
        return timestamp_now() if self.clock is now_utc else timestamp("the clock's time", self.clock())

    def attribution(self, actor: str | None, reason: str | None, mark: str | None) -> tuple[str | None, str | None]:
        if self.context is not None:
            context = self.context()
            if context is not None:
                actor = context.actor if actor is None else actor
                mark = context.mark if mark is None else mark
        if actor is not None:
            check_text("actor", actor)
        if reason is not None:
            check_text("reason", reason)
        if mark is not None:
            check_identifier("mark", mark)
        return actor, mark

    def new_entry(
        self,
        session_id: str | None,
        operation: Operation,
        position: Position,
        *,
        actor: str | None,
        reason: str | None,
        mark: str | None,
        head: int | None,
        redo: int,
    ) -> NewEntry:
        """The journal entry of a move of the head."""
        return NewEntry(session_id, operation, actor, reason, mark, self._now(), position.head, head, redo)

    # Reading

    async def get(self, fact_id: str) -> StoredFact | None:
        await self.ready()
        check_identifier("fact_id", fact_id)

        async def work(tx: StorageTransaction) -> StoredFact | None:
            return (await tx.facts((fact_id,))).get(fact_id)

        return await self.storage.read(self.namespace, work)

    def selection(
        self,
        typename: str | None,
        filters: Mapping[str, Any] | None,
        session_id: str | None | Unset,
        limit: int | None = None,
        offset: int = 0,
        order_by: str | Sequence[str] | None = None,
    ) -> Selection:
        """A query, checked and compiled.

        :raises ValueError: an unknown operator, or a limit or offset that is no count.
        """
        if typename is not None:
            check_identifier("typename", typename)
        if not isinstance(session_id, Unset) and session_id is not None:
            check_identifier("session_id", session_id)
        return Selection(
            decode=self.registry.decode,
            typename=typename,
            session_id=session_id,
            predicate=compile_filter(filters),
            order=compile_order(order_by),
            limit=count_or_none("limit", limit),
            offset=count("offset", offset),
            indexed=self.definitions.indexed(typename),
            as_stored=not self.registry.upgrades(typename),
        )

    async def query(
        self,
        typename: str | None,
        filters: Mapping[str, Any] | None,
        session_id: str | None | Unset,
        limit: int | None,
        offset: int,
        order_by: str | Sequence[str] | None,
    ) -> list[StoredFact]:
        await self._know_indexes()
        selection = self.selection(typename, filters, session_id, limit, offset, order_by)
        return await self.storage.read(self.namespace, lambda tx: tx.select(selection))

    async def count(
        self, typename: str | None, filters: Mapping[str, Any] | None, session_id: str | None | Unset
    ) -> int:
        await self._know_indexes()
        selection = self.selection(typename, filters, session_id)
        return await self.storage.read(self.namespace, lambda tx: tx.count(selection))

    async def _know_indexes(self) -> None:
        await self.ready()
        await self.definitions.known()

    async def history(
        self,
        session_id: str | None | Unset,
        fact_id: str | None,
        mark: str | None,
        limit: int | None,
        before: str | int | Transaction | None,
    ) -> list[Transaction]:
        """Journal entries newest first; with ``fact_id`` only that fact's changes are in them."""
        limit = count_or_none("limit", limit)
        if not isinstance(session_id, Unset):
            check_identifier("session_id", session_id, optional=True)
        check_identifier("fact_id", fact_id, optional=True)
        check_identifier("mark", mark, optional=True)
        seq = None if before is None else seq_of(before)

        async def work(tx: StorageTransaction) -> list[Transaction]:
            entries = await tx.history(session_id=session_id, fact_id=fact_id, mark=mark, before=seq, limit=limit)
            if fact_id is not None:
                entries = [_only(entry, fact_id) for entry in entries]
            return await self.transactions(tx, entries)

        await self.ready()
        return await self.storage.read(self.namespace, work, snapshot=True)

    async def transactions(self, tx: StorageTransaction, entries: Sequence[Entry]) -> list[Transaction]:
        """Journal entries with the facts that they speak of."""
        images = await tx.versions(images_of(entries))
        return [self.transaction(entry, images) for entry in entries]

    def transaction(self, entry: Entry, images: Images) -> Transaction:
        return to_transaction(entry, images, self.registry.decode)

    # Records

    async def write_record(self, write: RecordWrite) -> None:
        await self.ready()
        await self.storage.write(self.namespace, lambda tx: tx.write(Batch(records=(write,))))

    async def read_record(self, collection: str, key: str) -> bytes | None:
        check_identifier("collection", collection)
        check_identifier("key", key)
        return await self.storage.read(self.namespace, lambda tx: tx.record(collection, key))

    async def scan_records(
        self, collection: str, start: str | None, end: str | None, limit: int | None, reverse: bool
    ) -> list[Record]:
        limit = count_or_none("limit", limit)
        check_range(collection, start, end)
        return await self.storage.read(
            self.namespace, lambda tx: tx.scan(collection, start=start, end=end, limit=limit, reverse=reverse)
        )

    # Indexes

    async def verify(self, progress: Progress | None) -> Report:
        await self.ready()
        return await self.verification.verify(progress)

    async def repair(self, progress: Progress | None) -> Report:
        await self.ready()
        return await self.verification.repair(progress)

    async def reindex(self, hook: str | None, into: Any, progress: Progress | None) -> int:
        await self.ready()
        if into is not None:
            return await self.reindexing.rebuild(hook, into, progress)
        return await self.reindexing.reindex(hook, progress)

    async def deliver(self, limit: int | None) -> int:
        limit = count_or_none("limit", limit)
        await self.ready()
        return await self.deliverer.drain(limit)


def _only(entry: Entry, fact_id: str) -> Entry:
    return entry._replace(changes=tuple(change for change in entry.changes if change.fact_id == fact_id))
