"""Whose memory a call is about: that is in the config of the run, and never in what a model says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from langchain_core.runnables import RunnableConfig

from memstate_core.values import check_identifier

# The key in ``config["configurable"]``, or a function of the config; None: the long-term memory.
SessionSource = str | Callable[[RunnableConfig], str | None] | None


class Acting(NamedTuple):
    """Who does something, in which session."""

    session_id: str | None
    actor: str | None

    def sees(self, fact: Mapping[str, Any], *, long_term: bool) -> bool:
        return fact["session_id"] == self.session_id or (long_term and fact["session_id"] is None)


def session_of(source: SessionSource, config: RunnableConfig | None) -> str | None:
    """
    :raises ValueError: the config does not say.
    """
    if source is None:
        return None
    if callable(source):
        session_id = source(config or {})
    else:
        session_id = configured(config, source)
        if session_id is None:
            raise ValueError(
                f"the config of this run has no {source!r}, which names the session of the memory: pass"
                f" config={{'configurable': {{{source!r}: …}}}}, or session=None for long-term memory"
            )
        session_id = str(session_id)
    check_identifier("session_id", session_id, optional=True)
    return session_id


def configured(config: RunnableConfig | None, key: str) -> Any:
    return ((config or {}).get("configurable") or {}).get(key)
