from memstate_core.testing.verifying import *  # noqa: F403
