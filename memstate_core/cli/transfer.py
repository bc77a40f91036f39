"""``memstate export`` and ``import``."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Annotated, Any, Final

import typer

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
    as_json: options.Json = False,
) -> Callable[[], bool]:
    """Write all of a store's namespace to a file, as of one moment, for memstate import: facts with all their versions,
    the history with actors, reasons, marks and times, where each session stands and what it may redo, savepoints,
    records (checkpoints of LangGraph among them), and what schemas demand.

    Indexes are not in it, and neither is what is still to be delivered to them: memstate reindex fills them from the
    copy. The file is there when it is complete, and not before.
    """
    store, (file,) = options.store_and(words, 1, "FILE")
    target = Path(file)

    async def work(made: Store) -> bool:
        with bars() as progress, _whole(None if file == _STREAM else target) as out:

            def begin() -> None:
                out.seek(0)
                out.truncate()

            def write(line: Line) -> None:
                out.write(json.dumps(line, separators=(",", ":")) + "\n")

            counts = await export_namespace(made.storage, made.namespace, write, begin, _told(progress, "export"))
        if as_json:
            with contextlib.redirect_stdout(sys.stderr if file == _STREAM else sys.stdout):
                print_json("export", namespace=made.namespace, file=file, counts=dict(counts))
        elif file != _STREAM:
            print(f"{called(store)}, namespace {text_of(made.namespace)}: {_counted(counts)} exported to {file}")
        return True

    def start() -> bool:
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
    """
    store, (file,) = options.store_and(words, 1, "FILE")

    async def work(made: Store) -> bool:
        with bars() as progress, _lines(file) as lines:
            done = await import_namespace(made.storage, made.namespace, lines, _told(progress, "import"))
        if as_json:
            print_json("import", namespace=made.namespace, **{**done._asdict(), "counts": dict(done.counts)})
        else:
            _tell(store, made, done)
        return True

    return functools.partial(with_store, store, work, namespace=namespace, make=True, importing=True)


def _tell(store: str | None, made: Store, done: Imported) -> None:
    print(f"{called(store)}, namespace {text_of(made.namespace)}: {_counted(done.counts)} imported")
    if done.resumed is not None:
        print(f"an import that was interrupted has gone on behind {done.resumed}")
    for typename in done.undemanded:
        print(
            f"{text_of(typename)}: has facts in an older form; what its schema demands holds again when code that "
            "upgrades them has opened the store"
        )
    if made.hook_names:
        print("memstate reindex fills the indexes")


def _counted(counts: Mapping[str, int]) -> str:
    kinds = {"transactions": "transaction", "facts": "version", "records": "record", "savepoints": "savepoint"}
    return ", ".join(count_of(counts[kind], what) for kind, what in kinds.items())


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
        end.seek(max(os.path.getsize(file) - _LAST_LINE, 0))
        if not end.read().rstrip().rpartition(b"\n")[2].startswith(b'{"end":'):
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
