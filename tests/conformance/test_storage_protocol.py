from memstate_core.testing.storage_protocol import *  # noqa: F403
