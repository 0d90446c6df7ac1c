"""Checks messages against the models of the stream's handlers, before they are stored.

The handlers are imported in this process when the first message is to be checked, in a thread. The arbiter and the
workers have imports of their own.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from supervisor.errors import HandlerError
from supervisor.handling.loader import HandlerSpec, load_handlers
from supervisor.messages import DecodeError, Message
from supervisor.settings.load import Loaded

from .problems import Problem, pointer_of

#: Messages that are encoded or checked before other requests are handled.
SLICE = 200
#: Errors that an answer lists at most.
ERRORS_MAX = 100
_UNSTORED_ID = "0-1"


class Incoming(NamedTuple):
    """A message as a request holds it."""

    fields: dict[str, str]
    #: The object in the body that the fields come from.
    source: dict[str, Any]
    #: Where that object is in the body.
    path: tuple[str | int, ...] = ()


class HandlerModels:
    """The models of all handlers, once they are needed."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._specs: asyncio.Task[list[HandlerSpec]] | None = None

    async def check(self, stream: str, messages: Sequence[Incoming]) -> None:
        """Raise Problem with all that is wrong with the messages, or when the handlers can't be imported."""
        specs = [spec for spec in await self._load() if spec.stream == stream]
        errors: list[dict[str, str]] = []
        for at in range(0, len(messages) if specs else 0, SLICE):
            for message in messages[at : at + SLICE]:
                errors += (error for spec in specs for error in _errors(spec, message) if error not in errors)
                if len(errors) >= ERRORS_MAX:
                    raise _problem(stream, errors)
            await asyncio.sleep(0)
        if errors:
            raise _problem(stream, errors)

    async def _load(self) -> list[HandlerSpec]:
        if self._specs is None:
            loaded = self._loaded
            self._specs = asyncio.create_task(
                asyncio.to_thread(load_handlers, loaded.settings, loaded.root, loaded.origins)
            )
        try:
            return await asyncio.shield(self._specs)
        except HandlerError as error:
            raise Problem("no-models", str(error)) from None


def _problem(stream: str, errors: Sequence[dict[str, str]]) -> Problem:
    detail = f"{errors[0]['pointer']}: {errors[0]['detail']}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem("invalid", f"does not fit the handlers of {stream}: {detail}{more}", errors=errors[:ERRORS_MAX])


def _errors(spec: HandlerSpec, message: Incoming) -> Iterator[dict[str, str]]:
    """Yield what a worker would refuse the message for."""
    try:
        spec.decode(Message(_UNSTORED_ID, spec.stream, spec.group, message.fields))
    except DecodeError as error:
        fault = error.__context__  # that of the model, which the error's text sums up
        if not isinstance(fault, ValidationError):
            yield {"pointer": pointer_of(*message.path), "detail": str(error)}
            return
        for one in fault.errors(include_url=False, include_input=False, include_context=False):
            place = _place(message.source, one["loc"])
            yield {"pointer": pointer_of(*message.path, *place), "detail": one["msg"]}


def _place(source: Any, location: Sequence[str | int]) -> Iterator[str | int]:
    """Yield the parts of a location that the body has, and a missing member; pydantic also names kinds of unions."""
    at = source
    for number, part in enumerate(location):
        last = number == len(location) - 1
        if (isinstance(at, dict) and part in at) or (isinstance(at, list) and part in range(len(at))):
            at = at[part]  # type: ignore[index]
            yield part
        elif last and isinstance(at, dict):
            yield part
