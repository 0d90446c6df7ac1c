"""The compiled module `_entries`, where it was built; without it everything runs in Python.

It is built at the installation if a C compiler and Python's headers are there. `SUPERVISOR_PURE_PYTHON=1` turns it off.
"""

import importlib
import os
from typing import Any

VARIABLE = "SUPERVISOR_PURE_PYTHON"
_OFF = ("", "0")


def _load() -> Any:
    if os.environ.get(VARIABLE, "") not in _OFF:
        return None
    try:
        return importlib.import_module("supervisor._entries")
    except ImportError:  # not built, or for another Python
        return None


#: None: not there or turned off.
entries: Any = _load()


def describe() -> str:
    """Return which form runs: `compiled`, or `Python` and why."""
    if entries is not None:
        return "compiled"
    return f"Python ({VARIABLE} is set)" if os.environ.get(VARIABLE, "") not in _OFF else "Python (not compiled)"
