"""All namespaces of a storage as lines of JSON, and back.

The lines are a header that names the namespaces, the export of each (see :mod:`memstate_core.exporting`), one after
another, and a last line that says how many there are. Each is of a moment of its own, as nothing crosses a namespace.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from memstate_core.errors import ConflictError, ValidationFailed
from memstate_core.exporting import COMPLETE, FORMAT, Line, export_namespace
from memstate_core.facts import new_id
from memstate_core.importing import Imported, Numbered, check_header, done_before, import_namespace
from memstate_core.protocols import Batch, RecordWrite, Storage, StorageTransaction
from memstate_core.values import check_identifier

# Called with what is being counted, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], object]


def _nobody(what: str, done: int, total: int) -> None:
    """Nobody looks."""


async def export_all(
    storage: Storage,
    write: Callable[[Line], None],
    mark: Callable[[], Callable[[], None]],
    progress: Progress = _nobody,
) -> dict[str, Mapping[str, int]]:
    """Write all namespaces; returns how much of each kind there was, by namespace.

    ``mark`` is called where a namespace begins, and returns what goes back there: what is behind it is written anew.

    :raises ConflictError: an import into one of them, or of all, is not complete.
    :raises StorageError: the storage cannot tell their names.
    """
    names = await storage.namespaces()
    export = new_id()
    write({"memstate": FORMAT, "export": export, "namespaces": names})
    counts = {}
    for place, name in enumerate(names):
        progress("namespaces", place, len(names))
        if await is_waiting(storage, name):
            raise ConflictError(
                f"namespace {name!r} is of an import of all namespaces that is not complete, so others may be missing; "
                "import again to go on with it, or this one alone to be content with it"
            )
        counts[name] = await export_namespace(
            storage, name, write, mark(), lambda done, total: progress("transactions", done, total), export=export
        )
    progress("namespaces", len(names), len(names))
    write({"end": {"namespaces": len(names)}})
    return counts


async def import_all(
    storage: Storage, lines: Iterable[Line], progress: Progress = _nobody, *, only: str | None = None
) -> dict[str, Imported]:
    """Record what :func:`export_all` wrote, each namespace (or ``only`` one) under its own name, which must be empty.

    When it was interrupted, the same lines again go on: namespaces that were complete are left as they are, and are not
    in what is returned. Until then :func:`is_waiting` says of those that others are to come, the numbers of whose
    transactions may be taken by what is written meanwhile. With ``only`` one of those it is content with that.

    :raises ConflictError: a namespace is not empty, or numbers of transactions are taken by another one.
    :raises ValidationFailed: the lines are not such an export, or not all of one.
    """
    lines = Numbered(lines)
    header = check_header(next(lines, {}))
    names, export = _names_of(header), header["export"]
    if only is not None and only not in names:
        some = ", ".join(map(repr, names[:10])) or "none"
        raise ValidationFailed(f"the export has no namespace {only!r}; it has {some}{' …' * (len(names) > 10)}")
    done: dict[str, Imported] = {}
    complete: set[str] = set()
    if only is not None and await _state(storage, only, export) is not None:
        await storage.write(only, _writing(RecordWrite(*COMPLETE, None)))
        return done
    for name in names if only is None else ():
        state = await _state(storage, name, export)
        if state == _ENDING:
            await _end(storage, names, export)
            return done
        if state == _WAITING:
            complete.add(name)
    leave = [_mark(export)] if only is None else []
    for place, name in enumerate(names):
        progress("namespaces", place, len(names))
        section = _section(lines, name, export)
        if only not in (None, name) or name in complete:
            for _ in section:
                pass
            continue
        try:
            done[name] = await import_namespace(
                storage,
                name,
                Numbered(section, lines.number),
                lambda done, total: progress("transactions", done, total),
                leave=leave,
            )
        except ConflictError as error:
            raise ConflictError(f"namespace {name!r} cannot be imported here: {error}") from error
        if only is not None:
            return done
    progress("namespaces", len(names), len(names))
    if next(lines, {}) != {"end": {"namespaces": len(names)}}:
        raise _torn()
    if names:
        await _end(storage, names, export)
    return done


def _names_of(header: Line) -> list[str]:
    names = header.get("namespaces")
    if not isinstance(names, list) or not isinstance(header.get("export"), str) or len({*map(str, names)}) < len(names):
        raise ValidationFailed("line 1: not what memstate export --all-namespaces writes")
    for name in names:
        check_identifier("line 1: a namespace", name)
    return names


def _section(lines: Iterable[Line], name: str, export: str) -> Iterator[Line]:
    """The lines of one namespace.

    :raises ValidationFailed: they are another one's, or not all.
    """
    for place, line in enumerate(lines):
        if not place and (line.get("namespace"), line.get("export")) != (name, export):
            raise _torn()
        yield line
        if "end" in line:
            return
    raise _torn()


def _torn() -> ValidationFailed:
    return ValidationFailed(
        "the export is not complete, or not as memstate export wrote it. What came before has been imported; import "
        "the whole of it to go on"
    )


# How far an import is when a namespace is complete: others are not yet, or all are.
_WAITING: Final = "waiting"
_ENDING: Final = "ending"


def _mark(export: str, state: str = _WAITING) -> RecordWrite:
    return RecordWrite(*COMPLETE, f"{state} {export}".encode())


async def is_waiting(storage: Storage, namespace: str) -> bool:
    """Whether a namespace is complete, and the import of all of which it is one is not."""
    return await storage.read(namespace, lambda tx: tx.record(*COMPLETE)) is not None


async def _state(storage: Storage, name: str, export: str) -> str | None:
    """How far an import that was complete here is; None: it was not.

    :raises ConflictError: there is something else.
    """

    async def work(tx: StorageTransaction) -> str | None:
        mark = await tx.record(*COMPLETE)
        state, _, of = (mark or b"").decode().partition(" ")
        if of == export:
            return state
        await done_before(tx, name, export)
        return None

    return await storage.read(name, work)


async def _end(storage: Storage, names: Sequence[str], export: str) -> None:
    """Forget that single namespaces were complete: all are, which the first one says until it is the only one left."""
    await storage.write(names[0], _writing(_mark(export, _ENDING)))
    for name in reversed(names):
        await storage.write(name, _writing(RecordWrite(*COMPLETE, None)))


def _writing(record: RecordWrite) -> Callable[[StorageTransaction], Awaitable[None]]:
    return lambda tx: tx.write(Batch(records=[record]))
