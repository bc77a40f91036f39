"""What several subcommands take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from memstate_core.cli.errors import UsageError
from memstate_core.cli.stores import is_store, names_storage

_STORE = (
    "A URL (sqlite:///memory.db, postgresql://…, redis://…), or where your code has the store: a MemoryStore or"
    " AsyncMemoryStore, or a function that makes one (myapp.memory:store). Default: what memstate.toml says."
)

StoreName = Annotated[str | None, typer.Argument(metavar="STORE", help=_STORE, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
Namespace = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The tenant, of a store named by a URL (default: default).", show_default=False),
]
Session = Annotated[
    str | None,
    typer.Option(metavar="ID", help="The session (default: the long-term memory).", show_default=False),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Actor = Annotated[
    str, typer.Option(metavar="NAME", help="Who does it, for the history.", show_default="memstate command line")
]
Reason = Annotated[str | None, typer.Option(metavar="TEXT", help="Why, for the history.", show_default=False)]
KeepConflicts = Annotated[
    bool, typer.Option("--keep-conflicts", help="Leave facts that another session has changed since as they are.")
]
ACTOR = "memstate command line"
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing when there is nothing to tell.")]


def words(what: str, text: str) -> Any:
    """The arguments of a command that takes a store, which may be left out, and something else."""
    return typer.Argument(metavar=f"[STORE] {what}", help=f"{_STORE} {text}", show_default=False)


def store_and(given: Sequence[str], most: int, what: str) -> tuple[str | None, list[str]]:
    """Take the words of :func:`words` apart: the store (None: not given), and up to ``most`` others, at least one.

    :raises UsageError: too few or too many.
    """
    others = list(given)
    store = others.pop(0) if len(others) > most or (len(others) > 1 and is_store(others[0])) else None
    if store is not None and not is_store(store):
        raise UsageError(f"{store!r} names no store; write a URL such as sqlite:///memory.db, or MODULE:NAME")
    if not 0 < len(others) <= most or (store is None and names_storage(others[0])):
        raise UsageError(f"expected [STORE] {what}, not {' '.join(given)!r}")
    return store, others


# Parsers are given defaults, too.
def count(given: object) -> int:
    text = str(given)
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if number < 0:
        raise typer.BadParameter(f"{text!r} is not a whole number from 0")
    return number


def whole(given: object) -> int:
    text = str(given)
    if not (text.removeprefix("-").isascii() and text.removeprefix("-").isdigit() and len(text) < 20):
        raise typer.BadParameter(f"{text!r} is not a whole number")
    return int(text)


def some(given: object) -> int:
    text = str(given)
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**6):
        raise typer.BadParameter(f"{text!r} is not a whole number from 1")
    return int(text)


def seconds(given: object) -> float:
    text = str(given)
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < 1e6:
        raise typer.BadParameter(f"{text!r} is not a number of seconds above 0")
    return number
