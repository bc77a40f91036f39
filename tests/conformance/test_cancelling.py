import pytest

from memstate_core.testing import StorageFactory
from memstate_core.testing.cancelling import *  # noqa: F403
from tests.conformance.conftest import FACTORIES


@pytest.fixture(params=[name for name in FACTORIES if name.endswith("-async")])
def storages(request: pytest.FixtureRequest) -> StorageFactory:
    make, kind = FACTORIES[request.param]
    return make(kind, request)
