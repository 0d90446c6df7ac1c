"""The checked-in description of the HTTP service is the one that it serves."""

from pathlib import Path

import pytest

from tests.support.openapi import description

DESCRIPTION = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_the_description_in_docs_is_that_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "SUPERVISOR_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    assert DESCRIPTION.read_text() == description(), "review the change, then run `make openapi`"
