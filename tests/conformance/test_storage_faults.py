from memstate_core.testing.storage_faults import *  # noqa: F403
