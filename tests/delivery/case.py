"""The frame of a delivery case: a server, a pool under an open load, one fault, and the check of the end.

A case starts it all, brings about its fault at a moment that its seed decides, proves that the fault
happened (`struck`), and calls `finish` with what may be duplicated and how soon all must be well
again. What is never allowed (a loss, an effect from nowhere, a message left pending) is not asked for.
"""

import contextlib
import json
import math
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import redis as redis_py

from supervisor.keys import crashes_key, dead_key, retries_key
from tests.delivery.checker import Verdict, check, few, recovery_ms
from tests.delivery.open_loop_producer import Load
from tests.delivery.recorder import Recording, recording
from tests.delivery.setting import GROUP, HOST, STREAM, Setting
from tests.support.faults import MS_OF, Watch, scaled
from tests.support.pool import Pool
from tests.support.servers import RedisServer, default_flavour
from tests.support.waiting import eventually

#: A message that was acknowledged longer ago than this is overdue.
OVERDUE_MS = 250.0
DRAIN_LIMIT_S = 40.0
#: The messages that must become dead letters: in every group the same, or group by group.
Dead = Collection[int] | Mapping[str, Collection[int]]
Keep = Callable[[dict[str, Any]], None]


class Case:
    """One run of one case with one seed."""

    def __init__(self, name: str, folder: Path, seed: int, load_s: float, setting: Setting, keep: Keep) -> None:
        """Makes the server and the pool's folder; starts no pool. `keep` gets the row for the table."""
        self.name, self.seed, self.setting, self._keep = name, seed, setting, keep
        self.rng = random.Random(seed)
        self.load_s = setting.load_s or load_s
        self.server = RedisServer(
            default_flavour(), appendonly=setting.appendonly, tcp=setting.tcp, options=setting.server_options
        )
        self.url = self.server.tcp_url if setting.tcp else self.server.url
        self.redis: redis_py.Redis = self.server.sync()
        self._folder = folder
        self.watch = Watch()
        #: Each fault that was proved to have happened, and when.
        self.faults: list[tuple[str, int]] = []
        self.pool: Pool
        self.load: Load

    @property
    def started_ms(self) -> float:
        """How long the longest start of the pool took, as a measure of this machine under its present load."""
        return self.pool.started_ms

    # Before the fault

    def start(self, *, pool_url: str = "", load_url: str = "") -> "Case":
        """Start pool and load; with URLs of their own where one of them goes through a proxy."""
        self.start_pool(pool_url)
        self.start_load(load_url)
        return self

    def start_pool(self, url: str = "", *, ready: bool = True) -> Pool:
        """Start the pool alone."""
        setting = self.setting
        self.pool = Pool(
            self._folder / "project", setting.handlers, redis_url=url or self.url, workers=setting.workers,
            config=setting.config, api=setting.api, env=setting.env,
        )  # fmt: skip
        self.watch.add(self.pool)
        self.pool.start(ready=ready)
        if ready:
            self.watch.measure(self.pool)
        return self.pool

    def start_load(self, url: str = "") -> Load:
        """Start the load, and wait until some of it was handled."""
        self.load = self._make_load(url)
        self.load.start()
        eventually(lambda: self.recording().ends, what="something is handled")
        return self.load

    def publish(self, count: int) -> None:
        """Publish `count` messages at once instead of a load."""
        self.load = self._make_load("")
        self.load.publish(count)

    def _make_load(self, url: str) -> Load:
        setting = self.setting
        return Load(
            url or self.url, self.seed, setting.rate, self.load_s, work_ms=setting.work_ms, fields=setting.fields
        )

    def moment(self, share_min: float = 0.2, share_max: float = 0.5) -> None:
        """Wait for the seed's moment between these shares of the load's time."""
        self.until(self.rng.uniform(share_min, share_max) * self.load_s)

    def until(self, elapsed_s: float) -> None:
        """Wait until the load has been running for that long."""
        self.load.wait_until(elapsed_s)

    def busy_slot(self, in_hand: int = 1) -> int:
        """One of the slots, chosen by the seed, as soon as its worker has at least `in_hand` messages pending."""
        slots = sorted(self.pool.pids())
        self.rng.shuffle(slots)

        def found() -> list[int]:
            pending = self.pending()
            return [slot for slot in slots if pending.get(f"{HOST}:{slot}", 0) >= in_hand]

        return eventually(found, interval_s=0.001, what=f"a worker has {in_hand} messages in hand")[0]

    # The fault

    def struck(self, what: str, proof: object, at_ns: int | None = None) -> None:
        """This fault happened: `proof` must be true. Its time is now, or `at_ns`."""
        assert proof, f"the fault did not happen: {what}"
        self.faults.append((what, time.monotonic_ns() if at_ns is None else at_ns))

    def check(self, what: str, value: float, bound: float, unit: str = "ms") -> None:
        """Keep this for the table of what was measured, and fail when it is beyond the bound.

        A time is compared with the start of the case's own pool, see `scaled`.
        """
        bound = self._scaled(bound * MS_OF[unit]) / MS_OF[unit] if unit in MS_OF else bound
        self._keep({"case": self.name, "seed": self.seed, "what": what, "value": value, "bound": bound, "unit": unit})
        assert value <= bound, f"{what}: {value:.3g} {unit}, beyond {bound:g}"

    def figure(self, what: str, value: float, unit: str) -> None:
        """Keep this for the table: it depends on what else this machine does, so it has no bound."""
        self._keep({"case": self.name, "seed": self.seed, "what": what, "value": value, "bound": None, "unit": unit})

    def _scaled(self, bound_ms: float) -> float:
        return scaled(bound_ms, self.started_ms) if self.started_ms else math.inf

    # Looking

    def recording(self, group: str = GROUP) -> Recording:
        """What the handlers of a group did so far."""
        return recording(self._folder / "project", group)

    def pending(self, group: str = GROUP) -> dict[str, int]:
        """Consumer -> how many messages it has pending."""
        found: Any = self.redis.xinfo_consumers(STREAM, group)
        return {consumer["name"].decode(): consumer["pending"] for consumer in found}

    def dead(self, group: str = GROUP) -> list[int]:
        """The numbers of the dead letters."""
        found: Any = self.redis.xrange(dead_key(STREAM, group))
        return [int(letter[b"field:n"]) for _, letter in found]

    def letters(self, group: str = GROUP) -> list[dict[str, str]]:
        """The dead letters."""
        found: Any = self.redis.xrange(dead_key(STREAM, group))
        return [{key.decode(): value.decode(errors="replace") for key, value in letter.items()} for _, letter in found]

    # The end

    def drained(self, group: str = GROUP) -> bool:
        """Whether all that was ever added has been delivered and settled."""
        found: Any = self.redis.xinfo_groups(STREAM)
        [row] = [row for row in found if row["name"] == group.encode()]
        behind = row["lag"]
        if behind is None:  # entries were deleted: the server can't tell any more
            last: Any = self.redis.xinfo_stream(STREAM)
            behind = row["last-delivered-id"] != last["last-generated-id"]
        return row["pending"] == 0 and not behind

    def finish(
        self, *, repeated_max: int, recover_ms: float | None = None, dead: Dead = (), exit_code: int = 0,
        errors: Sequence[str] = (), faultless: bool = False, drain_limit_s: float = DRAIN_LIMIT_S,
    ) -> dict[str, Verdict]:  # fmt: skip
        """Wait for the load's end and the drain, check everything, stop the pool; group -> verdict.

        `dead` are the messages that must become dead letters, `errors` texts of lines that the log may have
        at level error or with a traceback. The pool is stopped with SIGTERM and must leave with `exit_code`;
        a case that has stopped it already is not drained any further.
        """
        assert faultless or self.faults, "a case without a fault proves nothing"
        self.load.join()
        planned = dead if isinstance(dead, Mapping) else dict.fromkeys(self.setting.groups, dead)
        try:
            self._wait_drained(drain_limit_s)
        finally:
            # Counted in any case: lost messages explain more than a drain that did not end.
            verdicts = {
                group: self._judge(group, repeated_max, recover_ms, planned[group]) for group in self.setting.groups
            }
        for group, verdict in verdicts.items():
            self._assert_verdict(group, verdict, repeated_max, recover_ms, planned[group])
            self._assert_settled(group)
        self._assert_log(errors)
        if self.pool.process is not None:
            self.watch.assert_flat()
            assert self.pool.stop() == exit_code
        self.watch.assert_ended()
        return verdicts

    def close(self) -> None:
        """End everything, however it stands."""
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(self.server.close)
                stack.callback(self.redis.close)
                if hasattr(self, "pool"):
                    stack.callback(self.pool.close)
                if hasattr(self, "load"):
                    stack.callback(self.load.end)
        finally:
            self._keep_history()

    def _wait_drained(self, limit_s: float) -> None:
        def all_drained() -> bool:
            if self.pool.process is None:
                return True
            code = self.pool.exit_code()
            assert code is None, f"the pool left with {code}"
            return all(self.drained(group) for group in self.setting.groups)

        eventually(all_drained, limit_s, 0.02, what="all that was published is settled")

    def _judge(self, group: str, repeated_max: int, recover_ms: float | None, dead: Collection[int]) -> Verdict:
        did = self.recording(group)
        verdict = check(self.load.attempts, did.starts, did.ends, self.dead(group), dead)
        self._keep(
            {
                "case": self.name if len(self.setting.groups) == 1 else f"{self.name} {group}",
                "seed": self.seed,
                "attempts": verdict.attempts,
                "acked": verdict.acked,
                "done": verdict.done,
                "lost": len(verdict.lost),
                "unexpected": len(verdict.unexpected),
                "duplicated": sum(verdict.duplicated.values()),
                "repeated": sum(verdict.repeated.values()),
                "repeated_max": repeated_max,
                "recovered": len(verdict.recovered),
                "dead": verdict.dead,
                "recovery_ms": self.recovery_ms(group, dead) if recover_ms is not None else None,
                "recovery_ms_max": None if recover_ms is None else self._scaled(recover_ms),
                "waits_ms": [verdict.wait_ms(share) for share in (0.5, 0.99, 1.0)],
            }
        )
        return verdict

    def recovery_ms(self, group: str = GROUP, dead: Collection[int] = ()) -> float:
        """The time from the last fault until nothing was overdue."""
        fault_ns = max((at_ns for _, at_ns in self.faults), default=self.load.began_ns)
        return recovery_ms(self.load.attempts, self.recording(group).ends, fault_ns, OVERDUE_MS, dead)

    def _assert_verdict(
        self, group: str, verdict: Verdict, repeated_max: int, recover_ms: float | None, dead: Collection[int]
    ) -> None:
        assert not verdict.lost, f"lost in {group}: {few(verdict.lost)}"
        assert not verdict.unexpected, f"unexpected in {group}: {few(verdict.unexpected)}"
        repeated = sum(verdict.repeated.values())
        assert repeated <= repeated_max, f"{repeated} repeated in {group}, beyond {repeated_max}"
        if recover_ms is not None:
            took_ms = self.recovery_ms(group, dead)
            limit_ms = self._scaled(recover_ms)
            assert took_ms <= limit_ms, f"recovered after {took_ms:.0f} ms, beyond {limit_ms:.0f}"

    def _assert_settled(self, group: str) -> None:
        if self.pool.process is not None:
            live = {f"{HOST}:{slot}" for slot in self.pool.pids()}
            left = eventually(
                lambda: set(self.pending(group)) <= live, what=f"no consumer is left but {live} in {group}"
            )
            assert left
        for key in (retries_key(STREAM, group), crashes_key(STREAM, group)):
            found: Any = self.redis.hgetall(key)
            assert not found, f"{key} still has {found}"

    def _assert_log(self, errors: Sequence[str]) -> None:
        lines = (self._folder / "project" / "err").read_text(errors="replace").splitlines()
        # Each fault of Redis or its network may be an outage for the pool.
        expected = (*errors, '"event": "Redis unavailable"')
        bad = [line for line in lines if is_error(line) and not any(text in line for text in expected)]
        assert not bad, "\n".join(bad[:10])

    def _keep_history(self) -> None:
        """Written beside the handlers' own files, to examine a case that failed."""
        if hasattr(self, "load"):
            with (self._folder / "attempts").open("w") as file:
                for n, at_ns in self.load.attempts.items():
                    file.write(f"{n} {self.load.ids.get(n, '-')} {at_ns or '-'} {json.dumps(self.load.sent[n])}\n")
            print(f"{self.name}: seed {self.seed}, faults {[what for what, _ in self.faults]}, {self.load.errors}")


def is_error(line: str) -> bool:
    """Whether a line of the log reports an error that no fault explains."""
    if "Traceback (most recent call last)" in line:
        return True
    with contextlib.suppress(ValueError):
        said = json.loads(line)
        return isinstance(said, dict) and said.get("level") in {"error", "critical"}
    return False
