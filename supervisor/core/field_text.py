"""The text of one field, with errors that name the field. Pure."""

from collections.abc import Callable
from typing import Any

from supervisor.core.json_text import dump_exact
from supervisor.errors import EncodeError
from supervisor.text import fault_text

#: A field's value: text, or the bytes of a model's `bytes` field.
Value = str | bytes


def unicode_text(name: str, text: str) -> str:
    """Return the text. Raises EncodeError when it has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EncodeError(f"field {name!r}: not Unicode: {error.reason}", name) from None
    return text


def json_value_text(
    name: str, value: object, default: Callable[[Any], Any] | None = None, *, spell_nan: bool = False
) -> str:
    """Return JSON text; `default` converts values of other types than JSON's, and `spell_nan` makes NaN a string.

    Raises EncodeError.
    """
    try:
        return dump_exact(value, default or _refuse, spell_nan=spell_nan)
    except (TypeError, ValueError, RecursionError) as error:
        raise EncodeError(f"field {name!r}: not JSON serializable: {fault_text(error)}", name) from None


def _refuse(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} is not JSON serializable")
