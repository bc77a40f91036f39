from memstate_core.testing.namespaces import *  # noqa: F403
