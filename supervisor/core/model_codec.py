"""Encodes models as fields and decodes fields into models, so that a handler gets what was published.

1. Decoding depends on the annotation and on the message alone. Fields that are read as JSON and fields that are text
   become one JSON document, which pydantic validates in its JSON mode: numbers stay exact, strict models work.
2. A field that does not fit the way it is read first is tried the other way: text as JSON, and JSON as text.
3. Encoding is the inverse: text that would be read as JSON is quoted. A model whose fields may change on the way is
   decoded again before it is published, and refused when it did not come back as it was.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import orjson
from pydantic import BaseModel, PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, PydanticUndefined, from_json

from supervisor.core.field_kinds import FieldKind, Fields, ReadAs, fields_of_schema, has_hidden_fields
from supervisor.core.field_text import Value, json_value_text, unicode_text
from supervisor.core.json_text import is_document, nan_text, quote_decimals
from supervisor.core.model_dump import dump, mend, reveal
from supervisor.core.round_trip import changed_fields, equals
from supervisor.errors import EncodeError

#: How a JSON text may begin.
_JSON_STARTS = frozenset('{["-0123456789tfnNI \t\r\n')
#: At first, after filling in what is missing, and after reading fields the other way.
_ATTEMPTS = 3
_AS_IT_IS = "publish message.model_dump(mode='json') to store it as it is"


class ModelCodec:
    """Encodes and decodes the messages of one annotation."""

    def __init__(self, annotation: Any) -> None:
        """Prepare for a model, a dataclass, a TypedDict or a union of them.

        Raises TypeError for one without named fields, and pydantic's errors.
        """
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        # Otherwise an unresolvable name would only show at the first message.
        adapter.rebuild(raise_errors=True)
        self._adapter = adapter
        schema: Any = adapter.core_schema
        members = fields_of_schema(schema)
        self._by_key = _merged(members)
        self._others = ReadAs.JSON if any(one.others is ReadAs.JSON for one in members) else ReadAs.TEXT
        self._computed = {key: name for one in members for key, name in one.computed.items()}
        #: Where a field is stored -> where validation looks for it.
        hidden = {key: one.name for key, one in self._by_key.items() if one.hidden}
        self._renamed = {key: name for key, name in hidden.items() if key != name}
        #: Where validation looks for a field -> where it is stored.
        self._stored = {name: key for key, one in self._by_key.items() for name in (*one.accepted, one.name)}
        self._union = len(members) > 1
        self._mends_aliases = has_hidden_fields(schema)
        self._options: dict[str, Any] = {"by_alias": True, "by_name": True} if self._mends_aliases else {}
        #: Fields that may be left out: nothing stands for None in an entry.
        self._optional = {one.key: one for one in self._by_key.values() if one.nullable and one.required}
        #: The fields that take bytes which are not UTF-8.
        self.binary = frozenset(one.key.encode() for one in self._by_key.values() if one.binary)
        self._table = _is_table(annotation)
        regular = len(members) == 1 and not (self._mends_aliases or self._computed or self._table)
        regular = regular and self._others is ReadAs.TEXT
        #: Valid values come back as they were.
        sure = regular and members[0].plain and all(one.sure for one in members[0].fields)
        #: So do all values of the declared types.
        self._sure = sure and not any(one.limited for one in members[0].fields)
        #: The fields whose text can't be given to pydantic as it is, and those that may say `null`.
        self._special = [(key, one.kind, one.decimal) for key, one in self._by_key.items() if not one.plain]
        self._nullable = [key for key, one in self._by_key.items() if one.nullable and one.plain]
        self._decode_first = self._decode_sure if sure else self._decode_mixed if regular else self._validate
        self._annotation = annotation

    def decode(self, fields: dict[str, str]) -> Any:
        """Return the validated model. Raises pydantic's ValidationError, and what validators of the model raise."""
        return self._decode_first(fields)

    def decode_raw(self, raw: Mapping[bytes, bytes]) -> Any:
        """Return the validated model of fields of which some in `binary` are not UTF-8. Raises as `decode` does."""
        fields: dict[str, Value] = {}
        for name, value in raw.items():
            try:
                fields[name.decode()] = value.decode()
            except UnicodeDecodeError:
                fields[name.decode()] = value
        return self._validate(fields)

    def encode(self, message: Any) -> dict[str, Value]:
        """Return the fields of a message of this type. Raises EncodeError, which names the field."""
        if self._sure:
            try:
                dumped = dump(self._adapter, message, warnings="error")
            except (PydanticSerializationError, ValueError, TypeError, RecursionError):
                pass  # values of other types than declared, or not Unicode
            else:
                return self._texts(message, dumped)
        texts = self._texts(message, self._dump(message))
        if self._computed:
            texts |= self._computed_fields(message)
        return self._checked_round_trip(message, texts)

    def dump(self, message: Any) -> Any:
        """Return what stands for the message within another message, as JSON has it."""
        return mend(message, dump(self._adapter, message), nested=False)

    # Decoding

    def _decode_sure(self, fields: dict[str, str]) -> Any:
        given: dict[str, Any] = fields
        if self._nullable or self._special:
            given = dict(fields)
            if not self._fill_nullable(given):
                return self._validate(fields)
        try:
            for key, _, decimal in self._special:
                if key in given:
                    given[key] = from_json(quote_decimals(given[key]) if decimal else given[key])
                elif key in self._optional:
                    given[key] = None
            return self._adapter.validator.validate_python(given)
        except ValueError:  # pydantic's ValidationError is one, too
            return self._validate(fields)

    def _decode_mixed(self, fields: dict[str, str]) -> Any:
        given: dict[str, Any] = dict(fields)
        if not self._fill_nullable(given):
            return self._validate(fields)
        for key, kind, decimal in self._special:
            text = given.get(key)
            if text is None:
                if key in self._optional:
                    given[key] = None
            elif (kind is ReadAs.JSON and is_document(text)) or _reads_as_json(kind, text):
                given[key] = orjson.Fragment(quote_decimals(text) if decimal else text)
        try:
            return self._adapter.validator.validate_json(orjson.dumps(given))
        except Exception:
            return self._validate(fields)

    def _fill_nullable(self, fields: dict[str, Any]) -> bool:
        """Put None where a plain field says so or is left out; False when a field is a JSON string."""
        for key in self._nullable:
            text = fields.get(key)
            if text is None:
                if key in self._optional:
                    fields[key] = None
            elif text == "null":
                fields[key] = None
            elif text[:1] == '"':
                return False
        return True

    def _validate(self, fields: Mapping[str, Value]) -> Any:
        flipped: set[str] = set()
        missing: set[str] = set()
        #: The error that names the fewest fields, the first of equal ones: it read the fields as one would expect.
        best: ValidationError | None = None
        for attempt in range(_ATTEMPTS):
            try:
                return self._validated(*self._document(fields, flipped, missing))
            except ValidationError as error:
                best = error if best is None or error.error_count() < best.error_count() else best
                before = len(flipped) + len(missing)
                self._learn(error, fields, flipped, missing)
                if len(flipped) + len(missing) == before or attempt == _ATTEMPTS - 1:
                    raise best from None
            except Exception:
                # A validator that can't take a number or a list, because the field is text: `value.split(",")`.
                if flipped:
                    raise
                flipped.update(key for key in fields if self._kind(key) is not ReadAs.TEXT)
        raise AssertionError("unreachable")

    def _validated(self, document: dict[str, Value | None], as_json: set[str]) -> Any:
        raw = any(isinstance(value, bytes) for value in document.values())
        if self._table or raw:
            values = {key: from_json(text) if key in as_json else text for key, text in document.items()}  # type: ignore[arg-type]
            if self._table:  # SQLModel validates tables in this method only
                return self._annotation.model_validate(values)
            # Python's mode knows no JSON forms of dates and decimals in strict models, and JSON has no such bytes.
            return self._adapter.validator.validate_python(values, strict=False, **self._options)
        mixed = {key: orjson.Fragment(text) if key in as_json else text for key, text in document.items()}  # type: ignore[arg-type]
        return self._adapter.validator.validate_json(orjson.dumps(mixed), **self._options)

    def _document(
        self, fields: Mapping[str, Value], flipped: set[str], missing: set[str]
    ) -> tuple[dict[str, Value | None], set[str]]:
        """Return what to validate, and which of it is JSON text; the rest is text, or bytes that are not UTF-8."""
        document: dict[str, Value | None] = {}
        as_json: set[str] = set()
        for key, text in fields.items():
            about = self._by_key.get(key)
            if about is None and key in self._computed:
                continue
            name = self._renamed.get(key, key)
            kind = about.kind if about else self._others
            tries_json = (kind is not ReadAs.TEXT) is not (key in flipped)
            if tries_json and isinstance(text, str) and _reads_as_json(ReadAs.JSON if key in flipped else kind, text):
                as_json.add(name)
                document[name] = quote_decimals(text) if about and about.decimal else text
            else:
                document[name] = text
        for key, one in self._optional.items():
            # Which member of a union it is only shows when validation misses the field.
            if (not self._union or key in missing) and not self._is_given(one, document):
                document[self._renamed.get(key, one.accepted[0] if one.accepted else key)] = None
        return document, as_json

    def _is_given(self, one: FieldKind, document: Mapping[str, Any]) -> bool:
        return any(key in document for key in (one.key, one.name, *one.accepted))

    def _learn(self, error: ValidationError, fields: Mapping[str, Value], flipped: set[str], missing: set[str]) -> None:
        """Note which fields do not fit as they were read, and which optional ones a member of a union misses."""
        for one in error.errors(include_url=False, include_context=False, include_input=False):
            for part in one["loc"]:
                key = self._stored.get(part, part) if isinstance(part, str) else part
                if key in fields:
                    flipped.add(key)  # type: ignore[arg-type]
                elif one["type"] == "missing" and key in self._optional:
                    missing.add(key)

    # Encoding

    def _texts(self, message: Any, dumped: Mapping[str, Any]) -> dict[str, Value]:
        texts = {key: self._text(message, key, value) for key, value in dumped.items()}
        return {key: text for key, text in texts.items() if text is not None}

    def _dump(self, message: Any) -> dict[str, Any]:
        try:
            dumped = dump(self._adapter, message)
        except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
            dumped = self._dump_each(message, error)
        if not isinstance(dumped, dict):
            raise EncodeError(f"a message must have named fields, and {type(message).__name__} is written as a value")
        mended: dict[str, Any] = mend(message, dumped, nested=False)
        return mended

    def _dump_each(self, message: Any, error: Exception) -> dict[str, Any]:
        """Dump field by field: bytes that are not UTF-8 stay bytes, and what can't be dumped is named."""
        dumped: dict[str, Any] = {}
        for one in self._by_key.values():
            try:
                dumped |= dump(self._adapter, message, include={one.name})
            except (PydanticSerializationError, ValueError, TypeError, RecursionError) as own:
                value = reveal(getattr(message, one.name, None))
                if not isinstance(value, bytes):
                    hint = "; set ser_json_bytes and val_json_bytes to 'base64'" if "utf-8" in str(own) else ""
                    raise EncodeError(f"field {one.key!r}: not JSON serializable: {own}{hint}", one.key) from None
                dumped[one.key] = value
        if not dumped:
            raise EncodeError(f"{type(message).__name__} can't be written as JSON: {error}")
        return dumped

    def _text(self, message: Any, key: str, value: Any) -> Value | None:
        """Return a field's text; None: it is left out, since its default stands for the same."""
        kind = self._kind(key)
        if type(value) is str:
            text = unicode_text(key, value)
            return json_value_text(key, text) if _reads_as_json(kind, text) else text
        if isinstance(value, bytes):
            return value
        if value is None and (about := self._by_key.get(key)) is not None and not about.maybe_none:
            if _is_default(message, about.name):
                return None
            raise EncodeError(f"field {key!r}: None in a field that can't be None", key)
        if isinstance(value, float) and not math.isfinite(value):
            return nan_text(value)
        text = json_value_text(key, value, spell_nan=True)
        if text[:1] == '"':  # a key of a subclass of str
            return self._text(message, key, str(orjson.loads(text)))
        return text

    def _computed_fields(self, message: Any) -> dict[str, Value]:
        """Return the computed fields, which other programs may read; a handler's model computes them again."""
        dumped = dump(self._adapter, message, include=set(self._computed.values()), round_trip=False)
        return {
            key: value if type(value) is str else json_value_text(key, value, spell_nan=True)
            for key, value in dumped.items()
            if key in self._computed
        }

    def _checked_round_trip(self, message: Any, fields: dict[str, Value]) -> dict[str, Value]:
        """Return the fields if they decode to the same message. Raises EncodeError."""
        while True:
            try:
                got = self._validate(fields)
                altered = self._altered_unset(message, got, fields)
                if not altered:
                    break
                fields = {key: text for key, text in fields.items() if key not in altered}
            except ValidationError as error:
                wrong = self._wrong_field(error)
                unset = wrong in fields and wrong in self._by_key and _is_default(message, self._by_key[wrong].name)
                if not unset:
                    problem = error.errors(include_url=False, include_input=False)[0]["msg"]
                    raise EncodeError(
                        f"field {wrong!r}: a handler of {type(message).__name__} can't read what it is stored as:"
                        f" {problem}; {_AS_IT_IS}",
                        wrong,
                    ) from None
                fields = {key: text for key, text in fields.items() if key != wrong}  # its default is not valid
            except Exception as error:
                raise EncodeError(
                    f"a handler of {type(message).__name__} can't read the message: {type(error).__name__}: {error}"
                ) from error
        for name in _changed(message, got):
            key = next((one.key for one in self._by_key.values() if one.name == name), name)
            raise EncodeError(
                f"field {key!r}: a handler of {type(message).__name__} would get another value or type than was given;"
                f" {_AS_IT_IS}",
                key,
            )
        return fields

    def _altered_unset(self, message: Any, got: Any, fields: Mapping[str, Value]) -> set[str]:
        """Return the fields that were not given and whose default would arrive altered: defaults are not validated."""
        if not isinstance(message, BaseModel) or type(message) is not type(got):
            return set()
        unset = [one for one in self._by_key.values() if one.key in fields and one.name not in message.model_fields_set]
        return {one.key for one in unset if not equals(getattr(message, one.name, None), getattr(got, one.name, None))}

    def _wrong_field(self, error: ValidationError) -> str:
        for part in error.errors(include_url=False, include_input=False)[0]["loc"]:
            if isinstance(part, str) and (key := self._stored.get(part, part)) in self._by_key:
                return key
        return ".".join(map(str, error.errors(include_url=False)[0]["loc"])) or "message"

    def _kind(self, key: str) -> ReadAs:
        about = self._by_key.get(key)
        return about.kind if about else self._others


@lru_cache(maxsize=256)
def codec_of(kind: Any) -> ModelCodec:
    """Return the codec of a type of messages. Raises EncodeError for one that pydantic can't validate."""
    try:
        return ModelCodec(kind)
    except (PydanticUserError, PydanticUndefinedAnnotation, NameError, TypeError) as error:
        said = str(error).partition("\n")[0]
        raise EncodeError(f"{kind.__name__} can't be a message: {said}") from None


def _merged(members: list[Fields]) -> dict[str, FieldKind]:
    """Return the fields by where they are stored; one that members of a union read differently is read as JSON."""
    merged: dict[str, FieldKind] = {}
    for member in members:
        for one in member.fields:
            other = merged.setdefault(one.key, one)
            if other.kind is not one.kind:
                kinds = {other.kind, one.kind}
                merged[one.key] = replace(one, kind=ReadAs.JSON if ReadAs.JSON in kinds else ReadAs.NULLABLE)
    return merged


def _reads_as_json(kind: ReadAs, text: str) -> bool:
    """Return whether text of a field of this kind is read as JSON first."""
    if kind is ReadAs.TEXT or text[:1] not in _JSON_STARTS:
        return False
    if kind is ReadAs.NULLABLE and text != "null" and text[0] != '"':
        return False
    try:
        from_json(text)
    except ValueError:
        return False
    return True


def _is_default(message: Any, name: str) -> bool:
    """Return whether the field was not given, or is its default."""
    if isinstance(message, BaseModel):
        about = type(message).model_fields.get(name)
        return (
            about is not None
            and not about.is_required()
            and (name not in message.model_fields_set or getattr(message, name) == about.default)
        )
    return bool(getattr(type(message), name, PydanticUndefined) == getattr(message, name))


def _changed(message: Any, got: Any) -> list[str]:
    return changed_fields(message, got) if type(message) is type(got) else ["message"]


def _is_table(annotation: Any) -> bool:
    """Return whether it is a table of SQLModel, whose constructor validates nothing."""
    return (
        isinstance(annotation, type)
        and issubclass(annotation, BaseModel)
        and bool(annotation.model_config.get("table"))
    )
