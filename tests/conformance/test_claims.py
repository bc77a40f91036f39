import pytest

from memstate_core.testing.claims import *  # noqa: F403

pytestmark = pytest.mark.waits
