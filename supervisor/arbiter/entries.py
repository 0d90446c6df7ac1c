"""What runs in the children: the doors from the arbiter into worker, keeper, boot check and HTTP service."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import supervisor
from supervisor.core.outcome import Crash
from supervisor.handling.load import HandlerSpec
from supervisor.settings.model import Settings
from supervisor.shared_state import SharedState

if TYPE_CHECKING:
    from supervisor.settings.load import Loaded

Specs = Sequence[HandlerSpec]


@dataclass(frozen=True, slots=True)
class Entries:
    """The bodies of forked children, each returning its exit code, and the command of the HTTP service."""

    #: (settings, specs, lease token, descriptor for its findings as JSON)
    boot: Callable[[Settings, Specs, str, int], int]
    #: (settings, specs, shared, slot, burst, how the slot's last worker crashed)
    worker: Callable[[Settings, Specs, SharedState, int, bool, Crash | None], int]
    #: (settings, specs, shared, lease token)
    keeper: Callable[[Settings, Specs, SharedState, str], int]
    #: Arguments and environment of the HTTP service.
    api: Callable[[Loaded], tuple[list[str], dict[str, str]]]


def real_entries() -> Entries:
    """The supervisor's own. Imports all that the forked children need, so that they share it."""
    from supervisor.keeper import keeper, preflight
    from supervisor.worker import main as worker

    def run_worker(
        settings: Settings, specs: Specs, shared: SharedState, slot: int, burst: bool, crash: Crash | None
    ) -> int:
        return worker.run(settings, specs, shared, slot, burst=burst, crash=crash)

    return Entries(boot=preflight.run, worker=run_worker, keeper=keeper.run, api=api_command)


def api_command(loaded: Loaded) -> tuple[list[str], dict[str, str]]:
    """`supervisor api` with the settings of this pool: what flags have changed goes by environment."""
    # By its path, and without the working directory: a project may have a supervisor.py.
    program = str(Path(supervisor.__file__).with_name("__main__.py"))
    words = [sys.executable, "-P", program, "api", "--bind", loaded.settings.api.bind]
    if loaded.path is not None:
        words += ["--config", str(loaded.path)]
    return words, {**os.environ, **_flags_as_environment(loaded)}


def _flags_as_environment(loaded: Loaded) -> dict[str, str]:
    found = {}
    for key, origin in loaded.origins.items():
        if not origin.startswith("flag "):
            continue
        value: Any = loaded.settings
        for part in key.split("."):
            value = getattr(value, part)
        name = "SUPERVISOR_" + key.upper().replace(".", "__")
        found[name] = value if isinstance(value, str) else json.dumps(value)
    return found
