"""The command ``memstate``: its parts, its exit codes, and how it complains."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from memstate_core.cli import demo, worker
from memstate_core.cli.errors import UsageError
from memstate_core.errors import MemoryStoreError

OK: Final = 0
FAILED: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130  # what a shell reports for SIGINT
NOBODY_READS: Final = 141  # and for SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 when it failed, 2 when it was misused."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    command = ""
    try:
        parser = _parser()
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            parser.print_help(sys.stderr)
            return MISUSED
        command = f" {arguments.command}"
        return OK if arguments.run(arguments) else FAILED
    except SystemExit as end:  # argparse's way of saying that all has been said
        return end.code if isinstance(end.code, int) else MISUSED
    except UsageError as error:
        return _complain(command, error, MISUSED)
    except BrokenPipeError:
        # Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS
    except KeyboardInterrupt:
        return _complain(command, "interrupted", INTERRUPTED)
    except (MemoryStoreError, OSError) as error:
        return _complain(command, f"{type(error).__name__}: {error}", FAILED)


def _complain(command: str, what: object, code: int) -> int:
    print(f"memstate{command}: {what}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="memstate", description="Transactional memory for AI agents.")
    parser.add_argument("--version", action="version", version=f"memstate {_version()}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    demo.add_to(commands)
    worker.add_to(commands)
    return parser


def _version() -> str:
    try:
        return version("memstate")
    except PackageNotFoundError:
        return "(not installed)"
