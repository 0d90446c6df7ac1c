"""What a pool keeps for the case that new code can't be loaded any more: its settings, and its handlers without code.

A reload replaces the image of the arbiter, and with it the code that was loaded. When the new code then fails, the next
image goes on with these: enough for everything but a new worker.
"""

import base64
import io
import pickle
from collections.abc import Sequence
from types import FunctionType
from typing import Any

from supervisor.handling.loader import HandlerSpec
from supervisor.settings.load import Loaded

#: The only modules that a snapshot may need when it is read.
_OWN = frozenset({"supervisor", "builtins", "pathlib", "datetime", "enum", "copyreg"})


class _OwnPickler(pickle.Pickler):
    """Writes None in place of functions, and of all that comes from the project's modules."""

    def reducer_override(self, obj: Any) -> Any:
        module = (obj if isinstance(obj, type) else type(obj)).__module__
        if isinstance(obj, FunctionType) or module.partition(".")[0] not in _OWN:
            return type(None), ()
        return NotImplemented


def pack(loaded: Loaded, specs: Sequence[HandlerSpec]) -> str:
    """Return settings and handlers as text."""
    file = io.BytesIO()
    _OwnPickler(file).dump((loaded, list(specs)))
    return base64.b64encode(file.getvalue()).decode()


def unpack(text: str) -> tuple[Loaded, list[HandlerSpec]]:
    """Return settings and handlers from `pack`; what was code is None."""
    unpickled: tuple[Loaded, list[HandlerSpec]] = pickle.loads(base64.b64decode(text))
    return unpickled
