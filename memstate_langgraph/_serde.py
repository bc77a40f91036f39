"""What of a graph's state may be written and read: known types only, whatever their nesting.

LangGraph's own serializer writes the names of classes into its msgpack extensions and by default imports whatever it
reads. Here a type that nobody allowed is an error when it is written, before it can be lost, and when it is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import sys
from collections.abc import Collection, Iterable, Iterator
from contextvars import ContextVar
from importlib import import_module
from typing import Any, Final

import ormsgpack
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Send
from pydantic import BaseModel

from memstate_core.errors import ValidationFailed

TypeName = tuple[str, ...]

# The codes of LangGraph's msgpack extensions (langgraph.checkpoint.serde.jsonplus).
_SINGLE_ARGUMENT, _ARGUMENTS, _KEYWORDS, _METHOD, _PYDANTIC_1, _PYDANTIC_2, _NUMPY, _DELTA_SNAPSHOT = range(8)

_BYTES: Final = (bytes, bytearray)

# How LangGraph's encoder is set.
_LANGGRAPHS: Final = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_REPLACE_SURROGATES
)

_STANDARD: Final = {
    ("builtins", "frozenset"),
    ("builtins", "set"),
    ("collections", "deque"),
    ("datetime", "date"),
    ("datetime", "datetime"),
    ("datetime", "time"),
    ("datetime", "timedelta"),
    ("datetime", "timezone"),
    ("decimal", "Decimal"),
    ("re", "compile"),
    ("uuid", "UUID"),
    ("zoneinfo", "ZoneInfo"),
    *(("ipaddress", f"IPv{number}{kind}") for number in (4, 6) for kind in ("Address", "Interface", "Network")),
    *(
        (module, name)
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
    ),
}

# Modules whose data classes are known to be no more than data.
_VENDORS: Final = (
    "langchain_core.agents",
    "langchain_core.documents.",
    "langchain_core.messages.",
    "langchain_core.outputs.",
    "langchain_core.prompt_values",
    "langgraph.store.base",
    "langgraph.types",
)


class StrictSerializer(JsonPlusSerializer):
    """LangGraph's serializer for known types only: the standard library's values, LangChain's and LangGraph's data.

    :param allow: further types, as classes or ``(module, name)``.
    :raises ValidationFailed: by ``dumps_typed`` and ``loads_typed``, with the name of a type that is not allowed.
    """

    def __init__(self, allow: Iterable[type | TypeName] = ()) -> None:
        names = {_name_of(one) for one in allow}
        super().__init__(allowed_msgpack_modules=names, __unpack_ext_hook__=self._read)
        self.allowed = frozenset(names)
        self._constructors: dict[tuple[str, str], Any] = {}
        # The names of models that were written before.
        self._models: dict[type, tuple[str, str]] = {}

    def with_msgpack_allowlist(self, extra_allowlist: Iterable[type | TypeName]) -> StrictSerializer:
        """The same with further types allowed."""
        merged = self.allowed | {_name_of(one) for one in extra_allowlist}
        return self if merged == self.allowed else StrictSerializer(merged)

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if obj is not None and not isinstance(obj, _BYTES):
            try:
                return "msgpack", ormsgpack.packb(obj, default=self._model, option=_LANGGRAPHS)
            except TypeError:
                pass  # it has other types in it, which LangGraph's encoder knows, or nobody
        try:
            type_, data = super().dumps_typed(obj)
        except (TypeError, ormsgpack.MsgpackEncodeError) as error:
            raise ValidationFailed(
                f"the graph's state cannot be stored: {error}; keep plain data, Pydantic models or dataclasses in it"
            ) from error
        if type_ == "msgpack":
            self._check(data)
        return type_, data

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        if data[0] == "json":
            raise ValidationFailed("state written as LangChain JSON is not read; only msgpack is")
        with _saying_why():
            return super().loads_typed(data)

    # Writing

    def _model(self, obj: Any) -> ormsgpack.Ext:
        """A model of nothing but plain data as LangGraph encodes it: there is no other type in it to look for.

        :raises TypeError: it is not one, or not one that was allowed before.
        """
        kind = type(obj)
        name = self._models.get(kind)
        if name is None:
            name = kind.__module__, kind.__name__
            if not issubclass(kind, BaseModel) or name not in self._constructors:
                raise TypeError
            self._models[kind] = name
        content = (*name, obj.model_dump(), "model_validate_json")
        return ormsgpack.Ext(_PYDANTIC_2, ormsgpack.packb(content, option=_LANGGRAPHS))

    def _check(self, data: bytes) -> None:
        """See that all types in the data are allowed, without making any of them."""
        with _saying_why():
            ormsgpack.unpackb(data, ext_hook=self._look, option=ormsgpack.OPT_NON_STR_KEYS)

    def _look(self, code: int, data: bytes) -> Any:
        content = ormsgpack.unpackb(data, ext_hook=self._look, option=ormsgpack.OPT_NON_STR_KEYS)
        if code <= _PYDANTIC_2:
            self._constructor(content[0], content[1])
        return 0  # hashable, as a key of a dict must be

    # Reading

    def _read(self, code: int, data: bytes) -> Any:
        content = ormsgpack.unpackb(data, ext_hook=self._read, option=ormsgpack.OPT_NON_STR_KEYS)
        if code == _DELTA_SNAPSHOT:
            return _DeltaSnapshot(content)
        if code == _NUMPY:
            return _array(*content)
        make = self._constructor(content[0], content[1])
        value = content[2]
        try:
            if code in (_PYDANTIC_1, _PYDANTIC_2):
                made = _message(make, value)
                return _model(make, value) if made is None else made
            if code == _KEYWORDS:
                return make(**value)
            if code == _ARGUMENTS:
                if make is Send and len(value) > 2:
                    return Send(value[0], value[1], timeout=value[2])
                return make(*value)
            if code == _METHOD and content[3] == "fromisoformat":
                return make.fromisoformat(value)
            if code == _SINGLE_ARGUMENT:
                return make(value)
        except Exception as error:
            raise _refuse(f"a stored {content[0]}.{content[1]} cannot be made again: {error}") from error
        raise _refuse(f"a stored {content[0]}.{content[1]} was written in a way that is not known (code {code})")

    def _constructor(self, module: str, name: str) -> Any:
        known = self._constructors.get((module, name))
        if known is None:
            known = self._constructors[module, name] = self._resolve(module, name)
        return known

    def _resolve(self, module: str, name: str) -> Any:
        allowed = (module, name) in self.allowed
        if not allowed and (module, name) not in _STANDARD and not _is_vendors_data(module, name):
            raise _refuse(
                f"the graph's state has a {module}.{name}, which is not among the types that may be stored; allow it "
                f"with allow=[{name}] (or allow=[({module!r}, {name!r})]) where the checkpointer is made"
            )
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise _refuse(f"the type {module}.{name} of the graph's state cannot be imported: {error}") from error


# Why the last extension of this context could not be read.
_refused: Final[ContextVar[ValidationFailed | None]] = ContextVar("memstate_langgraph_refused", default=None)


@contextlib.contextmanager
def _saying_why() -> Iterator[None]:
    """The decoder drops the error with which an extension is refused, and raises one of its own that says nothing."""
    token = _refused.set(None)
    try:
        yield
    except ValueError:
        refusal = _refused.get()
        if refusal is None:
            raise
        raise refusal from None
    finally:
        _refused.reset(token)


def _refuse(message: str) -> ValidationFailed:
    error = ValidationFailed(message)
    if _refused.get() is None:
        _refused.set(error)
    return error


def _is_vendors_data(module: str, name: str) -> bool:
    """Whether a name is that of a class, defined in a vendor's module, that holds data and does nothing."""
    if not f"{module}.".startswith(_VENDORS) and module not in _VENDORS:
        return False
    try:
        found = getattr(import_module(module), name, None)
    except ImportError:
        return False
    return (
        isinstance(found, type)
        and found.__module__ == module
        and (
            issubclass(found, BaseModel | tuple | enum.Enum)
            or dataclasses.is_dataclass(found)
            or found.__name__ in ("Interrupt", "Item", "SearchItem", "Send")
        )
    )


@functools.lru_cache(256)
def _message_fields(make: Any) -> frozenset[str]:
    """The fields of a kind of message of LangChain's that has no others; empty for everything else."""
    plain = make.__module__.startswith("langchain_core.messages.") and issubclass(make, BaseModel)
    return frozenset(make.model_fields) if plain and not make.__private_attributes__ else frozenset()


def _message(make: Any, fields: dict[str, Any]) -> Any:
    """A message with the fields that it was stored with, which were valid then: looking again takes most of the time.

    None: it has others than its class has today, and must be made by it.
    """
    if fields.keys() != _message_fields(make):
        return None
    made = make.__new__(make)
    put = object.__setattr__
    put(made, "__dict__", fields)
    put(made, "__pydantic_fields_set__", set(fields))
    put(made, "__pydantic_extra__", {})
    put(made, "__pydantic_private__", None)
    return made


def _model(make: Any, fields: Any) -> Any:
    """A Pydantic model as it was, also when its validators have become stricter since."""
    try:
        return make(**fields)
    except Exception:
        construct = getattr(make, "model_construct", None) or make.construct
        return construct(**fields)


def _array(dtype: str, shape: Any, order: Any, buffer: bytes) -> Any:
    numpy = sys.modules.get("numpy") or import_module("numpy")
    return numpy.frombuffer(buffer, dtype=numpy.dtype(dtype)).reshape(shape, order=order)


@functools.lru_cache(1024)
def _name_of_class(one: type) -> TypeName:
    return (one.__module__, one.__name__)


def _name_of(one: type | TypeName) -> TypeName:
    return _name_of_class(one) if isinstance(one, type) else tuple(one)


def serializer(serde: Any, allow: Collection[type | TypeName]) -> SerializerProtocol:
    """The serializer of a checkpointer: strict where the user did not choose another one.

    :raises ValidationFailed: it would unpickle what it reads.
    """
    if serde is None:
        return StrictSerializer(allow)
    if isinstance(serde, EncryptedSerializer):
        inner = serde.serde
        if type(inner) is JsonPlusSerializer:
            inner = StrictSerializer(allow) if _is_default(inner) else serializer(inner, allow)
        return EncryptedSerializer(serde.cipher, inner)
    if getattr(serde, "pickle_fallback", False):
        raise ValidationFailed(
            "a serializer with pickle_fallback runs code that it reads; use allow=[…] with the types that you store"
        )
    if allow:
        if not isinstance(serde, JsonPlusSerializer):
            raise ValidationFailed(f"allow= is for the checkpointer's own serializer, not for {serde!r}")
        return serde.with_msgpack_allowlist(allow)
    found: SerializerProtocol = serde
    return found


def _is_default(serde: JsonPlusSerializer) -> bool:
    """Whether nobody has said what the serializer may read: such a one reads everything."""
    return serde._allowed_msgpack_modules in (True, None) and not serde.pickle_fallback
