"""Processes to be killed, forked from one that has imported everything and opened nothing.

A process of pytest is no good parent: it has threads, and perhaps a Chroma client, which hangs after a fork. So a
server is started once (``python -m tests.forking``), which imports what the workers need and forks one whenever
it is asked to. It also reaps them, for only a parent can; until then their process id is nobody else's.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[1]

# Nothing that is tested takes so long; a worker that hangs is ended by this even when its test is gone.
LIFETIME = 80


class Worker:
    """A process that runs one function."""

    def __init__(self, server: ForkServer, pid: int, errors: Path) -> None:
        self._server = server
        self.pid = pid
        self._errors = errors
        self._code: int | None = None

    def signal(self, number: int) -> None:
        assert self._code is None, "it has ended"
        os.kill(self.pid, number)

    def kill(self) -> int:
        """End it as ``kill -9`` does; returns its exit code, which is -9 unless it had ended before."""
        if self._code is None:
            self.signal(signal.SIGKILL)
        return self.wait()

    def wait(self, seconds: float = LIFETIME) -> int:
        """Its exit code, or minus the signal that ended it."""
        if self._code is None:
            code = self._server.ask(do="wait", pid=self.pid, seconds=seconds)
            if code is None:
                self.signal(signal.SIGUSR1)
                time.sleep(0.2)
                raise AssertionError(f"process {self.pid} did not end within {seconds} s\n{self.errors}")
            self._code = code
        return self._code

    def finish(self) -> None:
        """Wait for it, and fail with its traceback if it did."""
        code = self.wait()
        assert code == 0, f"exit code {code}\n{self.errors}"

    @property
    def errors(self) -> str:
        return self._errors.read_text() if self._errors.exists() else ""


class ForkServer:
    """Starts workers; used as a context manager, at whose end all of them are gone.

    :param package: the package whose ``modules`` have the functions.
    :param environment: the server's, and so the workers'.
    """

    def __init__(
        self, directory: Path, package: str, modules: Sequence[str], environment: Mapping[str, str] = os.environ
    ) -> None:
        self._directory = directory
        self._names = [f"{package}.{module}" for module in modules]
        self._package = package
        self._environment = environment
        self._workers: list[Worker] = []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forking", *self._names],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**self._environment, "PYTHONPATH": str(ROOT), "ANONYMIZED_TELEMETRY": "False"},
            text=True,
            bufsize=1,
        )
        assert self.ask(do="ready") is True
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end_all()
        self._process.communicate()

    def start(self, function: str, *arguments: Any) -> Worker:
        """Run ``module:function`` of the package with plain arguments in a new process."""
        errors = self._directory / f"errors-{len(self._workers)}.txt"
        pid = self.ask(do="start", function=f"{self._package}.{function}", arguments=arguments, errors=str(errors))
        worker = Worker(self, pid, errors)
        self._workers.append(worker)
        return worker

    def run(self, function: str, *arguments: Any) -> None:
        self.start(function, *arguments).finish()

    def end_all(self) -> None:
        for worker in self._workers:
            worker.kill()

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        answer = self._process.stdout.readline()
        assert answer, f"the fork server is gone (exit code {self._process.poll()})"
        return json.loads(answer)


class Log:
    """Lines of JSON that survive the death of who wrote them."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        # Who is killed in the midst of a write leaves half a line.
        written = Path(path).read_bytes()
        os.ftruncate(self._file, written.rfind(b"\n") + 1)

    def write(self, entry: Any) -> None:
        os.write(self._file, json.dumps(entry).encode() + b"\n")

    def read(self) -> list[Any]:
        return read_log(self._path)

    def close(self) -> None:
        os.close(self._file)


def read_log(path: str | Path) -> list[Any]:
    path = Path(path)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_until(reached: Any, what: str, seconds: float = 60.0) -> None:
    """Wait for what another process or thread is to do; the limit only turns a hang into a failure."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.001)


def _serve(requests: Iterator[str]) -> None:
    for line in requests:
        request = json.loads(line)
        answer: Any = True
        if request["do"] == "start":
            answer = _fork(request["function"], request["arguments"], request["errors"])
        elif request["do"] == "wait":
            answer = _reap(request["pid"], request["seconds"])
        print(json.dumps(answer), flush=True)


def _fork(function: str, arguments: Sequence[Any], errors: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(LIFETIME)
        _redirect(errors)
        faulthandler.register(signal.SIGUSR1, file=2)  # where it hangs, if it does
        module, _, name = function.partition(":")
        getattr(importlib.import_module(module), name)(*arguments)
        code = 0
    except SystemExit:
        raise  # this one wants to tidy up as programs do
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def _redirect(errors: str) -> None:
    """Standard output is the server's line to the tests, and its input too."""
    file = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _reap(pid: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    pause = 0.0005
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()  # else a collection in a forked process copies all of this
    _serve(iter(sys.stdin.readline, ""))
