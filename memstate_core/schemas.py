"""Type names and their Pydantic models: what may be stored, in which form, and which facts exclude each other."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from memstate_core.errors import NotFoundError, ValidationFailed
from memstate_core.facts import IndexEntry, StoredFact
from memstate_core.filters import MISSING, canonical, declared, index_entries, split_path
from memstate_core.plain_models import field_types, has_types
from memstate_core.values import (
    MAX_DIGITS,
    check_identifier,
    json_of,
    may_hide_non_finite,
    not_an_object,
    reject_non_finite,
    unstorable,
)

_SINGLETON_LENGTH: Final = 400

Migrate = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What must hold for the facts of a type.

    :param singleton_key: the field (a dotted path, or several in a tuple) whose value only one fact may have; a commit
        that meets it becomes an update. Facts in which it is missing or None are not constrained.
    :param immutable: facts are written once; only undoing the transaction that wrote them removes them.
    :param scope: ``"store"``: one fact per value; ``"session"``: one per value and session.
    """

    singleton_key: str | tuple[str, ...] | None = None
    immutable: bool = False
    scope: Literal["store", "session"] = "store"

    def __post_init__(self) -> None:
        if self.scope not in ("store", "session"):
            raise ValidationFailed(f"Constraint.scope is 'store' or 'session', not {self.scope!r}")
        if self.singleton_key is not None and not (
            isinstance(self.singleton_key, str)
            or (
                isinstance(self.singleton_key, tuple | list) and all(isinstance(key, str) for key in self.singleton_key)
            )
        ):
            raise ValidationFailed(
                f"Constraint.singleton_key is a field name or a tuple of them, not {self.singleton_key!r}"
            )
        if not self.singleton_key and self.singleton_key is not None:
            raise ValidationFailed("Constraint.singleton_key is empty; leave it out for a type without one")


class Definition(NamedTuple):
    """What storage must know of a type so that every process enforces the same: kept in storage itself."""

    singleton: tuple[str, ...] = ()
    scope: str = "store"
    immutable: bool = False
    indexed: tuple[str, ...] = ()
    schema_version: int = 1

    @classmethod
    def from_text(cls, text: str) -> Definition:
        data = json.loads(text)
        return cls(
            tuple(data["singleton"]), data["scope"], data["immutable"], tuple(data["indexed"]), data["schema_version"]
        )

    def to_text(self) -> str:
        return json.dumps(self._asdict(), sort_keys=True)

    def merged_over(self, stored: Definition | None) -> Definition:
        """This one, keeping the indexes that are there: readers that know an older definition may rely on them."""
        paths = dict.fromkeys([*(stored.indexed if stored else ()), *self.indexed, *self.singleton])
        return self._replace(indexed=tuple(paths))

    def indexes_like(self, other: Definition | None) -> bool:
        """Whether facts have the same places and index entries under the other one."""
        return other is not None and self._replace(immutable=other.immutable) == other


NO_DEFINITION: Final = Definition()


def place_of(definition: Definition, typename: str, payload: Mapping[str, Any], session_id: str | None) -> str | None:
    """The place that only one current fact may have, or None when the fact is not constrained."""
    if not definition.singleton:
        return None
    values = []
    for path in definition.singleton:
        value = declared(payload, path)
        if value is MISSING or value is None:
            return None
        values.append(canonical(value))
    text = f"{canonical(typename)}[{','.join(values)}]"
    if definition.scope == "session":
        text += canonical(session_id)
    if len(text) > _SINGLETON_LENGTH:
        import hashlib  # which takes long to import

        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    return text


def describe(
    definition: Definition, typename: str, payload: Mapping[str, Any], session_id: str | None
) -> tuple[str | None, tuple[IndexEntry, ...]]:
    """A payload's singleton place and index entries."""
    if not definition.indexed:
        return None, ()
    return place_of(definition, typename, payload, session_id), index_entries(payload, definition.indexed)


class Schema:
    """One registration, with what follows from it."""

    __slots__ = ("_computed", "_dump_json", "_plain", "_validate_json", "definition", "migrate", "model", "typename")

    def __init__(self, typename: str, model: type[BaseModel], definition: Definition, migrate: Migrate | None) -> None:
        self.typename = typename
        self.model = model
        self.definition = definition
        self.migrate = migrate
        model.model_rebuild()  # resolves forward references now, and not at the first commit
        self._validate_json = model.__pydantic_validator__.validate_json
        self._dump_json = model.__pydantic_serializer__.to_json
        # A computed field is dumped but is no input; a model that forbids extra fields would refuse its own dump.
        self._plain = field_types(model)
        self._computed = frozenset(_computed_names(model))

    def encode(self, payload: Mapping[str, Any]) -> str:
        """Validate plain data; the JSON text to be stored.

        :raises ValidationFailed: it does not fit the model, or is not JSON.
        """
        if not isinstance(payload, (dict, Mapping)):  # a dict is soon told, and mostly it is one
            raise not_an_object(self.typename, payload)
        given = json_of(self.typename, dict(payload))
        reject_non_finite(self.typename, payload, given)
        return self._text(self._instance(given, payload), given)

    def encode_model(self, instance: BaseModel) -> str:
        """The same for an instance, which may have been changed or made without validation."""
        given = self._dumped(instance)
        if (
            self._plain is not None
            and type(instance) is self.model
            and len(given) < MAX_DIGITS  # so that no number in it is too long to be read back
            and has_types(instance, self._plain)
        ):
            return given
        return self._text(self._instance(given, instance), given)

    def load(self, payload: Mapping[str, Any]) -> BaseModel:
        """The typed instance of a stored payload."""
        return self._instance(to_json(payload), payload)

    def _instance(self, text: str | bytes, source: Any) -> BaseModel:
        """The validated instance of a payload; ``source`` is what it was dumped from."""
        if self._computed:
            text = to_json({key: value for key, value in from_json(text).items() if key not in self._computed})
        try:
            instance: BaseModel = self._validate_json(text, by_alias=True, by_name=True)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False)
            if problems[0]["type"] == "json_invalid":  # too deep, or a number too long, to be read back
                raise unstorable(self.typename, source, error) from error
            raise ValidationFailed(
                f"{self.typename!r} does not fit {self.model.__name__}: "
                + "; ".join(f"{_where(one) or 'payload'}: {one['msg']}" for one in problems),
                typename=self.typename,
                path=_where(problems[0]) or None,
                errors=problems,
            ) from error
        except Exception as error:
            raise ValidationFailed(
                f"a validator of {self.model.__name__} ({self.typename!r}) raised {type(error).__name__}: {error}",
                typename=self.typename,
            ) from error
        return instance

    def _dumped(self, instance: BaseModel, known: str = "") -> str:
        """An instance as JSON; ``known`` is one that was looked through already."""
        try:
            if type(instance) is self.model:
                text: str = self._dump_json(instance, warnings=False).decode()
            else:
                text = instance.__pydantic_serializer__.to_json(instance, warnings=False).decode()
        except Exception as error:
            raise unstorable(self.typename, instance, error) from error
        if text != known and may_hide_non_finite(text):
            reject_non_finite(self.typename, instance, text)
        return text

    def _text(self, instance: BaseModel, known: str) -> str:
        text = self._dumped(instance, known)
        if text[0] != "{":
            raise ValidationFailed(
                f"{self.model.__name__} is dumped as {text[:20]}…; a type's model must be dumped as an object",
                typename=self.typename,
            )
        return text


def _where(problem: Mapping[str, Any]) -> str:
    return ".".join(map(str, problem["loc"]))


class SchemaRegistry:
    """The schemas of a store, by type name."""

    def __init__(self, *, allow_unregistered: bool = False) -> None:
        self.allow_unregistered = allow_unregistered
        self.revision = 0
        self._schemas: dict[str, Schema] = {}
        self._typenames: dict[type[BaseModel], list[str]] = {}

    def __contains__(self, typename: object) -> bool:
        return typename in self._schemas

    def register(
        self,
        typename: str,
        model: type[BaseModel],
        constraint: Constraint | None = None,
        *,
        index: Iterable[str] = (),
        migrate: Migrate | None = None,
        version: int = 1,
    ) -> Schema:
        """See :meth:`memstate_core.MemoryStore.register_schema`."""
        check_identifier("typename", typename)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise ValidationFailed(f"the model of {typename!r} must be a Pydantic model class, not {model!r}")
        if isinstance(index, str):
            raise ValidationFailed(f"index takes a list of field names; write index=[{index!r}]")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ValidationFailed(f"the version of {typename!r} is a whole number from 1, not {version!r}")
        constraint = constraint or Constraint()
        if not isinstance(constraint, Constraint):
            raise ValidationFailed(f"constraint takes a Constraint, not {constraint!r}")
        keys = constraint.singleton_key or ()
        definition = Definition(
            singleton=tuple(
                _payload_path(typename, model, key) for key in ((keys,) if isinstance(keys, str) else keys)
            ),
            scope=constraint.scope,
            immutable=constraint.immutable,
            indexed=tuple(_payload_path(typename, model, path) for path in index),
            schema_version=version,
        )
        schema = Schema(typename, model, definition, migrate)
        previous = self._schemas.get(typename)
        if previous is not None:
            self._typenames[previous.model].remove(typename)
        self._schemas[typename] = schema
        self._typenames.setdefault(model, []).append(typename)
        self.revision += 1
        return schema

    def schemas(self) -> dict[str, Schema]:
        return dict(self._schemas)

    def typenames(self) -> list[str]:
        return list(self._schemas)

    def get(self, typename: str) -> Schema | None:
        return self._schemas.get(typename)

    def upgrades(self, typename: str | None) -> bool:
        """Whether payloads of a type (None: of any) may be read otherwise than they are stored."""
        schemas = self._schemas.values() if typename is None else filter(None, (self._schemas.get(typename),))
        return any(schema.migrate is not None for schema in schemas)

    def for_model(self, model: type[BaseModel], typename: str | None = None) -> Schema:
        """The schema under which an instance of ``model`` is committed.

        :raises ValidationFailed: not registered, or under several names and ``typename`` does not say which.
        """
        names = self._typenames.get(model) or []
        if typename is not None:
            schema = self._schemas.get(typename)
            if schema is None or not issubclass(model, schema.model):
                raise ValidationFailed(
                    f"{model.__name__} is not registered as {typename!r}; call "
                    f"store.register_schema({typename!r}, {model.__name__}) first",
                    typename=typename,
                )
            return schema
        if not names:
            raise ValidationFailed(
                f"{model.__name__} is not registered; call "
                f"store.register_schema({model.__name__.lower()!r}, {model.__name__}) first"
            )
        if len(names) > 1:
            raise ValidationFailed(
                f"{model.__name__} is registered as {' and '.join(map(repr, names))}; say which with typename="
            )
        return self._schemas[names[0]]

    def encode(self, typename: str, payload: Mapping[str, Any]) -> str:
        """The JSON text to be stored for plain data of a type."""
        schema = self._schemas.get(typename)
        if schema is not None:
            return schema.encode(payload)
        if not self.allow_unregistered:
            raise ValidationFailed(
                f"type {typename!r} is not registered; call store.register_schema({typename!r}, YourModel) first, "
                "or make the store with allow_unregistered=True",
                typename=typename,
            )
        if not isinstance(payload, Mapping):
            raise not_an_object(typename, payload)
        text = json_of(typename, dict(payload))
        reject_non_finite(typename, payload, text)
        try:
            from_json(text)  # refuses what could not be read back
        except ValueError as error:
            raise unstorable(typename, payload, error) from error
        return text

    def decode(self, stored: StoredFact) -> dict[str, Any]:
        """A stored payload as its schema reads it now: upgraded when it is older than the schema's version."""
        payload: dict[str, Any] = from_json(stored.payload)
        schema = self._schemas.get(stored.type)
        if schema is None or schema.migrate is None or stored.schema_version >= schema.definition.schema_version:
            return payload
        try:
            wants_version = len(inspect.signature(schema.migrate).parameters) > 1
            upgraded = schema.migrate(payload, stored.schema_version) if wants_version else schema.migrate(payload)
        except Exception as error:
            raise ValidationFailed(
                f"migrate of {stored.type!r} raised {type(error).__name__} for fact {stored.id!r} "
                f"(version {stored.schema_version} of its schema): {error}",
                typename=stored.type,
            ) from error
        if not isinstance(upgraded, Mapping):
            raise ValidationFailed(
                f"migrate of {stored.type!r} returned {type(upgraded).__name__} for fact {stored.id!r}; "
                "return the new payload",
                typename=stored.type,
            )
        return dict(upgraded)

    def load(self, stored: StoredFact) -> BaseModel:
        """The typed instance of a stored fact.

        :raises NotFoundError: its type is not registered.
        :raises ValidationFailed: it does not fit the model any more.
        """
        schema = self._schemas.get(stored.type)
        if schema is None:
            raise NotFoundError(
                f"fact {stored.id!r} is of type {stored.type!r}, which is not registered; register_schema it, "
                "or use get() for its plain data"
            )
        try:
            return schema.load(self.decode(stored))
        except ValidationFailed as error:
            raise ValidationFailed(
                f"fact {stored.id!r} no longer fits: {error}",
                typename=stored.type,
                path=error.path,
                errors=error.errors,
            ) from error


def _payload_path(typename: str, model: type[BaseModel], path: str) -> str:
    """A dotted path of fields as a path into the payload, which may have aliases in it."""
    if not isinstance(path, str) or not path:
        raise ValidationFailed(f"a field of {model.__name__} ({typename!r}) must be named by a string, not {path!r}")
    parts = split_path(path)
    resolved: list[str] = []
    at: Any = model
    for part in parts:
        if not (isinstance(at, type) and issubclass(at, BaseModel)):
            resolved.append(part)
            continue
        name, info = next(
            (
                (name, info)
                for name, info in at.model_fields.items()
                if part in (name, info.alias, info.serialization_alias)
            ),
            (part, None),
        )
        if info is None:
            if part not in at.model_computed_fields and at.model_config.get("extra") != "allow":
                raise ValidationFailed(
                    f"{at.__name__} has no field {part!r} (in {path!r} for {typename!r}); "
                    f"it has {', '.join(at.model_fields)}",
                    typename=typename,
                    path=path,
                )
            resolved.append(part)
            at = None
            continue
        by_alias = at.model_config.get("serialize_by_alias", False)
        resolved.append((info.serialization_alias or info.alias or name) if by_alias else name)
        at = info.annotation
    return ".".join(resolved)


def _computed_names(model: type[BaseModel]) -> Iterable[str]:
    for name, info in model.model_computed_fields.items():
        yield name
        if info.alias:
            yield info.alias
