"""Indexes that take part in transactions.

A hook per vendor, in the module that carries its name, so that importing this package imports no vendor:
:class:`memstate_core.hooks.chroma.ChromaSyncHook`, and so on. What a hook must be is said by
:class:`memstate_core.protocols.Hook`.
"""
