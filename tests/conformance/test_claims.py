from memstate_core.testing.claims import *  # noqa: F403
