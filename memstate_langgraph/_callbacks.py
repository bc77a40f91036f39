"""What only LangChain's callbacks are told: the input of a run, and that a node has failed and may be tried again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextvars import ContextVar
from typing import Any, Final
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tracers.context import register_configure_hook
from langgraph.errors import GraphBubbleUp

from memstate_core._bridge import run
from memstate_langgraph._hearing import Given, given_input
from memstate_langgraph._rewinders import Rewinders
from memstate_langgraph.rewind import Rewinder

_RUNS: Final = 16384


class _Nodes:
    """The runs that are a node's, by run id: thread, namespace, and whether it is the outermost one of that node."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._runs: OrderedDict[UUID, tuple[str, str, bool]] = OrderedDict()

    def start(self, run_id: UUID, parent_run_id: UUID | None, thread_id: str, ns: str) -> None:
        with self._guard:
            parent = self._runs.get(parent_run_id) if parent_run_id is not None else None
            self._runs[run_id] = (thread_id, ns, parent is None or parent[1] != ns)
            if len(self._runs) > _RUNS:  # runs that were never told to have ended
                self._runs.popitem(last=False)

    def end(self, run_id: UUID) -> tuple[tuple[str, str] | None, bool]:
        """Thread and namespace of the node that has ended with this run, and whether it was that of a node at all."""
        with self._guard:
            found = self._runs.pop(run_id, None)
        return (None if found is None or not found[2] else found[:2]), found is not None


class _Listener:
    """Of all that handlers are told, chains are enough."""

    run_inline = True  # a node must not begin before this has ended
    raise_error = True
    ignore_llm = True
    ignore_retry = True
    ignore_agent = True
    ignore_retriever = True
    ignore_chat_model = True
    ignore_custom_event = True

    def __init__(self) -> None:
        super().__init__()
        self.rewinders = Rewinders()
        self._nodes = _Nodes()

    def on_chain_start(
        self,
        serialized: dict[str, Any],
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        ns = (metadata or {}).get("langgraph_checkpoint_ns")
        thread_id = (metadata or {}).get("thread_id")
        if ns is None:
            given_input.set(Given(run_id, None if thread_id is None else str(thread_id), inputs))
        elif thread_id is not None:
            self._nodes.start(run_id, parent_run_id, str(thread_id), ns)

    def ended(self, run_id: UUID) -> list[Rewinder]:
        """Those whose thread was held by this run, which is then none of a node's."""
        node, is_nodes = self._nodes.end(run_id)
        if not is_nodes:
            return [rewinder for rewinder in self.rewinders.alive() if rewinder.runs.holds(run_id)]
        if node is not None:
            for rewinder in self.rewinders.alive():
                rewinder.notes.ends(*node)
        return []

    def concerned(self, run_id: UUID, error: BaseException) -> list[tuple[Rewinder, str, str]]:
        """Whose memory a node that failed has changed, with its thread and namespace."""
        node, _ = self._nodes.end(run_id)
        if node is None or isinstance(error, GraphBubbleUp):
            return []
        return [
            (rewinder, *node)
            for rewinder in self.rewinders.alive()
            if rewinder.mode == "auto" and rewinder.notes.wrote(*node)
        ]


class _PlainListener(_Listener, BaseCallbackHandler):
    """For stores that are not awaited, also in graphs that are."""

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **_: Any) -> None:
        for rewinder in self.ended(run_id):
            run(rewinder.runs.leave(run_id))

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        for rewinder, thread_id, ns in self.concerned(run_id, error):
            run(rewinder.failed(thread_id, ns))
        for rewinder in self.ended(run_id):
            run(rewinder.runs.leave(run_id))


class _AsyncListener(_Listener, BaseCallbackHandler):
    async def on_chain_end(self, outputs: Any, *, run_id: UUID, **_: Any) -> None:
        for rewinder in self.ended(run_id):
            await rewinder.runs.leave(run_id)

    async def on_chain_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        for rewinder, thread_id, ns in self.concerned(run_id, error):
            await rewinder.failed(thread_id, ns)
        for rewinder in self.ended(run_id):
            await rewinder.runs.leave(run_id)


_listeners: Final[dict[bool, _Listener]] = {}
_guard: Final = threading.Lock()


def listen(rewinder: Rewinder, *, is_async: bool) -> None:
    """Let a rewinder be told of every node that fails, in all graphs of this process, as long as it lives."""
    with _guard:
        if is_async not in _listeners:
            listener = _AsyncListener() if is_async else _PlainListener()
            variable: ContextVar[Any] = ContextVar(f"memstate_langgraph_listener_{is_async}", default=listener)
            register_configure_hook(variable, inheritable=True)
            _listeners[is_async] = listener
        _listeners[is_async].rewinders.add(rewinder)
