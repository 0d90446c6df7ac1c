"""Middleware that can't be used is an error with its place and what to write."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisor import BatchError, Message, Next, NextBatch, handler
from supervisor.errors import ConfigError, HandlerError, UsageError
from supervisor.handling.decode import as_message
from supervisor.handling.loader import load_handlers
from supervisor.handling.middleware import compose, read_middleware
from supervisor.settings.load import load
from supervisor.testing import Retried, deliver

FILE = Path(__file__).name


async def good(message: Message, call_next: Next) -> None: ...


def plain(message: Message, call_next: Next) -> None: ...


async def one_parameter(message: Message) -> None: ...


async def three(message: Message, call_next: Next, other: int) -> None: ...


async def dictionary(message: dict[str, str], call_next: Next) -> None: ...


class NoFunction: ...


@pytest.mark.parametrize(
    ("given", "place", "text"),
    [
        (plain, plain, "plain is not `async def`: write `async def name(message: Message, call_next: Next) -> None`"),
        (one_parameter, one_parameter, "takes (message: supervisor.messages.Message) -> None; it is called with"),
        (three, three, "it is called with a message and call_next"),
        (dictionary, dictionary, "parameter 'message' must be annotated Message, or list[Message]"),
        (NoFunction, None, "is not a function"),
        ("handlers.middleware:timing", None, "'handlers.middleware:timing' is not a function"),
    ],
)
def test_a_wrong_middleware_is_named_with_its_place(given: Any, place: Any, text: str) -> None:
    with pytest.raises(HandlerError) as raised:
        handler("s", group="g", middleware=[given])
    assert text in str(raised.value)
    line = place.__code__.co_firstlineno if place else raised.traceback[0].lineno + 1
    assert str(raised.value).startswith(f"{__file__}:{line}: ")


async def forgets(message: Message, call_next: Next) -> None:
    call_next(message)


async def returns(message: Message, call_next: Next) -> Any:
    return call_next(message)


async def starts_a_task(message: Message, call_next: Next) -> None:
    task.append(asyncio.ensure_future(call_next(message)))
    await asyncio.sleep(0)


async def forgets_list(messages: list[Message], call_next: NextBatch) -> None:
    call_next(messages)


async def goes_on(message: Message, call_next: Next) -> None:
    await call_next(message)


task: list[Any] = []


@pytest.mark.parametrize("middleware", [forgets, returns, starts_a_task, forgets_list])
@pytest.mark.parametrize("others", [[], [goes_on]], ids=["alone", "within another"])
@pytest.mark.parametrize("batch", [False, True])
async def test_middleware_that_does_not_await_the_handler_fails(
    middleware: Any, others: list[Any], batch: bool
) -> None:
    async def handle(message: Any) -> None:
        await asyncio.sleep(0.01)

    chain = [read_middleware(one, "here") for one in (*others, middleware)]
    call = compose(chain, as_message, handle, batch=batch)
    messages = [Message(f"{n}-0", "s", "g") for n in (1, 2)]
    with pytest.raises((UsageError, BatchError)) as raised:
        await call(messages if batch else messages[0])
    errors = raised.value.failed.values() if isinstance(raised.value, BatchError) else [raised.value]
    text = f"middleware {__name__}.{middleware.__name__} ended before the handler: write `await call_next(message)`"
    assert all(str(error).startswith(text) for error in errors)
    for one in task:
        await one
    task.clear()


async def test_a_result_that_nobody_awaits_is_an_error() -> None:
    async def other() -> None: ...

    @handler("s", group="g")
    async def promises(message: Message) -> Any:
        return other()

    @handler("s", group="g")
    async def gathers(message: Message) -> Any:
        return asyncio.gather(other())

    for function, kind in ((promises, "coroutine"), (gathers, "_GatheringFuture")):
        outcome = await deliver(function, {"n": 1})
        assert isinstance(outcome, Retried)
        assert str(outcome.error) == f"the handler returned a {kind} that nobody awaits: write `await`"


def test_middleware_must_be_a_list() -> None:
    with pytest.raises(HandlerError, match=rf"{FILE}:\d+: middleware = <function good .*> must be a list"):
        handler("s", group="g", middleware=good)  # type: ignore[arg-type]


PROJECT = """
from supervisor import Message, Next, handler

async def timing(message: Message, call_next: Next) -> None: ...

@handler("s", group="g")
async def handle(message: Message) -> None: ...
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A project with a module that no other test has imported."""
    name = f"middleware_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(PROJECT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path, name
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("{name}:timin", "there is no 'timin' in {file}, did you mean 'timing'?"),
        (
            "{name}x:timing",
            "there is no module '{name}x' in {folder} or among what is installed, did you mean '{name}'?",
        ),
        ("{name}:Message", "= '{name}:Message': middleware <class 'supervisor.messages.Message'> is not a function"),
    ],
)
def test_the_setting_is_named_with_file_and_line(project: Any, setting: str, text: str) -> None:
    folder, name = project
    config = folder / "config.toml"
    config.write_text(f'handlers = ["{name}"]\nmiddleware = ["{setting.format(name=name)}"]\n')
    loaded = load(config, environ={})
    with pytest.raises(HandlerError) as raised:
        load_handlers(loaded.settings, loaded.root, loaded.origins)
    expected = text.format(name=name, file=folder / f"{name}.py", folder=folder)
    assert str(raised.value).startswith(f"{config}:2: middleware")
    assert expected in str(raised.value)


def test_a_setting_of_the_wrong_form_is_an_error_of_the_configuration(project: Any) -> None:
    folder, name = project
    config = folder / "config.toml"
    config.write_text(f'handlers = ["{name}"]\n\nmiddleware = ["{name}"]\n')
    with pytest.raises(ConfigError, match=r"config\.toml:3: middleware.*handlers\.middleware:timing"):
        load(config, environ={})
