"""LangChain's key-value stores, kept in a MemState store.

Without a session, values are records: they have no history, and cost no more than they must. In a session they are
ephemeral facts of it, so that what a chain has kept there is undone with the rest, and gone with the session.
"""

from __future__ import annotations

import abc
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from langchain_core.stores import BaseStore
from pydantic import BaseModel

from memstate_core.block import record_deletion
from memstate_core.errors import ValidationFailed
from memstate_core.facts import Fact
from memstate_core.hooks._adapter import INTERNAL
from memstate_core.protocols import StorageTransaction
from memstate_core.values import check_identifier
from memstate_langchain._calls import Face, Store, checked_store, later, now

V = TypeVar("V")

_VALUE: Final = f"{INTERNAL}value"
_PAGE: Final = 500


class _Value(BaseModel):
    """A value of a session: ``key`` in the store ``name``."""

    name: str
    key: str
    value: Any


class _KeyValueStore(BaseStore[str, V], Generic[V]):
    """Everything but what a value is.

    :param name: stores of other names on the same MemState store have nothing in common.
    :param session_id: the session that the values belong to; default: none, and no history.
    """

    def __init__(self, store: Store, name: str = "default", *, session_id: str | None = None) -> None:
        check_identifier("name", name)
        check_identifier("session_id", session_id, optional=True)
        self.store = checked_store(store)
        self.name = name
        self.session_id = session_id
        self._collection = f"langchain:{name}"
        check_identifier("name", self._collection)
        if session_id is not None and _VALUE not in store.engine.registry:
            store.register_schema(_VALUE, _Value, index=["name"])

    def mget(self, keys: Sequence[str]) -> list[V | None]:
        """The values of some keys, of one moment; None where there is none."""
        return now(self.store, lambda store: self._get(store, keys))

    async def amget(self, keys: Sequence[str]) -> list[V | None]:
        """Same as :meth:`mget`, awaited."""
        return await later(self.store, lambda store: self._get(store, keys))

    def mset(self, key_value_pairs: Sequence[tuple[str, V]]) -> None:
        """Set some values, in one transaction."""
        now(self.store, lambda store: self._set(store, key_value_pairs))

    async def amset(self, key_value_pairs: Sequence[tuple[str, V]]) -> None:
        """Same as :meth:`mset`, awaited."""
        await later(self.store, lambda store: self._set(store, key_value_pairs))

    def mdelete(self, keys: Sequence[str]) -> None:
        """Delete some values, if they are there, in one transaction."""
        now(self.store, lambda store: self._delete(store, keys))

    async def amdelete(self, keys: Sequence[str]) -> None:
        """Same as :meth:`mdelete`, awaited."""
        await later(self.store, lambda store: self._delete(store, keys))

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """The keys that begin with ``prefix``, in order."""
        after: str | None = None
        while True:
            page = now(self.store, lambda store, after=after: self._keys(store, prefix or "", after))  # type: ignore[misc]
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1]

    async def ayield_keys(self, *, prefix: str | None = None) -> AsyncIterator[str]:
        """Same as :meth:`yield_keys`, asynchronously."""
        after: str | None = None
        while True:
            page = await later(
                self.store,
                lambda store, after=after: self._keys(store, prefix or "", after),  # type: ignore[misc]
            )
            for key in page:
                yield key
            if len(page) < _PAGE:
                return
            after = page[-1]

    # What is done

    async def _get(self, store: Face, keys: Sequence[str]) -> list[V | None]:
        engine = store.target.engine
        for key in keys:
            check_identifier("key", key)
        await engine.ready()
        if self.session_id is None:

            async def records(tx: StorageTransaction) -> dict[str, bytes | None]:
                return {key: await tx.record(self._collection, key) for key in dict.fromkeys(keys)}

            found = await engine.storage.read(engine.namespace, records, snapshot=True)
            return [None if (value := found[key]) is None else self._from_bytes(value) for key in keys]
        ids = {key: self._fact_id(key) for key in keys}
        facts = await engine.storage.read(engine.namespace, lambda tx: tx.facts(list(ids.values())))
        payloads = {key: engine.registry.decode(facts[id_]) for key, id_ in ids.items() if id_ in facts}
        return [self._from_plain(payloads[key]["value"]) if key in payloads else None for key in keys]

    async def _set(self, store: Face, pairs: Sequence[tuple[str, V]]) -> None:
        async with store.transaction(session_id=self.session_id) as tx:
            for key, value in pairs:
                if self.session_id is None:
                    await tx.put_record(self._collection, key, self._to_bytes(value))
                    continue
                check_identifier("key", key)
                payload = {"name": self.name, "key": key, "value": self._to_plain(value)}
                await tx.commit(Fact(_VALUE, payload, id=self._fact_id(key)), ephemeral=True)

    async def _delete(self, store: Face, keys: Sequence[str]) -> None:
        async with store.transaction(session_id=self.session_id) as tx:
            for key in dict.fromkeys(keys):
                record_deletion(self._collection, key)  # which checks the key
                if self.session_id is None:
                    await tx.delete_record(self._collection, key)
                elif await tx.get(self._fact_id(key)) is not None:
                    await tx.delete(self._fact_id(key))

    async def _keys(self, store: Face, prefix: str, after: str | None) -> list[str]:
        """The next keys; less than a page: there are no more."""
        if self.session_id is None:
            # No key lies between one and the same with U+0001 behind it, as there are none with NUL.
            start = prefix if after is None else f"{after}\x01"
            found = await store.scan_records(self._collection, start=start or None, limit=_PAGE)
            keys = [record.key for record in found]
        else:
            facts = await store.query(_VALUE, {"name": self.name}, self.session_id)
            keys = sorted(fact["payload"]["key"] for fact in facts)
            keys = [key for key in keys if key >= prefix and (after is None or key > after)][:_PAGE]
        return [key for key in keys if key.startswith(prefix)]

    def _fact_id(self, key: str) -> str:
        digest = hashlib.sha256(json.dumps([self.name, self.session_id, key]).encode()).hexdigest()
        return f"{_VALUE}:{digest}"

    # What a value is

    @abc.abstractmethod
    def _to_bytes(self, value: V) -> bytes: ...

    @abc.abstractmethod
    def _from_bytes(self, value: bytes) -> V: ...

    @abc.abstractmethod
    def _to_plain(self, value: V) -> Any:
        """As JSON has it."""

    @abc.abstractmethod
    def _from_plain(self, value: Any) -> V: ...


class MemStateByteStore(_KeyValueStore[bytes]):
    """Bytes by key, such as the embeddings that ``CacheBackedEmbeddings`` keeps."""

    def _to_bytes(self, value: bytes) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise ValidationFailed(f"a MemStateByteStore keeps bytes, not {type(value).__name__}: use a MemStateStore")
        return bytes(value)

    def _from_bytes(self, value: bytes) -> bytes:
        return value

    def _to_plain(self, value: bytes) -> str:
        return base64.b64encode(self._to_bytes(value)).decode()

    def _from_plain(self, value: Any) -> bytes:
        return base64.b64decode(value)


class MemStateStore(_KeyValueStore[Any]):
    """JSON by key, or instances of a Pydantic model.

    :param model: of which all values are; they are validated when they are set and when they are read.
    """

    def __init__(
        self,
        store: Store,
        name: str = "default",
        *,
        session_id: str | None = None,
        model: type[BaseModel] | None = None,
    ) -> None:
        super().__init__(store, name, session_id=session_id)
        self.model = model

    def _to_bytes(self, value: Any) -> bytes:
        return json.dumps(self._to_plain(value), ensure_ascii=False).encode("utf-8", "surrogatepass")

    def _from_bytes(self, value: bytes) -> Any:
        return self._from_plain(json.loads(value.decode("utf-8", "surrogatepass")))

    def _to_plain(self, value: Any) -> Any:
        if self.model is not None:
            if not isinstance(value, self.model):
                raise ValidationFailed(f"this store keeps instances of {self.model.__name__}, not {value!r}")
            return self.model.model_validate(value.model_dump()).model_dump(mode="json")
        if isinstance(value, BaseModel):
            raise ValidationFailed(f"to keep instances of {type(value).__name__}, make the store with model=")
        try:
            text = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValidationFailed(f"a MemStateStore keeps JSON, and this is none: {error}") from error
        if not _same(plain := json.loads(text), value):
            raise ValidationFailed(
                "a MemStateStore keeps JSON, and this would come back otherwise: its keys must be texts"
            )
        return plain

    def _from_plain(self, value: Any) -> Any:
        return value if self.model is None else self.model.model_validate(value)


def _same(plain: Any, value: Any) -> bool:
    """Whether JSON has kept a value, but for tuples, which come back as lists."""
    if isinstance(value, Mapping):
        return plain.keys() == value.keys() and all(_same(plain[key], item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_same, plain, value))
    return bool(plain == value)
