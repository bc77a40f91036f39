from memstate_core.testing.blocks import *  # noqa: F403
