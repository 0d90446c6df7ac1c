"""A config.toml for a test, and what is said of a wrong one."""

from pathlib import Path
from typing import Any

import pytest

from supervisor.errors import ConfigError
from supervisor.settings.load import load


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(path: Path | None, flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, flags or {}, environ or {})
    return str(caught.value).splitlines()
