"""``memstate demo``: a long conversation is remembered, got wrong, undone, and survives ``kill -9``.

It needs the extra ``memstate[demo]``.
"""
