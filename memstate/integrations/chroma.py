"""Chroma as a hook; needs the extra ``memstate[chroma]``."""

from memstate_core.hooks.chroma import AsyncChromaSyncHook, ChromaSyncHook

__all__ = ["AsyncChromaSyncHook", "ChromaSyncHook"]
