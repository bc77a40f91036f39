from memstate_core.testing.schemas import *  # noqa: F403
