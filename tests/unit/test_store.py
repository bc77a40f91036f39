"""What a store says when it is made of what it cannot be made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from memstate_core import AsyncInMemoryStorage, AsyncMemoryStore, Fact, InMemoryStorage, MemoryStore, Operation


def on_change(operation: Operation, fact_id: str, fact: Fact | None) -> None: ...


async def on_change_later(operation: Operation, fact_id: str, fact: Fact | None) -> None: ...


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: MemoryStore("agent.db"), "needs a sync storage, such as SQLiteStorage, not str"),
        (lambda: MemoryStore(AsyncInMemoryStorage()), "needs a sync storage, such as SQLiteStorage, not AsyncInM"),
        (lambda: AsyncMemoryStore(InMemoryStorage()), "needs an async storage, such as AsyncSQLiteStorage, not InM"),
        (lambda: MemoryStore(InMemoryStorage(), on_change), r"hooks takes a list of hooks, not <function.*hooks=\["),
        (lambda: MemoryStore(InMemoryStorage(), [7]), "7 is no hook: pass an object with apply"),
        (lambda: MemoryStore(InMemoryStorage(), [on_change_later]), "is asynchronous; use it with AsyncMemoryStore"),
    ],
)
def test_what_it_cannot_be_made_of(make: Callable[[], Any], complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        make()
