"""Embeddings for tests: texts that share words are similar."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from memstate_core import LexicalEmbedder

DIMENSIONS = 64


class Words(Embeddings):
    """``LexicalEmbedder`` with LangChain's methods."""

    def __init__(self) -> None:
        self._embedder = LexicalEmbedder(DIMENSIONS)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [list(map(float, vector)) for vector in self._embedder(texts)]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        return self.embed_query(text)
