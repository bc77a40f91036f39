"""In which order the tests run, and how they are dealt out to several processes."""

from __future__ import annotations

from typing import Any, Final

import pytest
from xdist.scheduler import LoadGroupScheduling

_GOLDEN: Final = 0.618  # multiples of it, taken modulo 1, lie evenly, however many there are


def spread(items: list[pytest.Item]) -> None:
    """Spread the tests that mostly wait (marked ``waits``) among those that compute, the cases of each test evenly: one
    after the other they would leave the processors idle, however many processes run them.

    So it is with what one process must run (an ``xdist_group``), but in the first half, so that in the end no other
    process waits for it.
    """
    groups: dict[str, list[pytest.Item]] = {}
    waiting: dict[str, list[pytest.Item]] = {}
    others: list[pytest.Item] = []
    for item in items:
        if group := item.get_closest_marker("xdist_group"):
            groups.setdefault(group.args[0], []).append(item)
        elif item.get_closest_marker("waits"):
            waiting.setdefault(item.nodeid.partition("[")[0], []).append(item)
        else:
            others.append(item)
    # Each has a place between 0 and 1, by which they are merged.
    places = [(number / len(groups) / 2, item) for number, group in enumerate(groups.values()) for item in group]
    places += [((place + 0.5) / len(others), item) for place, item in enumerate(others)]
    for number, cases in enumerate(waiting.values()):
        places += [((place + number * _GOLDEN % 1) / len(cases), item) for place, item in enumerate(cases)]
    places.sort(key=lambda one: one[0])
    items[:] = [item for _, item in places]


def name_groups(items: list[pytest.Item]) -> None:
    """Append their groups to the ids of tests, by which a process that runs tests tells xdist's scheduler of them.

    xdist does so, too, but where pytest 9.2 and newer do not look: https://github.com/pytest-dev/pytest-xdist/issues/1386
    """
    for item in items:
        group = item.get_closest_marker("xdist_group")
        if group and not item.nodeid.endswith(f"@{group.args[0]}"):
            item._id = type(item.id).parse(f"{item.nodeid}@{group.args[0]}")


class Scheduling(LoadGroupScheduling):
    """xdist's own; but that looks, at the end of every test, through all that the process has ever been given."""

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        super().mark_test_complete(node, item_index, duration)
        units = self.assigned_work[node]
        unit = self._split_scope(self.registered_collections[node][item_index])
        if all(units[unit].values()):
            del units[unit]
