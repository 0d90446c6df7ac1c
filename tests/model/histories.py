"""Random histories, by the thousand; one that breaks a rule is made short."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from tests.model.ghosts import BrokenRuleError
from tests.model.world import WEIGHTS, Move, play

MOVES = 70


def history(seed: int) -> list[Move]:
    """The moves of a seed."""
    chance = random.Random(seed)
    names = chance.choices(list(WEIGHTS), list(WEIGHTS.values()), k=chance.randrange(10, 2 * MOVES))
    return [(name, chance.randrange(12), chance.randrange(60)) for name in names]


def broken(moves: list[Move], groups: int) -> str:
    """The rule that these break; empty: none."""
    try:
        play(moves, groups)
    except BrokenRuleError as error:
        return str(error)
    return ""


def shortened(moves: list[Move], groups: int) -> list[Move]:
    """A part of them that still breaks the same rule, from which nothing can be left out."""
    rule, size = _kind(broken(moves, groups)), len(moves)
    while size:
        at = 0
        while at < len(moves):
            fewer = moves[:at] + moves[at + size :]
            if _kind(broken(fewer, groups)) == rule:
                moves = fewer
            else:
                at += size
        size //= 2
    return moves


def _kind(rule: str) -> str:
    """Without the ids and names in it."""
    return re.sub(r"b'[^']*'|\{.*\}|\d+", "", rule)


def failures(first: int, count: int) -> Iterator[tuple[int, int, list[Move], str]]:
    """Of `count` seeds from `first` on those that break a rule: seed, groups, moves, the rule."""
    for seed in range(first, first + count):
        groups = 1 + seed % 2
        moves = history(seed)
        if what := broken(moves, groups):
            yield seed, groups, moves, what
