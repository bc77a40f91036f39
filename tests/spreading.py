"""In which order the tests run, and how they are dealt out to several processes."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadGroupScheduling


def spread(items: list[pytest.Item]) -> None:
    """Spread the tests that mostly wait (marked ``waits``) evenly among those that compute: one after the other they
    would leave the processors idle, however many processes run them.

    So it is with what one process must run (an ``xdist_group``), but in the first half, so that in the end no other
    process waits for it.
    """
    groups: dict[str, list[pytest.Item]] = {}
    waiting, others = [], []
    for item in items:
        if group := item.get_closest_marker("xdist_group"):
            groups.setdefault(group.args[0], []).append(item)
        else:
            (waiting if item.get_closest_marker("waits") else others).append(item)
    # Each has a place between 0 and 1, by which they are merged.
    places = [(number / len(groups) / 2, item) for number, group in enumerate(groups.values()) for item in group]
    places += [((place + 0.5) / len(some), item) for some in (waiting, others) for place, item in enumerate(some)]
    places.sort(key=lambda one: one[0])
    items[:] = [item for _, item in places]


class Scheduling(LoadGroupScheduling):
    """xdist's own; but that looks, at the end of every test, through all that the process has ever been given."""

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        super().mark_test_complete(node, item_index, duration)
        units = self.assigned_work[node]
        unit = self._split_scope(self.registered_collections[node][item_index])
        if all(units[unit].values()):
            del units[unit]
