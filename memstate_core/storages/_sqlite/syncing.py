"""Syncs of a write-ahead log, each for all who have written to it before.

SQLite would sync within each commit, while everybody else waits. Here a commit is written in its turn and synced after
it: who comes meanwhile commits meanwhile, and one more sync is for all of them. Others may see a commit before it is on
the disk, but it has not returned yet, and whoever builds on it is behind it in the log.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Final

# Where there is one, it spares what the times of the file would take.
_sync: Final[Any] = getattr(os, "fdatasync", os.fsync)


class LogSync:
    """Syncs the log of one connection, whose commits are numbered."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        self._written = 0
        self._synced = 0
        # What was lost once is not on the disk when a later sync succeeds.
        self._error: OSError | None = None
        self._turn = threading.Lock()

    def wrote(self) -> int:
        """The number of a commit that was made just now, by whoever has the right to write."""
        self._written += 1
        return self._written

    def wait(self, number: int) -> None:
        """Until a commit is on the disk.

        :raises OSError: it, or one before it, may be lost in a power cut.
        """
        with self._turn:
            if self._synced < number:
                self._sync()

    def sync(self) -> None:
        """The same for whatever can be seen, by whichever process it was written."""
        with self._turn:
            self._sync()

    def _sync(self) -> None:
        if self._error is not None:
            raise self._error
        written = self._written
        try:
            _sync(self._descriptor)
        except OSError as error:
            self._error = error
            raise
        self._synced = written

    def close(self) -> None:
        """Sync what somebody still waits for, and let go of the file; nobody writes any more."""
        with self._turn:
            try:
                if self._synced < self._written:
                    self._sync()
            except OSError:
                pass  # who waits for it is told
            finally:
                os.close(self._descriptor)
                self._error = self._error or OSError("the file was closed")

    def after_fork(self) -> None:
        """In a child, where the thread that had its turn is not."""
        self._turn = threading.Lock()
