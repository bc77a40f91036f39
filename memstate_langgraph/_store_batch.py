"""The rules of LangGraph's store over facts, once for both flavours: a batch of operations, and the sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import ormsgpack
from langgraph.store.base import (
    GetOp,
    Item,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    validate_op_namespace,
)
from pydantic import BaseModel

from memstate_core import search
from memstate_core.engine import Engine
from memstate_core.errors import ValidationFailed
from memstate_core.facts import UNSET, Operation, ScoredFact, StoredFact
from memstate_core.filters import Predicate, compile_filter
from memstate_core.protocols import Batch, RecordWrite, Selection, StorageTransaction
from memstate_core.values import count
from memstate_langgraph import _store_filters as filters
from memstate_langgraph._store_items import (
    INDEX,
    INDEXED_DEPTH,
    SCHEMA_VERSION,
    Namespace,
    StoredItem,
    StoredText,
    draft,
    fact_id,
    further_texts,
    is_alive,
    item,
    search_item,
    text_typename,
)
from memstate_langgraph._store_writes import RemoveExpired, WriteItems

_PAGE: Final = 500
# So many times may each be asked for by itself before all between them are read.
_FEW: Final = 16


class Found(NamedTuple):
    """An item that a read came upon."""

    fact_id: str
    payload: Mapping[str, Any]
    updated_at: str
    score: float | None = None

    def as_item(self) -> Item:
        return item(self.payload, self.updated_at)

    def as_search_item(self) -> SearchItem:
        return search_item(self.payload, self.updated_at, self.score)


class Items:
    """A store's items: facts of one type, with the times at which they were last read beside them.

    Those times are records and not part of the facts, since reading is no change of the memory: it is told to no index,
    and no rewind has to do with it.
    """

    def __init__(self, engine: Engine, typename: str, fields: Sequence[str], *, refreshes: bool) -> None:
        if isinstance(fields, str):
            raise ValidationFailed(f"fields takes a list of paths; write fields=[{fields!r}]")
        _register(engine, typename, StoredItem, INDEX)
        _register(engine, text_typename(typename), StoredText, ())
        self._engine = engine
        self._typename = typename
        self._fields = tuple(fields)
        self._refreshes = refreshes
        self._reads = f"langgraph.reads:{typename}"

    async def batch(self, ops: Sequence[Op]) -> list[Result]:
        """Carry out a batch: first what it reads, as it was at one moment, then what it puts, in one transaction.

        Of several puts of one item the last one counts. What an index finds may be of an earlier moment.
        """
        puts: dict[str, PutOp] = {}
        for op in ops:
            validate_op_namespace(op)
            if isinstance(op, PutOp):
                puts[fact_id(self._typename, op.namespace, op.key)] = op
            elif not isinstance(op, GetOp | SearchOp | ListNamespacesOp):
                raise ValueError(f"Unknown operation type: {type(op)}")
        registry = self._engine.registry
        drafts = [
            draft(registry, self._typename, id_, op, self._fields) for id_, op in puts.items() if op.value is not None
        ]
        removed = [id_ for id_, op in puts.items() if op.value is None]
        results, read = await self._read(ops) if len(puts) < len(ops) else ([None] * len(ops), {})
        records = [RecordWrite(self._reads, id_, at) for id_, at in read.items()]
        if puts:
            intent = WriteItems(self._typename, drafts, removed, self._reads)
            session_id = self._engine.session_of(UNSET)
            await self._engine.carry_out([intent], Operation.TRANSACTION, session_id=session_id, records=records)
        elif records:
            await self._engine.storage.write(self._engine.namespace, lambda tx: tx.write(Batch(records=records)))
        return results

    # Reading

    async def _read(self, ops: Sequence[Op]) -> tuple[list[Result], dict[str, bytes]]:
        """What the operations find, and the items whose end is postponed by that, with what is to be noted of them."""
        engine = self._engine
        await engine.ready()
        await engine.definitions.known()
        now = engine.clock().timestamp()
        searches = any(hook.search is not None and hook.wants(self._typename) for hook in engine.hooks)
        gets = [fact_id(self._typename, op.namespace, op.key) for op in ops if isinstance(op, GetOp)]
        reading = [op for op in ops if not isinstance(op, PutOp)]
        found: dict[int, list[Found]] = {}
        if searches:
            for place, op in enumerate(ops):
                if isinstance(op, SearchOp) and op.query:
                    found[place] = await self._ranked(op, op.query, now)

        async def work(tx: StorageTransaction) -> tuple[list[Result], list[Found]]:
            results: list[Result] = []
            touched: list[Found] = []
            got = await self._get(tx, gets, now) if gets else {}
            for place, op in enumerate(ops):
                if isinstance(op, GetOp):
                    one = got.get(fact_id(self._typename, op.namespace, op.key))
                    results.append(None if one is None else one.as_item())
                    if one is not None and op.refresh_ttl:
                        touched.append(one)
                elif isinstance(op, SearchOp):
                    some = await self._search(tx, op, found.get(place, ()), now)
                    results.append([one.as_search_item() for one in some])
                    if op.refresh_ttl:
                        touched += some
                elif isinstance(op, ListNamespacesOp):
                    results.append(await self._list_namespaces(tx, op, now))
                else:
                    results.append(None)
            return results, touched

        results, touched = await engine.storage.read(engine.namespace, work, snapshot=len(reading) > 1)
        if not self._refreshes:
            return results, {}
        at = ormsgpack.packb(now)
        return results, {one.fact_id: at for one in touched if one.payload["ttl"] is not None}

    async def _get(self, tx: StorageTransaction, ids: Sequence[str], now: float) -> dict[str, Found]:
        facts = await tx.facts(ids)
        alive = await self._alive(tx, [self._found(fact) for fact in facts.values()], now)
        return {one.fact_id: one for one in alive}

    async def _search(
        self, tx: StorageTransaction, op: SearchOp, ranked: Sequence[Found], now: float
    ) -> Sequence[Found]:
        """What is found by filters; behind what an index has ranked, as far as there is room for it."""
        offset, limit = count("offset", op.offset), count("limit", op.limit)
        predicate = filters.predicate(*filters.under(op.namespace_prefix, op.filter))
        missing = offset + limit - len(ranked)
        if missing <= 0 or not limit:
            return ranked[offset : offset + limit]
        seen = {one.fact_id for one in ranked}
        found = list(ranked)
        after, page = None, missing + len(seen)
        while page:
            facts = await tx.select(self._selection(predicate, page, after))
            unseen = [self._found(fact) for fact in facts if fact.id not in seen]
            found += await self._alive(tx, unseen, now)
            if len(found) >= offset + limit or len(facts) < page:
                break
            after, page = facts[-1].ordinal, max(page * 2, _PAGE)
        return found[offset : offset + limit]

    async def _ranked(self, op: SearchOp, query: str, now: float) -> list[Found]:
        """The items most similar to a text, as many as it takes to fill the page that is asked for."""
        wanted = count("offset", op.offset) + count("limit", op.limit)
        by_first = await self._ranked_by_first_text(op, query, wanted, now)
        by_further = await self._ranked_by_further_texts(op, query, wanted, now)
        if not by_further:
            return by_first
        best: dict[str, Found] = {}
        for one in (*by_first, *by_further):
            known = best.get(one.fact_id)
            if known is None or (known.score or 0.0) < (one.score or 0.0):
                best[one.fact_id] = one
        return sorted(best.values(), key=lambda one: -(one.score or 0.0))[:wanted]

    async def _ranked_by_first_text(self, op: SearchOp, query: str, wanted: int, now: float) -> list[Found]:
        narrow, test = filters.under(op.namespace_prefix, op.filter)
        ask = wanted
        while True:
            scored = await search.search(self._engine, query, ask, narrow, None, UNSET, self._typename, test=test)
            found = [
                Found(one.fact.id, one.fact.payload, one.fact.ts.isoformat() if one.fact.ts else "", one.score)
                for one in scored
            ]
            alive = await self._alive_now(found, now)
            if len(alive) >= wanted or len(scored) < ask:
                return alive[:wanted]
            ask *= 4

    async def _ranked_by_further_texts(self, op: SearchOp, query: str, wanted: int, now: float) -> list[Found]:
        engine, typename = self._engine, text_typename(self._typename)
        if not any(hook.search is not None and hook.wants(typename) for hook in engine.hooks):
            return []
        some = engine.selection(typename, None, UNSET, 1)
        if not wanted or not await engine.storage.read(engine.namespace, lambda tx: tx.select(some)):
            return []
        predicate = filters.predicate(*filters.under(op.namespace_prefix, op.filter))
        narrow, _ = filters.under(op.namespace_prefix[:INDEXED_DEPTH], None)
        ask = wanted
        while True:
            scored = await search.search(engine, query, ask, narrow, None, UNSET, typename)
            found = await self._items_of(scored, predicate, now)
            if len(found) >= wanted or len(scored) < ask:
                return found[:wanted]
            ask *= 4

    async def _items_of(self, scored: Sequence[ScoredFact], predicate: Predicate | None, now: float) -> list[Found]:
        """The items that have these texts, each with its best score, as far as they match."""
        ids = list(dict.fromkeys(one.fact.payload["item"] for one in scored))

        async def work(tx: StorageTransaction) -> list[Found]:
            facts = await tx.facts(ids)
            alive = await self._alive(tx, [self._found(fact) for fact in facts.values()], now)
            return [one for one in alive if predicate is None or predicate(one.payload)]

        owners = await self._engine.storage.read(self._engine.namespace, work)
        # An item may have been put again since the index was asked, so only texts count that it has.
        owner_of = {text: one for one in owners for text in further_texts(one.fact_id, one.payload)}
        found: dict[str, Found] = {}
        for one in scored:
            owner = owner_of.get((one.fact.id, one.fact.payload["text"]))
            if owner is not None:
                found.setdefault(owner.fact_id, owner._replace(score=one.score))
        return list(found.values())

    async def _list_namespaces(self, tx: StorageTransaction, op: ListNamespacesOp, now: float) -> list[Namespace]:
        conditions = op.match_conditions or ()
        narrow, test = filters.under(filters.common_prefix(conditions), None)
        predicate = filters.predicate(narrow, test)
        found: set[Namespace] = set()
        after, page = None, _PAGE
        while True:
            facts = await tx.select(self._selection(predicate, page, after))
            new = []
            for fact in facts:
                one = self._found(fact)
                namespace = tuple(one.payload["namespace"])
                if namespace not in found and all(filters.matches(condition, namespace) for condition in conditions):
                    new.append(one)
            found.update(tuple(one.payload["namespace"]) for one in await self._alive(tx, new, now))
            if len(facts) < page:
                break
            after, page = facts[-1].ordinal, page * 4
        namespaces = sorted({namespace[: op.max_depth] for namespace in found})
        return namespaces[op.offset : op.offset + op.limit]

    def _selection(self, predicate: Predicate | None, limit: int, after: int | None) -> Selection:
        selection = self._engine.selection(self._typename, None, UNSET, limit)
        return replace(selection, predicate=predicate, after=after)

    def _found(self, fact: StoredFact) -> Found:
        return Found(fact.id, self._engine.registry.decode(fact), fact.ts)

    async def _alive(self, tx: StorageTransaction, found: Sequence[Found], now: float) -> list[Found]:
        """Those that have not expired."""
        ended = [one.fact_id for one in found if not is_alive(one.payload, now)]
        if not ended:
            return list(found)
        reads = await self._last_reads(tx, ended)
        return [one for one in found if is_alive(one.payload, now, reads.get(one.fact_id))]

    async def _alive_now(self, found: Sequence[Found], now: float) -> list[Found]:
        """The same in a storage transaction of its own."""
        return await self._engine.storage.read(self._engine.namespace, lambda tx: self._alive(tx, found, now))

    async def _last_reads(self, tx: StorageTransaction, ids: Sequence[str]) -> dict[str, float]:
        if len(ids) <= _FEW:
            found = [(id_, await tx.record(self._reads, id_)) for id_ in ids]
            return {id_: ormsgpack.unpackb(value) for id_, value in found if value is not None}
        records = await tx.scan(self._reads, start=min(ids), end=max(ids) + "\x01")
        return {key: ormsgpack.unpackb(value) for key, value in records}

    # Sweeping

    async def sweep(self) -> int:
        """Delete what has expired; returns how many items that were."""
        engine = self._engine
        await engine.ready()
        await engine.definitions.known()
        swept = 0
        after: int | None = None
        while True:
            page, after = await self._expired(after)
            if page:
                plan = await engine.carry_out(
                    [RemoveExpired(self._typename, page, self._reads)],
                    Operation.TRANSACTION,
                    session_id=None,
                    reason="their time to live has ended",
                )
                swept += plan.result[0]
            if after is None:
                break
        await self._forget_reads()
        return swept

    async def _expired(self, after: int | None) -> tuple[list[str], int | None]:
        """The next page of items that have expired, and where the one after it begins (None: it was the last)."""
        now = self._engine.clock().timestamp()
        selection = self._selection(compile_filter({"expires_at": {"$lte": now}}), _PAGE, after)

        async def work(tx: StorageTransaction) -> tuple[list[str], int | None]:
            facts = await tx.select(selection)
            found = [self._found(fact) for fact in facts]
            alive = {one.fact_id for one in await self._alive(tx, found, now)}
            ids = [one.fact_id for one in found if one.fact_id not in alive]
            return ids, facts[-1].ordinal if len(facts) == _PAGE else None

        return await self._engine.storage.read(self._engine.namespace, work)

    async def _forget_reads(self) -> None:
        """Drop the times of items that are gone, or do not expire any more."""
        start: str | None = None
        while True:

            async def work(tx: StorageTransaction, start: str | None = start) -> str | None:
                records = await tx.scan(self._reads, start=start, limit=_PAGE)
                facts = await tx.facts([record.key for record in records])
                payloads = {id_: self._engine.registry.decode(fact) for id_, fact in facts.items()}
                idle = [key for key, _ in records if key not in payloads or payloads[key]["ttl"] is None]
                if idle:
                    await tx.write(Batch(records=[RecordWrite(self._reads, key, None) for key in idle]))
                return records[-1].key + "\x01" if len(records) == _PAGE else None

            start = await self._engine.storage.write(self._engine.namespace, work)
            if start is None:
                return


def _register(engine: Engine, typename: str, model: type[BaseModel], index: Sequence[str]) -> None:
    known = engine.registry.get(typename)
    if known is None:
        engine.register_schema(typename, model, None, index, None, SCHEMA_VERSION)
    elif known.model is not model:
        raise ValidationFailed(
            f"{typename!r} is registered with {known.model.__name__} in this memory; give the store's items a type of "
            "their own with typename="
        )
