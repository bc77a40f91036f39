"""Chroma's own server, from its package."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.request import urlopen

from tests.servers.processes import Place, Port, Server, memory_directory, running


class ChromaServer(Server):
    title = "Chroma"

    def __init__(self, place: Place, port: int) -> None:
        super().__init__(place)
        self.host = "127.0.0.1"
        self.port = port

    def _command(self) -> Sequence[str | Path]:
        data = self.place.directory / "data"
        program = Path(sys.executable).parent / "chroma"
        return [program, "run", "--path", data, "--host", self.host, "--port", str(self.port)]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "ANONYMIZED_TELEMETRY": "False"}

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), urlopen(f"http://{self.host}:{self.port}/api/v2/heartbeat", timeout=1):
            return True
        return False


@contextlib.contextmanager
def chroma_server(*, port: int | None = None) -> Iterator[tuple[str, int]]:
    """A Chroma server with an empty database, as ``(host, port)``.

    :param port: for programs that name one; otherwise any that is free.
    :raises RuntimeError: it does not start.
    """
    with contextlib.ExitStack() as stack:
        if port is None:
            port = stack.enter_context(Port()).number
        # Every request that writes waits for its disk, several times.
        place = stack.enter_context(Place("chroma", parent=memory_directory()))
        server = stack.enter_context(running(ChromaServer(place, port)))
        yield server.host, server.port
