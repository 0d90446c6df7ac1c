"""Where a pool was started from: its config.toml and working directory, by the paths that led there.

A reload goes the same way again, so that behind a link that was switched it finds the new release.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from supervisor.errors import ConfigError
from supervisor.settings.load import Loaded, working_dir
from supervisor.text import path_text

#: Passed on to the preflight and to the successor of a reload.
VARIABLE = "_SUPERVISOR_STARTED_FROM"


@dataclass(frozen=True, slots=True)
class StartedFrom:
    """Paths of the start."""

    working_dir: str
    #: None: the pool was started without a file.
    config: str | None
    #: There was more than comments in the file.
    had_content: bool
    #: `--reload`: a change of a file restarts the pool.
    reloads: bool = False

    @classmethod
    def of(cls, loaded: Loaded, *, reloads: bool = False) -> Self:
        """Return where the settings were loaded from."""
        path = loaded.path
        try:
            folder = str(working_dir())
        except ConfigError:  # it is gone; the file was named by its whole path
            folder = os.curdir
        return cls(folder, str(path) if path else None, path is not None and _has_content(path), reloads)

    def enter(self) -> None:
        """Change to the working directory of the start, if it is still there."""
        try:
            os.chdir(self.working_dir)
        except OSError:  # the configuration may be elsewhere; its loader says what it misses
            return

    def variable(self) -> dict[str, str]:
        """Return the environment variable that passes this on."""
        return {VARIABLE: json.dumps(asdict(self))}

    def config_path(self) -> Path | None:
        """Return the file to read. Raises ConfigError when it is gone or empty: defaults would replace all settings."""
        if self.config is None:
            return None
        path = Path(self.config)
        if not path.is_file():
            raise ConfigError(f"{path_text(path)}: the file that the pool was started with is gone")
        if self.had_content and not _has_content(path):
            raise ConfigError(f"{path_text(path)}: the file has no settings, and it had some when the pool was started")
        return path


def inherited() -> StartedFrom | None:
    """Return where the running pool was started from, in a preflight and in a successor; elsewhere None."""
    text = os.environ.pop(VARIABLE, None)
    return StartedFrom(**json.loads(text)) if text else None


def _has_content(path: Path) -> bool:
    try:
        lines = [line.strip() for line in path.read_bytes().splitlines()]
    except OSError:  # the loader says why it can't be read
        return True
    return any(line and not line.startswith(b"#") for line in lines)
