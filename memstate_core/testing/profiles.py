"""How much the random tests try: ``HYPOTHESIS_PROFILE=thorough`` tries at random and for long."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def tries(few: int, many: int, *, steps: int = 50) -> settings:
    """So ``few`` examples, the same in every run, or ``many``, always new ones, when asked to be thorough."""
    return settings(
        max_examples=many if THOROUGH else few,
        stateful_step_count=steps,
        deadline=None,
        derandomize=not THOROUGH,
        database=None,
        print_blob=THOROUGH,
        suppress_health_check=list(HealthCheck),
    )
