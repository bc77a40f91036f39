from memstate_core.testing.past import *  # noqa: F403
