"""Describes the HTTP service with the shipped config.toml: `python -m tests.support.openapi > docs/openapi.json`."""

import json
import sys
from pathlib import Path

from api.app import create_app
from supervisor.settings.load import load

_CONFIG = Path(__file__).parents[2] / "config.toml"


def description() -> str:
    """Return the OpenAPI description as JSON text."""
    return json.dumps(create_app(load(_CONFIG, {})).openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(description())
