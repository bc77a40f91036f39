from memstate_core.testing.reading import *  # noqa: F403
