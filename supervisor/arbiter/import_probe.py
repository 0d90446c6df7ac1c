"""Imports the handlers, and tells which module started threads or opened sockets.

The import of each module is traced: a thread or socket that exists after the module's code has run, and did not exist
before, was made by it. `probe` does this in a child process, for a process that must not import the handlers itself.
"""

import importlib.machinery
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from supervisor.arbiter.fork_hazards import (
    THREADS,
    Hazard,
    descriptors,
    hazards_among,
    listed_descriptors,
    thread_count,
    thread_names,
)
from supervisor.core.options import Options
from supervisor.errors import EXIT_HANDLERS, EXIT_OK, HandlerError
from supervisor.handling.loader import HandlerSpec, load_handlers
from supervisor.handling.worker_lifespan import Lifespan
from supervisor.memfd import create_memfd
from supervisor.settings.load import Loaded
from supervisor.text import signal_name

#: Set for a process that must not import the handlers itself, since its last image found that unsafe.
UNSAFE_VARIABLE = "_SUPERVISOR_PRELOAD_UNSAFE"
_INSTALLED = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True)
class Cause:
    """What one module did while it was imported."""

    #: The package, or the module of the project.
    module: str
    #: The file of the project that imports it; empty for a module of the project.
    importer: str
    kind: str
    detail: str
    #: The number of threads.
    count: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """The handlers, and what importing them does."""

    specs: list[HandlerSpec]
    causes: list[Cause]
    import_s: float
    memory_mb: int


def probe(loaded: Loaded) -> Probe:
    """Fork a process that imports the handlers, and wait for it. Raises HandlerError.

    It answers through a file: a process that a module starts (`multiprocessing.Manager`) would hold a pipe open. Such
    processes end with it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(create_memfd("handlers"), "r+b") as answer_file:
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            _run(loaded, answer_file.fileno())
        try:
            _, status = os.waitpid(pid, 0)
        finally:
            with suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        answer_file.seek(0)
        answer = answer_file.read()
    code = os.waitstatus_to_exitcode(status)
    report = json.loads(answer) if answer else {}
    if code != EXIT_OK:
        how = f"was ended by {signal_name(-code)}" if code < 0 else f"left with exit code {code}"
        raise HandlerError(report.get("error") or f"importing the handlers failed: the process {how}")
    return Probe(
        [_outline(one) for one in report["specs"]],
        [Cause(**cause) for cause in report["causes"]],
        report["import_s"],
        report["memory_mb"],
    )


def _outline(description: dict[str, Any]) -> HandlerSpec:
    """Return what is known of a handler without its code."""
    options = Options(**description["options"])
    lifespans = tuple(Lifespan(name, where, _not_here) for name, where in description["lifespans"])
    known = {"middleware": (), "options": options, "lifespans": lifespans, "function": _not_here, "decode": _not_here}
    return HandlerSpec(**{**description, **known})


def _not_here(*_: object) -> Any:
    raise HandlerError("the handlers are imported in the workers only")


def _described(spec: HandlerSpec) -> dict[str, Any]:
    description = {field.name: getattr(spec, field.name) for field in fields(spec)}
    lifespans = [(lifespan.name, lifespan.where) for lifespan in spec.lifespans]
    description["middleware"] = ()
    return {**description, "options": asdict(spec.options), "lifespans": lifespans, "function": None, "decode": None}


def _run(loaded: Loaded, out_fd: int) -> NoReturn:
    """Import and report; what the handlers' modules print is shown by those that import them for use."""
    code, report = EXIT_HANDLERS, {}
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        for fd in (1, 2):
            os.dup2(null, fd)
        os.close(null)
        probed = import_here(loaded)
        described = {"specs": [_described(spec) for spec in probed.specs], "causes": list(map(asdict, probed.causes))}
        report = {**described, "import_s": probed.import_s, "memory_mb": probed.memory_mb}
        code = EXIT_OK
    except HandlerError as error:
        report = {"error": str(error)}
    except BaseException:
        report = {"error": traceback.format_exc()}
    finally:
        with suppress(OSError), os.fdopen(out_fd, "wb") as pipe:
            pipe.write(json.dumps(report, default=str).encode())
        os._exit(code)


def import_here(loaded: Loaded) -> Probe:
    """Import the handlers in this process. Raises HandlerError."""
    trace = ImportTrace(loaded.root)
    began_s, before_kb = time.perf_counter(), _memory_kb()
    with trace:
        specs = load_handlers(loaded.settings, loaded.root, loaded.origins)
    return Probe(
        specs,
        trace.causes(),
        import_s=round(time.perf_counter() - began_s, 3),
        memory_mb=max(0, _memory_kb() - before_kb) // 1024,
    )


def _memory_kb() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    except OSError:
        return 0


class ImportTrace:
    """Notes what each module does while its code runs; within one `with` statement."""

    def __init__(self, root: Path) -> None:
        """`root` is the folder of the project."""
        self._root = root
        self._before = set(descriptors())
        self._seen = set(self._before)
        #: The numbers of the open descriptors; what they are is read again when the numbers have changed.
        self._listed = listed_descriptors()
        self._threads = thread_count()
        #: The modules whose code runs, from the outside in, as (name, file).
        self._running: list[tuple[str, str]] = []
        self._causes: list[tuple[int, Cause]] = []
        self._patched: list[tuple[type, str, Any]] = []

    def __enter__(self) -> None:
        """Trace from now on."""
        for loader in (importlib.machinery.SourceFileLoader, importlib.machinery.ExtensionFileLoader):
            for name in ("create_module", "exec_module"):
                self._patched.append((loader, name, loader.__dict__.get(name)))
                setattr(loader, name, self._traced(getattr(loader, name)))

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._note("", "")
        for loader, name, original in self._patched:
            setattr(loader, name, original) if original else delattr(loader, name)

    def causes(self) -> list[Cause]:
        """Return what is still there."""
        left = set(descriptors())
        threads = thread_count() > 1
        return [cause for fd, cause in self._causes if (threads if cause.kind == THREADS else fd in left)]

    def _traced(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(loader: Any, module: Any) -> Any:
            # Before the module exists, there is a ModuleSpec.
            name, file = getattr(module, "__name__", None) or module.name, getattr(loader, "path", "")
            self._running.append((name, file))
            try:
                return original(loader, module)
            finally:
                self._note(name, file)
                self._running.pop()

        return run

    def _note(self, name: str, file: str) -> None:
        count, threads = thread_count(), self._threads
        self._threads = count
        if count > threads:
            self._add(0, Hazard(THREADS, thread_names()), name, file, count - threads)
        listed = listed_descriptors()
        if name and listed == self._listed:
            return
        now = descriptors()
        for fd, hazard in hazards_among(now, self._seen):
            self._add(fd, hazard, name, file)
        self._listed, self._seen = listed, set(now)

    def _add(self, fd: int, hazard: Hazard, name: str, file: str, count: int = 0) -> None:
        own = [path for _, path in self._running if self._is_own(path)]
        if not name:
            name, file = "a handler module", ""
        module = name if self._is_own(file) else name.partition(".")[0]
        importer = "" if self._is_own(file) or not own else own[-1]
        place = f"{name} ({file})" if self._is_own(file) else module
        self._causes.append((fd, Cause(place, importer, hazard.kind, hazard.detail, count)))

    def _is_own(self, file: str) -> bool:
        path = Path(file)
        return bool(file) and path.is_relative_to(self._root) and not set(path.parts) & set(_INSTALLED)
