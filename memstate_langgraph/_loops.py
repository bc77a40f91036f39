"""Calling from other threads what is awaited on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Loop:
    """The event loop that an object is used on: the one it was made on, or last awaited on."""

    def __init__(self) -> None:
        self._loop = _running()

    def here(self) -> None:
        self._loop = asyncio.get_running_loop()

    def wait_for(self, coroutine: Coroutine[Any, Any, T], name: str, remedy: str) -> T:
        """Run on that loop, from another thread, in whose context it then runs.

        :raises asyncio.InvalidStateError: this is the loop's own thread, or there is no such loop; ``remedy`` says what
            to do. LangGraph's own stores raise the same.
        """
        loop = self._loop
        if _running() is not None or loop is None or not loop.is_running():
            coroutine.close()
            raise asyncio.InvalidStateError(
                f"{name} was called on an event loop's own thread, or before there was a loop; {remedy}"
            )
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
