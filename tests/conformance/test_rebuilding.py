from memstate_core.testing.rebuilding import *  # noqa: F403
