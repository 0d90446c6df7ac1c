"""Random histories, by the thousand; one that breaks a rule is made short."""

import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tests.model.ghosts import BrokenRuleError
from tests.model.handlers import Kind
from tests.model.moves import Move, play

MOVES = 60

#: Move -> how often a random history makes it.
WEIGHTS = {
    "publish": 10,
    "flood": 2,
    "later": 3,
    "commit": 1,
    "kill_relay": 1,
    "step": 50,
    "tick": 12,
    "lose": 6,
    "sever": 2,
    "restart": 1,
    "outage": 1,
    "refuse": 2,
    "accept": 2,
    "lose_group": 1,
    "kill": 4,
    "drain": 3,
    "overrun": 1,
    "scale": 3,
    "retire": 1,
    "pause": 3,
    "kill_arbiter": 1,
    "reboot": 1,
    "stop": 1,
    "start": 3,
    "freeze": 1,
    "cut_off": 1,
    "recover": 3,
    "kill_keeper": 1,
    "replay": 3,
    "release": 1,
    "delete": 1,
}
#: What kinds of handlers there are, each of a group of its own.
HANDLERS: list[list[Kind]] = [
    *(["async"], ["batch"], ["async", "batch"], ["async", "thread"], ["thread"]),
    *(["emit"], ["emit batch", "key"], ["key"], ["key batch"], ["key halt"], ["limit"], ["key limit", "key thread"]),
    *(["rate"], ["key rate"]),
]


def history(seed: int) -> dict[str, Any]:
    """The one of a seed: what `play` takes."""
    chance = random.Random(seed)
    names = chance.choices(list(WEIGHTS), list(WEIGHTS.values()), k=chance.randrange(10, 2 * MOVES))
    moves = [(name, chance.randrange(12), chance.randrange(60)) for name in names]
    return {"seed": seed, "kinds": chance.choice(HANDLERS), "moves": moves}


def broken(seed: int, kinds: Sequence[Kind], moves: Sequence[Move]) -> str:
    """The rule that these break; empty: none."""
    try:
        play(seed, kinds, moves)
    except BrokenRuleError as error:
        return str(error)
    return ""


def shortened(seed: int, kinds: Sequence[Kind], moves: list[Move]) -> dict[str, Any]:
    """A history of a part of the moves that still breaks the same rule, and from which nothing can be left out."""
    rule, size = _kind(broken(seed, kinds, moves)), len(moves)
    while size:
        at = 0
        while at < len(moves):
            fewer = moves[:at] + moves[at + size :]
            if _kind(broken(seed, kinds, fewer)) == rule:
                moves = fewer
            else:
                at += size
        size //= 2
    return {"seed": seed, "kinds": kinds, "moves": moves}


def _kind(rule: str) -> str:
    """Without the ids and names in it."""
    return re.sub(r"b?'[^']*'|\{.*\}|\d+", "", rule)


def failures(first: int, count: int) -> Iterator[tuple[dict[str, Any], str]]:
    """Of `count` seeds from `first` on, the histories that break a rule, and which."""
    for seed in range(first, first + count):
        made = history(seed)
        if what := broken(**made):
            yield made, what
