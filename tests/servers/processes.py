"""What all servers share: a directory, a port, starting, waiting, ending, and leaving nothing behind."""

from __future__ import annotations

import abc
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

LOG_LINES = 60
# The address of a Unix socket has 107 bytes.
LONGEST_DIRECTORY = 60

# Bytes, far more than the tests write to an index; in containers there often is less.
INDEX_SIZE = 2**29

S = TypeVar("S", bound="Server")


class Port:
    """A free TCP port of 127.0.0.1 that nobody else is given, as long as it is held."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]
        # Set after binding: the kernel gives the port to nobody, but a server that sets it too can listen there.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()


class Place:
    """A directory for one server, and the processes that run there. They end with the Python process at the latest.

    :param user: whom the directory and the processes belong to, if not to the current user.
    :param parent: where to make the directory, if not where temporary ones belong.
    """

    def __init__(self, name: str, *, user: pwd.struct_passwd | None = None, parent: str | None = None) -> None:
        self.user = user
        self.directory = Path(tempfile.mkdtemp(prefix=f"memstate-{name}-", dir=parent or _parent(user)))
        if user is not None:
            os.chown(self.directory, user.pw_uid, user.pw_gid)
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", Path(__file__).with_name("guard.py"), self.directory, str(os.getpid())],
            stdin=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )

    def popen(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str],
    ) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.directory,
                start_new_session=True,  # an interrupt from the terminal reaches the tests alone, which end it in order
                **self._identity(),
            )
        self._tell(f"+{process.pid}")
        return process

    def run(self, command: Sequence[str | Path], *, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            cwd=self.directory,
            **self._identity(),
        )

    def ended(self, process: subprocess.Popen[bytes]) -> None:
        self._tell(f"-{process.pid}")

    def adopt(self, path: Path) -> None:
        """Makes everything below ``path`` the user's."""
        if self.user is not None:
            for one in [path, *path.rglob("*")]:
                os.chown(one, self.user.pw_uid, self.user.pw_gid, follow_symlinks=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._tell("end")
        self._guard.communicate()

    def _identity(self) -> dict[str, Any]:
        if self.user is None:
            return {}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}

    def _tell(self, line: str) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.write(line.encode() + b"\n")
        self._guard.stdin.flush()


class Server(abc.ABC):
    """A server that can be ended and started again, with its data and its port."""

    title: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, place: Place) -> None:
        self.place = place
        self.log = place.directory / "log.txt"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The id of the server's (first) process."""
        if self._process is None:
            raise RuntimeError(f"{self.title} does not run: start() it first")
        return self._process.pid

    def start(self, *, seconds: float = 30.0) -> None:
        """
        :raises RuntimeError: it runs already; or it ended, or does not answer after ``seconds``, with what it wrote.
        """
        if self.running:
            raise RuntimeError(f"{self.title} runs already, as process {self.pid}: stop() or kill() it first")
        self._forget()
        deadline = time.monotonic() + seconds
        self._process = self.place.popen(self._command(), log=self.log, environment=self._environment())
        try:
            while not self._answers():
                code = self._process.poll()
                if code is not None:
                    raise RuntimeError(f"{self.title} ended at once, with exit code {code}:\n{self._last_words()}")
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{self.title} did not answer in {seconds:g} s:\n{self._last_words()}")
                time.sleep(0.01)
        except BaseException:
            self.kill()
            raise

    def stop(self, *, seconds: float = 10.0) -> None:
        """Shuts it down in order; does nothing if it has ended."""
        if self._process is not None and self.running:
            self._process.send_signal(self.stop_signal)
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
                raise RuntimeError(
                    f"{self.title} did not stop in {seconds:g} s and was killed:\n{self._last_words()}"
                ) from None
        self._forget()

    def kill(self) -> None:
        """Ends it in the middle of whatever it does (SIGKILL); does nothing if it has ended."""
        if self._process is not None and self.running:
            self._process.kill()
        self._forget()

    def _forget(self) -> None:
        if self._process is not None:
            self._process.wait()
            self.place.ended(self._process)
            self._process = None

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])

    def _environment(self) -> dict[str, str]:
        """That of the tests plays no part: not their language, nor the settings of a database's clients."""
        return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"}

    @abc.abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """Asked for at every start; it must not go into the background."""

    @abc.abstractmethod
    def _answers(self) -> bool:
        """Whether the process that runs now, and no other, takes requests."""


@contextlib.contextmanager
def running(server: S) -> Iterator[S]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def program(name: str) -> Path | None:
    """A program on PATH, or where Debian keeps those for root, which an ordinary user's PATH leaves out."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    return None if found is None else Path(found)


def state(process: int) -> str:
    """The letter of ``/proc/ID/stat``: "T" for stopped; "X" if there is no such process, "Z" if only its id is left."""
    try:
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def children(process: int) -> list[int]:
    found = []
    for one in os.listdir("/proc"):
        if one.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                fields = Path(f"/proc/{one}/stat").read_bytes().rpartition(b")")[2].split()
                if int(fields[1]) == process:
                    found.append(int(one))
    return found


def wait_until_state(processes: Sequence[int], letters: str, *, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while any(state(one) not in letters for one in processes):
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {list(processes)} are not in state {letters} after {seconds:g} s")
        time.sleep(0.002)


def _parent(user: pwd.struct_passwd | None) -> str:
    directory = tempfile.gettempdir()
    if len(directory) <= LONGEST_DIRECTORY and (user is None or _is_open_to_all(Path(directory))):
        return directory
    return "/tmp"


def memory_directory(needed: int = INDEX_SIZE) -> str | None:
    """Where files never wait for a disk, if there is room for so many bytes: for what need not survive anything."""
    directory = "/dev/shm"
    # In some containers nothing that lies there can be run, as a server's copied programs must be.
    if not os.access(directory, os.W_OK | os.X_OK) or os.statvfs(directory).f_flag & os.ST_NOEXEC:
        return None
    return directory if min(shutil.disk_usage(directory).free, _free_memory()) >= needed else None


def _free_memory() -> int:
    """Bytes that may be used without anything being swapped out."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _is_open_to_all(directory: Path) -> bool:
    return all(one.stat().st_mode & 0o001 for one in [directory, *directory.parents])
