"""Storage in Redis or Valkey; needs ``pip install "memstate[redis]"``."""

from memstate_core.storages.redis import AsyncRedisStorage, RedisStorage

__all__ = ["AsyncRedisStorage", "RedisStorage"]
