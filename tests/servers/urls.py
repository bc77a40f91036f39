from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if not parts.hostname or parts.port is None:
        raise ValueError(f"{url} names no TCP host and port; a proxy needs both")
    return parts.hostname, parts.port


def with_port(url: str, port: int) -> str:
    """The same user, password and database, at another port of this machine."""
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{port}"))


def with_database(url: str, name: str) -> str:
    # What other drivers' URLs add to the scheme stays; urlunsplit would drop the empty host of a socket's URL.
    parts = urlsplit(url)
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}/{name}{query}"
