from memstate_core.testing.going_back import *  # noqa: F403
