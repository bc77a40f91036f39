"""What any hook must do, asked of LangChain's vector stores: in memory, embedded, and on a PostgreSQL server."""

from __future__ import annotations

from typing import Any

import pytest

from memstate_core.testing import HookFactory
from memstate_core.testing.hooks import *  # noqa: F403
from memstate_core.testing.shared_indexes import *  # noqa: F403
from memstate_langchain import AsyncVectorStoreHook, VectorStoreHook
from tests.langchain.conftest import MakeVectorStore

KINDS = [
    ("memory", VectorStoreHook),
    ("chroma", VectorStoreHook),
    ("qdrant", VectorStoreHook),
    ("pgvector", VectorStoreHook),
    ("memory", AsyncVectorStoreHook),
]
pytestmark = pytest.mark.parametrize(
    ("vectorstores", "hook_class"),
    [pytest.param(*kind, id=f"{kind[0]}-{kind[1].__name__}") for kind in KINDS],
    indirect=["vectorstores"],
)


@pytest.fixture
def make_hook(vectorstores: MakeVectorStore, hook_class: Any) -> HookFactory:
    def make(name: str, target_types: set[str] | None) -> Any:
        return hook_class(
            vectorstores(name),
            name=f"vectors:{name}",
            text_field="text",
            target_types=target_types,
            metadata_fields=["rank", "label", "data", "data.city"],
        )

    return HookFactory(make)
