"""``memstate demo``."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from memstate_core.cli.errors import UsageError
from memstate_core.demo.conversation import INCLUDED, ConversationError, load

_EXTRA: Final = {"chromadb", "numpy", "rich"}

_DESCRIPTION: Final = """\
A long conversation is remembered, session by session, as typed facts in SQLite with their vectors in Chroma.
Questions about it are answered by search. Then the agent gets something wrong, and it is rolled back; processes are
killed in the middle of a commit, and what they leave behind is recovered. Everything is compared with what it was, the
exit code is 1 if anything differs. Nothing needs a network.
"""


def add_to(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="see a conversation remembered, got wrong, undone, and recovered after kill -9",
        description=_DESCRIPTION,
    )
    demo.add_argument(
        "--conversation",
        type=Path,
        metavar="FILE",
        default=INCLUDED,
        help="a conversation in LoCoMo's format (default: a small one that comes with MemState)",
    )
    demo.add_argument(
        "--sample",
        metavar="ID",
        help="which conversation of the file: its sample_id, or its position from 1 (default: the first)",
    )
    demo.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="keep the database and the index here; it must be empty or not exist (default: a temporary one)",
    )
    demo.add_argument(
        "--questions", type=_count, metavar="N", default=5, help="how many questions to show (default: %(default)s)"
    )
    demo.add_argument(
        "--seed", type=int, metavar="N", default=1, help="which facts the agent gets wrong (default: %(default)s)"
    )
    demo.add_argument("--quiet", action="store_true", help="print the verdict, and checks that fail")
    demo.set_defaults(run=run)


def _count(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return number


def run(arguments: argparse.Namespace) -> bool:
    """Play it; whether all its checks passed."""
    try:
        conversation = load(arguments.conversation, arguments.sample)
    except ConversationError as error:
        raise UsageError(str(error)) from error
    try:
        from memstate_core.demo.acts import play
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise UsageError(f'{error.name} is not installed; the demo needs it: pip install "memstate[demo]"') from error
    with _directory(arguments.directory) as directory:
        return play(
            conversation,
            directory,
            questions=arguments.questions,
            seed=arguments.seed,
            quiet=arguments.quiet,
            kept=arguments.directory is not None,
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
