"""The index behind a memory goes wherever the graph goes: at every node's start it has what the memory has."""

from __future__ import annotations

import uuid
from typing import Any

import chromadb
import pytest
from chromadb.config import Settings

from memstate_core.embedding import LexicalEmbedder
from memstate_core.hooks.chroma import ChromaSyncHook
from tests.langgraph.conftest import Makes
from tests.langgraph.oracle import TOPOLOGIES, World, wander
from tests.langgraph.test_rewinding import maybe

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class IndexedWorld(World):
    """The same, where an index is looked into whenever the memory is. Nodes must not run beside one another."""

    def __init__(self, collection: Any, *world: Any) -> None:
        super().__init__(*world)
        self.collection = collection
        self.looks = 0

    def compare(self, where: str, facts: set[str]) -> None:
        self.looks += len(facts)
        indexed = self.collection.get()["documents"]
        if sorted(indexed) != sorted(facts):
            self.violations.append(f"{where}: the index has {sorted(indexed)}, the memory {sorted(facts)}")

    def check(self, node: str, found: set[str], state: list[str]) -> None:
        super().check(node, found, state)
        self.compare(node, found)

    async def look_back(self, graph: Any) -> list[Any]:
        history = await super().look_back(graph)
        self.compare("after a run", await self.facts())
        return history


@pytest.mark.parametrize("topology", ["line", "mixed", "functional"])
async def test_the_index_is_the_memory(makes_in_memory: Makes, topology: str) -> None:
    client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
    hook = ChromaSyncHook(client, f"oracle-{uuid.uuid4().hex}", LexicalEmbedder(), text_field="name")
    memory = makes_in_memory.store(hooks=[hook])
    checkpointer = makes_in_memory.checkpointer(memory)
    collection = client.get_or_create_collection(hook.collection_name)
    for seed in range(300, 302):
        world = IndexedWorld(collection, memory, checkpointer, seed, f"thread-{seed}")
        await wander(world, TOPOLOGIES[topology](world), 8)
        assert world.violations == [], seed
        assert world.looks
        await maybe(memory.discard_session(world.thread_id))
        assert collection.count() == 0
