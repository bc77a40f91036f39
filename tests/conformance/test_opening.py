from memstate_core.testing.opening import *  # noqa: F403
