"""What the driver raises, as errors of MemState."""

from __future__ import annotations

from typing import Final, NoReturn

import psycopg
import sqlalchemy as sa

from memstate_core.errors import ConflictError, MemoryStoreError, StorageError, UnavailableError

DriverError: Final = (psycopg.Error, sa.exc.SQLAlchemyError)

# The transaction can be run again, and may then succeed: serialisation failure, deadlock, a lock not to be had.
_RACES: Final = ("40001", "40P01", "55P03")
# The server is going away, coming up, or has no room for more.
# 25P03 and 25P04: the server has ended a session whose transaction took too long.
_PASSING: Final = ("08", "25P03", "25P04", "53", "57P01", "57P02", "57P03", "57P05", "58")


def is_race(error: BaseException) -> bool:
    return isinstance(error, psycopg.Error) and error.sqlstate in _RACES


def is_outage(error: BaseException) -> bool:
    """Whether the connection broke, or could not be made."""
    if _is_exhausted(error):
        return False
    if isinstance(error, psycopg.Error):
        if error.sqlstate is None:
            return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        return error.sqlstate.startswith(_PASSING)
    return isinstance(error, sa.exc.DBAPIError | OSError)


def _is_exhausted(error: BaseException) -> bool:
    """Whether a given pool had no connection to give; psycopg_pool need not be installed."""
    return type(error).__name__ in ("PoolTimeout", "TooManyRequests") or isinstance(error, sa.exc.TimeoutError)


def translate(error: BaseException, shown: str) -> NoReturn:
    """Raise what a driver's error comes to."""
    if isinstance(error, MemoryStoreError):
        raise error
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if _is_exhausted(error):
        raise UnavailableError(
            f"no connection of {shown} became free in time ({reason}); try again, or make the pool larger"
        ) from error
    if is_outage(error):
        raise UnavailableError(f"{shown} cannot be reached: {reason}") from error
    if is_race(error):
        raise UnavailableError(f"{shown}: {reason}; try again") from error
    if isinstance(error, psycopg.IntegrityError):
        raise ConflictError(f"the database refused the change: {reason}") from error
    raise StorageError(f"{shown}: {reason}") from error
