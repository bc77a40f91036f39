"""Facts as documents."""

from __future__ import annotations

import json
from typing import Any

from langchain_core.documents import Document

from memstate_core.facts import Fact
from memstate_core.hooks._mapping import FactMapping, TextFormatter


def fact_text(text_field: str | None, text_formatter: TextFormatter | None) -> FactMapping:
    """How a fact's text is made, the same as that of an index with these options."""
    return FactMapping(text_field=text_field, text_formatter=text_formatter)


def document_of(fact: Fact, text: FactMapping, score: float | None = None) -> Document:
    """A fact's text, or all of its payload where there is none; the metadata say what and whose it is."""
    metadata: dict[str, Any] = {
        "fact_id": fact.id,
        "type": fact.type,
        "payload": fact.payload,
        "session_id": fact.session_id,
        "source": fact.source,
        "version": fact.version,
        "ts": None if fact.ts is None else fact.ts.isoformat(),
    }
    if score is not None:
        metadata["score"] = score
    content = text.text(fact) or json.dumps(fact.payload, ensure_ascii=False)
    return Document(id=fact.id, page_content=content, metadata=metadata)
