"""Going back and forth: rollback, redo and checkout move a session's head over the tree of its transactions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from memstate_core.changes import Move, images_of, plan_move, touched
from memstate_core.commit import Plan
from memstate_core.engine import Engine, OnConflict
from memstate_core.errors import ConflictError, NotFoundError
from memstate_core.facts import (
    Entry,
    FactChange,
    IndexEntry,
    Moved,
    Operation,
    StoredFact,
    Transaction,
    transaction_id,
    transaction_seq,
)
from memstate_core.protocols import Batch, Position, RecordWrite, StorageTransaction
from memstate_core.values import check_identifier, count, timestamp

Target = str | datetime | Transaction

# So many ancestors are read at a time while a common one is looked for.
_CHUNK = 64


class Route(NamedTuple):
    """The way from the head to where it shall go: ``up`` newest first, then ``down`` oldest first.

    ``head`` None: the move is a step of the session's line like any other transaction, and the head goes to it.
    ``records`` are written with it, and ``mark`` is its own.
    """

    head: int | None
    redo: int
    up: Sequence[Entry]
    down: Sequence[Entry]
    records: Sequence[RecordWrite] = ()
    mark: str | None = None


Router = Callable[[StorageTransaction, Position], Awaitable[Route]]


async def rollback(
    engine: Engine,
    session_id: str | None,
    steps: int,
    to: Target | None,
    on_conflict: OnConflict,
    actor: str | None,
    reason: str | None,
) -> Moved:
    """See :meth:`memstate_core.MemoryStore.rollback`."""
    steps = count("steps", steps)

    async def route(tx: StorageTransaction, position: Position) -> Route:
        up = await behind(tx, session_id, position, steps, to)
        return back(position, up)

    return await move(engine, session_id, Operation.ROLLBACK, route, on_conflict, actor, reason)


async def behind(
    tx: StorageTransaction, session_id: str | None, position: Position, steps: int, to: Target | None
) -> list[Entry]:
    """What a rollback undoes, newest first."""
    if to is None:
        return await tx.line(position.head, limit=steps) if steps else []
    if isinstance(to, datetime):
        return await _newer_than(tx, position.head, timestamp("to", to))
    seq = await resolve(tx, session_id, to, position.head)
    up = await tx.line(position.head, above=seq)
    if (up[-1].parent if up else position.head) != seq:
        raise NotFoundError(
            f"{_name(to)} is not behind the place where session {session_id!r} stands, so it cannot be "
            "rolled back to; checkout() goes to any transaction"
        )
    return up


def back(position: Position, up: Sequence[Entry]) -> Route:
    """The way back over transactions, to which a redo returns."""
    return Route(up[-1].parent if up else position.head, position.redo or position.head, up, ())


async def redo(
    engine: Engine,
    session_id: str | None,
    steps: int,
    on_conflict: OnConflict,
    actor: str | None,
    reason: str | None,
) -> Moved:
    """See :meth:`memstate_core.MemoryStore.redo`."""
    steps = count("steps", steps)

    async def route(tx: StorageTransaction, position: Position) -> Route:
        down: list[Entry] = []
        if position.redo and steps:
            down = (await tx.line(position.redo, above=position.head))[::-1][:steps]
        head = down[-1].seq if down else position.head
        return Route(head, 0 if head == position.redo else position.redo, (), down)

    return await move(engine, session_id, Operation.REDO, route, on_conflict, actor, reason)


async def checkout(
    engine: Engine,
    session_id: str | None,
    target: str | Transaction | None,
    on_conflict: OnConflict,
    actor: str | None,
    reason: str | None,
) -> Moved:
    """See :meth:`memstate_core.MemoryStore.checkout`."""

    async def route(tx: StorageTransaction, position: Position) -> Route:
        return await route_to(tx, position, 0 if target is None else await resolve(tx, session_id, target, None))

    return await move(engine, session_id, Operation.CHECKOUT, route, on_conflict, actor, reason)


async def route_to(tx: StorageTransaction, position: Position, seq: int) -> Route:
    """The way from a session's head to any place of its tree."""
    up, down = await between(tx, position.head, seq)
    if not down:
        ahead = position.redo or position.head
    elif not up and position.redo and seq != position.redo:
        line = await tx.line(position.redo, above=seq)
        ahead = position.redo if line and line[-1].parent == seq else 0
    else:
        ahead = 0
    return Route(seq, ahead if ahead != seq else 0, up, down)


async def replay(tx: StorageTransaction, position: Position, base: int, kept: Sequence[int]) -> Route:
    """Undo all that came after ``base``, and do the transactions ``kept`` again, as a step of the line.

    ``base`` is the head or one of its ancestors; ``kept`` may be on other lines. They are done in the order given.
    """
    up = await tx.line(position.head, above=base)
    entries = await tx.entries(kept)
    return Route(None, 0, up, [entries[seq] for seq in kept])


async def _newer_than(tx: StorageTransaction, head: int, ts: str) -> list[Entry]:
    newer: list[Entry] = []
    walker = _Walker(tx, head)
    while (entry := await walker.entry()) is not None and entry.ts > ts:
        newer.append(entry)
        walker.up()
    return newer


async def resolve(tx: StorageTransaction, session_id: str | None, target: str | Transaction, head: int | None) -> int:
    """The seq on which the session stands at a transaction, a savepoint or a mark.

    Of several transactions with the mark, the newest one on the line from ``head`` (None: the newest) is meant.
    """
    if isinstance(target, Transaction):
        target = target.id
    if not isinstance(target, str):
        raise ValueError(f"to takes a transaction, its id, a savepoint's name, a mark or a datetime, not {target!r}")
    check_identifier("to", target)
    seq = transaction_seq(target)
    if seq is not None:
        entry = (await tx.entries((seq,))).get(seq)
        if entry is not None and entry.session_id == session_id:
            return entry.head
    saved = await tx.savepoint(session_id, target)
    if saved is not None:
        return saved
    marked = [entry.seq for entry in await tx.history(session_id=session_id, mark=target) if entry.head == entry.seq]
    if marked and head is None:
        return marked[0]
    if marked:
        walker = _Walker(tx, head or 0)
        while (entry := await walker.entry()) is not None and entry.seq >= marked[-1]:
            if entry.seq in marked:
                return entry.seq
            walker.up()
    raise NotFoundError(
        f"session {session_id!r} has no transaction, savepoint or mark {target!r}"
        + ("" if head is None else " behind the place where it stands")
    )


def _name(target: Any) -> str:
    return repr(target.id if isinstance(target, Transaction) else target)


class _Walker:
    """Goes up a line, reading it in pieces."""

    def __init__(self, tx: StorageTransaction, seq: int) -> None:
        self.tx = tx
        self.seq = seq
        self._ahead: list[Entry] = []

    async def entry(self) -> Entry | None:
        """The transaction on which the walker stands; None before the first."""
        if not self.seq:
            return None
        if not self._ahead:
            self._ahead = (await self.tx.line(self.seq, limit=_CHUNK))[::-1]
        return self._ahead[-1]

    def up(self) -> Entry:
        entry = self._ahead.pop()
        self.seq = entry.parent
        return entry


async def between(tx: StorageTransaction, head: int, target: int) -> tuple[list[Entry], list[Entry]]:
    """What to undo (newest first) and what to do again (oldest first) to get from one place to the other."""
    here, there = _Walker(tx, head), _Walker(tx, target)
    up: list[Entry] = []
    down: list[Entry] = []
    while here.seq != there.seq:  # a parent's seq is smaller than its child's
        walker, path = (here, up) if here.seq > there.seq else (there, down)
        await walker.entry()
        path.append(walker.up())
    return up, down[::-1]


async def move(
    engine: Engine,
    session_id: str | None,
    operation: Operation,
    router: Router,
    on_conflict: OnConflict,
    actor: str | None,
    reason: str | None,
) -> Moved:
    """Plan and carry out a move as one transaction; ``router`` decides in it where to go."""
    check_identifier("session_id", session_id, optional=True)
    if on_conflict not in ("raise", "keep"):
        raise ValueError(f"on_conflict is 'raise' or 'keep', not {on_conflict!r}")
    await engine.ready()
    actor, mark = engine.attribution(actor, reason, None)

    async def planner(tx: StorageTransaction) -> Plan:
        position = await tx.position(session_id)
        await engine.definitions.refreshed(tx, position)
        route = await router(tx, position)
        path = [*route.up, *route.down]
        if not path:
            return Plan(position, Moved(), session_id, Batch(records=route.records))
        ids = touched(path)
        facts = await tx.facts(ids)
        versions = {id_: facts[id_].version for id_ in ids if id_ in facts}
        # What is replayed is done again on other ground than it was done on.
        step = plan_move(route.up, route.down, versions, anyhow=route.head is None)
        images = {(id_, versions[id_]): fact for id_, fact in facts.items()}
        if past := [image for image in images_of(path) if image not in images]:
            images |= await tx.versions(past)
        coming = {
            id_: engine.definitions.described(images[id_, version])
            for id_, version in step.targets.items()
            if version and id_ not in step.conflicts
        }
        blocked = await _blocked(tx, step, coming) if coming else {}
        kept = [*step.conflicts, *blocked]
        if kept and on_conflict == "raise":
            raise await _conflict(tx, operation, session_id, kept[0], blocked.get(kept[0]))
        changes = [
            FactChange(facts.get(id_), *coming[id_]) if version else FactChange(facts.get(id_), None)
            for id_, version in step.targets.items()
            if id_ not in blocked and id_ not in step.conflicts
        ]
        entry = engine.new_entry(
            session_id,
            operation,
            position,
            actor=actor,
            reason=reason,
            mark=route.mark or mark,
            head=route.head,
            redo=route.redo,
        )
        undone = [engine.transaction(entry, images) for entry in route.up]
        redone = [engine.transaction(entry, images) for entry in route.down]
        return Plan(
            position,
            Moved(undone, redone, kept),
            session_id,
            Batch(entry, changes, restores=True, records=route.records),
        )

    plan = await engine.committer.commit(planner)
    moved: Moved = plan.result
    moved.transaction_id = transaction_id(plan.seq)
    return moved


async def _blocked(
    tx: StorageTransaction, step: Move, coming: Mapping[str, tuple[StoredFact, tuple[IndexEntry, ...]]]
) -> dict[str, str]:
    """Facts that cannot come back because another fact has their singleton place: id -> the other's id."""
    blocked: dict[str, str] = {}

    def leaves(holder: StoredFact, place: str) -> bool:
        if holder.id not in step.targets or holder.id in blocked or holder.id in step.conflicts:
            return False
        return holder.id not in coming or coming[holder.id][0].singleton != place

    while True:  # a fact that is kept may in turn keep another one from coming back
        places: dict[str, str] = {}
        found: dict[str, str] = {}
        for id_, (fact, _) in coming.items():
            if fact.singleton is not None and id_ not in blocked:
                other = places.setdefault(fact.singleton, id_)
                if other != id_:
                    found[id_] = other
        for place, holder in (await tx.holders(list(places))).items():
            if holder.id != places[place] and not leaves(holder, place):
                found[places[place]] = holder.id
        if not found:
            return blocked
        blocked |= found


async def _conflict(
    tx: StorageTransaction, operation: Operation, session_id: str | None, fact_id: str, holder_id: str | None
) -> ConflictError:
    other = holder_id or fact_id
    latest = next(iter(await tx.history(fact_id=other, limit=1)), None)
    whose = f"session {latest.session_id!r} (transaction {transaction_id(latest.seq)})" if latest else "another session"
    what = (
        f"fact {fact_id!r} cannot come back: {whose} has since given its singleton value to fact {holder_id!r}"
        if holder_id
        else f"fact {fact_id!r} has been changed since by {whose}"
    )
    return ConflictError(
        f"{operation.lower()} of session {session_id!r}: {what}; nothing was changed. "
        "on_conflict='keep' leaves that fact as it is and moves the rest",
        fact_id=fact_id,
        session_id=latest.session_id if latest else None,
        transaction_id=transaction_id(latest.seq) if latest else None,
    )
