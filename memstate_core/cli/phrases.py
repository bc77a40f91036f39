"""What transactions and changes are called, in lines of (text, style) parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from memstate_core.cli.plain import text_of
from memstate_core.facts import Change, Transaction

STYLES: Final = {"+": "green", "-": "red", "~": "yellow"}
_TIME: Final = "%Y-%m-%d %H:%M:%S"


def time_of(one: Transaction) -> str:
    """When it was, in local time."""
    return one.ts.astimezone().strftime(_TIME)


def remarks(one: Transaction) -> Iterator[tuple[str, str]]:
    if one.actor is not None:
        yield f"  {text_of(one.actor)}", "cyan"
    if one.reason is not None:
        yield f"  {text_of(one.reason)}", "italic"
    if one.mark is not None:
        yield f"  #{text_of(one.mark)}", "magenta"


def sign_of(change: Change) -> str:
    return "+" if change.before is None else "-" if change.after is None else "~"


def sign_and_name(change: Change) -> tuple[str, str]:
    fact: Any = change.after or change.before
    sign = sign_of(change)
    return f" {sign}{text_of(fact.type)} {text_of(change.fact_id)}", STYLES[sign]
