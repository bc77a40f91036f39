"""A retriever of facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from pydantic import ConfigDict, PrivateAttr

from memstate_core.async_store import AsyncMemoryStore
from memstate_core.facts import UNSET, Unset
from memstate_core.hooks._mapping import FactMapping
from memstate_core.store import MemoryStore
from memstate_langchain._calls import Face, later, now
from memstate_langchain._documents import document_of, fact_text
from memstate_langchain._searching import search_in
from memstate_langchain._sessions import session_of


class MemStateRetriever(BaseRetriever):
    """Facts that are similar to a query, as documents with their current text, best first.

    A document's ``id`` is the fact's; its metadata have ``score`` (higher is better), ``type``, ``payload``,
    ``session_id``, ``source``, ``version`` and ``ts``.

    :ivar k: how many at most.
    :ivar session_id: of which session; default: of all; None: long-term facts only.
    :ivar session: where the session is said in the config of a run, in place of ``session_id``: the key in its
        ``configurable``, or a function of the config.
    :ivar long_term: beside those of the session, also long-term facts.
    :ivar types: of which types; default: of any.
    :ivar filters: see :meth:`memstate_core.MemoryStore.search`.
    :ivar at: as the facts were then: whatever :meth:`memstate_core.MemoryStore.at` takes; default: as they are now.
    :ivar text_field: the field of the payload that is the text, a dotted path; default: all fields, a line for each.
    :ivar text_formatter: a function from a payload to the text.

    ``k``, ``session_id``, ``types``, ``filters``, ``score_threshold`` and ``at`` can be given to a call as well.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    store: MemoryStore | AsyncMemoryStore
    k: int = 4
    session_id: str | Unset | None = UNSET
    session: str | Callable[[RunnableConfig], str | None] | None = None
    long_term: bool = False
    types: Sequence[str] | None = None
    filters: Any = None
    score_threshold: float | None = None
    at: Any = UNSET
    text_field: str | None = None
    text_formatter: Callable[[dict[str, Any]], str | None] | None = None

    _text: FactMapping = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._text = fact_text(self.text_field, self.text_formatter)

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:  # noqa: A002
        return super().invoke(input, config, **self._said_by(config, kwargs))

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:  # noqa: A002
        return await super().ainvoke(input, config, **self._said_by(config, kwargs))

    def _said_by(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        if self.session is None or "session_id" in kwargs:
            return kwargs
        return {**kwargs, "session_id": session_of(self.session, ensure_config(config))}

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return now(self.store, lambda store: self._found(store, query, kwargs))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return await later(self.store, lambda store: self._found(store, query, kwargs))

    async def _found(self, store: Face, query: str, given: Mapping[str, Any]) -> list[Document]:
        names = ("k", "session_id", "types", "filters", "score_threshold", "at")
        if unknown := given.keys() - set(names):
            raise TypeError(f"a MemStateRetriever takes {', '.join(names)} with a call, and no {', '.join(unknown)}")
        limit, session_id, types, filters, threshold, at = (given.get(name, getattr(self, name)) for name in names)
        place = store
        if not isinstance(at, Unset):
            place = Face(store.target.at(at, None if isinstance(session_id, Unset) else session_id))
        shared = self.long_term and isinstance(session_id, str)
        sessions = [session_id, None] if shared else [session_id]
        found = await search_in(place, query, limit, sessions, types, filters, threshold)
        return [document_of(one.fact, self._text, one.score) for one in found]
