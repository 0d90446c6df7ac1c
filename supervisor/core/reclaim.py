"""Whose messages may be taken over: those of consumers whose owner is proven to be gone. Pure.

A consumer is named `<pool>:<slot>`. Idle time is never a proof: a worker that waits on an empty stream
looks idle, and a handler that runs for an hour is busy.

Consumers that no pool ever had are somebody else's, and of them nothing can be proven: they are left alone unless
the operator says after what time theirs is given up.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from supervisor.core.records import parse_number
from supervisor.keys import REPLAY_CONSUMER


def owner_of(consumer: str) -> tuple[str, int] | None:
    """(pool, slot) of a consumer that is named as ours are; None: somebody else's."""
    pool, _, slot = consumer.rpartition(":")
    number = parse_number(slot)
    return (pool, number) if pool and number is not None else None


def ownerless(consumers: Iterable[str], own_pool: str, held_slots: Set[int], dead_pools: Set[str]) -> list[str]:
    """The consumers to take from.

    `held_slots`: of the own pool, the slots that have a process or shall have one again. `dead_pools`:
    pools that are known to have lived and hold no lease.
    """
    found = []
    for name in consumers:
        if name == REPLAY_CONSUMER:
            found.append(name)
        owner = owner_of(name)
        if owner is None:
            continue
        pool, slot = owner
        if (pool == own_pool and slot not in held_slots) or (pool != own_pool and pool in dead_pools):
            found.append(name)
    return found


def foreign(consumers: Iterable[str], own_pool: str, known_pools: Set[str]) -> list[str]:
    """The consumers that are not one of ours, nor of one of `known_pools`, which hold a lease or have held one."""
    found = []
    for name in consumers:
        owner = owner_of(name)
        if name != REPLAY_CONSUMER and (owner is None or owner[0] not in known_pools | {own_pool}):
            found.append(name)
    return found
