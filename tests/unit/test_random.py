"""Random bytes that are asked for many at a time belong to one asker each."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from memstate_core._random import random_bytes


def test_nobody_gets_what_another_has_got() -> None:
    with ThreadPoolExecutor(8) as threads:
        found = [one for some in threads.map(lambda _: [random_bytes() for _ in range(500)], range(8)) for one in some]
    assert {len(one) for one in found} == {16}
    assert len(set(found)) == len(found) == 4000


def test_a_forked_process_takes_none_of_its_parents() -> None:
    random_bytes()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, b"".join(random_bytes() for _ in range(64)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        theirs = pipe.read()
    ours = {random_bytes() for _ in range(64)}
    assert len(theirs) == 1024
    assert ours.isdisjoint(theirs[place : place + 16] for place in range(0, 1024, 16))
