"""What a store must hold after a list of operations, in plain Python: no storage, no hooks, no failures.

Operations are lists of plain data, so that they can be logged by a process that is about to die:

==================================================  ===============================================
``["commit", id, type, payload, session, own]``     ``own``: ephemeral
``["update", id, patch]``                           under the fact's own session
``["delete", id, session]``                         recorded by this session
``["block", session, [operation, …]]``              commits, updates, deletes and a record as one transaction
``["promote", session]``, ``["discard", session]``
``["rollback", session, steps, on_conflict]``       likewise ``"redo"``
``["checkout", session, seq]``
==================================================  ===============================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from pydantic import BaseModel

from memstate_core import ConflictError, Constraint, Fact, MemoryStore, NotFoundError, Transaction

Op = Sequence[Any]

SINGLETON = "slot"
RECORDS = "faults"
UNKNOWN = -1


class Note(BaseModel):
    text: str
    number: int = 0


class Slot(BaseModel):
    name: str
    text: str


class Fields(BaseModel):
    text: str = "four fields"
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0


def register(store: Any) -> None:
    """The types of these tests: notes and fields as many as one likes, and one slot per name."""
    store.register_schema("note", Note)
    store.register_schema("fields", Fields)
    store.register_schema(SINGLETON, Slot, Constraint(singleton_key="name"))


class Image(NamedTuple):
    """A fact at one version."""

    version: int
    type: str
    payload: dict[str, Any]
    session_id: str | None
    ephemeral: bool

    @property
    def place(self) -> str | None:
        return self.payload["name"] if self.type == SINGLETON else None


class Change(NamedTuple):
    fact_id: str
    before: Image | None
    after: Image | None


class Entry(NamedTuple):
    seq: int
    session_id: str | None
    operation: str
    parent: int
    head: int
    changes: list[Change]


class Refused(Exception):
    """The store must raise ``error`` and change nothing."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__(error.__name__)
        self.error = error


@dataclass
class Model:
    facts: dict[str, Image] = field(default_factory=dict)
    latest: dict[str, int] = field(default_factory=dict)
    entries: dict[int, Entry] = field(default_factory=dict)
    heads: dict[str | None, tuple[int, int]] = field(default_factory=dict)
    records: dict[str, str] = field(default_factory=dict)

    def after(self, op: Op) -> Model:
        """Another model, in which the operation has happened.

        :raises Refused: the store must refuse it.
        """
        # Facts and entries are never changed in place, so the dicts are all that need be copied.
        twin = Model(*(dict(getattr(self, each.name)) for each in fields(self)))
        name, *arguments = op
        getattr(twin, f"_{name}")(*arguments)
        return twin

    def head(self, session_id: str | None) -> int:
        return self.heads.get(session_id, (0, 0))[0]

    def line(self, seq: int) -> list[int]:
        """A transaction and its ancestors, newest first."""
        found = []
        while seq:
            found.append(seq)
            seq = self.entries[seq].parent
        return found

    # Writing

    def _commit(self, fact_id: str, type_: str, payload: dict[str, Any], session: str | None, own: bool) -> None:
        self._write(session, "COMMIT", [["commit", fact_id, type_, payload, session, own]])

    def _update(self, fact_id: str, patch: dict[str, Any]) -> None:
        session = self.facts[fact_id].session_id if fact_id in self.facts else None
        self._write(session, "UPDATE", [["update", fact_id, patch]])

    def _delete(self, fact_id: str, session: str | None) -> None:
        self._write(session, "DELETE", [["delete", fact_id, session]])

    def _block(self, session: str | None, ops: Sequence[Op]) -> None:
        self._write(session, "TRANSACTION", ops)
        self.records["block"] = record_of(ops)

    def _promote(self, session: str) -> None:
        ids = [id_ for id_, fact in self.facts.items() if fact.session_id == session and not fact.ephemeral]
        self._write(session, "PROMOTE", [["move", id_] for id_ in ids])

    def _discard(self, session: str) -> None:
        ids = [id_ for id_, fact in self.facts.items() if fact.session_id == session]
        self._write(session, "DISCARD_SESSION", [["delete", id_, session] for id_ in ids])

    def _write(self, session: str | None, operation: str, ops: Iterable[Op]) -> None:
        before = dict(self.facts)
        for name, fact_id, *arguments in ops:
            self._one(name, fact_id, arguments)
        ids = [id_ for id_ in dict.fromkeys([*before, *self.facts]) if before.get(id_) != self.facts.get(id_)]
        self.latest.update({id_: self.facts[id_].version for id_ in ids if id_ in self.facts})
        self._record(session, operation, [Change(id_, before.get(id_), self.facts.get(id_)) for id_ in ids])

    def _one(self, name: str, fact_id: str, arguments: list[Any]) -> None:
        if name == "commit":
            type_, payload, session, own = arguments
            image = Image(0, type_, payload, session, own)
            if fact_id not in self.facts:
                fact_id = self._holder(image.place) or fact_id
            elif self.facts[fact_id].type != type_:
                raise Refused(ConflictError)
        elif fact_id not in self.facts:
            raise Refused(NotFoundError)
        elif name == "update":
            (patch,) = arguments
            image = self.facts[fact_id]._replace(payload=self.facts[fact_id].payload | patch)
        elif name == "move":
            image = self.facts[fact_id]._replace(session_id=None, ephemeral=False)
        else:
            del self.facts[fact_id]
            return
        if self._holder(image.place) not in (None, fact_id):
            raise Refused(ConflictError)
        # One transaction makes one version, however many of its operations change the fact.
        self.facts[fact_id] = image._replace(version=self.latest.get(fact_id, 0) + 1)

    def _holder(self, place: str | None) -> str | None:
        """The fact that has a singleton place."""
        return next((id_ for id_, fact in self.facts.items() if place is not None and fact.place == place), None)

    # Going back

    def _rollback(self, session: str | None, steps: int, on_conflict: str) -> None:
        head, redo = self.heads.get(session, (0, 0))
        up = self.line(head)[:steps]
        if up:
            self._move(session, "ROLLBACK", up, [], self.entries[up[-1]].parent, redo or head, on_conflict)

    def can_tell_redo(self, session: str | None) -> bool:
        """Whether this model knows where redo leads; after a checkout it does not."""
        return self.heads.get(session, (0, 0))[1] != UNKNOWN

    def _redo(self, session: str | None, steps: int, on_conflict: str) -> None:
        head, redo = self.heads.get(session, (0, 0))
        line = self.line(redo)
        down = list(reversed(line[: line.index(head)] if head in line else line))[:steps] if redo else []
        if down:
            self._move(session, "REDO", [], down, down[-1], 0 if down[-1] == redo else redo, on_conflict)

    def _checkout(self, session: str | None, seq: int) -> None:
        head = self.head(session)
        here, there = self.line(head), self.line(seq)
        up = [each for each in here if each not in there]
        down = [each for each in reversed(there) if each not in here]
        if up or down:
            self._move(session, "CHECKOUT", up, down, seq, UNKNOWN, "raise")

    def _move(
        self,
        session: str | None,
        operation: str,
        up: Sequence[int],
        down: Sequence[int],
        head: int,
        redo: int,
        on_conflict: str,
    ) -> None:
        before = dict(self.facts)
        now: dict[str, Image | None] = dict(self.facts)
        steps = [Change(id_, after, before_) for seq in up for id_, before_, after in self.entries[seq].changes]
        steps += [change for seq in down for change in self.entries[seq].changes]
        kept: set[str] = set()
        for fact_id, expected, target in steps:
            if now.get(fact_id) != expected:
                kept.add(fact_id)
            if fact_id not in kept:
                now[fact_id] = target
        now.update({id_: before.get(id_) for id_ in kept})
        kept |= _without_place(now, before)
        if kept and on_conflict == "raise":
            raise Refused(ConflictError)
        self.facts = {id_: image for id_, image in now.items() if image is not None}
        ids = [id_ for id_ in now if now[id_] != before.get(id_)]
        self._record(session, operation, [Change(id_, before.get(id_), now[id_]) for id_ in ids], head, redo)

    def _record(
        self, session: str | None, operation: str, changes: list[Change], head: int | None = None, redo: int = 0
    ) -> None:
        if not changes and head is None:
            return
        seq = len(self.entries) + 1
        parent = self.head(session)
        self.entries[seq] = Entry(seq, session, operation, parent, seq if head is None else head, changes)
        self.heads[session] = (seq if head is None else head, redo)


def _without_place(now: dict[str, Image | None], before: dict[str, Image]) -> set[str]:
    """Give back what comes to a singleton place that another fact keeps; returns those facts' ids."""
    blocked: set[str] = set()
    while True:
        places: dict[str, list[str]] = {}
        for fact_id, image in now.items():
            if image is not None and image.place is not None:
                places.setdefault(image.place, []).append(fact_id)
        coming = [id_ for ids in places.values() if len(ids) > 1 for id_ in ids if now[id_] != before.get(id_)]
        if not coming:
            return blocked
        for fact_id in coming:
            now[fact_id] = before.get(fact_id)
            blocked.add(fact_id)


def record_of(ops: Sequence[Op]) -> str:
    """What a block records of itself, in the same transaction."""
    return json.dumps([op[1:3] for op in ops])


def perform(store: MemoryStore, op: Op) -> Any:
    """Carry an operation out on a store."""
    name, *arguments = op
    return _PERFORM[name](store, *arguments)


def _commit(store: Any, fact_id: str, type_: str, payload: dict[str, Any], session: str | None, own: bool) -> Any:
    return store.commit(Fact(type_, payload, id=fact_id), session_id=session, ephemeral=own)


def _update(store: Any, fact_id: str, patch: dict[str, Any]) -> Any:
    return store.update(fact_id, patch)


def _block(store: MemoryStore, session: str | None, ops: Sequence[Op]) -> Any:
    with store.transaction(session_id=session) as tx:
        tx.put_record(RECORDS, "block", record_of(ops).encode())
        for name, *arguments in ops:
            if name == "delete":
                tx.delete(arguments[0])
            else:
                _PERFORM[name](tx, *arguments)
    return tx.transaction_id


def nth(history: Sequence[Transaction], seq: int) -> str | None:
    """The id of a transaction of the model: storages may leave numbers out, and the model does not."""
    return history[-seq].id if seq else None


_PERFORM: dict[str, Callable[..., Any]] = {
    "commit": _commit,
    "update": _update,
    "delete": lambda store, fact_id, session: store.delete(fact_id, session_id=session),
    "block": _block,
    "promote": lambda store, session: store.promote_session(session),
    "discard": lambda store, session: store.discard_session(session),
    "rollback": lambda store, session, steps, mode: store.rollback(session, steps, on_conflict=mode),
    "redo": lambda store, session, steps, mode: store.redo(session, steps, on_conflict=mode),
    "checkout": lambda store, session, seq: store.checkout(session, nth(store.history(limit=None), seq)),
}
