"""Whether a run of `make contract` has sent bodies of all media types."""

import json
from pathlib import Path

import pytest

from tests.support.contract import sent_all_types


def test_few_examples_need_not_be_of_all_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bodies = tmp_path / "bodies.json"
    bodies.write_text(json.dumps({"application/json": 3}))
    assert sent_all_types(1, bodies, of_all=False)
    assert not sent_all_types(1, bodies, of_all=True)
    assert "no body of type application/cloudevents" in capsys.readouterr().err


def test_a_tool_that_ended_early_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not sent_all_types(2, tmp_path / "none", of_all=False)
    assert "seed 2: Schemathesis ended before" in capsys.readouterr().err
