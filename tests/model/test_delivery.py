"""Real workers and keepers on two hosts, in a world of their own, and no rule of delivery is broken, whatever happens.

Redis, the network, time and chance are the model; all that handles messages is the product. `python -m tests.model`
plays many more histories and shows the rate. One that breaks a rule is printed in its shortest form, and belongs in
`corpus.jsonl` once the fault is mended. MODEL_HISTORIES says how many are played here.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.model.histories import failures, history, shortened
from tests.model.moves import play

HISTORIES = int(os.environ.get("MODEL_HISTORIES", "6"))
_MORE_HISTORIES = 96
_FILE = Path(__file__).parent / "corpus.jsonl"
CORPUS = [json.loads(line) for line in _FILE.read_text().splitlines()]


@pytest.mark.parametrize("kept", CORPUS, ids=[kept["why"] for kept in CORPUS])
def test_what_once_broke_a_rule_does_so_no_more(kept: dict[str, Any]) -> None:
    play(kept["seed"], kept["kinds"], kept["moves"])


# A history that breaks a rule is shown in its shortest form, which takes minutes to find.
@pytest.mark.timeout(900)
def test_histories_break_no_rule() -> None:
    """The same ones each time: what fails here is what was changed last."""
    _play(0, HISTORIES)


@pytest.mark.timeout(900)
@pytest.mark.long
def test_more_histories_break_no_rule() -> None:
    """The same ones each time, too: `python -m tests.model` plays others, for as long as it is left to."""
    _play(HISTORIES, _MORE_HISTORIES)


def _play(seed: int, histories: int) -> None:
    for found, what in failures(seed, histories):
        short = json.dumps({"why": what, **shortened(**found)})
        pytest.fail(f"seed {found['seed']}: {what}; the shortest history that does so:\n{short}")


def test_a_history_is_the_same_each_time() -> None:
    seen = [play(**history(seed=9)) for _ in range(2)]
    assert seen[0].server.calls == seen[1].server.calls
    assert seen[0].clock.now_s == seen[1].clock.now_s
