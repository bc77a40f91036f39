"""What happens between ``with store.transaction()`` and its end.

Nothing is written before the end: the block keeps what it was asked to do, and shows its reads what that comes to.
At the end everything is done again on the facts as they are then, in one transaction; if that came to something else
than the block was told, or if a fact that it read and changed has moved on, nothing is written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

from memstate_core.commit import Plan
from memstate_core.engine import Engine
from memstate_core.errors import BusyError, ClosedError, NotFoundError, ValidationFailed
from memstate_core.facts import Fact, Operation, StoredFact, Unset, transaction_id
from memstate_core.intents import Discard, Intent, Promote, Put, Workspace
from memstate_core.protocols import Record, RecordWrite, Selection, StorageTransaction
from memstate_core.values import check_identifier, check_range, count_or_none

T = TypeVar("T")


class Kept(NamedTuple):
    """The block's state at a savepoint."""

    intents: int
    space: Workspace | None
    records: dict[tuple[str, str], bytes | None]


class Block:
    """A transaction block: sync and async stores wrap it."""

    def __init__(
        self,
        engine: Engine,
        session_id: str | None | Unset,
        actor: str | None,
        reason: str | None,
        mark: str | None,
    ) -> None:
        self.engine = engine
        self.session_id = engine.session_of(session_id)
        self._actor, self._reason, self._mark = actor, reason, mark
        self._intents: list[Intent] = []
        self._results: list[Any] = []
        self._space: Workspace | None = None
        self._reads: dict[str, int] = {}
        self._records: dict[tuple[str, str], bytes | None] = {}
        self._state = "not entered"
        self.transaction_id: str | None = None

    async def begin(self) -> None:
        if self._state != "not entered":
            raise ClosedError("a transaction block is entered once; call store.transaction() again")
        await self.engine.ready()
        self._state = "open"

    def put(self, fact: Fact, session_id: str | None | Unset, ephemeral: bool, expected_version: int | None) -> Put:
        """The intent of ``tx.commit(fact)``: the fact's own session goes before the block's."""
        if isinstance(session_id, Unset) and getattr(fact, "session_id", None) is None:
            session_id = self.session_id
        return self.engine.put(fact, session_id, ephemeral, expected_version)

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
        if isinstance(session_id, Unset):
            session_id = self.session_id
        return self.engine.put_model(model, fact_id, typename, source, session_id, ephemeral, expected_version)

    async def do(self, intent: Intent) -> Any:
        """Try an intent on what the block sees; it is done for good at the end."""
        try:
            result = await self._look(intent.apply)
        except Exception:
            if isinstance(intent, Promote | Discard):  # these can fail when they have changed something already
                self._space = None
            raise
        self._intents.append(intent)
        self._results.append(result)
        return result

    async def get(self, fact_id: str) -> StoredFact | None:
        check_identifier("fact_id", fact_id)

        async def look(space: Workspace) -> StoredFact | None:
            fact = await space.get(fact_id)
            self._note(space, fact_id)
            return fact

        return await self._look(look)

    async def select(self, selection: Selection) -> list[StoredFact]:
        async def look(space: Workspace) -> list[StoredFact]:
            facts = await space.select(selection)
            for fact in facts:
                if fact.id not in space.now:
                    self._reads.setdefault(fact.id, fact.version)
            return facts

        return await self._look(look)

    async def count(self, selection: Selection) -> int:
        return await self._look(lambda space: space.count(selection))

    def _note(self, space: Workspace, fact_id: str) -> None:
        before = space.base.get(fact_id)
        self._reads.setdefault(fact_id, before.version if before else 0)

    async def _look(self, look: Callable[[Workspace], Awaitable[T]]) -> T:
        self._check_open()

        current = self._space

        async def work(tx: StorageTransaction) -> tuple[Workspace, T]:
            space = current
            if space is None:
                space = await self.engine.workspace(tx)
                for intent in self._intents:
                    await intent.apply(space)
            space.tx = tx
            return space, await look(space)

        try:
            self._space, result = await self.engine.storage.read(self.engine.namespace, work)
        except Exception:
            raise
        except BaseException:
            # The call was cancelled, and a storage with a thread of its own may still be at work on the workspace.
            self._space = None
            raise
        return result

    def _check_open(self) -> None:
        if self._state != "open":
            raise ClosedError(f"this transaction block is {self._state}; call store.transaction() for a new one")

    # Records

    def put_record(self, write: RecordWrite) -> None:
        self._check_open()
        self._records[write.collection, write.key] = write.value

    async def record(self, collection: str, key: str) -> bytes | None:
        check_identifier("collection", collection)
        check_identifier("key", key)
        if (collection, key) in self._records:
            return self._records[collection, key]
        return await self._look(lambda space: space.tx.record(collection, key))

    async def scan(
        self, collection: str, start: str | None, end: str | None, limit: int | None, reverse: bool
    ) -> list[Record]:
        mine = {key: value for (where, key), value in self._records.items() if where == collection}
        limit = count_or_none("limit", limit)
        check_range(collection, start, end)
        wide = None if limit is None else limit + len(mine)
        stored = await self._look(
            lambda space: space.tx.scan(collection, start=start, end=end, limit=wide, reverse=reverse)
        )
        merged = {record.key: record.value for record in stored if record.key not in mine}
        merged |= {
            key: value
            for key, value in mine.items()
            if value is not None and (start is None or key >= start) and (end is None or key < end)
        }
        return [Record(key, merged[key]) for key in sorted(merged, reverse=reverse)][:limit]

    # Savepoints

    def keep(self) -> Kept:
        """Remember the block's state."""
        self._check_open()
        space = self._space.copy() if self._space is not None else None
        return Kept(len(self._intents), space, dict(self._records))

    def go_back(self, kept: Kept) -> None:
        """Forget what was done since; what was read since stays read."""
        self._check_open()
        if kept.intents > len(self._intents):
            raise NotFoundError("this savepoint lies behind one that was rolled back already")
        del self._intents[kept.intents :]
        del self._results[kept.intents :]
        self._space = kept.space.copy() if kept.space is not None else None
        self._records = dict(kept.records)

    # The end

    async def commit(self) -> None:
        """Carry everything out as one transaction.

        :raises BusyError: another transaction changed what this one read or was told; run the block again.
        """
        self._state = "ended"
        if not self._intents and not self._records:
            return
        plan: Plan = await self.engine.carry_out(
            self._intents,
            Operation.TRANSACTION,
            session_id=self.session_id,
            records=[RecordWrite(*where, value) for where, value in self._records.items()],
            check=self._check,
            actor=self._actor,
            reason=self._reason,
            mark=self._mark,
        )
        self.transaction_id = transaction_id(plan.seq)

    def abandon(self) -> None:
        self._state = "ended"

    def _check(self, space: Workspace, results: Sequence[Any]) -> None:
        for told, result in zip(self._results, results, strict=True):
            if told != result:
                raise BusyError(
                    f"another transaction came between: a call of this block returned {told!r}, and would now return "
                    f"{result!r}; run the block again"
                )
        for change in space.changes():
            fact_id = change.fact_id
            actual = change.before.version if change.before else 0
            if self._reads.get(fact_id, actual) != actual:
                raise BusyError(
                    f"fact {fact_id!r} was read at version {self._reads[fact_id]} by this block and is at version "
                    f"{actual} now; run the block again",
                    fact_id=fact_id,
                    expected_version=self._reads[fact_id],
                    actual_version=actual,
                )


def record_write(collection: str, key: str, value: bytes) -> RecordWrite:
    """A checked record write.

    :raises ValidationFailed: a collection or key that not every storage could keep, or a value that is not bytes.
    """
    if not isinstance(value, bytes | bytearray | memoryview):
        raise ValidationFailed(f"a record's value is bytes, not {type(value).__name__}; encode it first")
    return record_deletion(collection, key)._replace(value=bytes(value))


def record_deletion(collection: str, key: str) -> RecordWrite:
    """A checked deletion of a record."""
    check_identifier("collection", collection)
    check_identifier("key", key)
    return RecordWrite(collection, key, None)


def plain(facts: Sequence[StoredFact], decode: Callable[[StoredFact], dict[str, Any]]) -> list[dict[str, Any]]:
    """Facts as plain data of the caller's own."""
    return [fact.to_dict(decode(fact)) for fact in facts]
