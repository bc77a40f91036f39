"""A namespace as lines of JSON, and back: everything, so that the copy answers and goes back as the original does.

The lines are, in this order: a header; what each type demands; the journal, oldest first, each transaction with the
versions of facts that it made; savepoints; records; and a last line that says how much there was. Transactions keep
their seqs, since records and people refer to them. Singleton places and index entries are not among it: they follow
from the rest.

Claims and outboxes are left out: what they are about is a process, or an index, of the original.
"""

from __future__ import annotations

import base64
import contextlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from memstate_core.errors import ConflictError
from memstate_core.facts import (
    Entry,
    Operation,
    StoredFact,
    new_id,
)
from memstate_core.protocols import (
    Storage,
    StorageTransaction,
)

FORMAT: Final = 1

# What imports leave in a namespace on their way is no part of it.
_OF_IMPORTS: Final = "memstate.import"
# A namespace into which an import has begun has this record until it is complete,
UNFINISHED: Final = (_OF_IMPORTS, "unfinished")
# and one into which an import of several was complete has this one until all of them are.
COMPLETE: Final = (_OF_IMPORTS, "complete")

PAGE: Final = 500

# They bring back versions that were made before, and make none.
RESTORING: Final = (Operation.ROLLBACK, Operation.REDO, Operation.CHECKOUT, Operation.REPLAY)

Line = dict[str, Any]
# How much of the journal is done, and how much there is.
Progress = Callable[[int, int], object]


async def export_namespace(
    storage: Storage,
    namespace: str,
    write: Callable[[Line], None],
    begin: Callable[[], None],
    progress: Progress = lambda done, total: None,
    *,
    export: str | None = None,
) -> Mapping[str, int]:
    """Write all of a namespace, as of one moment; returns how much of each kind there was.

    ``begin`` is called before the first line, and again when all must be written anew: a storage may find out late that
    it has not seen one moment. ``export`` is the name of the export, by default a new one.

    :raises ConflictError: an import into the namespace is not complete.
    """

    async def work(tx: StorageTransaction) -> Mapping[str, int]:
        begin()
        return await _export(tx, namespace, export or new_id(), write, progress)

    return await storage.read(namespace, work, snapshot=True)


async def _export(
    tx: StorageTransaction, namespace: str, export: str, write: Callable[[Line], None], progress: Progress
) -> Mapping[str, int]:
    if await tx.record(*UNFINISHED) is not None:
        raise ConflictError(f"an import into namespace {namespace!r} is not complete; import again to go on with it")
    counts: Counter[str] = Counter(transactions=0, facts=0, savepoints=0, records=0)
    seqs = await _seqs(tx)
    last = seqs[-1] if seqs else 0
    write({"memstate": FORMAT, "export": export, "namespace": namespace, "last": last})
    for typename, text in sorted((await tx.definitions()).items()):
        write({"definition": typename, "text": text})
    ends: dict[str | None, tuple[int, int]] = {}
    for start in range(0, len(seqs), PAGE):
        page = list(seqs[start : start + PAGE])
        found = await tx.entries(page)
        entries = [found[seq] for seq in sorted(found)]
        made = [(one.fact_id, one.after) for entry in entries for one in entry.changes if one.after and _makes(entry)]
        images = await tx.versions(made) if made else {}
        for entry in entries:
            if entry.session_id not in ends:
                latest = (await tx.history(session_id=entry.session_id, limit=1))[0].seq
                ends[entry.session_id] = latest, (await tx.position(entry.session_id)).redo
            latest, redo = ends[entry.session_id]
            facts = [images[one.fact_id, one.after] for one in entry.changes if one.after and _makes(entry)]
            write(_line_of_entry(entry, redo if latest == entry.seq else 0, facts))
            counts["transactions"] += 1
            counts["facts"] += len(facts)
        progress(page[-1], last)
    for session_id, name, seq in sorted(await tx.savepoints(list(ends)), key=str):
        write({"savepoint": name, "session_id": session_id, "seq": seq})
        counts["savepoints"] += 1
    for collection in await tx.collections():
        if collection == _OF_IMPORTS:
            continue
        start_key: str | None = None
        while True:
            records = await tx.scan(collection, start=start_key, limit=PAGE + 1)
            for key, value in records[:PAGE]:
                write({"record": collection, "key": key, "value": base64.b64encode(value).decode()})
                counts["records"] += 1
            if len(records) <= PAGE:
                break
            start_key = records[PAGE].key
    write({"end": dict(counts)})
    return counts


async def _seqs(tx: StorageTransaction) -> Sequence[int]:
    """The seqs of the journal, oldest first, and perhaps others' among them.

    Most namespaces have nearly all numbers that there are, or few of them. Only the latter are worth being looked up,
    from the newest back, as nobody reads a history in the other direction.
    """
    page = await tx.history(limit=PAGE)
    if len(page) == PAGE and page[0].seq - page[-1].seq < 2 * PAGE:
        return range(1, page[0].seq + 1)
    seqs = array("q", [entry.seq for entry in page])
    while len(page) == PAGE:
        page = await tx.history(before=page[-1].seq, limit=PAGE)
        seqs.extend(entry.seq for entry in page)
    seqs.reverse()
    return seqs


def _makes(entry: Entry) -> bool:
    """Whether a transaction makes versions; others bring them back."""
    return entry.operation not in RESTORING


def _line_of_entry(entry: Entry, redo: int, facts: Iterable[StoredFact]) -> Line:
    line: Line = {"transaction": entry.seq}
    for name in ("session_id", "parent", "operation", "actor", "reason", "mark", "ts"):
        value = getattr(entry, name)
        if value is not None:
            line[name] = value
    if entry.head != entry.seq:
        line["head"] = entry.head
    if redo:
        line["redo"] = redo
    line["changes"] = entry.changes
    line["facts"] = [_line_of_fact(fact) for fact in facts]
    return line


def _line_of_fact(fact: StoredFact) -> Line:
    line = {name: value for name, value in fact._asdict().items() if value is not None}
    line["ephemeral"] = bool(fact.ephemeral)
    line.pop("singleton", None)
    # A reader sees an object; what would come back in another way stays text.
    with contextlib.suppress(ValueError, RecursionError):
        payload = json.loads(fact.payload)
        if dumped(payload) == fact.payload:
            line["payload"] = payload
    return line


def dumped(payload: Any) -> str:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
