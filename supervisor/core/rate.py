"""Rates: how many messages may start in a time, spread evenly (GCRA). Pure; `reserve_rate.lua` reserves."""

from typing import NamedTuple

from supervisor.values import seconds_of

#: The starts of this time may come at once, and at least one: what arrives unevenly would otherwise fall short of it.
BURST_S = 0.1


class Rate(NamedTuple):
    """A rate in the terms of GCRA."""

    #: The time that a cost of 1 takes.
    interval_us: float
    #: How far the theoretical arrival time may be ahead of now.
    tolerance_us: float


def parse_rate(text: str) -> Rate:
    """Return the rate of `"100/m"`, which `settings.model.RATE` has checked."""
    count, _, unit = text.partition("/")
    interval_us = seconds_of(f"1{unit}") * 1e6 / int(count)
    return Rate(interval_us, max(0.0, BURST_S * 1e6 - interval_us))
