"""Storage in memory: for tests, notebooks and short lives."""

from memstate_core.storages.memory import AsyncInMemoryStorage, InMemoryStorage

__all__ = ["AsyncInMemoryStorage", "InMemoryStorage"]
