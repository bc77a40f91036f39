"""``memstate log``."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import typer

from memstate_core.cli import options
from memstate_core.cli.phrases import STYLES, remarks, sign_and_name, sign_of, time_of
from memstate_core.cli.plain import count_of, print_json, session_name, transaction_data
from memstate_core.cli.screen import Screen
from memstate_core.cli.stores import Store, called, with_store
from memstate_core.cli.tree import MOVES, drawn
from memstate_core.engine import Engine
from memstate_core.errors import NotFoundError
from memstate_core.facts import UNSET, Transaction, transaction_id
from memstate_core.protocols import Position


def add_to(app: typer.Typer) -> None:
    app.command("log", short_help="Show what happened, as the tree of a session's transactions.")(log)


def log(
    store: options.StoreName = None,
    session: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this session (default: all).", show_default=False)
    ] = None,
    long_term: Annotated[bool, typer.Option("--long-term", help="Only the long-term memory.")] = False,
    limit: Annotated[int, typer.Option(parser=options.some, metavar="N", help="How many transactions.")] = 30,
    namespace: options.Namespace = None,
    as_json: options.Json = False,
) -> Callable[[], bool]:
    """Show the newest transactions, session by session, with the tree that they form.

    The line on which the session stands is the leftmost one (●); lines that a rollback or checkout has left stand
    beside it (○). "<- here" is where the session stands, "<- redo" where a redo leads back to.
    """
    if session is not None and long_term:
        raise typer.BadParameter("--session and --long-term exclude each other")

    async def work(made: Store) -> bool:
        engine = made.engine
        chosen = None if long_term else UNSET if session is None else session
        newest = await engine.history(chosen, None, None, limit, None)
        by_session: dict[str | None, list[Transaction]] = {}
        for one in newest:
            by_session.setdefault(one.session_id, []).append(one)
        if not by_session and session is not None:
            raise NotFoundError(f"there is no session {session!r} in {called(store)}")
        places = {id_: await _position(engine, id_) for id_ in by_session}
        if as_json:
            sessions = [
                {
                    "session_id": id_,
                    "head": transaction_id(places[id_].head),
                    "redo": transaction_id(places[id_].redo),
                    "transactions": [transaction_data(one) for one in theirs],
                }
                for id_, theirs in by_session.items()
            ]
            print_json("log", sessions=sessions, more=len(newest) == limit)
            return True
        screen = Screen()
        for number, (id_, theirs) in enumerate(by_session.items()):
            if number:
                screen.line("")
            screen.line((session_name(id_), "bold"))
            _draw(screen, theirs, places[id_])
        if not newest:
            screen.line("nothing has been committed")
        elif len(newest) == limit:
            screen.line((f"… the newest {count_of(limit, 'transaction')}; --limit shows more", "dim"))
        return True

    return functools.partial(with_store, store, work, namespace=namespace)


def _draw(screen: Screen, transactions: Sequence[Transaction], place: Position) -> None:
    rows = list(drawn(transactions, place.head))
    width = max(len(gutter) for gutter, _ in rows)
    if not place.head:
        screen.line(("  (before the first transaction)", "dim"), ("  <- here", "bold green"))
    for gutter, one in rows:
        if one is None:
            screen.line((f"  {gutter}", "dim"))
            continue
        here = [("  <- here", "bold green")] if one.seq == place.head else []
        if one.seq == place.redo:
            here.append(("  <- redo", "cyan"))
        left = "○" in gutter
        screen.line(
            (f"  {gutter.ljust(width)}  ", "dim" if left else ""),
            (f"{one.id:<8}", "dim" if left or one.operation in MOVES else "yellow"),
            (f" {time_of(one)} ", "dim"),
            (f" {one.operation.value:<11}", "dim" if left else ""),
            *_summary(one),
            *here,
            *remarks(one),
        )


def _summary(one: Transaction) -> Iterator[tuple[str, str]]:
    if one.operation in MOVES:
        yield f" to {one.position or 'the beginning'}", "dim"
        return
    if len(one.changes) == 1:
        yield sign_and_name(one.changes[0])
        return
    signs = Counter(sign_of(change) for change in one.changes)
    for sign in "+~-":
        if signs[sign]:
            yield f" {sign}{signs[sign]:,}", STYLES[sign]


async def _position(engine: Engine, session_id: str | None) -> Position:
    return await engine.storage.read(engine.namespace, lambda tx: tx.position(session_id))
