"""Which handlers a module has: wrapped, partial and bound ones are found, and none is overlooked."""

import asyncio
import functools
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from supervisor import Message
from supervisor.errors import HandlerError
from supervisor.handling.loader import HandlerSpec, load_handlers
from supervisor.handling.router_check import check_routers
from supervisor.handling.signature import read_signature
from supervisor.settings.load import load
from supervisor.settings.model import Settings

HEAD = """
import asyncio
import functools
from dataclasses import dataclass
from supervisor import Message, handler

seen = []

@dataclass
class Event:
    n: int

def note(*values):
    seen.append([getattr(value, "id", None) or getattr(value, "n", value) for value in values])
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """Write a module and load it as a pool does; its handlers and the module."""
    name = f"project_{abs(hash(tmp_path))}"
    monkeypatch.setattr(sys, "path", [*sys.path])

    def load(text: str) -> tuple[list[HandlerSpec], Any]:
        (tmp_path / f"{name}.py").write_text(HEAD + textwrap.dedent(text))
        specs = load_handlers(Settings(handlers=[name]), tmp_path)
        return specs, sys.modules[name]

    yield load
    sys.modules.pop(name, None)


def deliver(spec: HandlerSpec, *ids: str) -> None:
    decoded = [spec.decode(Message(one, "s", "g", {"n": "1"})) for one in ids]
    result = spec.function(decoded if spec.batch else decoded[0])
    if spec.is_async:
        asyncio.run(_awaited(result))
    else:
        assert result is None


async def _awaited(result: Any) -> None:
    await result


WRAPPED = {
    "wraps below": """
        def deco(f):
            @functools.wraps(f)
            async def wrapper(*args, **kwargs):
                return await f(*args, **kwargs)
            return wrapper

        @handler("s", group="g")
        @deco
        async def handle(event: Event) -> None: note(event)
    """,
    "wraps above": """
        def deco(f):
            @functools.wraps(f)
            async def wrapper(*args, **kwargs):
                note("wrapper")
                return await f(*args, **kwargs)
            return wrapper

        @deco
        @handler("s", group="g")
        async def handle(event: Event) -> None: note(event)
    """,
    "a plain wrapper of an async def": """
        def deco(f):
            @functools.wraps(f)
            def wrapper(*args, **kwargs):
                return f(*args, **kwargs)
            return wrapper

        @handler("s", group="g")
        @deco
        async def handle(event: Event) -> None: note(event)
    """,
    "a wrapper that supplies an argument": """
        def deco(f):
            @functools.wraps(f)
            async def wrapper(event):
                return await f(event, "db")
            return wrapper

        @handler("s", group="g")
        @deco
        async def handle(event: Event, db: str) -> None: note(event)
    """,
    "a class as a decorator": """
        class Deco:
            def __init__(self, f):
                functools.update_wrapper(self, f)
                self.f = f
            async def __call__(self, *args):
                await self.f(*args)

        @handler("s", group="g")
        @Deco
        async def handle(event: Event) -> None: note(event)
    """,
    "partial": """
        async def handle(db, event: Event) -> None: note(event)
        bound = handler("s", group="g")(functools.partial(handle, "db"))
    """,
    "partial of a keyword": """
        def handle(event: Event, db) -> None: note(event)
        bound = handler("s", group="g")(functools.partial(handle, db="db"))
    """,
    "bound method": """
        class Service:
            async def on_event(self, event: Event) -> None: note(event)
        on_event = handler("s", group="g")(Service().on_event)
    """,
    "object": """
        class Service:
            def __call__(self, event: Event) -> None: note(event)
        service = handler("s", group="g")(Service())
    """,
    "factory": """
        def make():
            @handler("s", group="g")
            async def inner(event: Event) -> None: note(event)
            return inner
        made = make()
    """,
    "postponed annotations of a local class": """
        def make():
            class Local(Event): pass
            async def inner(event: "Local") -> None: note(event)
            assert Local
            return handler("s", group="g")(inner)
        made = make()
    """,
}


@pytest.mark.parametrize("text", WRAPPED.values(), ids=WRAPPED)
def test_each_of_these_is_a_handler(module: Any, text: str) -> None:
    if "postponed" in text or "Local" in text:
        text = text.replace('"Local"', "Local")
    (spec,), loaded = module(text)
    deliver(spec, "1-0")
    assert loaded.seen[-1] == [1]
    assert ("wrapper" in text and 'note("wrapper")' in text) == (["wrapper"] in loaded.seen)


BESIDE = {
    "async": ("async def handle(event: Event, message: Message) -> None: note(event, message)", [1, "1-0"]),
    "plain": ("def handle(event: Event, message: Message) -> None: note(event, message)", [1, "1-0"]),
    "optional": ("async def handle(event: Event, message: Message | None = None): note(event, message)", [1, "1-0"]),
    "not asked for": ("async def handle(event: Event, other: int = 3): note(event, other)", [1, 3]),
    "batch": (
        "async def handle(events: list[Event], messages: list[Message]) -> None:"
        " seen.append([[e.n for e in events], [m.id for m in messages]])",
        [[1, 1], ["1-0", "2-0"]],
    ),
}


@pytest.mark.parametrize(("text", "expected"), BESIDE.values(), ids=BESIDE)
def test_a_second_parameter_gets_the_message(module: Any, text: str, expected: list[Any]) -> None:
    (spec,), loaded = module(f'@handler("s", group="g")\n{text}')
    deliver(spec, "1-0", "2-0")
    assert loaded.seen == [expected]


def test_a_handler_that_takes_no_message_is_called_as_it_is(module: Any) -> None:
    (spec,), loaded = module('@handler("s", group="g")\nasync def handle(event: Event) -> None: ...')
    assert spec.function is loaded.handle


LOST = {
    "local": (
        """
        def setup():
            @handler("s", group="g")  # here
            async def handle(event: Event) -> None: ...
        setup()
        """,
        "function setup.*top of the module",
    ),
    "local of a function that was not called": (
        """
        def setup():
            @handler("s", group="g")  # here
            async def handle(event: Event) -> None: ...
        """,
        "setup.*not called",
    ),
    "method": (
        """
        class Service:
            @handler("s", group="g")  # here
            async def handle(self, event: Event) -> None: ...
        """,
        "method of class Service",
    ),
    "static method": (
        """
        class Service:
            @staticmethod
            @handler("s", group="g")  # here
            async def handle(event: Event) -> None: ...
        """,
        "method of class Service",
    ),
    "class": (
        """
        @handler("s", group="g")  # here
        class Service:
            async def __call__(self, event: Event) -> None: ...
        """,
        "is a class",
    ),
    "same name twice": (
        """
        @handler("s", group="one")  # here
        async def handle(event: Event) -> None: ...
        @handler("s", group="two")
        async def handle(event: Event) -> None: ...
        """,
        "name of its own",
    ),
    "kept in a list": (
        """
        async def base(event: Event) -> None: ...
        kept = [handler("s", group="g")(functools.partial(base))]  # here
        """,
        "no name",
    ),
    "in a loop": (
        """
        for name in ("a", "b"):
            @handler(name, group="g")  # here
            async def handle(event: Event) -> None: ...
        """,
        "name of its own",
    ),
    "decorator without wraps above": (
        """
        def deco(f):
            async def wrapper(event):
                await f(event)
            return wrapper

        @deco
        @handler("s", group="g")  # here
        async def handle(event: Event) -> None: ...
        """,
        "functools.wraps",
    ),
    "decorator without wraps below": (
        """
        def deco(f):
            async def wrapper(*args):
                await f(*args)
            return wrapper

        @handler("s", group="g")  # here
        @deco
        async def handle(event: Event) -> None: ...
        """,
        "functools.wraps",
    ),
    "no callable": (
        """
        name = handler("s", group="g")("handle")  # here
        """,
        "can't be called",
    ),
    "a required keyword": (
        """
        @handler("s", group="g")  # here
        async def handle(event: Event, *, db: int) -> None: ...
        """,
        "'db'",
    ),
}


@pytest.mark.parametrize(("text", "said"), LOST.values(), ids=LOST)
def test_none_vanishes(module: Any, text: str, said: str) -> None:
    lines = (HEAD + textwrap.dedent(text)).splitlines()
    line = next(number for number, line in enumerate(lines, 1) if line.endswith("# here"))
    with pytest.raises(HandlerError, match=rf"\.py:{line}: (?s:.)*{said}"):
        module(text)


def test_a_package_with_a_router_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"package_{abs(hash(tmp_path))}"
    web, jobs = tmp_path / name / "web", tmp_path / name / "jobs"
    for folder in (web, jobs):
        folder.mkdir(parents=True)
    (tmp_path / name / "__init__.py").touch()
    (jobs / "__init__.py").touch()
    (jobs / "mail.py").write_text(HEAD + "@handler('s', group='g')\nasync def mail(event: Event) -> None: ...\n")
    for file in (web / "__init__.py", web / "orders.py"):
        file.write_text("raise RuntimeError('imported')")
    (spec,) = load_handlers(Settings(handlers=[name], api={"routers": [f"{name}.web:router"]}), tmp_path)
    assert spec.name == f"{name}.jobs.mail.mail"


def test_a_proxy_that_has_every_attribute_is_no_handler(module: Any) -> None:
    (spec,), _ = module("""
        class Proxy:
            def __getattr__(self, name): raise RuntimeError(name)
            def __call__(self): ...
        proxy = Proxy()

        @handler("s", group="g")
        async def handle(event: Event) -> None: ...
    """)
    assert spec.name.endswith(".handle")


def test_a_function_without_a_signature_is_refused_with_what_to_write() -> None:
    with pytest.raises(HandlerError, match=r"no signature .*; write a function with an annotated parameter that calls"):
        read_signature(functools.lru_cache(lambda message: None), "handlers.py:3")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'# coding: latin-1\nrouter = "caf\xe9"\n', ""),
        (b'router = "caf\xe9"\n', "utf-8"),
        (b"router = 1\0\n", "null byte"),
    ],
    ids=["another encoding", "not UTF-8", "NUL"],
)
def test_a_module_with_a_router_is_read_as_python_reads_it(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "web.py").write_bytes(text)
    (tmp_path / "config.toml").write_text('[api]\nrouters = ["web:router"]\n')
    loaded = load(tmp_path / "config.toml", environ={})
    if not words:
        check_routers(loaded)
        return
    with pytest.raises(HandlerError, match=f"{tmp_path / 'web.py'}.*{words}"):
        check_routers(loaded)
