"""``memstate init``, ``rollback`` and ``redo``: what changes a store."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from memstate_core import moves
from memstate_core.cli import options
from memstate_core.cli.config import FILE
from memstate_core.cli.errors import UsageError
from memstate_core.cli.plain import count_of, moved_data, print_json, session_name, text_of
from memstate_core.cli.stores import Store, called, is_url, with_store
from memstate_core.engine import OnConflict
from memstate_core.errors import ConflictError
from memstate_core.facts import Entry, Moved, Operation, transaction_id
from memstate_core.protocols import Position, StorageTransaction

_ALL: Final = 1 << 31


def add_to(app: typer.Typer) -> None:
    for command, summary in (
        (init, "Make a database, and a memstate.toml that names it."),
        (rollback, "Undo transactions of a session."),
        (redo, "Do again what a rollback undid."),
    ):
        app.command(command.__name__, short_help=summary)(command)


def init(
    store: Annotated[
        str, typer.Argument(metavar="URL", help="sqlite:///memory.db, postgresql://… or redis://….")
    ] = "sqlite:///memory.db",
    as_json: options.Json = False,
) -> Callable[[], bool]:
    """Make the tables of a store, and write memstate.toml, so that commands in this directory need not be told.

    What is there stays as it is: a database that was made already is only opened, and a memstate.toml is not written
    over. A URL's password is written to the file; keep it out of repositories.
    """

    async def work(made: Store) -> bool:
        await made.storage.open()
        # Some make their tables when a namespace is first asked for.
        await made.engine.storage.read(made.namespace, lambda tx: tx.position(None))
        wrote = _write_config(store)
        if as_json:
            print_json("init", store=called(store), wrote=wrote)
        else:
            print(f"{called(store)} is ready" + ("" if wrote else f"; {FILE} was there, and is as it was"))
        return True

    def start() -> bool:
        if not is_url(store):
            raise UsageError(f"init takes a URL such as sqlite:///memory.db, not {store!r}")
        return with_store(store, work, make=True)

    return start


def _write_config(url: str) -> bool:
    """Name the store in ``memstate.toml``; False: there is one."""
    try:
        with Path(FILE).open("x", encoding="utf-8") as file:
            file.write(
                f"# The store that the command memstate is about here.\nstore = {json.dumps(url)}\n"
                '# hooks = ["myapp.memory:index"]  # where your code has its indexes\n'
            )
    except FileExistsError:
        return False
    return True


def rollback(
    store: options.StoreName = None,
    session: options.Session = None,
    steps: Annotated[int, typer.Option(parser=options.count, metavar="N", help="How many transactions.")] = 1,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="POINT",
            help="Undo what came after this: a transaction (tx-12), a savepoint, a mark, or a time with its offset"
            " (2026-01-31T12:00:00+01:00); start: everything.",
            show_default=False,
        ),
    ] = None,
    keep_conflicts: options.KeepConflicts = False,
    actor: options.Actor = options.ACTOR,
    reason: options.Reason = None,
    yes: options.Yes = False,
    namespace: options.Namespace = None,
    as_json: options.Json = False,
) -> Callable[[], bool]:
    """Undo a session's last transactions, in the indexes too, as one transaction that a redo takes back.

    The indexes are those of the store's hooks: of a store in your code, or of the hooks in memstate.toml. An index that
    neither names does not follow. Shows what would be undone, and asks. The exit code is 1 when nothing was done: when
    another session has changed one of the facts since, the answer was no, or there is no such point.
    """

    async def work(made: Store) -> bool:
        engine = made.engine

        conflicts: OnConflict = "keep" if keep_conflicts else "raise"
        count, target = (_ALL, None) if to == "start" else (steps, _point(to))
        if yes:
            moved = await moves.rollback(engine, session, count, target, conflicts, actor, reason)
            return _tell("rollback", moved, session, made, as_json)

        async def look(tx: StorageTransaction) -> tuple[Position, list[Entry]]:
            position = await tx.position(session)
            return position, await moves.behind(tx, session, position, count, target)

        await engine.ready()
        seen, planned = await engine.storage.read(engine.namespace, look, snapshot=True)
        if not planned:
            return _tell("rollback", Moved(), session, made, as_json)
        for one in planned:
            about = "".join(f"  {text_of(text)}" for text in (one.actor, one.reason) if text)
            print(
                f"  {transaction_id(one.seq)}  {one.operation}, {count_of(len(one.changes), 'change')}{about}",
                file=sys.stderr,
            )
        if not _agreed(f"undo {count_of(len(planned), 'transaction')} of {session_name(session)}?"):
            return False

        async def route(tx: StorageTransaction, position: Position) -> moves.Route:
            if position.head != seen.head:
                raise ConflictError(f"{session_name(session)} has moved on while you were asked; nothing was undone")
            return moves.back(position, planned)

        moved = await moves.move(engine, session, Operation.ROLLBACK, route, conflicts, actor, reason)
        return _tell("rollback", moved, session, made, as_json)

    return functools.partial(with_store, store, work, namespace=namespace)


def redo(
    store: options.StoreName = None,
    session: options.Session = None,
    steps: Annotated[int, typer.Option(parser=options.count, metavar="N", help="How many transactions.")] = 1,
    keep_conflicts: options.KeepConflicts = False,
    actor: options.Actor = options.ACTOR,
    reason: options.Reason = None,
    namespace: options.Namespace = None,
    as_json: options.Json = False,
) -> Callable[[], bool]:
    """Do again what the last rollback of a session undid, as long as nothing was committed since."""

    async def work(made: Store) -> bool:
        conflicts: OnConflict = "keep" if keep_conflicts else "raise"
        moved = await moves.redo(made.engine, session, steps, conflicts, actor, reason)
        return _tell("redo", moved, session, made, as_json)

    return functools.partial(with_store, store, work, namespace=namespace)


def _point(text: str | None) -> moves.Target | None:
    """A time, or what names a place in a session's history."""
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    return text if when.tzinfo is None else when


def _agreed(question: str) -> bool:
    """Ask, on standard error: standard output may be a program's."""
    if not sys.stdin.isatty():
        raise UsageError(f"{question} there is nobody to ask; --yes says so")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _tell(command: str, moved: Moved, session: str | None, store: Store, as_json: bool) -> bool:
    if as_json:
        print_json(command, **moved_data(moved))
        return True
    for one in moved:
        print(f"{'undone' if command == 'rollback' else 'redone'} {one.id}: {count_of(len(one.changes), 'change')}")
    if moved.kept:
        print(f"kept as another session left them: {', '.join(map(text_of, moved.kept))}")
    if not moved:
        print(f"nothing to {'undo' if command == 'rollback' else 'redo'} in {session_name(session)}")
    elif not store.hook_names:
        print("no index was told, for want of hooks; if the store has one, memstate repair brings it along")
    return True
