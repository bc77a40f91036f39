"""Turns, which end when they are given back, or lost."""

from __future__ import annotations

import threading
import time

from memstate_core.storages._turns import Turn, Turns


def taken(turns: Turns, timeout: float = 0.0) -> Turn:
    turn = turns.take(timeout)
    assert turn is not None
    return turn


def test_so_many_at_a_time() -> None:
    turns = Turns(2)
    first, second = taken(turns), taken(turns)
    began = time.monotonic()
    assert turns.take(0.05) is None
    assert time.monotonic() - began >= 0.05
    turns.give_back(first)
    third = taken(turns)
    assert third is not second
    assert turns.take(0) is None


def test_who_waits_is_told() -> None:
    turns = Turns(1)
    turn = taken(turns)
    waits: list[float] = []

    def wait() -> None:
        began = time.monotonic()
        turns.give_back(taken(turns, 10))
        waits.append(time.monotonic() - began)

    threads = [threading.Thread(target=wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    turns.give_back(turn)
    for thread in threads:
        thread.join()
    assert len(waits) == 5
    assert max(waits) < 5


def test_what_is_lost_is_given_out_again() -> None:
    turns = Turns(1)
    turn = taken(turns)
    held = [turn]
    timer = threading.Timer(0.05, held.clear)
    del turn
    timer.start()
    assert turns.take(5) is not None
    timer.join()
