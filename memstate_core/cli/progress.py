"""Progress bars on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from memstate_core.cli.errors import UsageError
from memstate_core.display import bars as looks
from memstate_core.progress import Progress


@contextmanager
def bars() -> Iterator[Progress]:
    """A bar for each hook on standard error, gone at the end; none where that is no terminal."""
    try:
        import rich  # noqa: F401
    except ImportError as error:
        raise UsageError('rich is not installed; the command needs it: pip install "memstate[cli]"') from error
    with looks.bars(transient=True) as told:
        yield told
