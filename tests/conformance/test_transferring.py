from memstate_core.testing.transferring import *  # noqa: F403
