"""Random bytes of the system's, asked for many at a time.

A call of the system gives up the interpreter's lock, which another thread takes at once where many write: so one call
for each id costs each of them two turns more.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Final

_SIZE: Final = 16
_AT_ONCE: Final = 64

# Threads may take from it at once. A forked process takes none of its parent's.
_left: Final[deque[bytes]] = deque()


def random_bytes() -> bytes:
    """Sixteen bytes that nobody else gets."""
    try:
        return _left.pop()
    except IndexError:
        found = os.urandom(_SIZE * _AT_ONCE)
        _left.extend([found[place : place + _SIZE] for place in range(_SIZE, len(found), _SIZE)])
        return found[:_SIZE]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_left.clear)
