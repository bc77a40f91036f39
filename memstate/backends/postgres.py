"""Storage in PostgreSQL, by SQLAlchemy and psycopg 3: ``pip install "memstate[postgres]"``."""

from memstate_core.storages.postgres import AsyncPostgresStorage, PostgresStorage

__all__ = ["AsyncPostgresStorage", "PostgresStorage"]
