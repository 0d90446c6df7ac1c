"""Tells people how the pool is getting on: what its start waits for, that it is up, what its end waits for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from supervisor.arbiter import screen
from supervisor.arbiter.services import API, REDIS
from supervisor.core.slot import State
from supervisor.errors import EXIT_OK
from supervisor.log import is_human
from supervisor.settings.masking import masked
from supervisor.settings.paths import redis_url
from supervisor.settings.unused_overrides import unused_overrides
from supervisor.shared_state import SlotField
from supervisor.text import counted

if TYPE_CHECKING:
    from supervisor.arbiter.arbiter import Arbiter

#: A start or an end that takes longer is explained.
PATIENCE_S = 1.0
#: What is in hand is mostly finished at once.
DRAIN_PATIENCE_S = 0.3


class Announcer:
    """Says each thing once."""

    def __init__(self, arbiter: Arbiter) -> None:
        """Speaks for `arbiter`."""
        self._arbiter = arbiter

    # The beginning

    def warn(self) -> None:
        """Tell of settings that nobody reads."""
        arbiter = self._arbiter
        for line in unused_overrides(arbiter.loaded, [(spec.stream, spec.group) for spec in arbiter.specs]):
            arbiter.log.warning(line)

    def booting(self) -> None:
        """The boot check has begun, and may have to wait for Redis."""
        self._arbiter.loop.at(time.monotonic() + PATIENCE_S, self._tell_of_redis)

    def _tell_of_redis(self) -> None:
        if not self._arbiter.redis and not self._arbiter.shutdown.begun:
            settings = self._arbiter.settings
            url, limit_s = masked(redis_url(settings)), settings.redis.connect_timeout_s
            sentence = f"waiting for Redis at {url}, at most {limit_s:g} s"
            self._say(sentence, "waiting for Redis", url=url, limit_s=limit_s)

    def begin(self) -> None:
        """The first workers are about to start. A burst may be over before all are READY, so it is shown now."""
        if self._arbiter.burst:
            self._show(0, self._arbiter.settings.pool.first_workers)

    def look(self) -> None:
        """Show the screen when all workers are READY for the first time."""
        slots = self._arbiter.pool.slots
        if slots and all(slot.state is State.READY for slot in slots.values() if slot.wanted):
            self.show()

    def show(self) -> None:
        """Show the screen with as many workers as are READY, until all have been."""
        arbiter = self._arbiter
        if arbiter.began or arbiter.shutdown.begun:
            return
        ready = sum(slot.state is State.READY for slot in arbiter.pool.slots.values())
        arbiter.began = ready == arbiter.pool.size
        if arbiter.began:
            arbiter.systemd.ready()
        if not arbiter.burst:
            self._show(ready, arbiter.pool.size)

    def _show(self, ready: int, workers: int) -> None:
        arbiter = self._arbiter
        facts = screen.Facts(
            redis=arbiter.redis,
            embedded=arbiter.services.get(REDIS) is not None,
            ready=ready,
            workers=workers,
            boot_ms=round((time.monotonic() - arbiter.began_s) * 1000),
            api=arbiter.services.get(API) is not None,
            burst=arbiter.burst,
        )
        screen.show(arbiter.loaded, arbiter.specs, facts, arbiter.log)

    # The end

    def draining(self, why: str, limit_s: float) -> None:
        """The pool is told to leave within `limit_s`."""
        arbiter = self._arbiter
        if not arbiter.shutdown.begun:
            arbiter.loop.at(time.monotonic() + DRAIN_PATIENCE_S, lambda: self._tell_of_work(limit_s))
        arbiter.log.info("draining", why=why, workers=len(arbiter.pool.living) or None)

    def _tell_of_work(self, limit_s: float) -> None:
        pool = self._arbiter.pool
        in_hand = [
            pool.shared.slot(slot.number).get(SlotField.IN_FLIGHT) for slot in pool.living if not slot.kill_reason
        ]
        workers, messages = sum(map(bool, in_hand)), sum(in_hand)
        if workers:
            sentence = (
                f"waiting for {counted(workers, 'worker')} ({counted(messages, 'message')}), at most {limit_s:g} s;"
                " Ctrl-C again ends at once"
            )
            self._say(sentence, "waiting for workers", workers=workers, messages=messages, limit_s=limit_s)

    def stopped(self, code: int) -> None:
        """The last child is gone."""
        left = "some messages were not finished: they stay pending for the next start"
        self._arbiter.log.info("stopped", left=None if code == EXIT_OK else left)

    def _say(self, sentence: str, event: str, **fields: Any) -> None:
        """The sentence for people; for programs an event of one name and its fields."""
        if is_human(self._arbiter.settings):
            self._arbiter.log.info(sentence)
        else:
            self._arbiter.log.info(event, **fields)
