"""The thread that renews leases: in time, and holding on to nothing."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import Any

from memstate_core._bridge import _LeaseKeeper


class Renewing:
    """Something whose lease is renewed."""

    def __init__(self) -> None:
        self.renewed = threading.Event()

    async def renew(self) -> None:
        self.renewed.set()


def test_a_short_lease_is_renewed_in_time_beside_a_long_one() -> None:
    keeper = _LeaseKeeper()
    long, short = Renewing(), Renewing()
    keeper.add(long, long.renew, 60.0)
    deadline = time.monotonic() + 10
    while keeper._asleep_for < 30 and time.monotonic() < deadline:
        keeper._wake.set()
        time.sleep(0.01)
    keeper.add(short, short.renew, 1.2)  # longer than a nap with nothing to do
    try:
        assert short.renewed.wait(10)
        assert not long.renewed.is_set()
    finally:
        keeper.remove(long)
        keeper.remove(short)


def test_what_has_ended_is_garbage_at_once() -> None:
    keeper = _LeaseKeeper()
    wait = keeper._wake.wait
    slept = threading.Semaphore(0)

    def wait_and_tell(seconds: float) -> bool:
        slept.release()
        return wait(seconds)

    keeper._wake.wait = wait_and_tell  # type: ignore[assignment, method-assign]
    lease: Any = Renewing()
    gone = weakref.ref(lease)
    keeper.add(lease, lease.renew, 60.0)
    for _ in range(2):  # it has looked at the lease, and sleeps again
        assert slept.acquire(timeout=10)
        keeper._wake.set()
    assert slept.acquire(timeout=10)
    keeper.remove(lease)
    del lease
    gc.collect()
    assert gone() is None
