"""Which subcommands there are, and what they are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Final, NamedTuple

import typer
from typer.main import get_command

from memstate_core.cli import demo, indexes, log, moving, reading, transfer, worker

# A mistake in the arguments. Typer has Click within, and does not name this.
_MISTAKE: Final = tuple(
    kind for kind in typer.BadParameter.__mro__ if issubclass(kind, Exception) and hasattr(kind, "format_message")
)


class Complaint(NamedTuple):
    """Why they ask for nothing that can be done."""

    command: str
    message: str


def name_of(arguments: Sequence[str]) -> str:
    """What a command line is called in complaints."""
    return " ".join(("memstate", *[word for word in arguments if not word.startswith("-")][:1]))


def parse(arguments: Sequence[str]) -> Callable[[], bool] | Complaint | None:
    """Parse a command line: what does it, and returns whether all is well; None: all that it asked for is printed."""
    try:
        done: Any = _worded(get_command(_app())).main(list(arguments), prog_name="memstate", standalone_mode=False)
    except _MISTAKE as caught:
        error: Any = caught
        context = getattr(error, "ctx", None)
        return Complaint(context.command_path if context else "memstate", error.format_message())
    return done if callable(done) else None


def _app() -> typer.Typer:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.callback()
    def memstate(
        show_version: Annotated[
            bool, typer.Option("--version", help="Show the version, and end.", is_eager=True, callback=_show_version)
        ] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show where in the code an error came from.")] = False,
    ) -> None:
        """Transactional memory for AI agents."""

    for family in (demo, moving, log, reading, transfer, worker, indexes):
        family.add_to(app)
    return app


def _worded(command: Any) -> Any:
    """Let help call arguments what we call them; newer versions of Typer add what Python calls their types."""
    for argument in (
        one for sub in command.commands.values() for one in sub.params if one.param_type_name == "argument"
    ):
        argument.display_type_rich = lambda ctx: None
        if argument.nargs != 1:
            argument.get_usage_pieces = lambda ctx, metavar=argument.metavar: [metavar]
    return command


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            found = version("memstate")
        except PackageNotFoundError:
            found = "(not installed)"
        print(f"memstate {found}")
        raise typer.Exit
