"""What was exported, recorded in an empty namespace; see :mod:`memstate_core.exporting`."""

from __future__ import annotations

import base64
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from pydantic_core import from_json

from memstate_core.errors import ConflictError, MemoryStoreError, ValidationFailed
from memstate_core.exporting import FORMAT, PAGE, RESTORING, UNFINISHED, Line, Progress, dumped
from memstate_core.facts import (
    FactChange,
    Operation,
    StoredFact,
    transaction_id,
)
from memstate_core.protocols import (
    Batch,
    NewEntry,
    RecordWrite,
    Savepoint,
    Storage,
    StorageTransaction,
)
from memstate_core.schemas import Definition, describe
from memstate_core.storages._ordinals import transaction_of
from memstate_core.values import check_identifier, check_text

_RECORD_BYTES: Final = 1 << 20


class Imported(NamedTuple):
    """What an import came to.

    ``counts`` by kind. ``resumed`` is the transaction behind which it went on (None: it did not). ``undemanded`` are
    the types of which there are facts in an older form than their schema's, which only the code that upgrades them can
    read: what their schemas demand holds again when that code has opened the store.
    """

    counts: Mapping[str, int]
    resumed: str | None
    undemanded: tuple[str, ...]


class Numbered:
    """The lines of an export, and the number of the last one that was taken."""

    def __init__(self, lines: Iterable[Line], number: int = 0) -> None:
        self._lines = iter(lines)
        self.number = number

    def __iter__(self) -> Iterator[Line]:
        return self

    def __next__(self) -> Line:
        line = next(self._lines)
        self.number += 1
        return line


async def unfinished(storage: Storage, namespace: str) -> bool:
    """Whether an import into a namespace has begun, and was not completed."""
    return await storage.read(namespace, lambda tx: tx.record(*UNFINISHED)) is not None


async def import_namespace(
    storage: Storage,
    namespace: str,
    lines: Iterable[Line],
    progress: Progress = lambda done, total: None,
    *,
    leave: Sequence[RecordWrite] = (),
) -> Imported:
    """Record what :func:`export_namespace` wrote, in an empty namespace.

    Whoever reads meanwhile sees what is there already. When it was interrupted, the same lines again go on behind what
    is there; until then :func:`unfinished` says so. ``leave`` is written when it is complete, in the same transaction.

    :raises ConflictError: the namespace is not empty, or numbers of transactions are taken by other namespaces.
    :raises ValidationFailed: the lines are not an export, or not all of one.
    """
    lines = lines if isinstance(lines, Numbered) else Numbered(lines)
    header = check_header(next(lines, {}))
    done = await _begin(storage, namespace, header["export"])
    importing = _Import(storage, namespace, done, header["last"], progress)
    for line in lines:
        try:
            if await importing.take(line):
                return await importing.finish(line["end"], leave)
        except ConflictError as error:
            await importing.withdraw(error)
            raise
        except (KeyError, TypeError, ValueError) as error:
            what = error if isinstance(error, ValidationFailed) else f"not what memstate export writes: {error!r}"
            raise ValidationFailed(f"line {lines.number}: {what}") from error
    raise ValidationFailed(
        "the export is not complete: its last line is missing. What there is of it has been imported; import the whole "
        "of it to go on"
    )


def check_header(header: Line) -> Line:
    """The first line of an export.

    :raises ValidationFailed: it is none, or of a newer one.
    """
    found = header.get("memstate")
    if found != FORMAT:
        raise ValidationFailed(
            f"this is an export of format {found!r}, and this MemState reads {FORMAT}; upgrade memstate"
            if found is not None
            else "this is no export: its first line is not the header that memstate export writes"
        )
    return header


async def _begin(storage: Storage, namespace: str, export: str) -> int:
    """Say in the namespace that an import has begun; returns the seq up to which it was done before."""

    async def work(tx: StorageTransaction) -> int:
        done = await done_before(tx, namespace, export)
        if done is None:
            await tx.write(Batch(records=[RecordWrite(*UNFINISHED, export.encode())]))
        return done or 0

    return await storage.write(namespace, work)


async def done_before(tx: StorageTransaction, namespace: str, export: str) -> int | None:
    """The seq up to which an export was imported before (0: none yet), or None where that has not begun.

    :raises ConflictError: the namespace has something else.
    """
    newest = await tx.history(limit=1)
    mark = await tx.record(*UNFINISHED)
    if mark is not None and mark.decode() == export:
        return newest[0].seq if newest else 0
    if mark is None and (newest or await tx.collections()):
        raise ConflictError(
            f"namespace {namespace!r} is not empty; an export is imported into an empty one, "
            "so name another namespace or another database"
        )
    if newest or await tx.collections() not in ([], [UNFINISHED[0]]):
        raise ConflictError(
            f"namespace {namespace!r} has a part of another export; go on with that one, "
            "or name another namespace or another database"
        )
    return None


class _Import:
    def __init__(self, storage: Storage, namespace: str, done: int, last: int, progress: Progress) -> None:
        self._storage = storage
        self._namespace = namespace
        self._done = done
        self._last = last
        self._progress = progress
        self._counts: Counter[str] = Counter(transactions=0, facts=0, savepoints=0, records=0)
        self._definitions: dict[str, Definition] = {}
        self._texts: dict[str, str] = {}
        self._outgrown: dict[str, None] = {}
        self._records: list[RecordWrite] = []
        self._bytes = 0
        self._empty = not done

    async def take(self, line: Line) -> bool:
        """Record what a line says; whether it is the last one."""
        if "transaction" in line:
            await self._take_transaction(line)
        elif "record" in line:
            record = _record_of(line)
            self._records.append(record)
            self._bytes += len(record.value or b"")
            self._counts["records"] += 1
            if self._bytes > _RECORD_BYTES or len(self._records) == PAGE:
                await self._put_records()
        elif "savepoint" in line:
            check_identifier("the savepoint's name", line["savepoint"])
            check_identifier("the session", line["session_id"], optional=True)
            savepoint = Savepoint(line["session_id"], line["savepoint"], _number(line["seq"]))
            await self._storage.write(self._namespace, lambda tx: tx.write(Batch(savepoint=savepoint)))
            self._counts["savepoints"] += 1
        elif "definition" in line:
            check_identifier("the type", line["definition"])
            self._texts[line["definition"]] = line["text"]
            self._definitions[line["definition"]] = Definition.from_text(line["text"])
        elif "end" in line:
            return True
        else:
            raise ValueError(f"it says {', '.join(map(repr, line))}")
        return False

    async def _take_transaction(self, line: Line) -> None:
        new = _entry_of(line)
        seq = new.seq
        facts = {(fact.id, fact.version): fact for fact in map(_fact_of, line["facts"])}
        for fact in facts.values():
            definition = self._definitions.get(fact.type)
            if definition is not None and fact.schema_version < definition.schema_version:
                self._outgrown[fact.type] = None
        self._counts["transactions"] += 1
        self._counts["facts"] += len(facts)
        if seq <= self._done:
            return
        restores = new.operation in RESTORING

        async def work(tx: StorageTransaction) -> None:
            position = await tx.position(new.session_id)
            now = await tx.facts([fact_id for fact_id, _, _ in line["changes"]])
            versions = {id_: fact.version for id_, fact in now.items()}
            if position.head != new.parent or any(
                versions.get(fact_id, 0) != before for fact_id, before, _ in line["changes"]
            ):
                raise ConflictError(
                    f"transaction {transaction_id(seq)} does not follow what namespace {self._namespace!r} has; "
                    "somebody has written to it. Import into an empty namespace"
                )
            wanted = [(fact_id, after) for fact_id, _, after in line["changes"] if after]
            images = await tx.versions(wanted) if restores and wanted else facts
            changes = [
                FactChange(now.get(fact_id), images[fact_id, after] if after else None)
                for fact_id, _, after in line["changes"]
            ]
            await tx.write(Batch(new, [_placed(change, seq) for change in changes], restores=restores))

        await self._storage.write(self._namespace, work)
        self._empty = False
        self._progress(seq, self._last)

    async def _put_records(self) -> None:
        if self._records:
            batch = Batch(records=self._records)
            await self._storage.write(self._namespace, lambda tx: tx.write(batch))
        self._records, self._bytes = [], 0

    async def withdraw(self, reason: ConflictError) -> None:
        """Leave no trace, if no transaction has been recorded."""
        if self._empty:
            try:
                batch = Batch(records=[RecordWrite(*UNFINISHED, None)])
                await self._storage.write(self._namespace, lambda tx: tx.write(batch))
            except MemoryStoreError as error:
                reason.add_note(f"that an import had begun could not be taken back: {error}")

    async def finish(self, counts: Mapping[str, int], leave: Sequence[RecordWrite]) -> Imported:
        """What the types demand holds from here on, and the import is complete: one transaction."""
        await self._put_records()
        if dict(counts) != self._counts:
            raise ValidationFailed(
                f"the export is not complete: it should have {dict(counts)}, and has {dict(self._counts)}; export again"
            )
        demanded = {name: one for name, one in self._definitions.items() if name not in self._outgrown}

        async def work(tx: StorageTransaction) -> None:
            for typename, definition in demanded.items():
                if definition.indexed:
                    await tx.reindex(typename, functools.partial(_described, definition))
            texts = {typename: self._texts[typename] for typename in demanded}
            await tx.write(Batch(definitions=texts, records=[RecordWrite(*UNFINISHED, None), *leave]))

        await self._storage.write(self._namespace, work)
        return Imported(counts, transaction_id(self._done), tuple(self._outgrown))


def _placed(change: FactChange, seq: int) -> FactChange:
    """A change whose fact gets its ordinal from storage if the transaction makes it."""
    after = change.after
    if after is None or transaction_of(after.ordinal) != seq:
        return change
    return FactChange(change.before, after._replace(ordinal=-1))


def _described(definition: Definition, fact: StoredFact) -> Any:
    return describe(definition, fact.type, from_json(fact.payload), fact.session_id)


def _fact_of(line: Line) -> StoredFact:
    payload = line["payload"]
    if not isinstance(from_json(payload) if isinstance(payload, str) else payload, dict):
        raise ValueError("a payload is no object")
    check_identifier("a fact's id", line["id"])
    check_identifier("a fact's type", line["type"])
    check_identifier("a fact's session", line.get("session_id"), optional=True)
    check_text("a fact's source", line.get("source"))
    return StoredFact(
        line["id"],
        line["type"],
        payload if isinstance(payload, str) else dumped(payload),
        line.get("source"),
        line.get("session_id"),
        _time(line["ts"]),
        _number(line["version"]),
        bool(line["ephemeral"]),
        _number(line["schema_version"]),
        None,
        _number(line["ordinal"]),
    )


def _entry_of(line: Line) -> NewEntry:
    """What a line says of a transaction, checked as what the store itself is given."""
    check_identifier("the session", line.get("session_id"), optional=True)
    check_identifier("the mark", line.get("mark"), optional=True)
    check_text("the actor", line.get("actor"))
    check_text("the reason", line.get("reason"))
    return NewEntry(
        line.get("session_id"),
        Operation(line["operation"]),
        line.get("actor"),
        line.get("reason"),
        line.get("mark"),
        _time(line["ts"]),
        _number(line["parent"]),
        _number(line["head"]) if "head" in line else None,
        _number(line.get("redo", 0)),
        _number(line["transaction"]),
    )


def _record_of(line: Line) -> RecordWrite:
    check_identifier("the collection", line["record"])
    check_text("the key", line["key"])
    return RecordWrite(line["record"], str(line["key"]), base64.b64decode(line["value"], validate=True))


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is no number of anything")
    return value


def _time(value: Any) -> str:
    datetime.fromisoformat(value)
    return str(value)
