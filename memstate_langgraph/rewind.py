"""Graph rewinds as session rollbacks: whatever a graph runs from, its memory is what it was there.

The session is the thread. Every transaction made in a node is tagged with where the node ran from
(:mod:`memstate_langgraph._tags`), since LangGraph stores checkpoints late: what a checkpoint's memory comes to is told
by the tags, not by what had been committed when it was stored. Each checkpoint of the root has a *position* in the
journal, stored with it, and a *line*: a run that starts from a past checkpoint begins a new line, as it begins a new
branch of checkpoints, and the place where the old one was left is kept, so that one can come back to it.

What a step of a run has changed is in effect when its task has finished, or while it runs. Everything else is taken
back by a replay: one transaction that undoes what came after a place of the line, but for what is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata, CheckpointTuple
from langgraph.types import Command

from memstate_core import moves
from memstate_core.engine import Engine, Locate
from memstate_core.errors import NotFoundError, ValidationFailed
from memstate_core.facts import Entry, Moved, Operation
from memstate_core.protocols import Position, RecordWrite, StorageTransaction
from memstate_langgraph import _keys as keys
from memstate_langgraph._ahead import read_ahead
from memstate_langgraph._hearing import finished_tasks, given_input, updated_from
from memstate_langgraph._line import Line, RootPosition, Standing, tag
from memstate_langgraph._notes import Notes
from memstate_langgraph._places import Place
from memstate_langgraph._positions import no_task, of_nested, of_root, of_task
from memstate_langgraph._runs import Runs
from memstate_langgraph._tags import replay_mark, runtime_in

Rewinding = Literal["auto", "manual", "off"]

logger = logging.getLogger("memstate")


class Rewinder:
    """Keeps the memory of one store with the checkpoints of one checkpointer."""

    def __init__(self, engine: Engine, mode: Rewinding, run_timeout: float) -> None:
        self._engine = engine
        self.mode = mode
        self.runs = Runs(engine, run_timeout, self)
        self.notes = Notes()

    # Loading

    @staticmethod
    def is_run(config: RunnableConfig) -> bool:
        """Whether a checkpoint is loaded to be run from, and not just looked at."""
        configurable = config.get("configurable") or {}
        runtime = runtime_in(configurable)
        if runtime is None:
            return False
        # At the root a node's own runtime means that the node looks at the state.
        return bool(configurable.get("checkpoint_ns")) or runtime.execution_info is None

    async def begins(self, config: RunnableConfig) -> None:
        """Before a checkpoint is loaded: a run waits until it has the thread for itself.

        :raises BusyError: another run has it.
        """
        if not self.is_run(config):
            return
        place = Place(config)
        given = given_input.get()
        if not place.checkpoint_ns and given is not None and given.thread_id == place.thread_id:
            await self.runs.take(place.thread_id, given.run_id)

    async def loaded(self, config: RunnableConfig, found: CheckpointTuple | None, is_latest: bool) -> None:
        """A run has loaded a checkpoint (None: there was none): make the memory what it was there."""
        if self.mode != "auto":
            return
        place = Place(config)
        configurable = config["configurable"]
        explicit = bool(configurable.get("checkpoint_id"))
        checkpoint_id = found.checkpoint["id"] if found is not None else None
        finished = finished_tasks(found) if found is not None else set()
        if place.checkpoint_ns:
            await self._loaded_nested(place, configurable, checkpoint_id, finished, explicit)
            return
        if not self.notes.begins(place.thread_id, runtime_in(configurable)):
            return
        if explicit and checkpoint_id is None:
            return
        given = given_input.get()
        value = given.value if given is not None and given.thread_id in (None, place.thread_id) else None
        if explicit:
            resumes = isinstance(value, Command) and value.resume is not None
        else:
            resumes = value is None or isinstance(value, Command)
        if explicit and not is_latest:
            await self.go_back(place.thread_id, checkpoint_id)
        else:
            await self.return_to(place.thread_id, checkpoint_id, finished if resumes else ())

    async def go_back(self, thread_id: str, checkpoint_id: str | None, finished: Collection[str] = ()) -> Moved:
        """Go to the position of a checkpoint, on a new line; ``finished`` as for :meth:`return_to`."""

        async def route(tx: StorageTransaction, position: Position) -> moves.Route:
            line = Line(tx, thread_id)
            standing = await line.standing()
            found = await line.position(checkpoint_id) if checkpoint_id is not None else RootPosition(0, 0)
            if found is None:
                logger.warning(
                    "checkpoint %s of thread %r has no position of the memory, which stays as it is: it was stored "
                    "without this checkpointer, or with rewind='off'",
                    checkpoint_id,
                    thread_id,
                )
                return moves.Route(position.head, position.redo, (), ())
            way = await moves.route_to(tx, position, found.seq)
            new = Standing(standing.following, standing.following + 1)
            return way._replace(records=[line.leave(standing.line, position.head), line.stand(new)])

        moved = await self._move(thread_id, Operation.CHECKOUT, route, f"the graph goes back to {checkpoint_id}")
        if finished:
            await self._keep(thread_id, checkpoint_id, finished)
        return moved

    async def return_to(self, thread_id: str, checkpoint_id: str | None, finished: Collection[str]) -> None:
        """Go to where a checkpoint's line was left, and leave of its step what the graph's state has, too.

        That is what was committed outside of runs, and what the tasks ``finished`` did.
        """

        async def route(tx: StorageTransaction, position: Position) -> moves.Route:
            line = Line(tx, thread_id)
            standing = await line.standing()
            found = await line.position(checkpoint_id) if checkpoint_id is not None else None
            if found is None or found.line == standing.line:
                return moves.Route(position.head, position.redo, (), ())
            tip = await line.tip(found.line)
            way = await moves.route_to(tx, position, found.seq if tip is None else tip)
            new = Standing(found.line, standing.following)
            return way._replace(records=[line.leave(standing.line, position.head), line.stand(new)])

        keep = self._keeping(thread_id, checkpoint_id, finished)
        # Mostly there is nothing to do, which one look tells. What the next put will ask is looked at with it.
        records = [keys.thread_place(thread_id), *Line.records(thread_id, checkpoint_id)]
        if not await self._is_needed(thread_id, (route, keep), records):
            return
        if checkpoint_id is not None:
            why = f"the graph returns to {checkpoint_id}"
            await self._move_if_needed(thread_id, Operation.CHECKOUT, route, why)
        await self._keep(thread_id, checkpoint_id, finished)

    async def _keep(self, thread_id: str, checkpoint_id: str | None, finished: Collection[str]) -> None:
        """Leave of the step that ran from a checkpoint what counts."""
        why = f"the graph runs on from {checkpoint_id or 'its beginning'}"
        route = self._keeping(thread_id, checkpoint_id, finished)
        await self._move_if_needed(thread_id, Operation.REPLAY, route, why)

    def _keeping(self, thread_id: str, checkpoint_id: str | None, finished: Collection[str]) -> moves.Router:
        async def route(tx: StorageTransaction, position: Position) -> moves.Route:
            line = Line(tx, thread_id)
            found = await line.position(checkpoint_id) if checkpoint_id is not None else RootPosition(0, 0)
            if found is None:
                return moves.Route(position.head, position.redo, (), ())
            span = await line.above(position.head, found.seq)
            kept = {entry.seq for entry in span.entries if tag(entry) is None}
            if finished and checkpoint_id is not None:
                kept |= _of(finished, await line.finished("", checkpoint_id))
            return await self._replay(tx, line, position, span.base, span.seqs, kept, checkpoint_id or "")

        return route

    async def _loaded_nested(
        self, place: Place, configurable: Any, checkpoint_id: str | None, finished: Collection[str], explicit: bool
    ) -> None:
        ns = place.checkpoint_ns
        # A subgraph with a checkpointer of its own keeps its namespace; it follows the checkpoints of the root.
        if ":" not in [part for part in ns.split("|") if not part.isdigit()][-1]:
            return
        if not self.notes.enters(place.thread_id, ns, runtime_in(configurable), explicit=explicit):
            return
        root = (configurable.get("checkpoint_map") or {}).get("", "")

        async def route(tx: StorageTransaction, position: Position) -> moves.Route:
            line = Line(tx, place.thread_id)
            span = await line.since(position.head, root)
            # What the node has done itself, that runs this graph, is of the same attempt.
            kept = {entry.seq for entry in span.entries if (one := tag(entry)) is None or one.step_in(ns) is None}
            if checkpoint_id is not None:
                kept |= set(await line.content(ns, checkpoint_id))
                if not explicit:
                    kept |= _of(finished, await line.finished(ns, checkpoint_id))
            return await self._replay(tx, line, position, span.base, span.seqs, kept, root)

        await self._move_if_needed(place.thread_id, Operation.REPLAY, route, f"the graph {ns} returns")

    @staticmethod
    def located(config: RunnableConfig) -> tuple[str, Locate]:
        """The thread of a checkpoint, and where its memory stood at it; without an id, at its head."""
        place = Place(config)

        async def locate(tx: StorageTransaction) -> int:
            if place.checkpoint_id is None:
                return (await tx.position(place.thread_id)).head
            # A checkpoint of a nested graph belongs to one of the root.
            root = (config["configurable"].get("checkpoint_map") or {}).get("", place.checkpoint_id)
            found = await Line(tx, place.thread_id).position(root)
            if found is None:
                raise NotFoundError(
                    f"thread {place.thread_id!r} has no position of its memory at checkpoint {root!r}: there is no "
                    "such checkpoint, or it was stored without this checkpointer, or with rewind='off'"
                )
            return found.seq

        return place.thread_id, locate

    async def rewind(self, config: RunnableConfig) -> Moved:
        """Go to a checkpoint, whose config needs an id."""
        thread_id, locate = self.located(config)
        place = Place(config)
        if place.checkpoint_id is None:
            raise ValidationFailed("rewind needs the checkpoint_id of the checkpoint to go back to")
        await self._engine.storage.read(self._engine.namespace, locate)
        return await self.go_back(
            thread_id, (config["configurable"].get("checkpoint_map") or {}).get("", place.checkpoint_id)
        )

    # What becomes of tasks

    async def failed(self, thread_id: str, ns: str) -> None:
        """A task has failed: what it did is taken back, but for what the ``@task``s that it called have finished.

        What graphs below it did comes back when they are loaded again to go on.
        """

        async def route(tx: StorageTransaction, position: Position) -> moves.Route:
            line = Line(tx, thread_id)
            root = await self._root_of(tx, position.head, ns)
            if root is None:
                return moves.Route(position.head, position.redo, (), ())
            span = await line.since(position.head, root)
            kept = {
                entry.seq
                for entry in span.entries
                if not _is_under(entry, ns) or await self._is_finished_part(line, thread_id, entry, ns)
            }
            return await self._replay(tx, line, position, span.base, span.seqs, kept, root, failed=ns)

        await self._move_if_needed(thread_id, Operation.REPLAY, route, f"{ns} failed")

    @staticmethod
    async def _root_of(tx: StorageTransaction, head: int, ns: str) -> str | None:
        """The root's checkpoint from which a task ran that changed the memory on the line of ``head``."""
        at, latest = head, None
        while at:
            for entry in await tx.line(at, limit=32):
                one = tag(entry)
                if one is not None:
                    if one.under(ns):
                        return one.root
                    if latest is not None and one.root < latest:
                        return None
                    latest = one.root
                at = entry.parent
        return None

    async def _is_finished_part(self, line: Line, thread_id: str, entry: Entry, ns: str) -> bool:
        """Whether a transaction is that of a finished ``@task`` of a task that has not finished itself.

        Such a part runs from the same checkpoint as the task, and its writes are stored with the task's.
        """
        one = tag(entry)
        if one is None:
            return False
        graph = ns.rpartition("|")[0]
        levels = list(one.levels())
        checkpoint_id = next((found for known, found, _ in levels if known == graph), "")
        parts = [task_id for known, found, task_id in levels if found == checkpoint_id and known != graph]
        if not parts:
            return False
        ended = self.notes.ended_tasks(thread_id)
        if any(task_id in ended for task_id in parts):
            return True
        finished = await line.finished(graph, checkpoint_id)
        return any(entry.seq in finished.get(task_id, ()) for task_id in parts)

    # Storing

    def asked(self, place: Place) -> list[tuple[str, str]]:
        """The records that :meth:`stored` will look at, to be read with others."""
        if self.mode == "off" or place.checkpoint_ns:
            return []
        known = self.notes.position(place.thread_id, place.checkpoint_id)
        return Line.records(place.thread_id, place.checkpoint_id if known is None else None)

    async def stored(
        self,
        tx: StorageTransaction,
        place: Place,
        config: RunnableConfig,
        checkpoint_id: str,
        metadata: CheckpointMetadata,
    ) -> tuple[RootPosition | None, list[RecordWrite]]:
        """What a new checkpoint is stored with: its position, or the records of what one of a nested graph comes to."""
        if self.mode == "off":
            return None, []
        if not place.checkpoint_ns:
            parent = self.notes.position(place.thread_id, place.checkpoint_id)
            return await of_root(tx, place, checkpoint_id, parent), []
        began = self.notes.began(place.thread_id, place.checkpoint_ns)
        source = metadata.get("source")
        return None, await of_nested(tx, place, _root(config, place), checkpoint_id, source, began)

    def committed(self, place: Place, checkpoint_id: str, position: RootPosition | None) -> None:
        """What :meth:`stored` returned for a checkpoint has been stored with it."""
        if position is not None:
            self.notes.placed(place.thread_id, checkpoint_id, position)

    async def finished(
        self,
        tx: StorageTransaction,
        place: Place,
        config: RunnableConfig,
        task_id: str,
        *,
        always: bool = False,
        joins: bool = False,
    ) -> list[RecordWrite]:
        """The records that the first writes of a finished task are stored with; none if it did nothing.

        ``always``: also if it did nothing, since nobody else can tell whether these are its first. ``joins``: they are
        not, but some of them count beside the first. What ``update_state`` writes for a task is in place of what the
        task did.
        """
        if self.mode == "off" or place.checkpoint_id is None:
            return []
        if runtime_in(config["configurable"]) is None:
            return [no_task(tx, place, task_id)] if always and not joins else []
        if not always and not self.notes.task_wrote(place.thread_id, task_id):
            return []
        return [await of_task(tx, place, _root(config, place), task_id, joins=joins)]

    async def updating(
        self,
        place: Place,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        is_latest: Callable[[str], Awaitable[bool]],
    ) -> None:
        """Before ``update_state`` stores a checkpoint: the memory becomes what it was at the one that is updated.

        ``is_latest`` tells whether a checkpoint of the root is the thread's latest, at which LangGraph need not look.
        """
        if self.mode != "auto" or place.checkpoint_ns or runtime_in(config["configurable"]) is not None:
            return
        update = updated_from(place.thread_id, place.checkpoint_id, checkpoint, metadata)
        if update is None:
            return
        if await is_latest(update.checkpoint_id):
            await self.return_to(place.thread_id, update.checkpoint_id, update.finished)
        else:
            await self.go_back(place.thread_id, update.checkpoint_id, update.finished)

    # Moving

    async def _replay(
        self,
        tx: StorageTransaction,
        line: Line,
        position: Position,
        base: int,
        now: Sequence[int],
        kept: Collection[int],
        root: str,
        failed: str = "",
    ) -> moves.Route:
        """The way from what is in effect now to what is to be."""
        wanted = sorted(kept)
        if wanted == list(now):
            return moves.Route(position.head, position.redo, (), ())
        mark, name = replay_mark(root)
        way = await moves.replay(tx, position, base, wanted)
        return way._replace(mark=mark, records=[line.replayed(name, base, wanted, failed)])

    async def _move(self, thread_id: str, operation: Operation, route: moves.Router, why: str) -> Moved:
        moved = await moves.move(self._engine, thread_id, operation, route, "keep", "langgraph", why)
        if moved.kept:
            logger.warning(
                "%s (thread %r): facts %s were changed by another session since, and stay as they are",
                why,
                thread_id,
                ", ".join(map(repr, moved.kept)),
            )
        return moved

    async def _move_if_needed(self, thread_id: str, operation: Operation, route: moves.Router, why: str) -> None:
        if await self._is_needed(thread_id, (route,)):
            await self._move(thread_id, operation, route, why)

    async def _is_needed(
        self, thread_id: str, routes: Sequence[moves.Router], records: Sequence[tuple[str, str]] = ()
    ) -> bool:
        """Look first, without the right to write; ``records`` are what the routes will read."""

        async def look(tx: StorageTransaction) -> bool:
            tx = await read_ahead(tx, records)
            position = await tx.position(thread_id)
            for route in routes:
                way = await route(tx, position)
                if way.up or way.down or way.records:
                    return True
            return False

        found: bool = await self._engine.storage.read(self._engine.namespace, look, snapshot=True)
        return found


def _of(tasks: Collection[str], finished: Mapping[str, Sequence[int]]) -> set[int]:
    """The transactions of some tasks."""
    return {seq for task_id in tasks for seq in finished.get(task_id, ())}


def _root(config: RunnableConfig, place: Place) -> str:
    """The root's checkpoint under which something is stored."""
    if not place.checkpoint_ns:
        return place.checkpoint_id or ""
    root: str = (config["configurable"].get("checkpoint_map") or {}).get("", "")
    return root


def _is_under(entry: Entry, ns: str) -> bool:
    one = tag(entry)
    return one is not None and one.under(ns)
