"""A table, and the only two places where one becomes HTML or text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal, NamedTuple

from memstate_core.display._words import columns_of, counted

Tone = Literal["plain", "id", "muted", "added", "changed", "removed"]

# Colours that can be read on light and on dark ground, since a notebook may have either.
_GROUNDS: Final[dict[Tone, str]] = {
    "added": "background:rgba(46,160,67,.18);",
    "changed": "background:rgba(210,153,34,.18);",
    "removed": "background:rgba(248,81,73,.18);",
}
_LETTERS: Final[dict[Tone, str]] = {"id": "font-family:monospace;opacity:.75;", "muted": "opacity:.65;"}
_CELL: Final = "text-align:left;vertical-align:top;padding:3px 10px;"
# A text of so many characters stays on one line, where a browser would break it at a hyphen to save room.
_SHORT: Final = 24
_LINE: Final = "border-bottom:1px solid rgba(128,128,128,.25);"
_GAP: Final = "  "


class Cell(NamedTuple):
    """``hint`` is shown when the pointer rests on the cell, such as an id in full."""

    text: str
    tone: Tone = "plain"
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """``notes`` stand below it. Without ``columns`` there is no line of headings."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()

    @property
    def html(self) -> str:
        title = f'<div style="font-weight:600;padding:2px 10px 4px;">{escape(self.title)}</div>' if self.title else ""
        headings = "".join(
            f'<th style="{_CELL}{_lines(name)}{_LINE}">{_span(name, "muted")}</th>' for name in self.columns
        )
        head = f"<thead><tr>{headings}</tr></thead>" if headings else ""
        body = "".join(f"<tr>{''.join(map(_cell_html, row))}</tr>" for row in self.rows)
        table = f'<table style="border-collapse:collapse;margin:0;">{head}<tbody>{body}</tbody></table>'
        notes = "".join(
            f'<div style="opacity:.65;font-size:90%;padding:4px 10px;">{escape(note)}</div>' for note in self.notes
        )
        return f'<div style="margin:4px 0;">{title}{table if self.rows else ""}{notes}</div>'

    @property
    def text(self) -> str:
        lines = [[name.upper() for name in self.columns]] if self.columns and self.rows else []
        lines += [[cell.text for cell in row] for row in self.rows]
        widths = [max(map(columns_of, column)) for column in zip(*lines, strict=True)]
        written = [
            _GAP.join(
                text + " " * (width - columns_of(text)) for text, width in zip(line, widths, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*([self.title] if self.title else []), *written, *self.notes])


def _cell_html(cell: Cell) -> str:
    hint = f' title="{escape(cell.hint)}"' if cell.hint else ""
    style = f"{_CELL}{_lines(cell.text)}{_LINE}{_GROUNDS.get(cell.tone, '')}"
    return f'<td style="{style}"{hint}>{_span(cell.text, cell.tone)}</td>'


def _lines(text: str) -> str:
    return f"white-space:{'pre' if len(text) <= _SHORT else 'pre-wrap'};"


def _span(text: str, tone: Tone) -> str:
    """A text within a cell, so that the cell's lines do not fade with it."""
    style = _LETTERS.get(tone)
    return f'<span style="{style}">{escape(text)}</span>' if style else escape(text)


def some(count: int, shown: int, thing: str) -> list[str]:
    """The note below a table that does not show everything."""
    return [f"… and {counted(count - shown, thing)} more"] if count > shown else []
