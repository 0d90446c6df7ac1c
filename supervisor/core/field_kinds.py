"""Says how the fields of a model are written as text, by what pydantic validates each of them with. Pure.

An entry's field is text. Whether `5` means a number and `null` means nothing depends on the annotation:

1. A field that is text by nature (`str`, dates, UUIDs, `Decimal`, enums of strings) is never read as JSON.
2. A field that is text or nothing (`str | None`) is read as JSON only where it says `null` or is a JSON string.
3. Every other field (numbers, lists, models, `Any`, unions such as `int | str`) is read as JSON where it is JSON.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

Schema = Mapping[str, Any]


class ReadAs(Enum):
    """How a field's text is read."""

    TEXT = auto()
    #: Text or nothing.
    NULLABLE = auto()
    JSON = auto()


#: Types whose JSON form is a string.
_TEXT = frozenset({
    "bytes", "complex", "date", "datetime", "decimal", "json", "multi-host-url", "str", "time", "timedelta", "url",
    "uuid",
})  # fmt: skip
#: Types that pydantic reads from a string and from JSON alike, and gives back as they were.
_PLAIN = frozenset({
    "bool", "date", "datetime", "decimal", "enum", "float", "int", "literal", "str", "time", "timedelta", "uuid",
})  # fmt: skip

#: What a value may break that was assigned to a model, or given to `model_construct`, without being validated.
_LIMITS = frozenset({
    "decimal_places", "ge", "gt", "le", "lt", "max_digits", "max_length", "min_length", "multiple_of", "now_op",
    "pattern", "strip_whitespace", "to_lower", "to_upper", "tz_constraint", "version",
})  # fmt: skip
#: The same in the configuration of a model.
_CONFIGURED_LIMITS = ("str_max_length", "str_min_length", "str_strip_whitespace", "str_to_lower", "str_to_upper")
#: Other forms of times, which lose microseconds or the time zone.
_TIME_FORMS = ("ser_json_timedelta", "ser_json_temporal")

_RECORDS = frozenset({"dataclass-args", "model-fields", "typed-dict"})
_FUNCTIONS = frozenset({"function-after", "function-before", "function-wrap"})
_ANY: Schema = {"type": "any"}


@dataclass(frozen=True, slots=True)
class FieldKind:
    """One field of a model."""

    name: str
    #: The field of the entry that it is stored in: its serialization alias, else its name.
    key: str
    #: Where validation looks for it.
    accepted: tuple[str, ...]
    kind: ReadAs
    #: Validation needs it.
    required: bool
    nullable: bool
    #: None may be a value of it; not only by its annotation, but also by a validator that nobody can look into.
    maybe_none: bool
    #: Contains decimals, whose digits a JSON number keeps only if nobody makes it a float.
    decimal: bool
    #: Takes bytes that are not UTF-8.
    binary: bool
    #: Pydantic reads it from a string as from JSON, and it comes back as it was.
    plain: bool
    #: It is plain, or a container of what is plain: a valid value comes back as it was.
    sure: bool
    #: Not all values of its type are valid or written exactly, so a message is decoded again before it is published.
    limited: bool

    @property
    def hidden(self) -> bool:
        """Whether validation does not look where it is stored."""
        return self.key not in self.accepted


@dataclass(slots=True)
class Fields:
    """The fields of one model, or of one member of a union of models."""

    fields: list[FieldKind] = field(default_factory=list)
    #: How a field is read that the model does not name.
    others: ReadAs = ReadAs.TEXT
    #: Where computed fields are stored, and their names.
    computed: dict[str, str] = field(default_factory=dict)
    #: No validator or serializer of the whole model may change its fields.
    plain: bool = True


def fields_of_schema(schema: Schema) -> list[Fields]:
    """Return the fields of a core schema; several for a union. Raises TypeError if it is not an object."""
    return list(_Reader({node["ref"]: node for node in _nodes(schema) if "ref" in node}).objects(schema))


def has_hidden_fields(schema: object) -> bool:
    """Return whether any model in there stores a field where its own validation does not look for it."""
    for node in _nodes(schema):
        if node.get("config", {}).get("validate_by_alias") is False:
            return True
        if node.get("type") in ("model-fields", "typed-dict"):
            pairs: Iterable[tuple[str, Schema]] = node["fields"].items()
        elif node.get("type") == "dataclass-args":
            pairs = [(one["name"], one) for one in node["fields"]]
        else:
            continue
        if any((one.get("serialization_alias") or name) not in _accepted(name, one) for name, one in pairs):
            return True
    return False


class _Reader:
    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions

    def objects(self, schema: Schema, config: Mapping[str, Any] | None = None) -> Iterator[Fields]:
        """Yield the fields of each object that the schema may be."""
        kind = schema["type"]
        config = {**(config or {}), **schema.get("config", {})}
        if kind in _RECORDS:
            pairs = schema["fields"]
            named = pairs.items() if isinstance(pairs, dict) else [(one["name"], one) for one in pairs]
            yield self._fields(schema, named, config)
        elif kind == "dict":
            yield Fields(others=self.kind(schema.get("values_schema", _ANY)), plain=False)
        elif kind in ("any", "function-plain"):
            yield Fields(others=ReadAs.JSON, plain=False)
        else:
            changes = kind in _FUNCTIONS or "serialization" in schema or bool(schema.get("post_init"))
            for inner in self._inner(schema):
                for found in self.objects(inner, config):
                    found.plain &= not changes
                    yield found

    def _inner(self, schema: Schema) -> list[Schema]:
        """Return the schemas that this one chooses from or wraps. Raises TypeError if it is not an object."""
        match schema["type"]:
            case "definition-ref":
                return [self._definitions[schema["schema_ref"]]]
            case "union":
                return _choices(schema)
            case "tagged-union":  # a string is another tag of the same model
                return [one for one in schema["choices"].values() if not isinstance(one, str)]
            case "json-or-python":
                return [schema["json_schema"]]
            case "lax-or-strict":
                return [schema["strict_schema"]]
            case (
                "model"
                | "dataclass"
                | "definitions"
                | "default"
                | "function-before"
                | "function-after"
                | "function-wrap"
            ):
                return [schema["schema"]]
            case other:
                raise TypeError(f"must have named fields, and a {other} has none")

    def _fields(self, schema: Schema, pairs: Iterable[tuple[str, Schema]], config: Mapping[str, Any]) -> Fields:
        extra = schema.get("extra_behavior") or config.get("extra_fields_behavior")
        others = ReadAs.TEXT
        if extra == "allow":
            others = self.kind(schema["extras_schema"]) if "extras_schema" in schema else ReadAs.JSON
        found = [self._field(name, one, config) for name, one in pairs]
        computed = {
            one.get("alias") or one["property_name"]: one["property_name"] for one in schema.get("computed_fields", ())
        }
        return Fields(found, others, computed, plain=extra != "allow")

    def _field(self, name: str, schema: Schema, config: Mapping[str, Any]) -> FieldKind:
        inner: Schema = schema["schema"]
        by_name, strict = bool(config.get("validate_by_name")), bool(config.get("strict"))
        kind, shapes = self.kind(inner), self._shapes(inner)
        required = inner["type"] != "default" and schema.get("required", True)
        accepted = (name,) if config.get("validate_by_alias") is False else _accepted(name, schema)
        lax = not strict and not schema.get("serialization_exclude")
        lax = lax and not schema.get("init_only") and schema.get("init", True)
        return FieldKind(
            name=name,
            key=schema.get("serialization_alias") or name,
            accepted=(*accepted, name) if by_name and name not in accepted else accepted,
            kind=kind,
            required=required,
            nullable="null" in shapes,
            maybe_none=bool(shapes & {"null", "any"}),
            decimal=kind is ReadAs.JSON and any(node.get("type") == "decimal" for node in _nodes(inner)),
            binary=self._is_binary(inner),
            plain=lax and self._is_plain(inner),
            sure=lax and self._is_sure(inner),
            limited=_has_limits(config) or self._is_limited(inner),
        )

    def kind(self, schema: Schema) -> ReadAs:
        """Return how a value of this schema is read from text."""
        shapes = self._shapes(schema)
        if "json" in shapes or "text" not in shapes:
            return ReadAs.JSON
        return ReadAs.NULLABLE if "null" in shapes else ReadAs.TEXT

    def _shapes(self, schema: Schema, seen: frozenset[str] = frozenset()) -> frozenset[str]:  # noqa: C901, PLR0911, PLR0912 - a table
        """Return which of text, null and json the JSON forms of a value may be; `any`: also what does not show."""
        kind = schema["type"]
        if kind in _TEXT:
            return frozenset({"text"})
        match kind:
            case "none":
                return frozenset({"null"})
            case "nullable":
                return self._shapes(schema["schema"], seen) | {"null"}
            case "enum":
                return _shapes_of(member.value for member in schema["members"])
            case "literal":
                return _shapes_of(getattr(one, "value", one) for one in schema["expected"])
            case "union":
                return frozenset().union(*(self._shapes(one, seen) for one in _choices(schema)))
            case "definition-ref":
                ref = schema["schema_ref"]
                return frozenset({"json"}) if ref in seen else self._shapes(self._definitions[ref], seen | {ref})
            case "json-or-python":
                return self._shapes(schema["json_schema"], seen)
            case "lax-or-strict":
                return self._shapes(schema["strict_schema"], seen)
            case "chain":
                return self._shapes(schema["steps"][0], seen)
            case "function-plain":
                as_text = schema.get("serialization", {}).get("type") == "to-string"
                return frozenset({"text" if as_text else "json", "any"})
            case "any":
                return frozenset({"json", "any"})
            case "function-before" | "function-wrap":
                return self._shapes(schema["schema"], seen) | {"any"}
            case "model" if schema.get("root_model"):
                return self._shapes(schema["schema"], seen)
            case "default" | "function-after" | "custom-error":
                return self._shapes(schema["schema"], seen)
        return frozenset({"json"})

    def _is_binary(self, schema: Schema) -> bool:
        return any(node.get("type") == "bytes" for node in _nodes(schema)) and "text" in self._shapes(schema)

    def _is_plain(self, schema: Schema) -> bool:
        schema = self._unwrapped(schema)
        if schema["type"] in ("enum", "literal") and "json" in self._shapes(schema):
            return False
        return schema["type"] in _PLAIN and _is_lax(schema)

    def _is_sure(self, schema: Schema) -> bool:
        schema = self._unwrapped(schema)
        if not _is_lax(schema):
            return False
        match schema["type"]:
            case "list" | "set" | "frozenset":
                return "items_schema" in schema and self._is_sure(schema["items_schema"])
            case "dict":
                keys, values = schema.get("keys_schema", {}), schema.get("values_schema")
                return keys.get("type") == "str" and _is_lax(keys) and values is not None and self._is_sure(values)
        return self._is_plain(schema)

    def _is_limited(self, schema: Schema) -> bool:
        for node in _nodes(schema):
            kind = node["type"]
            if kind == "definition-ref":  # of what is sure, only an enum is one
                kind = self._definitions[node["schema_ref"]]["type"]
            if kind == "literal" or any(node.get(limit) is not None for limit in _LIMITS):
                return True
            if node.get("allow_inf_nan", kind != "decimal") is False:
                return True
        return False

    def _unwrapped(self, schema: Schema) -> Schema:
        while schema["type"] in ("default", "nullable") and "serialization" not in schema:
            schema = schema["schema"]
        return self._definitions[schema["schema_ref"]] if schema["type"] == "definition-ref" else schema


def _has_limits(config: Mapping[str, Any]) -> bool:
    return (
        any(config.get(limit) for limit in _CONFIGURED_LIMITS)
        or config.get("allow_inf_nan") is False
        or any(config.get(form, "iso8601") != "iso8601" for form in _TIME_FORMS)
    )


def _is_lax(schema: Schema) -> bool:
    return not schema.get("strict") and "serialization" not in schema


def _choices(schema: Schema) -> list[Schema]:
    return [one[0] if isinstance(one, tuple) else one for one in schema["choices"]]


def _accepted(name: str, schema: Schema) -> tuple[str, ...]:
    alias = schema.get("validation_alias")
    if alias is None:
        return (name,)
    if isinstance(alias, str):
        return (alias,)
    paths = alias if isinstance(alias[0], list) else [alias]
    return tuple(path[0] for path in paths if len(path) == 1)


def _shapes_of(values: Iterable[object]) -> frozenset[str]:
    return frozenset("text" if isinstance(one, str) else "null" if one is None else "json" for one in values)


def _nodes(schema: object) -> Iterator[Schema]:
    """Yield every node of a schema. It may be large, so call it only where a model is loaded."""
    waiting: list[object] = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if isinstance(one.get("type"), str):
                yield one
            waiting.extend(value for key, value in one.items() if key not in ("metadata", "default"))
        elif isinstance(one, list | tuple):
            waiting.extend(one)
