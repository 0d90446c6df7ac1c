"""The public words in docs/ are those of the code: log events, metrics, status fields, options, keys, shared memory."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from supervisor import keys
from supervisor.broker.inspect import GroupInfo
from supervisor.broker.later_set import LaterCount
from supervisor.cli.main import COMMANDS
from supervisor.core.options import HANDLER_OPTIONS
from supervisor.settings.model import Settings
from supervisor.settings.sources import leaves
from supervisor.shared_consumer import ConsumerField
from supervisor.shared_figures import FigureField
from supervisor.shared_state import HeaderField, SlotField, WorkerState

ROOT = Path(__file__).parents[2]
TEXTS = [f"docs/{path.name}" for path in ROOT.glob("docs/*") if path.suffix != ".png"]
DOCS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", *TEXTS)
LEVELS = {"debug", "info", "warning", "error"}
#: Arguments of a logger that are not fields.
NO_FIELDS = {"key", "level", "exc_info"}
#: Bound to the loggers of workers and services, or added by the log itself; docs/logs.md describes them once.
COMMON = {"slot", "service", "pid", "error", "also", "repeated", "exception"}


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def rows(name: str, heading: str = "") -> Iterator[list[str]]:
    """The cells of the rows of all tables in a document, or of those under one heading."""
    text = text_of(name)
    if heading:
        text = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("| ").split(" | ")]


def words(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


@cache
def modules() -> dict[Path, ast.Module]:
    found = [path for folder in ("supervisor", "api") for path in (ROOT / folder).rglob("*.py")]
    return {path: ast.parse(path.read_text()) for path in found if "templates" not in path.parts}


def nouns() -> set[str]:
    """What the arbiter calls its children; `ChildGroup` itself is only their base."""
    assigned = (
        (node.targets[0], node.value)
        for path, tree in modules().items()
        if path.parent.name == "arbiter" and path.name != "restart_children.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
    )
    return {value.value for name, value in assigned if ast.unparse(name) == "noun" and isinstance(value, ast.Constant)}


def is_log_call(call: ast.Call) -> bool:
    match call.func:
        case ast.Name(id=name):
            return name in ("log", "faults")
        case ast.Attribute(attr="redis", value=on):
            return ast.unparse(on).endswith("faults")
        case ast.Attribute(attr=method, value=on) if method in LEVELS:
            on = on.func if isinstance(on, ast.Call) else on
            return ast.unparse(on).endswith(("log", "logger"))
        case ast.Attribute(attr=method):
            return method.endswith("faults")
        case ast.Call(func=ast.Attribute(attr="_log_level")):
            return True
    return False


def events(call: ast.Call, constants: dict[str, str]) -> Iterable[str]:
    """What the call's event can be. Raises TypeError for an event that is not a constant phrase."""
    match call.args[0]:
        case ast.Constant(value=str(event)):
            return [event]
        case ast.IfExp(body=ast.Constant(value=one), orelse=ast.Constant(value=other)):
            return [one, other]
        case ast.Name(id=name) if name in constants:
            return [constants[name]]
        case ast.JoinedStr(values=[ast.FormattedValue(value=value), ast.Constant(value=rest)]):
            assert ast.unparse(value) == "self.noun"
            return [f"{noun}{rest}" for noun in nouns()]
    raise TypeError(f"not a constant event: {ast.unparse(call)}")


def constants(tree: ast.Module) -> dict[str, str]:
    pairs = ((node.targets[0], node.value) for node in tree.body if isinstance(node, ast.Assign))
    return {
        ast.unparse(name): value.value
        for name, value in pairs
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    }


@cache
def logged() -> dict[str, tuple[set[str], set[str]]]:
    """Event -> (the fields in its calls, all names of keyword arguments in its modules)."""
    found: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for path, tree in modules().items():
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        keywords = {keyword.arg for call in calls for keyword in call.keywords if keyword.arg}
        # FaultLog itself hands on the events of its callers.
        own = [
            call
            for call in calls
            if is_log_call(call) and not (path.name == "log.py" and ast.unparse(call.args[0]) == "event")
        ]
        for call in own:
            for event in events(call, constants(tree)):
                found[event][0].update(keyword.arg for keyword in call.keywords if keyword.arg)
                found[event][1].update(keywords)
    return {event: (fields - NO_FIELDS, keywords) for event, (fields, keywords) in found.items()}


def test_events_are_found() -> None:
    assert len(logged()) > 35
    assert {"worker exited", "service exited", "paused", "resumed", "can't settle", "handler failed"} <= set(logged())


def test_log_events_are_documented() -> None:
    documented = [word for row in rows("docs/logs.md", "Events") for word in words(row[0])]
    assert sorted(documented) == sorted(logged())


@pytest.mark.parametrize("row", list(rows("docs/logs.md", "Events")), ids=lambda row: row[0])
def test_fields_of_log_events_are_documented(row: list[str]) -> None:
    documented = words(row[-1])
    for event in words(row[0]):
        fields, keywords = logged().get(event, (set(), set()))
        assert fields - COMMON <= documented
        # Fields that come through a helper are keyword arguments of some call in the same module.
        assert documented <= fields | keywords


def test_metrics_are_documented() -> None:
    names = set(re.findall(r'"(supervisor_[a-z_]+)"', text_of("api/metrics.py")))
    assert len(names) > 15
    assert {word for row in rows("docs/metrics.md") for word in words(row[0])} == names


def dict_keys(path: str) -> Iterator[str]:
    for node in ast.walk(modules()[ROOT / path]):
        match node:
            case ast.Dict():
                yield from (
                    key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
                )
            case ast.Subscript(slice=ast.Constant(value=str(key)), ctx=ast.Store()):
                yield key


def test_fields_of_status_are_documented() -> None:
    told = {*dict_keys("supervisor/arbiter/pool_status.py"), *dict_keys("supervisor/status.py")}
    told |= {*dict_keys("supervisor/arbiter/rolling_restart.py"), *GroupInfo.__dataclass_fields__}
    told |= {*LaterCount._fields}
    assert {word for row in rows("docs/status.md") for word in words(row[0])} == told


def test_options_of_handlers_are_in_the_readme() -> None:
    defaults = {path[-1]: value for path, value in leaves(Settings().as_dict()) if path[0] in ("retry", "consumer")}
    text = text_of("README.md")
    missing = [name for name in HANDLER_OPTIONS if f"`{name}`" not in text.partition("Options of a handler")[2]]
    assert missing == []
    for name in HANDLER_OPTIONS:
        if isinstance(defaults[name], str):
            continue
        default = str(defaults[name]).lower() if isinstance(defaults[name], bool) else f"{defaults[name]:g}"
        assert re.search(rf"`{name}` \({default}\b", text.replace("\n", " ")), name


def test_commands_are_in_the_readme() -> None:
    table = {word.split()[0] for row in rows("README.md", "Commands and HTTP") for word in words(row[0])}
    assert table == set(COMMANDS)


def test_settings_that_documents_name_exist() -> None:
    known = {".".join(path) for path, _ in leaves(Settings().as_dict())} | {"pool.host"}
    for name in DOCS:
        for section, key in re.findall(r"`\[(redis|pool|consumer|retry|api|log)\] (\w+)", text_of(name)):
            assert f"{section}.{key}" in known, name


def test_keys_in_redis_are_documented() -> None:
    pair = {"stream": "<stream>", "group": "<group>", "pool_id": "<pool>", "key": "<key>"}
    built = {
        function(*(pair[name] for name in function.__code__.co_varnames[: function.__code__.co_argcount]))
        for name, function in vars(keys).items()
        if name.endswith("_key") and not name.startswith("_")
    }
    documented = {word for row in rows("docs/architecture.md", "The keys in Redis") for word in words(row[0])}
    assert documented == built | {keys.POOLS_KEY, keys.LATER_STREAMS_KEY}


def test_shared_memory_is_documented() -> None:
    documented = {
        word for row in rows("docs/architecture.md", "The shared memory") for word in words(row[0]) if word.isupper()
    }
    assert documented == {field.name for kind in (HeaderField, SlotField, ConsumerField, FigureField) for field in kind}
    activities = text_of("docs/architecture.md").partition("## The shared memory")[2].partition("\n## ")[0]
    assert all(f"`{state.name}`" in activities for state in WorkerState)


@pytest.mark.parametrize("name", DOCS)
def test_files_that_documents_name_exist(name: str) -> None:
    # The code of an example names files of the reader's project.
    text = re.sub(r"^```.*?^```", "", text_of(name), flags=re.DOTALL | re.MULTILINE)
    base = [ROOT, ROOT / "supervisor", (ROOT / name).parent]
    named = set(re.findall(r"(?<![\w/<.])((?:[\w.-]+/)+[\w-]+\.(?:py|lua|md|toml))", text))
    assert [path for path in sorted(named) if not any((folder / path).exists() for folder in base)] == []
