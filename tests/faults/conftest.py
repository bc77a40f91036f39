from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.faults.forking import ForkServer
from tests.faults.stores import FLAVOURS, Flavour

# The modules whose functions the tests run in processes of their own.
WORKERS = ["files", "forks", "interrupts", "kills", "leases", "races", "readers"]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    if sys.platform != "linux":
        pytest.skip("forks, signals and /proc are as Linux has them")
    with ForkServer(tmp_path_factory.mktemp("workers"), WORKERS) as server:
        yield server


@pytest.fixture
def processes(server: ForkServer) -> Iterator[ForkServer]:
    """Starts processes; those that a test leaves behind are ended with it."""
    yield server
    server.end_all()


@pytest.fixture(params=FLAVOURS)
async def flavour(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Flavour]:
    flavour = Flavour(request.param, tmp_path / "memory.db")
    yield flavour
    await flavour.close()
