"""What a move of a session's head does to facts, and how the journal's entries become transactions: pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from memstate_core.facts import (
    Change,
    ChangedVersions,
    Entry,
    FactChange,
    LazyChanges,
    Operation,
    StoredFact,
    Transaction,
    transaction_id,
)

Images = Mapping[tuple[str, int], StoredFact]
Decode = Callable[[StoredFact], dict[str, Any]]


class Move(NamedTuple):
    """``targets``: the version each fact gets (0: none); ``conflicts``: facts that others have changed since."""

    targets: dict[str, int]
    conflicts: tuple[str, ...]


def plan_move(up: Sequence[Entry], down: Sequence[Entry], versions: Mapping[str, int]) -> Move:
    """Undo ``up`` (newest first), then do ``down`` (oldest first) again, from the current ``versions`` (0: none).

    A change is undone only where the fact is still as that change left it, and redone only where it is as it
    was before; a fact for which that fails stays as it is from there on.
    """
    state = dict(versions)
    conflicts: dict[str, None] = {}

    def step(fact_id: str, expected: int, target: int) -> None:
        if fact_id in conflicts:
            return
        if state.get(fact_id, 0) == expected:
            state[fact_id] = target
        else:
            conflicts[fact_id] = None

    for entry in up:
        for change in entry.changes:
            step(change.fact_id, change.after, change.before)
    for entry in down:
        for change in entry.changes:
            step(change.fact_id, change.before, change.after)
    targets = {id_: version for id_, version in state.items() if version != versions.get(id_, 0)}
    return Move(targets, tuple(conflicts))


def touched(entries: Iterable[Entry]) -> list[str]:
    """The ids of all facts that the entries changed, each once."""
    return list(dict.fromkeys(change.fact_id for entry in entries for change in entry.changes))


def images_of(entries: Iterable[Entry]) -> list[tuple[str, int]]:
    """The (id, version) of every before and after of the entries, each once."""
    wanted = {
        (change.fact_id, version)
        for entry in entries
        for change in entry.changes
        for version in (change.before, change.after)
        if version
    }
    return list(wanted)


def to_change(change: FactChange, decode: Decode) -> Change:
    """A change as hooks and users see it."""
    return Change(
        change.fact_id,
        change.before.to_fact(decode(change.before)) if change.before else None,
        change.after.to_fact(decode(change.after)) if change.after else None,
    )


def to_transaction(entry: Entry, images: Images, decode: Decode) -> Transaction:
    """A journal entry with the facts that it speaks of."""

    def change_of(change: ChangedVersions) -> Change:
        before = images.get((change.fact_id, change.before))
        after = images.get((change.fact_id, change.after))
        return Change(
            change.fact_id,
            before.to_fact(decode(before)) if before else None,
            after.to_fact(decode(after)) if after else None,
        )

    id_ = transaction_id(entry.seq)
    assert id_ is not None
    return Transaction(
        id=id_,
        seq=entry.seq,
        session_id=entry.session_id,
        operation=Operation(entry.operation),
        actor=entry.actor,
        reason=entry.reason,
        mark=entry.mark,
        ts=datetime.fromisoformat(entry.ts),
        parent=transaction_id(entry.parent),
        position=transaction_id(entry.head),
        changes=LazyChanges(len(entry.changes), lambda: tuple(map(change_of, entry.changes))),
    )
