"""Qdrant as a hook; needs the extra ``memstate[qdrant]``."""

from memstate_core.hooks.qdrant import AsyncQdrantSyncHook, QdrantSyncHook

__all__ = ["AsyncQdrantSyncHook", "QdrantSyncHook"]
