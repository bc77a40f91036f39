"""How the demo looks, in a terminal and in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

T = TypeVar("T")

_WIDEST: Final = 120


class Column:
    """A table's column: numbers stand on the right, texts share the room that is left by ``ratio``."""

    def __init__(self, title: str, *, number: bool = False, ratio: int | None = None) -> None:
        self.title = title
        self.number = number
        self.ratio = ratio


class Screen:
    """Everything that is printed. ``quiet``: only what :meth:`say` is given with ``always``."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(highlight=False)
        self._console.width = min(self._console.width, _WIDEST)

    def heading(self, text: str) -> None:
        self._print(Text())
        self._print(Rule(Text(text, "bold"), align="left", style="dim"))

    def say(self, text: str, style: str = "", *, always: bool = False) -> None:
        """A paragraph; nothing in it is taken for markup."""
        self._print(Text(text, style), always=always)

    def check(self, passed: bool, text: str) -> None:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_row(Text("ok", "green") if passed else Text("FAILED", "bold red"), Text(text))
        self._print(table, always=not passed)

    def facts(self, rows: Sequence[tuple[str, str]]) -> None:
        """Texts with a label before each."""
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column()
        for label, text in rows:
            table.add_row(Text(f"  {label}"), Text(text))
        self._print(table)

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, expand=any(column.ratio for column in columns))
        for column in columns:
            table.add_column(
                Text(column.title),
                justify="right" if column.number else "left",
                ratio=column.ratio,
                no_wrap=column.number,
            )
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
        self._print(table)

    def track(self, items: Sequence[T], text: str) -> Iterator[T]:
        """The items, with a bar that is gone at the end; in a pipe there is none."""
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=self._console,
            transient=True,
            disable=self._quiet or not self._console.is_terminal,
        )
        with progress:
            yield from progress.track(items, description=text)

    def _print(self, renderable: Text | Table | Rule, *, always: bool = False) -> None:
        if always or not self._quiet:
            self._console.print(renderable)
