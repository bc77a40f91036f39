"""Who is broken, a module for each: dual writes by hand, the published ``memstate`` 0.5.1, and memstate itself.

A store of your own can be put in: ``--contender MODULE:NAME``, where NAME is a :class:`Candidate`, or a class or
function that opens a :class:`Contender` as :attr:`Candidate.open` does.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.injection import Index, Steps

# A session and a text by fact id. None as a session is long-term memory.
Facts = dict[str, tuple[str | None, str]]


class Contender(Protocol):
    """A store that keeps facts, tells its indexes of them, and keeps a journal.

    What is missing of the calls is n/a in the table. Those of an async one return awaitables, except ``facts``,
    ``journal``, ``recover`` and ``close``.
    """

    def commit(self, fact_id: str, text: str, session_id: str | None) -> Any: ...

    def update(self, fact_id: str, text: str) -> Any: ...

    def delete(self, fact_id: str, session_id: str | None) -> Any: ...

    def batch(self, session_id: str, texts: Mapping[str, str]) -> Any:
        """Commit several new facts, or new texts of facts, as one unit."""
        ...

    def promote(self, session_id: str) -> Any:
        """Make the session's facts long-term."""
        ...

    def discard(self, session_id: str) -> Any:
        """Delete the session's facts."""
        ...

    def rollback(self, session_id: str, steps: int) -> Any: ...

    def facts(self) -> Facts: ...

    def journal(self, session_id: str) -> Sequence[Any]:
        """What is recorded of a session, oldest first, as values that compare equal when the same calls made them."""
        ...

    def recover(self) -> None:
        """What there is to do after a failure. A contender that offers nothing does not have it."""
        ...

    def close(self) -> None: ...


Open = Callable[[Path, Sequence[Index], Steps], Contender]


@dataclass(frozen=True)
class Candidate:
    """A column of the table. To be killed it is opened in other processes, so all functions must be pickled by name.

    :param open: ``open(directory, indexes, steps)`` opens the store of a directory, which is new and empty at first.
        It calls ``steps("storage: before")`` and so on around its calls to storage, or has no faults there.
    :param open_async: the same, for a store whose calls are awaited, and which awaits ``index.apply_async``.
    :param open_deferred: the same, for one that tells its indexes in ``recover()`` only.
    :param outlives: whether what was written outlives the process.
    :param modules: what it imports, for other processes to have it ready.
    """

    name: str
    open: Open
    open_async: Open | None = None
    open_deferred: Open | None = None
    outlives: bool = True
    modules: tuple[str, ...] = ()


@functools.cache
def _loop() -> asyncio.Runner:
    """One loop for all async contenders, as their storages are opened once."""
    return asyncio.Runner()


def settled(result: Any) -> Any:
    """What a contender's call returned, awaited if it must be."""
    if not inspect.isawaitable(result):
        return result

    async def awaited() -> Any:
        return await result

    return _loop().run(awaited())


def close_loop() -> None:
    """To be called when all async contenders have been closed."""
    _loop().close()
    _loop.cache_clear()
