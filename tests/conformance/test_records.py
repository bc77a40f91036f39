from memstate_core.testing.records import *  # noqa: F403
