"""Decodes an entry's fields into the type of a handler's first parameter.

A field's value in Redis is a string. Numbers, dates and the like are read from it; where the model wants something
else, it is read as JSON. So any program that can XADD is a producer.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import typing_extensions
from pydantic import BaseModel, ValidationError
from typing_extensions import is_typeddict

from supervisor.core.model_codec import ModelCodec
from supervisor.messages import DecodeError, Message, not_utf8

#: From a message to the handler's argument. Raises DecodeError.
Decoder = Callable[[Message], Any]

ALLOWED = "a pydantic model, a dataclass, a TypedDict, dict[str, str], Message, or list[...] of one of these"
_ERRORS_SHOWN = 5
_INPUT_CHARS_MAX = 80


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
    return _model_decoder(annotation)


def as_message(message: Message) -> Message:
    """Return the message itself: the decoder of handlers that take a `Message`."""
    return message


def _model_decoder(annotation: object) -> Decoder:
    try:
        codec = ModelCodec(_for_pydantic(annotation))
    except TypeError as error:
        raise TypeError(f"{_show(annotation)} {error}") from None
    decode = codec.decode

    def decode_model(message: Message) -> Any:
        # Decoded afresh and not kept with the message, which costs less than `message.fields` and a copy of it.
        try:
            return decode(message.read_fields())
        except ValidationError as error:
            raise _misfit(error) from None
        except DecodeError:
            return _decode_raw(codec, message)

    return decode_model


def _decode_raw(codec: ModelCodec, message: Message) -> Any:
    """Decode fields of which some are not UTF-8: `bytes` fields of the model take them."""
    for name, value in message.raw.items():
        if (error := not_utf8(name, value)) is not None and name not in codec.binary:
            raise error
    try:
        return codec.decode_raw(message.raw)
    except ValidationError as error:
        raise _misfit(error) from None


def _misfit(error: ValidationError) -> DecodeError:
    """Return the error for the dead letter, and its public half, without the message's content, for the log."""
    errors = error.errors(include_url=False)[:_ERRORS_SHOWN]
    places = [".".join(map(str, one["loc"])) or "message" for one in errors]
    shown = [
        f"{place}: {one['msg']} (got {str(one['input'])[:_INPUT_CHARS_MAX]!r})"
        for place, one in zip(places, errors, strict=True)
    ]
    what = f"the message does not fit {error.title}: "
    kinds = [f"{place} ({one['type']})" for place, one in zip(places, errors, strict=True)]
    return DecodeError(what + "; ".join(shown), public=what + ", ".join(kinds))


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


def _for_pydantic(annotation: Any) -> Any:
    """Return a TypedDict of `typing` as one of `typing_extensions`, which pydantic needs before Python 3.12."""
    if sys.version_info >= (3, 12) or not typing.is_typeddict(annotation):
        return annotation
    hints: dict[str, Any] = typing_extensions.get_type_hints(annotation, include_extras=True)
    makers: tuple[Any, Any] = typing.Required, typing.NotRequired
    for name, hint in hints.items():
        if typing.get_origin(hint) not in makers:
            hints[name] = makers[name not in annotation.__required_keys__][hint]
    make: Any = typing_extensions.TypedDict
    made = make(annotation.__name__, hints)
    made.__module__ = annotation.__module__
    return made


def field_names(annotation: object) -> frozenset[str]:
    """Return the names by which an entry may carry the fields of a model; empty when any field may be there."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation.model_config.get("extra") == "allow":
            return frozenset()
        aliases = [field.validation_alias for field in annotation.model_fields.values() if field.validation_alias]
        names = [alias for alias in aliases if isinstance(alias, str)]
        return frozenset([*annotation.model_fields, *names] if len(names) == len(aliases) else [])
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return frozenset(field.name for field in dataclasses.fields(annotation))
    return frozenset(annotation.__annotations__) if is_typeddict(annotation) else frozenset()


def _show(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
