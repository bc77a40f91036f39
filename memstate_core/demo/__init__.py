"""``memstate demo``: a long conversation is remembered, got wrong, undone, and survives ``kill -9``.

It needs the extra ``memstate[demo]``; only :mod:`memstate_core.demo.cli` can be imported without it.
"""
