"""What any hook must do, asked of the Qdrant hooks: in memory, on disk, and over HTTP, in both flavours."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from memstate_core import LexicalEmbedder
from memstate_core.hooks.qdrant import AsyncQdrantSyncHook, QdrantSyncHook
from memstate_core.testing import HookFactory
from memstate_core.testing.hooks import *  # noqa: F403
from memstate_core.testing.shared_indexes import *  # noqa: F403
from tests.hooks.conftest import Qdrant


@pytest.fixture
def make_hook(every_qdrant: Qdrant) -> HookFactory:
    prefix = uuid.uuid4().hex
    kind = AsyncQdrantSyncHook if every_qdrant.is_async else QdrantSyncHook

    def make(name: str, target_types: set[str] | None) -> Any:
        return kind(
            every_qdrant.client,
            f"{prefix}-{name}",
            LexicalEmbedder(64),
            text_field="text",
            target_types=target_types,
            metadata_fields=["rank", "label", "data", "data.city"],
        )

    return HookFactory(make)
