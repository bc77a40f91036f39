from memstate_core.testing.racing import *  # noqa: F403
