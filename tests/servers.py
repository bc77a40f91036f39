"""Real servers for tests, each its own, started on a free port and ended with the block."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def chroma_server(*, seconds: float = 30.0) -> Iterator[tuple[str, int]]:
    """A Chroma server with an empty database, as ``(host, port)``.

    :raises RuntimeError: it ended at once, or answers no heartbeat after ``seconds``.
    """
    host = "127.0.0.1"
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="chroma-") as directory:
        data, log = Path(directory) / "data", Path(directory) / "log.txt"
        with log.open("wb") as output:
            server = subprocess.Popen(
                [Path(sys.executable).parent / "chroma", "run", "--path", data, "--host", host, "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "ANONYMIZED_TELEMETRY": "False"},
            )
        try:
            _wait_for(f"http://{host}:{port}/api/v2/heartbeat", server, log, seconds)
            yield host, port
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urlopen(url, timeout=1):
            return
        time.sleep(0.05)
    text = log.read_text(errors="replace")
    raise RuntimeError(f"no Chroma server at {url} (exit code {server.poll()}):\n{text}")
