"""``memstate export`` and ``import``."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import IO, Annotated, Any, Final

import typer

from memstate_core.all_namespaces import export_all, import_all
from memstate_core.cli import options
from memstate_core.cli.errors import UsageError
from memstate_core.cli.plain import count_of, print_json, text_of
from memstate_core.cli.progress import bars
from memstate_core.cli.stores import Store, called, with_store
from memstate_core.exporting import Line, export_namespace
from memstate_core.importing import Imported, import_namespace
from memstate_core.progress import Progress

_STREAM: Final = "-"
_LAST_LINE: Final = 4096  # it is shorter


def add_to(app: typer.Typer) -> None:
    app.command("export", short_help="Write all of a store to a file, as lines of JSON.")(export)
    app.command("import", short_help="Make a store from what was exported.")(import_)


def export(
    words: Annotated[list[str], options.words("FILE", "FILE: where to; - is standard output.")],
    yes: Annotated[bool, typer.Option("--yes", help="Write over a file that is there.")] = False,
    namespace: options.Namespace = None,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", help="Every tenant of the storage, each as of a moment of its own.")
    ] = False,
    as_json: options.Json = False,
) -> Callable[[], bool]:
    """Write all of a store's namespace to a file, as of one moment, for memstate import: facts with all their versions,
    the history with actors, reasons, marks and times, where each session stands and what it may redo, savepoints,
    records (checkpoints of LangGraph among them), and what schemas demand; or, with --all-namespaces, that of every
    namespace.

    Indexes are not in it, and neither is what is still to be delivered to them: memstate reindex fills them from the
    copy. The file is there when it is complete, and not before.
    """
    store, (file,) = options.store_and(words, 1, "FILE")
    target = Path(os.path.realpath(file))  # a link stays what it is

    async def work(made: Store) -> bool:
        with bars() as progress, _whole(None if file == _STREAM else target) as out:

            def mark() -> Callable[[], None]:
                place = out.tell()

                def begin() -> None:
                    out.seek(place)
                    out.truncate()

                return begin

            def write(line: Line) -> None:
                out.write(json.dumps(line, separators=(",", ":")) + "\n")

            if all_namespaces:
                counts = await export_all(made.storage, write, mark, progress)
            else:
                counts = {
                    made.namespace: await export_namespace(
                        made.storage, made.namespace, write, mark(), _told(progress, "export")
                    )
                }
        if as_json:
            found = {name: dict(some) for name, some in counts.items()}
            shown: dict[str, Any] = {"namespaces": found}
            if not all_namespaces:
                shown = {"namespace": made.namespace, "counts": found[made.namespace]}
            with contextlib.redirect_stdout(sys.stderr if file == _STREAM else sys.stdout):
                print_json("export", file=file, **shown)
        elif file != _STREAM:
            where = None if all_namespaces else made.namespace
            print(f"{called(store)}, {_whose(where, counts)}: {_counted(counts.values())} exported to {file}")
        return True

    def start() -> bool:
        if all_namespaces and namespace is not None:
            raise UsageError("say --namespace or --all-namespaces, not both")
        if file != _STREAM and target.exists() and not target.is_file():
            raise UsageError(f"{file} is no file; name another one, or - for standard output")
        if file != _STREAM and target.exists() and not yes:
            raise UsageError(f"{file} is there already; name another file, or say --yes to write over it")
        return with_store(store, work, namespace=namespace)

    return start


def import_(
    words: Annotated[list[str], options.words("FILE", "FILE: what memstate export wrote; - is standard input.")],
    namespace: options.Namespace = None,
    as_json: options.Json = False,
) -> Callable[[], bool]:
    """Make a store from what memstate export wrote, on any storage: it answers, rolls back and redoes as the original.

    The namespace must be empty; an SQLite file, or a schema of PostgreSQL, should have no other one, since transactions
    keep their numbers. An import that was interrupted goes on when it is started again with the same file. Until then
    the namespace has a part of it, which every command says. Indexes are filled by memstate reindex afterwards.

    What was exported with --all-namespaces is imported under the same names; --namespace then means that one of them.
    """
    store, (file,) = options.store_and(words, 1, "FILE")

    async def work(made: Store) -> bool:
        with bars() as progress, _lines(file) as found:
            header = next(found, {})
            lines = itertools.chain([header], found)
            names = header.get("namespaces")
            if names is not None:
                done = await import_all(made.storage, lines, progress, only=namespace)
            else:
                one = await import_namespace(made.storage, made.namespace, lines, _told(progress, "import"))
                done = {made.namespace: one}
        if as_json:
            shown = {name: {**one._asdict(), "counts": dict(one.counts)} for name, one in done.items()}
            if names is not None:
                print_json("import", namespaces=shown)
            else:
                print_json("import", namespace=made.namespace, **shown[made.namespace])
        else:
            whose = _whose(namespace or (None if names is not None else made.namespace), done)
            counted = f"{_counted(one.counts for one in done.values())} imported"
            if namespace is not None and not done:
                counted = "had been imported before, with others; it is complete without them"
            print(f"{called(store)}, {whose}: {counted}")
            if names is not None and namespace is None and len(done) < len(names):
                print(f"{count_of(len(names) - len(done), 'namespace')} had been imported before")
            _tell(done, made)
        return True

    return functools.partial(with_store, store, work, namespace=namespace, make=True, importing=True)


def _tell(done: Mapping[str, Imported], made: Store) -> None:
    for name, one in done.items():
        where = "" if len(done) == 1 else f"namespace {text_of(name)}: "
        if one.resumed is not None:
            print(f"{where}an import that was interrupted has gone on behind {one.resumed}")
        for typename in one.undemanded:
            print(
                f"{where}{text_of(typename)}: has facts in an older form; what its schema demands holds again when "
                "code that upgrades them has opened the store"
            )
    if made.hook_names:
        print("memstate reindex fills the indexes" + ", of a --namespace at a time" * (len(done) > 1))


def _whose(namespace: str | None, found: Sized) -> str:
    """Which namespaces it was about; None: all that were found."""
    return count_of(len(found), "namespace") if namespace is None else f"namespace {text_of(namespace)}"


def _counted(counts: Iterable[Mapping[str, int]]) -> str:
    total = Counter[str]()
    for some in counts:
        total.update(some)
    kinds = {"transactions": "transaction", "facts": "version", "records": "record", "savepoints": "savepoint"}
    return ", ".join(count_of(total[kind], what) for kind, what in kinds.items())


def _told(progress: Progress, what: str) -> Callable[[int, int], None]:
    def told(done: int, total: int) -> None:
        progress(what, done, total)

    return told


@contextlib.contextmanager
def _whole(target: Path | None) -> Iterator[IO[str]]:
    """A file that takes the place of the target when all of it is written (None: goes to standard output)."""
    directory = None if target is None else target.parent
    try:
        out = tempfile.NamedTemporaryFile(  # noqa: SIM115
            "w+", encoding="ascii", dir=directory, prefix=".memstate-export-", delete=False, newline="\n"
        )
    except OSError as error:
        raise UsageError(f"{directory} cannot be written to: {error.strerror or error}") from error
    try:
        with out:
            yield out
            out.flush()
            os.fsync(out.fileno())
            if target is None:
                out.seek(0)
                for line in out:
                    sys.stdout.write(line)
                sys.stdout.flush()
        if target is not None:
            os.replace(out.name, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(out.name)


@contextlib.contextmanager
def _lines(file: str) -> Iterator[Iterator[Line]]:
    """The lines of a file, one at a time."""
    if file == _STREAM:
        yield _parsed(sys.stdin, "standard input")
        return
    try:
        opened = open(file, encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}") from error
    with opened:
        _check_end(opened, file)
        yield _parsed(opened, file)


def _check_end(opened: IO[str], file: str) -> None:
    """Look whether a file has the last line of an export, before anything is imported.

    :raises UsageError: it has not.
    """
    if not opened.seekable():
        return
    with open(file, "rb") as end:
        last = b'{"end":{"namespaces":' if b',"namespaces":[' in end.readline() else b'{"end":'
        end.seek(max(os.path.getsize(file) - _LAST_LINE, 0))
        if not end.read().rstrip().rpartition(b"\n")[2].startswith(last):
            raise UsageError(f"{file} is not an export, or not all of one: its last line is missing; export again")


def _parsed(lines: IO[str], name: str) -> Iterator[Line]:
    for number, text in enumerate(lines, start=1):
        try:
            line: Any = json.loads(text)
            if not isinstance(line, dict):
                raise ValueError("it is no object")
        except ValueError as error:
            raise UsageError(f"{name}, line {number}: not what memstate export writes: {error}") from error
        yield line
