from memstate_core.testing.values import *  # noqa: F403
