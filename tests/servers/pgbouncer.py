"""PgBouncer: the machine's own, or from Debian's package."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.servers.debian import libraries, unpacked
from tests.servers.processes import Place, Port, Server, program, running
from tests.servers.urls import address, with_port


class PgBouncer(Server):
    title = "PgBouncer"

    def __init__(self, place: Place, url: str, port: int, *, pool_mode: str) -> None:
        super().__init__(place)
        self.url = with_port(url, port)
        self.port = port
        self._server = address(url)
        login = urlsplit(url)
        self._login = {"user": unquote(login.username or ""), "password": unquote(login.password or "")}
        self._pool_mode = pool_mode
        self._program, self._libraries = _program(place)

    def through(self, url: str) -> str:
        """The URL of another database of the same server, by way of PgBouncer."""
        if address(url) != self._server:
            raise ValueError(f"{url} is not at {self._server}, which this PgBouncer serves")
        return with_port(url, self.port)

    def _command(self) -> Sequence[str | Path]:
        configuration = self.place.directory / "pgbouncer.ini"
        host, port = self._server
        login = "".join(f" {name}='{value}'" for name, value in self._login.items() if value)
        configuration.write_text(
            f"[databases]\n* = host={host} port={port}{login}\n"
            "[pgbouncer]\n"
            "listen_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\n"
            "unix_socket_dir =\n"
            "auth_type = any\n"
            f"pool_mode = {self._pool_mode}\n"
            "max_client_conn = 500\n"
            "default_pool_size = 20\n"
            "ignore_startup_parameters = extra_float_digits,options\n"
        )
        self.place.adopt(configuration)
        return [self._program, configuration]

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), "LD_LIBRARY_PATH": self._libraries}

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


@contextlib.contextmanager
def pgbouncer(url: str, *, pool_mode: str = "transaction") -> Iterator[PgBouncer]:
    """A PgBouncer before the PostgreSQL server of ``url``, for all of its databases, as the user of ``url``.

    :raises RuntimeError: there is no program for it, or it does not start.
    """
    # It refuses to run as root.
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    with (
        Place("pgbouncer", user=user) as place,
        Port() as port,
        running(PgBouncer(place, url, port.number, pool_mode=pool_mode)) as server,
    ):
        yield server


def _program(place: Place) -> tuple[Path, str]:
    """The program, and the ``LD_LIBRARY_PATH`` that it needs."""
    installed = program("pgbouncer")
    if installed is not None:
        return installed, ""
    copied = place.directory / "program"
    # Copied, since the environment may lie where only root can read.
    shutil.copytree(unpacked("pgbouncer", "usr/sbin/pgbouncer"), copied, symlinks=True)
    place.adopt(copied)
    return copied / "usr/sbin/pgbouncer", libraries(copied)
