"""Under which collections and keys the records of a thread are kept.

A thread has a collection for each kind of record, so that it can be read and removed by itself. Within it keys begin
with the checkpoint namespace, and sort by checkpoint id or channel version after that.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

from memstate_core.errors import ValidationFailed

THREADS: Final = "langgraph.threads"
RUNS: Final = "langgraph.runs"
# By run id, the threads in which the run has stored checkpoints.
RAN: Final = "langgraph.ran"
_LONGEST: Final = 200
_AFTER_SLASH: Final = "0"  # the character that follows "/"


def checkpoints(thread_id: str) -> str:
    return f"langgraph.checkpoints:{_short(thread_id)}"


def channels(thread_id: str) -> str:
    return f"langgraph.channels:{_short(thread_id)}"


def writes(thread_id: str) -> str:
    return f"langgraph.writes:{_short(thread_id)}"


def positions(thread_id: str) -> str:
    """Where the memory stood at each checkpoint of the thread."""
    return f"langgraph.positions:{_short(thread_id)}"


def lines(thread_id: str) -> str:
    """On which line of the thread its memory stands, and where it stood on those that were left."""
    return f"langgraph.lines:{_short(thread_id)}"


def finished(thread_id: str) -> str:
    """Which transactions the finished tasks of the thread's checkpoints made."""
    return f"langgraph.finished:{_short(thread_id)}"


def ran(thread_id: str) -> str:
    """Which runs have stored checkpoints in the thread."""
    return f"langgraph.ran:{_short(thread_id)}"


def of_thread(thread_id: str) -> tuple[str, ...]:
    """Every collection of a thread."""
    return tuple(kind(thread_id) for kind in (checkpoints, channels, writes, positions, lines, finished, ran))


def thread(thread_id: str) -> str:
    """The thread's key among all threads."""
    return _short(thread_id)


def thread_place(thread_id: str) -> tuple[str, str]:
    """Collection and key of what says that there is a thread."""
    return THREADS, _short(thread_id)


@lru_cache(1024)
def _short(text: str) -> str:
    """The text itself, or a digest of it where it is too long to be part of a key."""
    if len(text) <= _LONGEST and not text.startswith("~"):
        return text
    return "~" + hashlib.sha256(text.encode()).hexdigest()


@lru_cache(4096)
def _namespace(checkpoint_ns: str) -> str:
    return _short(checkpoint_ns.replace("%", "%25").replace("/", "%2F"))


def checkpoint(checkpoint_ns: str, checkpoint_id: str) -> str:
    return f"{_namespace(checkpoint_ns)}/{checkpoint_id}"


def namespace_range(checkpoint_ns: str, before: str | None = None) -> tuple[str, str]:
    """The range of a namespace's checkpoints (or channels, or writes), as far as their ids are below ``before``."""
    name = _namespace(checkpoint_ns)
    return f"{name}/", f"{name}/{before}" if before is not None else name + _AFTER_SLASH


def task(checkpoint_ns: str, checkpoint_id: str, task_id: str) -> str:
    return f"{checkpoint(checkpoint_ns, checkpoint_id)}/{task_id}"


def task_range(checkpoint_ns: str, checkpoint_id: str) -> tuple[str, str]:
    """The range of the writes of a checkpoint's tasks."""
    key = checkpoint(checkpoint_ns, checkpoint_id)
    return f"{key}/", key + _AFTER_SLASH


def checkpoint_of_task(key: str) -> str:
    """The key of the checkpoint to which the writes under a key belong."""
    return key.rpartition("/")[0]


@lru_cache(4096)
def _channel(name: str) -> str:
    # A digest, since the name of a channel is part of the state, and keys are not encrypted.
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


def channel(checkpoint_ns: str, name: str, version: str | float) -> str:
    text = version if isinstance(version, str) else f"{version:032}"
    return f"{_namespace(checkpoint_ns)}/{_channel(name)}/{text}"


@lru_cache(4096)
def run(run_id: str) -> str:
    # A digest, since it is metadata, which is not to be read in keys either.
    return hashlib.blake2b(run_id.encode(), digest_size=16).hexdigest()


def ran_in(run: str, thread_id: str) -> str:
    """The key of a thread among those in which a run (its key) has stored checkpoints."""
    return f"{run}/{_short(thread_id)}"


def ran_range(run: str) -> tuple[str, str]:
    """The range of the threads in which a run has stored checkpoints."""
    return f"{run}/", run + _AFTER_SLASH


def check_thread_id(thread_id: object) -> str:
    """:raises ValidationFailed: it cannot be part of a key."""
    text = str(thread_id)
    if not text or "\0" in text:
        raise ValidationFailed(f"thread_id must be a text without NUL characters, not {thread_id!r}")
    return text
