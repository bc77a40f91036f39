"""What a process remembers of the threads it writes to, so that a put need not read what it builds on."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, Generic, TypeVar

from memstate_langgraph._lists import ListVersion

K = TypeVar("K")
V = TypeVar("V")

_LISTS: Final = 64
_CHECKPOINTS: Final = 512


class Recent(Generic[K, V]):
    """The values that were used last."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[K, V] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._guard:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: K, value: V, successor_of: K | None = None) -> None:
        """Keep a value; what it is the successor of goes before all others when there are too many."""
        with self._guard:
            if successor_of is not None and successor_of in self._values:
                self._values.move_to_end(successor_of, last=False)
            self._values[key] = value
            self._values.move_to_end(key)
            if len(self._values) > self._size:
                self._values.popitem(last=False)


class Cache:
    """Channel versions by checkpoint, lists by version, and the runs that are noted of a thread.

    All are true only as long as the thread's *generation* is the one they were read under: whoever removes anything
    from a thread changes it. They are therefore looked up by it as well.
    """

    def __init__(self) -> None:
        self._versions: Recent[tuple[bytes, str, str, str], Mapping[str, Any]] = Recent(_CHECKPOINTS)
        self._lists: Recent[tuple[bytes, str, str], ListVersion] = Recent(_LISTS)
        self._ran: Recent[tuple[bytes, str, str], bool] = Recent(_CHECKPOINTS)
        self._generations: Recent[str, bytes] = Recent(_CHECKPOINTS)

    def generation(self, thread_id: str) -> bytes | None:
        """The last one that was seen."""
        return self._generations.get(thread_id)

    def saw(self, thread_id: str, generation: bytes) -> None:
        self._generations.put(thread_id, generation)

    def has_run(self, generation: bytes, thread_id: str, run: str) -> bool:
        """Whether it is known that a run has stored checkpoints in the thread."""
        return self._ran.get((generation, thread_id, run)) is not None

    def keep_run(self, generation: bytes, thread_id: str, run: str) -> None:
        self._ran.put((generation, thread_id, run), True)

    def versions(
        self, generation: bytes, thread_id: str, checkpoint_ns: str, checkpoint_id: str
    ) -> Mapping[str, Any] | None:
        return self._versions.get((generation, thread_id, checkpoint_ns, checkpoint_id))

    def keep_versions(
        self, generation: bytes, thread_id: str, checkpoint_ns: str, checkpoint_id: str, versions: Mapping[str, Any]
    ) -> None:
        self._versions.put((generation, thread_id, checkpoint_ns, checkpoint_id), versions)

    def list_version(self, generation: bytes, thread_id: str, key: str) -> ListVersion | None:
        return self._lists.get((generation, thread_id, key))

    def keep_list(self, generation: bytes, thread_id: str, version: ListVersion, base: str | None = None) -> None:
        """``base``: the key of the version that it goes on from, which is less likely to be asked for again."""
        successor_of = None if base is None else (generation, thread_id, base)
        self._lists.put((generation, thread_id, version.key), version, successor_of)
