"""How commands print: in colour and cut to the width on a terminal, plain and whole elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from memstate_core.cli.errors import UsageError
from memstate_core.cli.plain import value_of
from memstate_core.facts import Change

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# A pipe has no width.
_WIDEST: Final = 1 << 16

Parts = Sequence[tuple[str, str]]


class Screen:
    """Prints lines of (text, style) parts."""

    def __init__(self) -> None:
        try:
            from rich.console import Console
            from rich.text import Text
        except ImportError as error:
            raise UsageError('rich is not installed; the command needs it: pip install "memstate[cli]"') from error
        self._text: type[Text] = Text
        self._console: Console = Console(highlight=False)
        if not self._console.is_terminal:
            self._console.width = _WIDEST

    def line(self, *parts: tuple[str, str] | str) -> None:
        """A line of a list, of which a terminal shows what has room."""
        text = self._text.assemble(*parts)
        text.rstrip()
        if self._console.is_terminal:
            text.truncate(self._console.width, overflow="ellipsis")
        self.whole(text)

    def whole(self, *parts: tuple[str, str] | str | Text) -> None:
        """A line that is shown to its end, however long."""
        self._console.print(self._text.assemble(*parts), soft_wrap=True)

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> None:
        """Rows under headings; ``numbers`` are the columns that stand on the right. The last one takes what is left."""
        rows = [list(row) for row in rows]
        widths = [max(len(row[at]) for row in (list(headings), *rows)) for at in range(len(headings))]
        for place, row in enumerate((headings, *rows)):
            cells = [
                one.rjust(width) if at in numbers else one.ljust(width)
                for at, (one, width) in enumerate(zip(row, widths, strict=True))
            ]
            self.line(("  ".join(cells), "" if place else "bold"))

    def change(self, change: Change, heading: Parts) -> None:
        """What became of a fact, field by field."""
        self.whole(*heading)
        for sign, style, text in field_changes(change):
            self.whole((f"    {sign} {text}", style))


def field_changes(change: Change) -> list[tuple[str, str, str]]:
    """Sign, style and text for each field of a fact that a change touched; those of the payload come by name."""
    before, after = _fields(change.before), _fields(change.after)
    found = []
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if old is not None:
            found.append(("-", "red", f"{name}: {old}"))
        if new is not None:
            found.append(("+", "green", f"{name}: {new}"))
    return found


def _fields(fact: Any) -> dict[str, str]:
    if fact is None:
        return {}
    fields = {value_of(name)[1:-1]: value_of(value) for name, value in fact.payload.items()}
    about = {"source": fact.source, "session_id": fact.session_id, "ephemeral": fact.ephemeral or None}
    return fields | {f"({name})": value_of(value) for name, value in about.items() if value is not None}
