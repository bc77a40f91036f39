"""What the sources of both flavours share: URLs, and what is said where one was given something else or has no more."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from memstate_core.errors import UnavailableError, ValidationFailed


def connect_arguments(url: sa.URL) -> dict[str, Any]:
    """What :func:`psycopg.connect` takes, of a URL."""
    _, arguments = url.get_dialect()().create_connect_args(url)
    return dict(arguments)


def size_of(pool: sa.Pool) -> int:
    return pool.size() if isinstance(pool, sa.QueuePool) else 1


def exhausted(shown: str, timeout: float) -> UnavailableError:
    return UnavailableError(
        f"all connections of {shown} were in use for {timeout:g} s; try again, or make the pool larger"
    )


def url_of(text: str, kind: str) -> sa.URL:
    """A database's URL, for psycopg.

    :raises ValidationFailed: it is none, or one of another database or driver.
    """
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError:
        raise ValidationFailed(f"{kind} takes a URL such as 'postgresql://user@host/database', not {text!r}") from None
    if url.drivername not in ("postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg_async"):
        raise ValidationFailed(f"{kind} takes postgresql:// or postgresql+psycopg://, not {url.drivername}://")
    return url.set(drivername="postgresql+psycopg")


def is_a(database: Any, name: str) -> bool:
    """Whether it is of a class of a package that need not be installed."""
    return any(kind.__name__ == name for kind in type(database).__mro__)
