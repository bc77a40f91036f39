"""The command ``memstate``: its exit codes, and how it complains."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final

from memstate_core.cli.errors import UsageError
from memstate_core.errors import MemoryStoreError

DEBUG: Final = "--debug"

OK: Final = 0
FAILED: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130  # what a shell reports for SIGINT
NOBODY_READS: Final = 141  # and for SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 when it failed or found a fault, 2 when it was misused."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        from memstate_core.cli import app
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "typer":
            raise
        return _complain(
            "memstate", 'typer is not installed; the command needs it: pip install "memstate[cli]"', MISUSED
        )
    name = "memstate"
    arguments = sys.argv[1:] if argv is None else list(argv)
    debug = DEBUG in arguments
    arguments = [word for word in arguments if word != DEBUG]  # it may stand anywhere
    try:
        if not arguments:
            with contextlib.redirect_stdout(sys.stderr):
                app.parse(["--help"])
            return MISUSED
        name = app.name_of(arguments)
        parsed = app.parse(arguments)
        if isinstance(parsed, app.Complaint):
            return _complain(parsed.command, parsed.message, MISUSED)
        if parsed is None:  # all has been said
            return OK
        return OK if parsed() else FAILED
    except UsageError as error:
        _trace(debug)
        return _complain(name, error, MISUSED)
    except BrokenPipeError:
        # Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS
    except KeyboardInterrupt:
        return _complain(name, "interrupted", INTERRUPTED)
    except (MemoryStoreError, OSError) as error:
        _trace(debug)
        return _complain(name, f"{type(error).__name__}: {error}", FAILED)
    except Exception as error:
        _trace(debug)
        hint = "" if debug else f" ({DEBUG} shows where it came from)"
        return _complain(name, f"{type(error).__name__}: {error}{hint}", FAILED)


def _trace(debug: bool) -> None:
    if debug:
        traceback.print_exc()


def _complain(command: str, what: object, code: int) -> int:
    print(f"{command}: {what}", file=sys.stderr)
    return code
