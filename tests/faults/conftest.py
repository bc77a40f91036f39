from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.faults.places import KINDS, MakePlace, Place
from tests.faults.stores import FLAVOURS, Flavour
from tests.forking import ForkServer
from tests.schemas import Schemas
from tests.servers import Proxy, proxy

# The modules whose functions the tests run in processes of their own.
WORKERS = ["files", "forks", "interrupts", "kills", "leases", "outages", "races", "readers", "rebuilds", "transfers"]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    if sys.platform != "linux":
        pytest.skip("forks, signals and /proc are as Linux has them")
    with ForkServer(tmp_path_factory.mktemp("workers"), "tests.faults", WORKERS) as server:
        yield server


@pytest.fixture
def processes(server: ForkServer) -> Iterator[ForkServer]:
    """Starts processes; those that a test leaves behind are ended with it."""
    yield server
    server.end_all()


@contextlib.contextmanager
def new_place(request: pytest.FixtureRequest, kind: str, directory: Path) -> Iterator[Place]:
    """A new and empty place of a kind, which the directory then has."""
    with contextlib.ExitStack() as stack:
        if kind == "sqlite":
            place = Place(kind, str(directory / "memory.db"))
        elif kind == "redis":
            place = Place(kind, request.getfixturevalue("redis").url, uuid.uuid4().hex)
        else:
            schemas: Schemas = request.getfixturevalue("schemas")
            place = Place(kind, schemas.url, schemas.take())
            stack.callback(schemas.give_back, [place.name])
        place.put_into(directory)
        yield place


@pytest.fixture
def make_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakePlace]:
    """Makes a new and empty place of a kind; the test's directory has the last one."""
    with contextlib.ExitStack() as stack:
        yield lambda kind: stack.enter_context(new_place(request, kind, tmp_path))


@pytest.fixture(scope="session")
def ways(request: pytest.FixtureRequest) -> Iterator[dict[str, Proxy]]:
    """Proxies before the servers, by kind."""
    with contextlib.ExitStack() as stack:
        yield {
            kind: stack.enter_context(proxy(request.getfixturevalue(kind).url)) for kind in KINDS if kind != "sqlite"
        }


@pytest.fixture(params=FLAVOURS)
async def flavour(request: pytest.FixtureRequest, make_place: MakePlace) -> AsyncIterator[Flavour]:
    kind = request.param.removeprefix("async ")
    flavour = Flavour(request.param, None if kind == "memory" else make_place(kind), kept=True)
    yield flavour
    await flavour.close()
