"""Times as people write them in config.toml: seconds, or a number with its unit."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

#: A century: of more milliseconds than fit into 64 bits, Redis would refuse each command.
SECONDS_MAX = 3_153_600_000
_UNITS_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_TEXT = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([dhms])")
#: What `Duration` takes.
DURATION = 'seconds, or a time with its unit such as "7d", "36h", "90m" or "45s", a century at most; 0: for ever'


def seconds_of(value: Any) -> Any:
    """`"36h"` as 129600.0, `""` as 0; anything else as it is, so that validation names what is wrong with it."""
    if value == "":
        return 0
    found = _TEXT.fullmatch(value) if isinstance(value, str) else None
    return float(found[1]) * _UNITS_S[found[2]] if found else value


#: Seconds, 0 for no limit.
Duration = Annotated[float, BeforeValidator(seconds_of), Field(ge=0, le=SECONDS_MAX, allow_inf_nan=False)]
