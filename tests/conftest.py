"""Servers for a whole session, started when a test first asks for one; with xdist, every worker has its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
def schemas(postgres: Databases) -> Schemas:
    return Schemas(postgres.database())
