from memstate_core.testing.outbox import *  # noqa: F403
