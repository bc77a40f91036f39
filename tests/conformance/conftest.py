"""The conformance kit is run against all storages."""

from __future__ import annotations

from pathlib import Path

import pytest

from memstate_core.testing import StorageFactory
from tests.storages import FACTORIES


@pytest.fixture(params=FACTORIES)
def storages(request: pytest.FixtureRequest) -> StorageFactory:
    make, kind = FACTORIES[request.param]
    return make(kind, request)


# Cases that do not exist for a flavour; the kit would skip them.
_WITHOUT_A_CASE = [
    ("TestCancelling", "", "-sync"),  # only what waits can be cancelled
    ("test_functions_of_the_users_must_not_use_the_store", "", "-async"),  # a plain function cannot await the store
    ("test_an_asynchronous_hook_is_refused_by_a_sync_store", "", "-async"),
    ("", "KeyboardInterrupt", "-async"),  # it would end the event loop
]


def _has_no_case(item: pytest.Item) -> bool:
    name, _, parameters = item.nodeid.partition("[")
    return any(test in name and kind in parameters and flavour in parameters for test, kind, flavour in _WITHOUT_A_CASE)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    without = {item for item in items if here in item.path.parents and _has_no_case(item)}
    config.hook.pytest_deselected(items=list(without))
    items[:] = [item for item in items if item not in without]
