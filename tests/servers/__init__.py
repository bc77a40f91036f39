"""Real servers for tests and benchmarks, each its own, started on a free port and ended with its block.

They end with the Python process at the latest, however that ends, and leave nothing behind.
"""

from tests.servers.chroma import chroma_server
from tests.servers.pgbouncer import PgBouncer, pgbouncer
from tests.servers.postgres import Databases, PostgresServer, postgres_programs, postgres_server, shared_postgres
from tests.servers.proxy import Fault, Proxy, proxy
from tests.servers.qdrant import QdrantServer, qdrant_server
from tests.servers.redis import GivenRedis, RedisServer, redis_binaries, redis_server, shared_redis

__all__ = [
    "Databases",
    "Fault",
    "GivenRedis",
    "PgBouncer",
    "PostgresServer",
    "Proxy",
    "QdrantServer",
    "RedisServer",
    "chroma_server",
    "pgbouncer",
    "postgres_programs",
    "postgres_server",
    "proxy",
    "qdrant_server",
    "redis_binaries",
    "redis_server",
    "shared_postgres",
    "shared_redis",
]
