"""A worker: delivers what deferred hooks are still to be told, for as long as it is let."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Final

from memstate_core._bridge import run
from memstate_core.async_store import AsyncMemoryStore
from memstate_core.delivery import BATCH, Delivered
from memstate_core.engine import Engine
from memstate_core.errors import HookError, TransientError
from memstate_core.store import MemoryStore

logger = logging.getLogger("memstate.worker")

POLL: Final = 0.5  # seconds
_LONGEST_PAUSE: Final = 30.0

Told = Callable[[Delivered], object]
Stop = Callable[[], bool]


def work(store: MemoryStore, *, stop: Stop, poll: float = POLL, batch: int = BATCH, told: Told | None = None) -> None:
    """Deliver until ``stop()``, which is asked after each step. Any number of workers, anywhere, may do this at once.

    A database that is away is waited for; what a hook cannot be told is due again later, see :meth:`MemoryStore.lag`.
    With nothing to deliver, it heals what others left in doubt.

    :param poll: seconds between looks when there was nothing to do.
    :param batch: how many changes to deliver at a time.
    :param told: called with what each step came to.
    """
    run(_work(store._use(), stop, poll, batch, told))


async def work_async(
    store: AsyncMemoryStore, *, stop: Stop, poll: float = POLL, batch: int = BATCH, told: Told | None = None
) -> None:
    """Same as :func:`work`, awaited."""
    await _work(store._use(), stop, poll, batch, told)


async def _work(engine: Engine, stop: Stop, poll: float, batch: int, told: Told | None) -> None:
    failures = 0
    while not stop():
        try:
            await engine.ready()
            step = await engine.deliverer.step(batch)
            if step is None:
                await engine.recovery.heal_in_passing()
            failures = 0
        except (TransientError, HookError):
            failures += 1
            pause = min(poll * 2 ** min(failures, 16), _LONGEST_PAUSE)
            logger.warning("a step of the worker failed; it is tried again in %.1f s", pause, exc_info=True)
            await _sleep(engine, stop, pause)
            continue
        if step is None:
            await _sleep(engine, stop, poll)
        elif told is not None:
            told(step)


async def _sleep(engine: Engine, stop: Stop, seconds: float) -> None:
    """Sleep, not quite as long as all other workers, and no longer than until ``stop()``."""
    left = seconds * random.uniform(0.75, 1.25)
    while left > 0 and not stop():
        await engine.runtime.sleep(min(left, 0.1))
        left -= 0.1
