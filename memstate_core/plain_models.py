"""Models whose instances can be seen to be valid, so that a commit need not have them read back from their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any, Final

from pydantic import BaseModel

Types = tuple[type, ...]

_TYPES: Final[dict[str, Types]] = {
    "str": (str,),
    "int": (int,),
    "float": (float,),
    "bool": (bool,),
    "none": (NoneType,),
}
# What may stand in the core schema of a model to which nothing but its fields matters. Whatever else there is or will
# be (validators, serializers, aliases, settings) is taken to matter.
_OF_MODELS: Final = {"type", "cls", "schema", "config", "custom_init", "root_model", "frozen", "metadata", "ref"}
_OF_FIELDS: Final = {"type", "schema", "frozen", "metadata"}


def field_types(model: type[BaseModel]) -> dict[str, Types] | None:
    """The exact types that each field's value may have, when they are all that a plain model demands, else None.

    An instance with such values in all of its fields is what its own JSON would be validated to.
    """
    schema: Mapping[str, Any] = model.__pydantic_core_schema__
    if (
        schema["type"] != "model"
        or schema["cls"] is not model
        or schema.keys() - _OF_MODELS
        or schema.get("config", {}).keys() - {"title"}
    ):
        return None
    fields = schema["schema"]
    if (
        schema.get("custom_init")
        or schema.get("root_model")
        or fields["type"] != "model-fields"
        or fields.get("computed_fields")
        or fields.keys() - {"type", "model_name", "computed_fields", "fields"}
    ):
        return None
    found = {name: _types_of(field) for name, field in fields["fields"].items()}
    return found if all(found.values()) else None


def _types_of(schema: Mapping[str, Any]) -> Types:
    kind = schema["type"]
    if kind in _TYPES:
        return _TYPES[kind] if len(schema) == 1 else ()
    if kind == "model-field":
        return () if schema.keys() - _OF_FIELDS else _types_of(schema["schema"])
    if kind == "default":  # which is not needed where there is a value
        return () if "serialization" in schema else _types_of(schema["schema"])
    if kind == "nullable" and len(schema) == 2:
        inner = _types_of(schema["schema"])
        return (*inner, NoneType) if inner else ()
    return ()


def has_types(instance: BaseModel, types: Mapping[str, Types]) -> bool:
    """Whether all of the fields, and nothing else, are there and have values of these very types."""
    values = instance.__dict__
    if len(values) != len(types):
        return False
    for name, value in values.items():  # noqa: SIM110 - all() takes twice as long
        if type(value) not in types.get(name, ()):
            return False
    return True
