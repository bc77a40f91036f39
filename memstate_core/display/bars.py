"""Progress bars of rich's, on a terminal and in a notebook."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

# A notebook keeps what it is shown until something else takes its place, so it is not shown every step.
_SECONDS: Final = 0.1

Told = Callable[[str, int, int], None]


@contextmanager
def bars(*, transient: bool = False) -> Iterator[Told]:
    """A bar for each name that what it yields is called with, on standard error or in a notebook's output; none where
    nobody would see it move.

    :param transient: on a terminal, the bars go at the end.
    :raises ImportError: rich is not installed.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars
    except ImportError as error:
        raise ImportError('progress bars are shown by rich: pip install "memstate[cli]"') from error
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    if console.is_jupyter:
        cell = _Cell(Bars(*columns, console=console, auto_refresh=False))
        try:
            yield cell.tell
        finally:
            cell.show()
    elif console.is_terminal:
        with Bars(*columns, TimeRemainingColumn(), console=console, transient=transient) as shown:
            yield _teller(shown)
    else:
        yield lambda name, done, total: None


def _teller(shown: Bars) -> Told:
    from rich.markup import escape

    tasks: dict[str, TaskID] = {}

    def tell(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = shown.add_task(escape(name), total=total)
        shown.update(tasks[name], completed=done, total=total)

    return tell


class _Cell:
    """Bars in the output of a notebook's cell. Rich's own way there needs widgets, which no saved notebook shows."""

    def __init__(self, shown: Bars) -> None:
        self._shown: Any = shown  # what it says of its looks is wrong
        self._tell = _teller(shown)
        self._handle: Any = None
        self._next = 0.0

    def tell(self, name: str, done: int, total: int) -> None:
        self._tell(name, done, total)
        if time.monotonic() >= self._next:
            self.show()
            self._next = time.monotonic() + _SECONDS

    def show(self) -> None:
        from IPython.display import display
        from rich.text import Text

        if not self._shown.tasks:
            return
        looks = self._shown._repr_mimebundle_((), ())
        looks["text/plain"] = Text.from_ansi(looks["text/plain"]).plain
        show: Callable[..., Any] = display
        if self._handle is None:
            self._handle = show(looks, raw=True, display_id=True)
        else:
            self._handle.update(looks, raw=True)
