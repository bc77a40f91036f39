from pathlib import Path

import pytest

from memstate_core.testing import StorageFactory
from memstate_core.testing.cancelling import *  # noqa: F403
from tests.conformance.conftest import FACTORIES


@pytest.fixture(params=[name for name in FACTORIES if name.endswith("-async")])
def storages(request: pytest.FixtureRequest, tmp_path: Path) -> StorageFactory:
    return FACTORIES[request.param](tmp_path)
