"""What this process knows of the runs and tasks it runs. Other processes, and this one after a crash, do without."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Final, NamedTuple

from langgraph.checkpoint.base.id import uuid6

from memstate_langgraph._cache import Recent
from memstate_langgraph._line import RootPosition

_THREADS: Final = 4096


class NestedRun(NamedTuple):
    """A run of a nested graph: its runtime, whether it loaded a checkpoint by its id, and an id of when it began."""

    runtime: Any
    explicit: bool
    began: str


class Notes:
    """By thread: which run has begun, and which of its tasks have changed the memory, and have ended."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        # The runtime of the last run that loaded its root, so that its further looks are no new run.
        self._runs: OrderedDict[str, Any] = OrderedDict()
        # An id from when it began.
        self._began: dict[str, str] = {}
        # The runs of nested graphs that have begun since, by namespace.
        self._nested: dict[str, dict[str, NestedRun]] = {}
        # The namespaces of tasks that have changed the memory since.
        self._wrote: dict[str, set[str]] = {}
        # The namespaces of tasks that have ended well since. Their writes may be stored much later.
        self._ended: dict[str, set[str]] = {}
        # The position of the checkpoint of the root that was stored last.
        self._positions: Recent[str, tuple[str, RootPosition]] = Recent(_THREADS)

    def begins(self, thread_id: str, runtime: Any) -> bool:
        """Whether this is the first look of a run at its root."""
        with self._guard:
            if self._runs.get(thread_id) is runtime:
                return False
            self._runs[thread_id] = runtime
            self._runs.move_to_end(thread_id)
            if len(self._runs) > _THREADS:
                self._forget(self._runs.popitem(last=False)[0])
            self._forget(thread_id)
            self._began[thread_id] = str(uuid6())
            return True

    def enters(self, thread_id: str, ns: str, runtime: Any, *, explicit: bool) -> bool:
        """Whether this is the first look of a nested graph's run; it may be followed by one at the latest."""
        with self._guard:
            runs = self._nested.setdefault(thread_id, {})
            found = runs.get(ns)
            if found is not None and found.runtime is runtime and found.explicit and not explicit:
                return False
            runs[ns] = NestedRun(runtime, explicit, str(uuid6()))
            return True

    def began(self, thread_id: str, ns: str) -> str | None:
        """What all checkpoints of the last run of a nested graph come after, as far as this process knows.

        LangGraph does not look for any where the graph cannot have one yet; then it is what the root's come after.
        """
        with self._guard:
            found = self._nested.get(thread_id, {}).get(ns)
            return found.began if found is not None else self._began.get(thread_id)

    def _forget(self, thread_id: str) -> None:
        self._began.pop(thread_id, None)
        self._nested.pop(thread_id, None)
        self._wrote.pop(thread_id, None)
        self._ended.pop(thread_id, None)

    def placed(self, thread_id: str, checkpoint_id: str, position: RootPosition) -> None:
        """A checkpoint of the root has been stored, with its position."""
        self._positions.put(thread_id, (checkpoint_id, position))

    def position(self, thread_id: str, checkpoint_id: str | None) -> RootPosition | None:
        """That of a checkpoint, if it was the last :meth:`placed`. It stays as it is, so nobody need read it."""
        known = self._positions.get(thread_id)
        return known[1] if known is not None and known[0] == checkpoint_id else None

    def writes(self, thread_id: str, ns: str) -> None:
        """A task changes the memory."""
        with self._guard:
            self._wrote.setdefault(thread_id, set()).add(ns)

    def ends(self, thread_id: str, ns: str) -> None:
        """A task has ended well."""
        if self.wrote(thread_id, ns):
            with self._guard:
                self._ended.setdefault(thread_id, set()).add(ns)

    def wrote(self, thread_id: str, ns: str) -> bool:
        """Whether a task, or one below it, has changed the memory in this run, as far as this process knows."""
        with self._guard:
            return any(one == ns or one.startswith(f"{ns}|") for one in self._wrote.get(thread_id, ()))

    def task_wrote(self, thread_id: str, task_id: str) -> bool:
        """The same for a task of which only the id is known."""
        with self._guard:
            return any(task_id in ns for ns in self._wrote.get(thread_id, ()))

    def ended_tasks(self, thread_id: str) -> list[str]:
        """The ids of the tasks that changed the memory and have ended."""
        with self._guard:
            return [one.rpartition(":")[2] for one in self._ended.get(thread_id, ())]
