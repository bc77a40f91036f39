"""What the tests of the demo share."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memstate_core import InMemoryStorage
from memstate_core.demo.memory import Memory
from tests.demo.samples import Write, ephemeral


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write something as JSON; returns the file."""

    def write(data: Any) -> Path:
        path = tmp_path / f"{uuid.uuid4().hex}.json"
        path.write_text(json.dumps(data), encoding="utf-8")
        return path

    return write


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory(InMemoryStorage(), ephemeral(), collection=f"memory-{uuid.uuid4().hex}")
    with memory.store:
        yield memory
