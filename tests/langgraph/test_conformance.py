"""LangGraph's own tests of what a checkpointer must do, through the sync and the async methods."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance.capabilities import ALL_CAPABILITIES, DetectedCapabilities
from langgraph.checkpoint.conformance.validate import _RUNNERS

from tests.langgraph.conftest import Makes


class PlainMethods:
    """A saver whose async methods call the plain ones."""

    def __init__(self, saver: Any) -> None:
        self._saver = saver

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._saver, name.removeprefix("a"))

        async def call(*arguments: Any, **options: Any) -> Any:
            return method(*arguments, **options)

        async def yields(*arguments: Any, **options: Any) -> Any:
            for one in method(*arguments, **options):
                yield one

        return yields if name == "alist" else call


@pytest.mark.parametrize("capability", sorted(ALL_CAPABILITIES), ids=lambda one: one.value)
async def test_async_methods(makes: Makes, capability: Any) -> None:
    saver = makes.checkpointer()
    passed, _, failures = await _RUNNERS[capability](saver)
    assert failures == [], failures[0]
    assert passed >= 5


@pytest.mark.parametrize("capability", sorted(ALL_CAPABILITIES), ids=lambda one: one.value)
async def test_plain_methods(makes: Makes, capability: Any) -> None:
    store = makes.store()
    if store.storage.is_async:
        with pytest.raises(RuntimeError, match="await aget_tuple"):
            makes.checkpointer(store).get_tuple({"configurable": {"thread_id": "t"}})
        return
    passed, _, failures = await _RUNNERS[capability](PlainMethods(makes.checkpointer(store)))  # type: ignore[arg-type]
    assert failures == [], failures[0]
    assert passed >= 5


@pytest.mark.parametrize("flavour", ["MemStateCheckpointer", "AsyncMemStateCheckpointer"])
def test_everything_is_there(flavour: str) -> None:
    """No method of the base class is left as it is there, but those that need no storage."""
    import memstate_langgraph

    kind = getattr(memstate_langgraph, flavour)
    inherited = {
        name
        for name, method in inspect.getmembers(BaseCheckpointSaver, inspect.isfunction)
        if not name.startswith("_") and getattr(kind, name) is method
    }
    assert inherited == {"aget", "get"}
    assert DetectedCapabilities.from_instance(object.__new__(kind)).missing == frozenset()
