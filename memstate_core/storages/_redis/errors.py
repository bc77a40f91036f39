"""The driver's errors as ours, and which of them may pass."""

from __future__ import annotations

import re
from typing import Final

from redis import exceptions

from memstate_core.errors import StorageError, UnavailableError

# Replies of a server that is there but cannot serve for now, by their first word (some drivers strip it).
_PASSING: Final = ("LOADING", "BUSY", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS")
_FULL: Final = ("OOM", "MISCONF")
# Redis 6.2 has a script's own words before those of the command that failed, and a pipeline has the command.
_CODE: Final = re.compile(rf"(?:^|: -?)({'|'.join((*_PASSING, *_FULL))})\b")


def is_lost(error: BaseException) -> bool:
    """Whether the connection broke, so that what was asked may have been done or not."""
    # A cluster's client raises the last one when it found no node any more to ask where the others are.
    lost = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.RedisClusterException)
    return isinstance(error, (*lost, ConnectionError, TimeoutError))


def is_read_only(error: BaseException) -> bool:
    """Whether the server is not the master any more."""
    return isinstance(error, exceptions.ReadOnlyError) or _code(error) == "READONLY"


def is_passing(error: BaseException) -> bool:
    """Whether the same command may succeed soon."""
    if isinstance(error, exceptions.AuthenticationError):
        return False
    passing = (
        exceptions.ReadOnlyError,
        exceptions.TryAgainError,
        exceptions.ClusterError,
        exceptions.ClusterDownError,
        exceptions.MasterDownError,
    )
    return is_lost(error) or isinstance(error, passing) or _code(error) in _PASSING


def _code(error: BaseException) -> str | None:
    found = _CODE.search(str(error))
    return found[1] if found else None


def is_no_script(error: BaseException) -> bool:
    return isinstance(error, exceptions.NoScriptError) or str(error).startswith("NOSCRIPT")


def translated(error: BaseException, where: str, *, writing: bool) -> StorageError:
    """The error to raise ``from`` the driver's."""
    text = str(error)
    if isinstance(error, exceptions.OutOfMemoryError) or _code(error) in _FULL:
        return UnavailableError(
            f"{where} refuses writes ({text}); nothing was written. Give it more memory or disk space and try again"
        )
    if isinstance(error, exceptions.AuthenticationError | exceptions.NoPermissionError):
        return StorageError(f"{where} refused the client: {text}; give it a user that may use the keys of memstate")
    if is_passing(error):
        unknown = "; whether the transaction was written is unknown" if writing and is_lost(error) else ""
        return UnavailableError(f"{where} cannot be used for now: {text or type(error).__name__}{unknown}; try again")
    return StorageError(f"{where}: {type(error).__name__}: {text}")
