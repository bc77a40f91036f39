"""``memstate demo``."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from memstate_core.cli import options
from memstate_core.cli.errors import UsageError
from memstate_core.demo.conversation import INCLUDED, ConversationError, load

_EXTRA: Final = {"chromadb", "numpy", "rich"}


class _Settings(NamedTuple):
    conversation: Path
    sample: str | None
    directory: Path | None
    questions: int
    seed: int
    quiet: bool


def add_to(app: typer.Typer) -> None:
    app.command("demo", short_help="See a conversation remembered, got wrong, undone, and recovered after kill -9.")(
        demo
    )


def demo(
    conversation: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="A conversation in LoCoMo's format (default: a small one that comes with MemState).",
            show_default=False,
        ),
    ] = INCLUDED,
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Which conversation of the file: its sample_id, or its position from 1 (default: the first).",
        ),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep the database and the index here; it must be empty or not exist (default: a temporary one).",
        ),
    ] = None,
    questions: Annotated[int, typer.Option(parser=options.count, metavar="N", help="How many questions to show.")] = 5,
    seed: Annotated[int, typer.Option(parser=options.whole, metavar="N", help="Which facts the agent gets wrong.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict, and checks that fail.")] = False,
) -> Callable[[], bool]:
    """A long conversation is remembered, session by session, as typed facts in SQLite with their vectors in Chroma.

    Questions about it are answered by search. Then the agent gets something wrong, and it is rolled back; processes are
    killed in the middle of a commit, and what they leave behind is recovered. Everything is compared with what it was,
    the exit code is 1 if anything differs. Nothing needs a network.
    """
    return functools.partial(run, _Settings(conversation, sample, directory, questions, seed, quiet))


def run(settings: _Settings) -> bool:
    """Play it; whether all its checks passed."""
    try:
        conversation = load(settings.conversation, settings.sample)
    except ConversationError as error:
        raise UsageError(str(error)) from error
    try:
        from memstate_core.demo.acts import play
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise UsageError(f'{error.name} is not installed; the demo needs it: pip install "memstate[demo]"') from error
    with _directory(settings.directory) as directory:
        return play(
            conversation,
            directory,
            questions=settings.questions,
            seed=settings.seed,
            quiet=settings.quiet,
            kept=settings.directory is not None,
        )


@contextmanager
def _directory(wanted: Path | None) -> Iterator[Path]:
    """Where the demo keeps its data.

    :raises UsageError: the directory is in use, or cannot be used.
    """
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix="memstate-demo-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
        return
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        in_use = any(wanted.iterdir())
    except OSError as error:
        raise UsageError(f"--directory {wanted} cannot be used: {error.strerror or error}; name another one") from error
    if in_use:
        raise UsageError(f"--directory {wanted} is not empty; empty it, or name one that is empty or does not exist")
    yield wanted
