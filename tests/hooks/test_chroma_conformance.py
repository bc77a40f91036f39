"""What any hook must do, asked of the Chroma hooks: embedded, and over HTTP in both flavours."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from memstate_core import LexicalEmbedder
from memstate_core.hooks.chroma import AsyncChromaSyncHook, ChromaSyncHook
from memstate_core.testing import HookFactory
from memstate_core.testing.hooks import *  # noqa: F403
from memstate_core.testing.shared_indexes import *  # noqa: F403
from tests.hooks.conftest import Chroma


@pytest.fixture
def make_hook(chroma: Chroma) -> HookFactory:
    prefix = uuid.uuid4().hex  # embedded clients of one process share their collections
    kind = AsyncChromaSyncHook if chroma.is_async else ChromaSyncHook

    def make(name: str, target_types: set[str] | None) -> Any:
        return kind(
            chroma.client,
            f"{prefix}-{name}",
            LexicalEmbedder(64),
            text_field="text",
            target_types=target_types,
            metadata_fields=["rank", "label", "data", "data.city"],
        )

    return HookFactory(make)
