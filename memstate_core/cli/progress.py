"""Progress bars on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from memstate_core.cli.errors import UsageError
from memstate_core.progress import Progress


@contextmanager
def bars() -> Iterator[Progress]:
    """A bar for each hook on standard error, gone at the end; none where that is no terminal."""
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars
    except ImportError as error:
        raise UsageError('rich is not installed; the command needs it: pip install "memstate[cli]"') from error
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda hook, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=console, transient=True) as shown:

        def progress(hook: str, done: int, total: int) -> None:
            if hook not in tasks:
                tasks[hook] = shown.add_task(escape(hook), total=total)
            shown.update(tasks[hook], completed=done, total=total)

        yield progress
