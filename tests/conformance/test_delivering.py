from memstate_core.testing.delivering import *  # noqa: F403
