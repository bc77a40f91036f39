from memstate_core.testing.writing import *  # noqa: F403
