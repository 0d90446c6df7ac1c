"""Decodes an entry's fields into the type of a handler's first parameter.

A field's value in Redis is a string. Pydantic reads numbers, dates and booleans from strings; where it can't, the
string is tried as JSON. So any program that can XADD is a producer.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from supervisor.messages import DecodeError, Message

#: From a message to the handler's argument. Raises DecodeError.
Decoder = Callable[[Message], Any]

ALLOWED = "a pydantic model, a dataclass, a TypedDict, dict[str, str], Message, or list[...] of one of these"


def split_batch(annotation: object) -> tuple[bool, object]:
    """Return whether the annotation is for batches, and the annotation of one item."""
    if typing.get_origin(annotation) is list:
        return True, typing.get_args(annotation)[0]
    return False, annotation


def make_decoder(annotation: object) -> Decoder:
    """Make the decoder for one message. Raises TypeError for an unsupported annotation."""
    if annotation is Message:
        return as_message
    if _is_fields(annotation):
        return Message.read_fields
    if not _is_model(annotation):
        raise TypeError(f"{_show(annotation)} is not {ALLOWED}")
    return ModelDecoder(annotation)


class ModelDecoder:
    """Validates the fields against a model; a string that does not fit is tried as JSON."""

    def __init__(self, annotation: object) -> None:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)  # type: ignore[arg-type]
        # Otherwise an unresolvable name would only show at the first message.
        adapter.rebuild(raise_errors=True)
        self._validate = adapter.validator.validate_python
        #: Fields that needed JSON before: JSON is tried first then, to validate only once.
        self._json: set[str] = set()

    def __call__(self, message: Message) -> Any:
        """Return the validated model. Raises DecodeError with the errors of each field."""
        # Decoded afresh and not kept with the message, which costs less than `message.fields` and a copy of it.
        fields: dict[str, Any] = message.read_fields()
        for name in self._json:
            if name in fields:
                fields[name] = _from_json(fields[name])
        try:
            return self._validate(fields)
        except ValidationError as error:
            return self._again(message.fields, error)

    def _again(self, raw: dict[str, str], first: ValidationError) -> Any:
        suspects = {name for e in first.errors() for name in e["loc"] if isinstance(name, str) and name in raw}
        fields: dict[str, Any] = dict(raw)
        for name in suspects | self._json.intersection(raw):
            # A field that failed as JSON is tried as a string, and the other way round.
            if not (name in self._json and name in suspects):
                fields[name] = _from_json(raw[name])
        try:
            made = self._validate(fields)
        except ValidationError as error:
            raise DecodeError(_explain(error)) from None
        self._json.update(name for name in suspects if fields[name] is not raw[name])
        return made


def as_message(message: Message) -> Message:
    """Return the message itself: the decoder of handlers that take a `Message`."""
    return message


def _from_json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _explain(error: ValidationError) -> str:
    parts = [
        f"{'.'.join(str(part) for part in e['loc']) or 'message'}: {e['msg']} (got {str(e['input'])[:80]!r})"
        for e in error.errors()[:5]
    ]
    return f"the message does not fit {error.title}: {'; '.join(parts)}"


def _is_fields(annotation: object) -> bool:
    if annotation in (dict, Mapping):
        return True
    return typing.get_origin(annotation) in (dict, Mapping) and typing.get_args(annotation) == (str, str)


def _is_model(annotation: object) -> bool:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _is_model(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return all(_is_model(part) for part in typing.get_args(annotation))
    if origin is not None:
        return _is_model(origin)
    if not isinstance(annotation, type):
        return False
    return issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation) or is_typeddict(annotation)


def _show(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
