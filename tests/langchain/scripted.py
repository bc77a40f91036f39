"""A chat model that says what a test has written, and keeps what it was shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

Line = AIMessage | Callable[[Sequence[BaseMessage]], AIMessage] | Exception


class Scripted(BaseChatModel):
    """Says its lines in turn: messages, functions of what it was shown, or errors to raise."""

    lines: list[Any] = Field(default_factory=list)
    shown: list[list[BaseMessage]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        self.shown.append(list(messages))
        line = self.lines.pop(0)
        if isinstance(line, Exception):
            raise line
        # A message gets an id when it is first said, and would take that one's place.
        message = line(messages) if callable(line) else line.model_copy(deep=True)
        return ChatResult(generations=[ChatGeneration(message=message)])


def calls(name: str, **arguments: Any) -> AIMessage:
    """A message that calls a tool."""
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": f"call {name}", "type": "tool_call"}])
