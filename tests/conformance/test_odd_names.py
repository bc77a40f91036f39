from memstate_core.testing.odd_names import *  # noqa: F403
