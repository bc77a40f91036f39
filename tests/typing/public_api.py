"""The public API as a user writes it. It is never run: mypy checks that the types say what the documentation says."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypedDict, assert_type

import chromadb
import redis as vendor_redis
import sqlalchemy
from langgraph.graph import StateGraph
from langgraph.store.base import BaseStore, Item, PutOp, SearchItem
from pydantic import BaseModel
from qdrant_client import AsyncQdrantClient, QdrantClient, models

import memstate
import memstate_core
from memstate import (
    UNSET,
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    AsyncPostgresStorage,
    AsyncRedisStorage,
    AsyncSQLiteStorage,
    Change,
    ConflictError,
    Constraint,
    Fact,
    HookError,
    InMemoryStorage,
    Lag,
    LexicalEmbedder,
    MemoryStore,
    MemoryStoreError,
    MemStateError,
    Moved,
    NativeFilter,
    Operation,
    PostgresStorage,
    RedisStorage,
    Report,
    SchemaRegistry,
    ScoredFact,
    SearchResult,
    SQLiteStorage,
    Transaction,
    TransactionContext,
    TransientError,
    ValidationFailed,
)
from memstate.backends import inmemory, postgres, redis, sqlite
from memstate.display import Shown, diff, session_tree, show
from memstate.integrations.chroma import AsyncChromaSyncHook, ChromaSyncHook
from memstate.integrations.langgraph import (
    AsyncMemStateCheckpointer,
    AsyncMemStateStore,
    MemStateCheckpointer,
    MemStateStore,
    item_index,
)
from memstate.integrations.qdrant import AsyncQdrantSyncHook, QdrantSyncHook


class Note(BaseModel):
    text: str
    topic: str = ""


class State(TypedDict):
    text: str


def on_change(operation: Operation, fact_id: str, fact: Fact | None) -> None: ...


async def on_change_later(operation: Operation, fact_id: str, fact: Fact | None) -> None: ...


class Index:
    """A hook that takes batches and can be searched."""

    target_types = ("note",)

    def apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            assert_type(change.before, Fact | None)
            assert_type(change.after, Fact | None)
            assert_type(change.inverse, Change)

    def search(self, query: str, limit: int, scope: object) -> list[SearchResult]:
        return [SearchResult("id", 1.0)]


def opening() -> None:
    MemoryStore(InMemoryStorage())
    MemoryStore(storage=inmemory.InMemoryStorage(), hooks=[on_change, Index()], namespace="tenant")
    with MemoryStore(SQLiteStorage("memory.db")) as store:
        assert_type(store, MemoryStore)
    with sqlite.SQLiteStorage("memory.db", durability="full") as storage:
        MemoryStore(storage, context=lambda: TransactionContext(session_id="chat", mark="step-1", actor="agent"))
    hook = ChromaSyncHook(
        chromadb.Client(),
        "notes",
        embedding_fn=LexicalEmbedder(),
        target_types={"note"},
        text_field="text",
        metadata_fields=["topic"],
    )
    MemoryStore(InMemoryStorage(), hooks=[hook])
    qdrant_hook = QdrantSyncHook(
        QdrantClient(":memory:"),
        "notes",
        LexicalEmbedder(),
        target_types={"note"},
        text_formatter=lambda payload: payload["text"],
        metadata_formatter=lambda payload: {"topic": payload["topic"]},
        distance="Dot",
        embedding_cache=100,
    )
    MemoryStore(InMemoryStorage(), hooks=[hook, qdrant_hook])


def schemas(store: MemoryStore) -> None:
    store.register_schema("note", Note)
    store.register_schema(
        typename="note",
        model=Note,
        constraint=Constraint(singleton_key=("topic", "text"), immutable=False, scope="session"),
        index=["topic"],
        version=2,
        migrate=lambda payload: {**payload, "topic": ""},
    )
    SchemaRegistry()


def writing(store: MemoryStore) -> None:
    note = Note(text="a")
    assert_type(store.commit_model(note), str)
    assert_type(store.commit_model(model=note, session_id="chat", ephemeral=True, actor="agent", reason="said"), str)
    assert_type(store.commit_model(note, "id", typename="note", source="mail", expected_version=1), str)
    assert_type(store.commit(Fact(type="note", payload={"text": "a"}), session_id=None, expected_version=0), str)
    assert_type(store.update("id", {"text": "b"}, deep=True, expected_version=1, actor="agent", reason="moved"), str)
    assert_type(store.delete("id"), str)
    assert_type(store.delete(session_id="chat", fact_id="id"), str)
    with store.transaction(session_id="chat", actor="agent", reason="plan", mark="step-1") as tx:
        assert_type(tx.commit_model(note), str)
        assert_type(tx.commit(Fact(type="note", payload={"text": "a"})), str)
        assert_type(tx.update("id", {"text": "b"}), str)
        assert_type(tx.get("id"), dict[str, Any] | None)
        assert_type(tx.query("note", {"topic": "x"}), list[dict[str, Any]])
        savepoint = tx.savepoint()
        tx.delete("id")
        savepoint.rollback()
        with tx.savepoint():
            tx.delete("id")
    assert_type(store.promote_session("chat"), list[str])
    assert_type(store.promote_session("chat", lambda fact: fact["payload"]["topic"] == "x"), list[str])
    assert_type(store.discard_session("chat"), int)
    try:
        store.delete("id")
    except ConflictError as error:
        assert_type(error.fact_id, str | None)
        assert_type(error.actual_version, int | None)
    except ValidationFailed as error:
        assert_type(error.path, str | None)
    except HookError as error:
        assert_type(error.in_doubt, tuple[str, ...])
    except (MemStateError, MemoryStoreError, TransientError):
        pass


def reading(store: MemoryStore) -> None:
    assert_type(store.get("id"), dict[str, Any] | None)
    model = store.get_model("id")
    assert isinstance(model, Note)
    filters = {"topic": {"$in": ["x"]}}
    assert_type(store.query("note", filters, session_id=None, limit=1, offset=2, order_by="-ts"), list[dict[str, Any]])
    assert_type(store.query(session_id=UNSET), list[dict[str, Any]])
    assert_type(store.count("note", filters), int)
    found = store.search("text", limit=3, filters=filters, score_threshold=0.5, session_id="chat", typename="note")
    assert_type(found, list[ScoredFact])
    store.search("text", filters=models.Filter(must=[]))
    store.search("text", filters=NativeFilter({"topic": "x"}))
    assert_type(found[0].fact, Fact)
    assert_type(found[0].score, float)


def going_back(store: MemoryStore) -> None:
    assert_type(store.rollback("chat"), Moved)
    assert_type(store.rollback(steps=2, session_id="chat"), Moved)
    moved = store.rollback("chat", to=datetime.now(UTC), on_conflict="keep")
    assert_type(moved[0], Transaction)
    assert_type(moved.kept, tuple[str, ...])
    store.rollback(None, to="before lunch")
    store.savepoint("chat", "before lunch")
    assert_type(store.redo("chat", steps=1), Moved)
    assert_type(store.checkout("chat", "tx-1"), Moved)
    history = store.history(session_id="chat", limit=10)
    assert_type(history, list[Transaction])
    assert_type(store.history(fact_id="id", before=history[-1].id), list[Transaction])
    assert_type(history[0].operation, Operation)
    assert_type(history[0].changes, Sequence[Change])


def looking_after(store: MemoryStore) -> None:
    store.recover()
    assert_type(store.verify(progress=lambda hook, done, total: print(hook, done / total)), Report)
    store.repair(progress=True)
    assert_type(store.deliver(), int)
    assert_type(store.lag(), list[Lag])
    store.add_hook(on_change, delivery="deferred")
    store.repair()
    store.reindex()
    store.reindex("chroma:notes", into=on_change, progress=print)
    store.migrate_facts()
    store.put_record("settings", "theme", b"dark")
    assert_type(store.get_record("settings", "theme"), bytes | None)
    for record in store.scan_records("settings"):
        assert_type(record.key, str)
        assert_type(record.value, bytes)


async def awaited() -> None:
    AsyncMemoryStore(AsyncInMemoryStorage(), hooks=[on_change, on_change_later])
    hook = AsyncChromaSyncHook(await chromadb.AsyncHttpClient(), "notes", text_field="text")
    qdrant_hook = AsyncQdrantSyncHook(AsyncQdrantClient(), "notes", LexicalEmbedder(), distance=models.Distance.COSINE)
    async with AsyncMemoryStore(AsyncSQLiteStorage("memory.db"), hooks=[hook, qdrant_hook]) as store:
        assert_type(store, AsyncMemoryStore)
        store.register_schema("note", Note)
        assert_type(await store.commit_model(Note(text="a"), session_id="chat"), str)
        async with store.transaction(session_id="chat") as tx:
            assert_type(await tx.commit_model(Note(text="a")), str)
            assert_type(await tx.query("note"), list[dict[str, Any]])
            async with tx.savepoint():
                await tx.delete("id")
        assert_type(await store.get("id"), dict[str, Any] | None)
        assert_type(await store.search("text"), list[ScoredFact])
        assert_type(await store.rollback("chat", steps=1), Moved)
        assert_type(await store.history(session_id="chat"), list[Transaction])
        await store.recover()
        assert_type(await store.deliver(limit=10), int)
        assert_type(await store.lag(), list[Lag])


async def servers(engine: sqlalchemy.Engine, client: vendor_redis.Redis) -> None:
    assert_type(MemoryStore(PostgresStorage("postgresql://host/db", schema="memory")).count(), int)
    with postgres.PostgresStorage(engine, timeout=5.0) as storage:
        MemoryStore(storage, namespace="acme")
    async with AsyncPostgresStorage("postgresql://host/db", pool_size=4) as pooled:
        assert_type(await AsyncMemoryStore(pooled).count(), int)
    assert_type(MemoryStore(RedisStorage("redis://host:6379/0", prefix="memory")).count(), int)
    with redis.RedisStorage(client, wait_replicas=1) as replicated:
        MemoryStore(replicated)
    async with AsyncRedisStorage("redis://host:6379/0") as there:
        await there.connect()
        assert_type(await AsyncMemoryStore(there).count(), int)


def graphs() -> None:
    hook = ChromaSyncHook(chromadb.EphemeralClient(), "items", LexicalEmbedder(), **item_index())
    QdrantSyncHook(QdrantClient(":memory:"), "notes", LexicalEmbedder(), **item_index("note"))
    memory = MemoryStore(InMemoryStorage(), hooks=[hook])
    with MemStateStore(memory, fields=["text"], ttl={"default_ttl": 60, "refresh_on_read": False}) as items:
        store: BaseStore = items
        StateGraph(State).compile(checkpointer=MemStateCheckpointer(memory), store=store)
        items.put(("users", "ada"), "tea", {"text": "likes tea"}, index=["text"], ttl=5)
        assert_type(items.get(("users", "ada"), "tea"), Item | None)
        assert_type(items.search(("users",), query="drinks", filter={"text": {"$ne": ""}}), list[SearchItem])
        assert_type(items.list_namespaces(prefix=("users", "*"), max_depth=2), list[tuple[str, ...]])
        items.batch([PutOp(("users", "ada"), "tea", None)])
        assert_type(memory.get(items.fact_id(("users", "ada"), "tea")), dict[str, Any] | None)
        assert_type(items.sweep_ttl(), int)
        items.start_ttl_sweeper().cancel()
        assert_type(items.stop_ttl_sweeper(timeout=1.0), bool)


async def awaited_graphs() -> None:
    memory = AsyncMemoryStore(AsyncInMemoryStorage())
    async with AsyncMemStateStore(memory, typename="note") as items:
        StateGraph(State).compile(checkpointer=AsyncMemStateCheckpointer(memory), store=items)
        await items.aput(("users", "ada"), "tea", {"text": "likes tea"})
        assert_type(await items.aget(("users", "ada"), "tea"), Item | None)
        assert_type(await items.sweep_ttl(), int)
        (await items.start_ttl_sweeper(1)).cancel()
        assert_type(await items.stop_ttl_sweeper(), bool)


def shown() -> None:
    store = MemoryStore(InMemoryStorage())
    assert_type(show(store.query()), Shown)
    assert_type(show(store.query()).html, str)
    assert_type(session_tree(store.history("chat")).svg, str)
    changes: Sequence[Change] = diff(store.at(None, "chat").query(), store.query())
    show(changes)


def what_there_is_not() -> None:
    print(memstate.nothing)  # type: ignore[attr-defined]
    print(memstate_core.nothing)  # type: ignore[attr-defined]
