"""Scales the pool with the backlog that the keeper counts; `core.autoscale` decides."""

import time
from typing import Any

from supervisor.arbiter.rolling_restart import RollingRestart
from supervisor.arbiter.worker_group import WorkerGroup
from supervisor.core.autoscale import Bounds, Trend, clear_time_s, decide
from supervisor.core.liveness import NS
from supervisor.settings.model import PoolSettings
from supervisor.shared_state import HeaderField, SlotField

#: An older backlog count is ignored.
BACKLOG_FRESH_S = 10.0
#: The weight of the newest second in the completion rate.
_SMOOTHING = 0.3


class Autoscaler:
    """Does nothing unless a range of workers is configured."""

    def __init__(
        self, workers: WorkerGroup, restarts: RollingRestart, settings: PoolSettings, log: Any, *, enabled: bool = True
    ) -> None:
        self._workers = workers
        self._restarts = restarts
        self._log = log
        self._bounds: Bounds | None = None
        if settings.workers_max and enabled:
            self._bounds = Bounds(settings.workers_min, settings.workers_max, settings.backlog_limit_s)
        self._trend = Trend()
        self._done: tuple[float, int] | None = None
        self._done_per_s = 0.0

    def check(self) -> None:
        """Scale the pool if necessary."""
        workers, shared = self._workers, self._workers.shared
        if self._bounds is None or self._restarts.rolling or shared.get(HeaderField.PAUSED):
            return
        now_s = time.monotonic()
        self._measure(now_s)
        backlog_ns = shared.get(HeaderField.BACKLOG_NS)
        if not backlog_ns or now_s - backlog_ns / NS > BACKLOG_FRESH_S:
            return
        backlog = shared.get(HeaderField.BACKLOG)
        clear_s = clear_time_s(backlog, self._done_per_s)
        before = workers.size
        self._trend, wanted = decide(self._trend, before, clear_s, self._bounds, now_s)
        if wanted != before:
            done_per_s = round(self._done_per_s, 1)
            self._log.info("autoscaled", workers=wanted, before=before, backlog=backlog, done_per_s=done_per_s)
            workers.scale(wanted)

    def _measure(self, now_s: float) -> None:
        done = self._workers.shared.total(SlotField.DONE)
        if self._done is not None and now_s > self._done[0]:
            rate = (done - self._done[1]) / (now_s - self._done[0])
            self._done_per_s += _SMOOTHING * (rate - self._done_per_s)
        self._done = now_s, done
