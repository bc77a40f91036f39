"""Servers for a whole session, started when a test first asks for one (with xdist, every worker has its own), and what
coverage watches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

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


# Coverage makes what it watches take twice as long, so it watches every rule and every storage once: of the conformance
# kit these flavours, and none of the fault tests, most of whose work is done in other processes anyway.
_WATCHED = ("memory-sync", "sqlite-file-async", "postgres-async", "redis-sync")
_FLAVOURED = ("-sync", "-async")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent

    def is_watched(item: pytest.Item) -> bool:
        _, _, parameters = item.nodeid.partition("[")
        if any(item.path.is_relative_to(here / room) for room in ("faults", "schedules")):
            return False
        if item.path.is_relative_to(here / "conformance") and any(one in parameters for one in _FLAVOURED):
            return any(parameters.startswith(one) for one in _WATCHED)
        return True

    for item in items:
        if not is_watched(item):
            item.add_marker(pytest.mark.no_cover)
