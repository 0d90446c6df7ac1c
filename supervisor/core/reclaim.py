"""Decides whose messages may be claimed: those of consumers whose owner is proven to be gone. Pure.

A consumer is named `<pool>:<slot>`. Idle time proves nothing: a worker that waits on an empty stream looks idle, and a
handler that runs for an hour is busy.

Consumers that no pool ever had belong to other programs, and nothing can be proven about them: they are left alone
unless the operator sets a time after which their messages are claimed.
"""

from collections.abc import Iterable, Set

from supervisor.core.ids import parse_number


def owner_of(consumer: str) -> tuple[str, int] | None:
    """Return (pool, slot) of a consumer that is named like a pool's; None for another program's."""
    pool, _, slot = consumer.rpartition(":")
    number = parse_number(slot)
    return (pool, number) if pool and number is not None else None


def ownerless(consumers: Iterable[str], own_pool: str, held_slots: Set[int], dead_pools: Set[str]) -> list[str]:
    """Return the consumers to claim from.

    `held_slots`: the own pool's slots that have a process or will get one. `dead_pools`: known pools without a lease.
    """
    orphaned = []
    for name in consumers:
        owner = owner_of(name)
        if owner is None:
            continue
        pool, slot = owner
        if (pool == own_pool and slot not in held_slots) or (pool != own_pool and pool in dead_pools):
            orphaned.append(name)
    return orphaned


def foreign(consumers: Iterable[str], own_pool: str, known_pools: Set[str]) -> list[str]:
    """Return the consumers of other programs: of no pool in `known_pools`, which hold or held a lease."""
    foreign_names = []
    for name in consumers:
        owner = owner_of(name)
        if owner is None or owner[0] not in known_pools | {own_pool}:
            foreign_names.append(name)
    return foreign_names


def foreign_text(claim_after_s: float) -> str:
    """Describe what becomes of messages that a consumer of no pool holds, by `claim_foreign_after_s`."""
    if claim_after_s:
        text = f"they are given to the workers when it has held them for {claim_after_s:g} s"
    else:
        text = "they stay with it, since 0 means never; a time in seconds has them given to the workers after that"
    return f"no pool knows whether that program is alive; {text} ([consumer] claim_foreign_after_s = {claim_after_s:g})"
