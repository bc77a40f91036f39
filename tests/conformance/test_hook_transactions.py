from memstate_core.testing.hook_transactions import *  # noqa: F403
