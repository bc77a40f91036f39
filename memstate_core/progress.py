"""How long work on an index says how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called with a hook's name, how much of the work on it is done, and how much there is in all, as far as is known.
Progress = Callable[[str, int, int], object]


@contextmanager
def shown(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """What is to be called for a caller's ``progress=``: True means bars, of :mod:`memstate_core.display.bars`.

    :raises ImportError: there is nothing that shows bars.
    """
    if progress is True:
        from memstate_core.display.bars import bars

        with bars() as told:
            yield told
    else:
        yield None if progress is False else progress


class Tally:
    """How far the work on one hook is."""

    def __init__(self, hook: str, progress: Progress | None) -> None:
        self.hook = hook
        self.done = self.total = 0
        self._progress = progress

    def add(self, count: int) -> None:
        self.done += count
        self.total = max(self.total, self.done)
        if self._progress is not None:
            self._progress(self.hook, self.done, self.total)

    def finish(self) -> None:
        self.add(self.total - self.done)
