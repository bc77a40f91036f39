"""What several subcommands take."""

from __future__ import annotations

from typing import Annotated

import typer

StoreName = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:NAME",
        help="Where your code has the store: a MemoryStore or AsyncMemoryStore, or a function that makes one"
        " (myapp.memory:store).",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing when there is nothing to tell.")]


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
