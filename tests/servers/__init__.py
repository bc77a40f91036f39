"""Real servers for tests and benchmarks, each its own, started on a free port and ended with its block.

They end with the Python process at the latest, however that ends, and leave nothing behind.
"""

from tests.servers.chroma import chroma_server
from tests.servers.postgres import PostgresServer, postgres_programs, postgres_server
from tests.servers.redis import RedisServer, redis_binaries, redis_server

__all__ = [
    "PostgresServer",
    "RedisServer",
    "chroma_server",
    "postgres_programs",
    "postgres_server",
    "redis_binaries",
    "redis_server",
]
