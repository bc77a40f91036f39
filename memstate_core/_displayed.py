"""Values that a notebook shows as tables; how they look is in :mod:`memstate_core.display`."""

from __future__ import annotations

from typing import Any


class Displayed:
    """Asked by IPython for its looks; only then are these imported."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "_repr_pretty_" not in vars(cls):
            # IPython asks a class's own __repr__ before what the class inherits.
            cls._repr_pretty_ = Displayed._repr_pretty_  # type: ignore[method-assign]

    def _repr_html_(self) -> str:
        from memstate_core.display import show

        return show(self).html

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        from memstate_core.display import show

        # Within something else a table would be torn.
        printer.text(show(self).text if len(printer.stack) == 1 else repr(self))
