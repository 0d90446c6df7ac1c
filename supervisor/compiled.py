"""The compiled module `_entries`, where it was built; without it everything runs in Python.

It is built at the installation if a C compiler and Python's headers are there. `SUPERVISOR_PURE_PYTHON=1` turns it off.
"""

import importlib
import os
import warnings
from typing import Any

VARIABLE = "SUPERVISOR_PURE_PYTHON"
_OFF = ("", "0")
#: The revision of the interface, as in `_entries.c`. A checkout may be newer than the module that was built in it.
REVISION = 2


def _load() -> tuple[Any, str]:
    """Return the module, or None and the reason."""
    if os.environ.get(VARIABLE, "") not in _OFF:
        return None, f"{VARIABLE} is set"
    try:
        module: Any = importlib.import_module("supervisor._entries")
    except ImportError:  # not built, or for another Python
        return None, "not compiled"
    if getattr(module, "REVISION", 0) != REVISION:
        warnings.warn(
            f"{module.__file__} was built from another version of the supervisor and is not used: install again",
            RuntimeWarning,
            stacklevel=2,
        )
        return None, "compiled from another version"
    return module, ""


#: None: not there or turned off.
entries, _reason = _load()


def describe() -> str:
    """Return which form runs: `compiled`, or `Python` and why."""
    return f"Python ({_reason})" if _reason else "compiled"
