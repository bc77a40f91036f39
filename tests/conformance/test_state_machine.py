from memstate_core.testing.state_machine import *  # noqa: F403
