"""The checked-in description of the HTTP service is the one that it serves, and says which names are refused."""

import re
from pathlib import Path

import pytest
from pydantic_core import PydanticCustomError

from api.schemas import _NAMES, check_name
from tests.support.openapi import description

DESCRIPTION = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_the_description_in_docs_is_that_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "SUPERVISOR_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    assert DESCRIPTION.read_text() == description(), "review the change, then run `make openapi`"


@pytest.mark.parametrize(
    "name",
    [".", "..", "a/..", "./a", "a/./b", "a\nb", "\x7f", "", "...", "a.b", ".a", "a/.b", "a../b", "eu/orders"],
)
def test_the_description_of_a_name_says_what_is_refused(name: str) -> None:
    described = bool(name) and re.search(_NAMES["pattern"], name) and not re.search(_NAMES["not"]["pattern"], name)
    try:
        check_name(name)
    except PydanticCustomError:
        assert not described
    else:
        assert described
