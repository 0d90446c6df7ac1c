"""Reading of what docs/ promises."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def fields_of_status() -> set[str]:
    """Return the fields of the document of `status --json` itself: those of the first table of docs/status.md."""
    table = (DOCS / "status.md").read_text().partition("\n\n| in `redis` |")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    return {field for cell in cells for field in re.findall(r"`(\w+)`", cell)}
