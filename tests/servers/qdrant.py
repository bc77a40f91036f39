"""Qdrant over HTTP: there is no package with its server, but one with its engine, which is put behind a small one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.request import urlopen

from tests.servers.processes import Place, Port, Server, memory_directory, running


class QdrantServer(Server):
    title = "Qdrant"

    def __init__(self, place: Place, port: int) -> None:
        super().__init__(place)
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def _command(self) -> Sequence[str | Path]:
        program = Path(__file__).with_name("qdrant_rest.py")
        return [sys.executable, program, str(self.port), self.place.directory / "data"]

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), urlopen(self.url, timeout=1):
            return True
        return False


@contextlib.contextmanager
def qdrant_server(*, port: int | None = None) -> Iterator[str]:
    """A server without collections, as its URL.

    :param port: for programs that name one; otherwise any that is free.
    :raises RuntimeError: it does not start.
    """
    with contextlib.ExitStack() as stack:
        if port is None:
            port = stack.enter_context(Port()).number
        server = stack.enter_context(
            running(QdrantServer(stack.enter_context(Place("qdrant", parent=memory_directory())), port))
        )
        yield server.url
