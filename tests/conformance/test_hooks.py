from typing import Any

import pytest

from memstate_core.testing import HookFactory, Index
from memstate_core.testing.hooks import *  # noqa: F403
from memstate_core.testing.index import index_hook


@pytest.fixture(params=["sync", "async"])
def make_hook(request: pytest.FixtureRequest) -> HookFactory:
    indexes: dict[str, Index] = {}

    def make(name: str, target_types: set[str] | None) -> Any:
        index = indexes.setdefault(name, Index())
        return index_hook(index, request.param == "async", target_types=target_types, name=name)

    return HookFactory(make)
