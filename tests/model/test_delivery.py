"""Messages, workers, keepers and hosts in a world of their own, and no rule of delivery is broken, whatever happens.

The decisions are the product's own, Redis and time are the model. `python -m tests.model` plays many more histories
and shows the rate. One that breaks a rule is printed in its shortest form, and belongs into `corpus.jsonl` once the
fault is mended. MODEL_HISTORIES says how many are played here.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.model.histories import failures, shortened
from tests.model.tasks import GRAVEYARD
from tests.model.world import WEIGHTS, World, play

HISTORIES = int(os.environ.get("MODEL_HISTORIES", "300"))
CORPUS = [json.loads(line) for line in (Path(__file__).parent / "corpus.jsonl").read_text().splitlines()]

whiches, hows = st.integers(0, 11), st.integers(0, 59)


@pytest.mark.parametrize("kept", CORPUS, ids=[kept["why"] for kept in CORPUS])
def test_what_once_broke_a_rule_does_so_no_more(kept: dict[str, Any]) -> None:
    play(kept["moves"], kept["groups"])


@pytest.mark.parametrize("histories", [HISTORIES, pytest.param(10 * HISTORIES, marks=pytest.mark.long)])
def test_random_histories_break_no_rule(histories: int) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    for found, groups, moves, what in failures(seed, histories):
        short = json.dumps({"why": what, "groups": groups, "moves": shortened(moves, groups)})
        pytest.fail(f"seed {found}: {what}; the shortest history that does so:\n{short}")


class Delivery(RuleBasedStateMachine):
    """The same moves, chosen by Hypothesis; in the end the faults stop, and everything must come to rest."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()

    @initialize(groups=st.integers(1, 2))
    def begin(self, groups: int) -> None:
        self.world = World(groups)
        self.stack.enter_context(self.world.time())

    @rule(whiches=st.lists(whiches, min_size=1, max_size=12))
    def steps(self, whiches: list[int]) -> None:
        for which in whiches:
            self.world.play(("step", which, 0))

    @rule(name=st.sampled_from([name for name in WEIGHTS if name != "step"]), which=whiches, how=hows)
    def move(self, name: str, which: int, how: int) -> None:
        self.world.play((name, which, how))

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.world.settle()
        finally:
            self.stack.close()
            GRAVEYARD.clear()


def test_no_history_breaks_a_rule() -> None:
    run_state_machine_as_test(
        Delivery,
        settings=settings(
            max_examples=max(20, HISTORIES // 10),
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
