"""How the tests are dealt out to several processes."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("spreading")
def test_the_scheduler_is_told_of_groups(request: pytest.FixtureRequest) -> None:
    assert request.node.nodeid.endswith("@spreading") is request.config.getoption("loadgroup", False)
