"""Servers for a whole session, started when a test first asks for one (with xdist, every worker has its own)."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.forking import ForkServer
from tests.schemas import Schemas
from tests.servers import Databases, GivenRedis, RedisServer, shared_postgres, shared_redis
from tests.spreading import Scheduling, name_groups, spread
from tests.watching import watch


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


def pytest_configure(config: pytest.Config) -> None:
    watch(config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
    """One process runs all the programs: to import what they do takes as long as many of them."""
    from tests.sharing_out import left_to_others  # what it imports, coverage watches

    for item in items:
        if "programs" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("programs"))
    yield
    left = left_to_others(items)
    config.hook.pytest_deselected(items=list(left))
    items[:] = [item for item in items if item not in left]
    if config.getoption("loadgroup", False):
        name_groups(items)
    spread(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling | None:
    return Scheduling(config, log) if config.option.dist == "loadgroup" else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Nothing becomes garbage while tests are collected, and who looks for it later need not look through them.

    That is done more rarely than usual, too: the tests make many objects, and few of them are for the garbage.
    """
    gc.disable()
    result = yield
    gc.freeze()
    gc.set_threshold(5000, 20, 10)
    gc.enable()
    return result


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
