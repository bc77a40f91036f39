"""How facts and what became of them look in notebooks and in terminals."""

from memstate_core.display import Diff, SessionTree, Shown, diff, session_tree, show

__all__ = ["Diff", "SessionTree", "Shown", "diff", "session_tree", "show"]
