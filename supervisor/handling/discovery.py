"""Finds the handlers of modules, and names the declarations that no worker would ever find.

A handler is found by a name of its module. What was declared and has none (a local function, a name that was given to
something else, a decorator without `functools.wraps`) is an error, never silence.
"""

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from supervisor.errors import HandlerError
from supervisor.handling.registry import DECLARED, Declaration, handler, own_declarations

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

Declared = tuple[Callable[..., Any], Declaration]


def declarations_in(values: Iterable[Any]) -> Iterator[Declared]:
    """Yield each handler among `values` with its declaration, once for each `@handler` on it."""
    for value in values:
        if callable(value) and not isinstance(value, type):
            for declaration in own_declarations(value):
                yield value, declaration


def handlers_in(modules: Iterable[ModuleType]) -> list[Declared]:
    """Return all handlers of these modules. Raises HandlerError for one that is declared and can't be found."""
    modules = list(modules)
    declared_handlers = [declared for module in modules for declared in declarations_in(vars(module).values())]
    known = {id(declaration) for _, declaration in declared_handlers}
    errors = [error for module in modules for error in _lost(module, known)]
    if errors:
        raise HandlerError("\n".join(dict.fromkeys(errors)))
    return declared_handlers


def _lost(module: ModuleType, known: set[int]) -> Iterator[str]:
    declared: list[tuple[Declaration, Any]] = vars(module).get(DECLARED, [])
    # A module that was executed again in place has declared everything twice; the last time counts.
    last = {(one.where, one.stream, one.group): (one, function) for one, function in declared}
    for declaration, function in last.values():
        if id(declaration) not in known:
            yield _why(module, declaration, function)
    yield from _never_run(module, {declaration.where for declaration, _ in declared})


def _why(module: ModuleType, declaration: Declaration, function: Any) -> str:
    name = getattr(function, "__name__", None) or repr(function)
    begin = f"{declaration.where}: @handler of {name!r} (stream {declaration.stream!r}, group {declaration.group!r})"
    if declaration.scope:
        return (
            f"{begin} stands in {declaration.scope}, and no name of module {module.__name__!r} leads to it: define it"
            " at the top of the module, or assign it to a name there"
        )
    other = vars(module).get(name)
    if other is None:
        return f"{begin} has no name in module {module.__name__!r}: write `name = handler(...)(function)`"
    return (
        f"{begin} is lost, since the name {name!r} stands for {_described(other)} by now: give each handler a name of"
        " its own, and write @functools.wraps(function) above the wrapper in a decorator"
    )


def _described(value: Any) -> str:
    code = getattr(value, "__code__", None)
    name = getattr(value, "__qualname__", None) or repr(value)[:80]
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code else name


def _never_run(module: ModuleType, run: set[str]) -> Iterator[str]:
    """Yield an error for each `@handler` inside a function that was not called while the module was imported."""
    file = module.__file__
    if file is None or not file.endswith(".py"):
        return
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):  # changed or removed since it was imported
        return
    for function in ast.walk(tree):
        if isinstance(function, _FUNCTIONS):
            for name, decorator in _decorators_within(function):
                if _is_handler(decorator, module) and f"{file}:{decorator.lineno}" not in run:
                    yield (
                        f"{file}:{decorator.lineno}: @handler of {name!r} stands in function {function.name!r},"
                        " which was not called while the module was imported: define it at the top of the module"
                    )


def _decorators_within(function: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    for inner in ast.walk(function):
        if inner is not function and isinstance(inner, (*_FUNCTIONS, ast.ClassDef)):
            yield from ((inner.name, decorator) for decorator in inner.decorator_list)


def _is_handler(decorator: ast.expr, module: ModuleType) -> bool:
    """Whether the decorator calls `supervisor.handler`, under the name that the module has for it."""
    if not isinstance(decorator, ast.Call):
        return False
    called = decorator.func
    if isinstance(called, ast.Name):
        return vars(module).get(called.id) is handler
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.attr == "handler":
        owner = vars(module).get(called.value.id)
        return inspect.ismodule(owner) and owner.__name__ == "supervisor"
    return False
