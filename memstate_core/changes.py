"""What a move of a session's head does to facts, and how the journal's entries become transactions: pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

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

_OPERATIONS: Final = {operation.value: operation for operation in Operation}


class Move(NamedTuple):
    """``targets``: the version each fact gets (0: none); ``conflicts``: facts that others have changed since."""

    targets: dict[str, int]
    conflicts: tuple[str, ...]


def plan_move(up: Sequence[Entry], down: Sequence[Entry], versions: Mapping[str, int], *, anyhow: bool = False) -> Move:
    """Undo ``up`` (newest first), then do ``down`` (oldest first) again, from the current ``versions`` (0: none).

    A change is undone only where the fact is still as that change left it, and redone only where it is as it
    was before (``anyhow``: whatever it was); a fact for which that fails stays as it is from there on.
    """
    state = dict(versions)
    conflicts: dict[str, None] = {}
    for entry in up:
        for fact_id, before, after in entry.changes:
            if state.get(fact_id, 0) == after and fact_id not in conflicts:
                state[fact_id] = before
            else:
                conflicts[fact_id] = None
    for entry in down:
        for fact_id, before, after in entry.changes:
            if (anyhow or state.get(fact_id, 0) == before) and fact_id not in conflicts:
                state[fact_id] = after
            else:
                conflicts[fact_id] = None
    targets = {id_: version for id_, version in state.items() if version != versions.get(id_, 0)}
    return Move(targets, tuple(conflicts))


def touched(entries: Iterable[Entry]) -> list[str]:
    """The ids of all facts that the entries changed, each once."""
    ids: dict[str, None] = {}
    for entry in entries:
        for fact_id, _, _ in entry.changes:
            ids[fact_id] = None
    return list(ids)


def images_of(entries: Iterable[Entry]) -> list[tuple[str, int]]:
    """The (id, version) of every before and after of the entries, each once."""
    wanted: dict[tuple[str, int], None] = {}
    for entry in entries:
        for fact_id, before, after in entry.changes:
            if before:
                wanted[fact_id, before] = None
            if after:
                wanted[fact_id, after] = None
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
    seq, session_id, parent, head, operation, actor, reason, mark, ts, versions = entry
    id_ = transaction_id(seq)
    assert id_ is not None
    return Transaction(
        id_,
        seq,
        session_id,
        _OPERATIONS[operation],
        actor,
        reason,
        mark,
        datetime.fromisoformat(ts),
        transaction_id(parent),
        id_ if head == seq else transaction_id(head),
        LazyChanges(len(versions), lambda: tuple([_change_of(one, images, decode) for one in versions])),
    )


def _change_of(versions: ChangedVersions, images: Images, decode: Decode) -> Change:
    fact_id, version_before, version_after = versions
    before, after = images.get((fact_id, version_before)), images.get((fact_id, version_after))
    return Change(
        fact_id,
        before.to_fact(decode(before)) if before else None,
        after.to_fact(decode(after)) if after else None,
    )
