"""The programs in C that mark the limit: `drain` only reads and acks, `blocking` notes when entries arrive.

They are built at the first use, where a C compiler and the headers of libhiredis are found. Where they
are not, a figure that needs one is "not available".
"""

import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parent.parent / "build" / "reference"


@cache
def program(name: str) -> Path | None:
    """The built program; None where it can't be built."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    texts = b"".join(path.read_bytes() for path in (HERE / "common.h", HERE / f"{name}.c"))
    built = BUILD / f"{name}-{hashlib.sha256(texts).hexdigest()[:12]}"
    if not built.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        started = BUILD / f"{built.name}.{os.getpid()}"
        words = [compiler, "-O2", "-Wall", "-o", str(started), str(HERE / f"{name}.c"), "-lhiredis"]
        if subprocess.run(words, capture_output=True, check=False).returncode:
            return None
        started.rename(built)
    return built


def libhiredis() -> str:
    """The library's version, for reports."""
    done = subprocess.run(["pkg-config", "--modversion", "hiredis"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown version"
