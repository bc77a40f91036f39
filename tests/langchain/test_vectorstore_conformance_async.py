"""The part of it in which an asynchronous vector store can differ from a sync one, on a PostgreSQL server."""

from __future__ import annotations

from typing import Any

import pytest

from memstate_core.testing import HookFactory
from memstate_core.testing.hooks import TestMending  # noqa: F401
from memstate_core.testing.shared_indexes import TestSharedIndex  # noqa: F401
from memstate_langchain import AsyncVectorStoreHook
from tests.langchain.conftest import MakeVectorStore

pytestmark = pytest.mark.parametrize("vectorstores", ["async pgvector"], indirect=True)


@pytest.fixture
def make_hook(vectorstores: MakeVectorStore) -> HookFactory:
    def make(name: str, target_types: set[str] | None) -> Any:
        return AsyncVectorStoreHook(
            vectorstores(name), name=name, text_field="text", target_types=target_types, metadata_fields=["rank"]
        )

    return HookFactory(make)
