"""Imports the modules that config.toml names. Every error is a HandlerError that names file and line."""

import contextlib
import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

from supervisor.errors import HandlerError
from supervisor.text import did_you_mean, install_hint

INIT_HINT = "`supervisor init` makes an example"
#: Packages that the pool and the commands import late.
_OURS = ("redis.asyncio", "hiredis", "uvloop", "psutil", "orjson", "structlog", "rich")
#: Names of folders with installed packages.
_INSTALLED = ("site-packages", "dist-packages")


def make_importable(root: Path) -> None:
    """Put `root` on the import path, before installed packages and after the standard library.

    The installed packages that the supervisor needs are imported first, so that no module of the project (a folder
    redis/, say) is imported instead of them.
    """
    if (entry := str(root)) in sys.path:
        return
    for name in _OURS:
        with contextlib.suppress(ImportError):  # not on this system; the code that needs it reports it
            importlib.import_module(name)
    installed = (at for at, path in enumerate(sys.path) if Path(path).name in _INSTALLED)
    sys.path.insert(next(installed, len(sys.path)), entry)


def import_module_of(name: str, root: Path, setting: str = "handlers") -> ModuleType:
    """Import a module that `setting` names. Raises HandlerError that names file and line of what is wrong."""
    try:
        return importlib.import_module(name)
    except HandlerError:
        raise
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise missing_module(error.name, root, setting) from None
        raise HandlerError(_import_failure(name, root, error)) from error
    except (Exception, SystemExit) as error:
        raise HandlerError(_import_failure(name, root, error)) from error


def missing_module(name: str, root: Path, setting: str = "handlers") -> HandlerError:
    """Return the error for a module that `setting` names and that does not exist."""
    package, dot, _ = name.rpartition(".")
    folder = root.joinpath(*package.split(".")) if package else root
    stems = [path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()] if folder.is_dir() else []
    hint = did_you_mean(name, [f"{package}{dot}{stem}" for stem in stems]) or f"; {INIT_HINT}"
    return HandlerError(f"{setting}: there is no module {name!r} in {root} or among what is installed{hint}")


def file_of(module: ModuleType) -> str:
    """Return where a module or package is."""
    return module.__file__ or ", ".join(getattr(module, "__path__", []))


def _import_failure(name: str, root: Path, error: BaseException) -> str:
    """Name the line of the project that failed: the last frame in a file of the project, or that of a syntax error."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg} (while importing {name!r})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    frames = [f for f in frames if f.filename != __file__]
    own = [f for f in frames if _belongs_to(root, Path(f.filename))] or frames
    place = f"{own[-1].filename}:{own[-1].lineno}" if own else name
    hint = install_hint(error) if isinstance(error, ImportError) else ""
    return f"{place}: {type(error).__name__}: {error} (while importing {name!r}){hint}"


def _belongs_to(root: Path, file: Path) -> bool:
    return file.is_relative_to(root) and not set(file.relative_to(root).parts) & set(_INSTALLED)
