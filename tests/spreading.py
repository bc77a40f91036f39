"""In which order the tests run, and how they are dealt out to several processes."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadGroupScheduling


def spread(items: list[pytest.Item]) -> None:
    """Put first what one process must run (an ``xdist_group``), so that in the end no other one waits for it, and
    spread the tests that mostly wait (marked ``waits``) evenly among those that compute: one after the other they would
    leave the processors idle, however many processes run them.
    """
    grouped, waiting, others = [], [], []
    for item in items:
        if item.get_closest_marker("xdist_group"):
            grouped.append(item)
        else:
            (waiting if item.get_closest_marker("waits") else others).append(item)
    # Each has a place between 0 and 1, by which the two lists are merged.
    places = [((place + 0.5) / len(some), item) for some in (waiting, others) for place, item in enumerate(some)]
    places.sort(key=lambda one: one[0])
    items[:] = [*grouped, *(item for _, item in places)]


class Scheduling(LoadGroupScheduling):
    """xdist's own; but that looks, at the end of every test, through all that the process has ever been given."""

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        super().mark_test_complete(node, item_index, duration)
        units = self.assigned_work[node]
        unit = self._split_scope(self.registered_collections[node][item_index])
        if all(units[unit].values()):
            del units[unit]
