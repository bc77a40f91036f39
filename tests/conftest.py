"""Servers for a whole session, started when a test first asks for one (with xdist, every worker has its own), and what
coverage watches.
"""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.forking import ForkServer
from tests.schemas import Schemas
from tests.servers import Databases, GivenRedis, RedisServer, shared_postgres, shared_redis


@pytest.fixture(scope="session")
def postgres() -> Iterator[Databases]:
    with shared_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis() -> Iterator[GivenRedis | RedisServer]:
    with shared_redis() as server:
        yield server


@pytest.fixture(scope="session")
def schemas(postgres: Databases) -> Iterator[Schemas]:
    with contextlib.closing(Schemas(postgres.database())) as schemas:
        yield schemas


@pytest.fixture(scope="session")
def engine(schemas: Schemas) -> Iterator[sa.Engine]:
    """Connections to the database of the schemas; a new one takes longer for its first commit than most tests."""
    engine = sa.create_engine(schemas.url.replace("postgresql:", "postgresql+psycopg:"), pool_size=20)
    yield engine
    engine.dispose()


# What a program may know of the machine: where programs are, and through what the network is reached.
_PASSED_ON = ("PATH", "SYSTEMROOT", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Starts processes of :mod:`tests.programs`, whose home is empty: neither settings nor downloaded models of the
    machine play a part.
    """
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {"HOME": str(tmp_path_factory.mktemp("home")), "PYTHONUTF8": "1"}
    with ForkServer(tmp_path_factory.mktemp("programs"), "tests", ["programs"], environment) as server:
        yield server


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wheel, made of an sdist, and that; for tests of one xdist group, so that they are built once."""
    out = tmp_path_factory.mktemp("built")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(Path(__file__).parent.parent)],
        capture_output=True,
        encoding="utf-8",
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


# Coverage makes what it watches take twice as long, so it watches every rule once, on memory; of what depends on the
# storage, each storage once; of the indexes' flavours, those that are not awaited; and nothing that tests more than the
# core.
_WATCHED = ("memory-sync", "sqlite-file-async", "postgres-async", "redis-sync")
_STORAGES = (
    "storage_protocol",
    "storage_faults",
    "records",
    "reading",
    "claims",
    "outbox",
    "opening",
    "odd_names",
    "values",
)
_FLAVOURED = ("-sync", "-async")
_UNWATCHED = (
    "faults",
    "schedules",
    "langchain",
    "langgraph",
    "demo/test_locomo.py",
    "test_benchmarks.py",
    "test_fault_matrix.py",
    "test_notebooks.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent

    def is_watched(item: pytest.Item) -> bool:
        _, _, parameters = item.nodeid.partition("[")
        if any(item.path.is_relative_to(here / room) for room in _UNWATCHED):
            return False
        if item.path.is_relative_to(here / "conformance") and any(one in parameters for one in _FLAVOURED):
            watched = _WATCHED if item.path.stem.removeprefix("test_") in _STORAGES else _WATCHED[:1]
            return any(parameters.startswith(one) for one in watched)
        return not (item.path.is_relative_to(here / "hooks") and "async" in parameters)

    for item in items:
        if not is_watched(item):
            item.add_marker(pytest.mark.no_cover)


def pytest_collection_finish() -> None:
    """Whoever collects garbage from now on need not look through all the tests."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which versions work when they are installed alone."""
    reports = terminalreporter.getreports("passed")
    found = [
        value for one in reports if one.when == "call" for name, value in one.user_properties if name == "installed"
    ]
    if found:
        terminalreporter.section("installed alone")
        for line in found:
            terminalreporter.line(str(line))
