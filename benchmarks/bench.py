"""What the measurements share: sizes, effort, a directory, and the stores that were loaded."""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from benchmarks.measure import Effort, settle
from benchmarks.storages import StorageKind
from benchmarks.subjects import MemStateSubject
from benchmarks.workload import Loaded, load


@dataclass(frozen=True, slots=True)
class Sizes:
    """Facts in a large and in a small store, transactions of a long and a short journal, facts in an index."""

    facts: int = 100_000
    few_facts: int = 1_000
    journal: int = 100_000
    short_journal: int = 1_000
    indexed: int = 10_000
    writing_seconds: float = 0.4


QUICK: Final = Sizes(2_000, 500, 2_000, 500, 1_000, 0.1)


class Bench:
    """One run. Stores are loaded when they are first asked for, and closed in the end."""

    def __init__(
        self, kinds: Sequence[StorageKind], sizes: Sizes, effort: Effort, directory: Path | None = None
    ) -> None:
        self.kinds = kinds
        self.sizes = sizes
        self.effort = effort
        self._within = directory
        self._stack = ExitStack()
        self._loaded: dict[tuple[str, str, int], Loaded] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        gc.unfreeze()

    def directory(self) -> Path:
        """A new one, removed in the end."""
        made = tempfile.TemporaryDirectory(prefix="memstate-bench-", dir=self._within, ignore_cleanup_errors=True)
        return Path(self._stack.enter_context(made))

    def closing(self, close: Callable[[], object]) -> None:
        """Call this in the end."""
        self._stack.callback(close)

    def floor(self, kind: StorageKind, size: int) -> Loaded:
        return self._load(kind, "floor", size)

    def memstate(self, kind: StorageKind, size: int) -> Loaded:
        return self._load(kind, "memstate", size)

    def _load(self, kind: StorageKind, what: str, size: int) -> Loaded:
        key = kind.name, what, size
        if key not in self._loaded:
            say(f"loading {size:,} facts into {kind.name} ({what})")
            directory = self.directory()
            subject = kind.floor(directory) if what == "floor" else MemStateSubject(kind.storage(directory))
            self.closing(subject.close)
            self._loaded[key] = load(subject, size)
            settle()
        return self._loaded[key]


def say(text: str) -> None:
    """Tell the waiting what is being done."""
    print(f"… {text}", file=sys.stderr, flush=True)
