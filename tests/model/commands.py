"""A Redis server in memory: the commands that the supervisor sends, with the replies of RESP2.

Each is one atomic step, as on a real server. What it does not know it refuses with an AssertionError, so that a new
command of the product is taught here before it is modelled.
"""

from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from supervisor.core.ids import parse_id
from tests.model.group import Stream, bound, written
from tests.model.sets import SetCommands

Argument = bytes | str | int | float
_CLAIM_OPTIONS = (b"IDLE", b"RETRYCOUNT", b"JUSTID", b"FORCE")


def flat(argument: Argument) -> bytes:
    """As it goes over the wire."""
    return argument if isinstance(argument, bytes) else str(argument).encode()


class Commands(SetCommands):
    """All keys, the clock, and the commands."""

    def __init__(self, *, eager: bool = True) -> None:
        """`eager`: see `Stream`."""
        super().__init__()
        self.now_ms = 1_000_000
        self.calls = 0
        #: A server has another id after each start.
        self.starts = 1
        self.streams: dict[bytes, Stream] = {}
        self.hashes: dict[bytes, dict[bytes, bytes]] = {}
        #: Values and when they expire.
        self.strings: dict[bytes, tuple[bytes, float]] = {}
        #: Called for each deleted consumer: group, consumer, how much it still had pending.
        self.deleted: Callable[[bytes, bytes, int], None] = lambda group, consumer, lost: None
        #: Sorted sets that expire, by key: when, and which one it was.
        self.expiring: dict[bytes, tuple[float, dict[bytes, float]]] = {}
        self._eager = eager
        self._commands = {name[4:].upper().encode(): getattr(self, name) for name in dir(self) if name[:4] == "cmd_"}

    def call(self, *command: Argument) -> Any:
        """The reply. Raises ResponseError as a client would."""
        self.calls += 1
        return self._do(*map(flat, command))

    def _do(self, name: bytes, *arguments: bytes) -> Any:
        assert name in self._commands, f"the model does not know {name.decode()}"
        if self.expiring:
            self._expire()
        return self._commands[name](*arguments)

    # Streams

    def stream(self, key: bytes) -> Stream:
        """Raises ResponseError where there is none."""
        if key not in self.streams:
            raise ResponseError("NOGROUP No such key")
        return self.streams[key]

    def cmd_xadd(self, key: bytes, entry: bytes, *pairs: bytes) -> bytes:
        stream = self.streams.setdefault(key, Stream(eager=self._eager))
        if entry == b"MAXLEN":  # approximate: no history has so many
            entry, pairs = pairs[2], pairs[3:]
        if entry == b"*":
            ms, seq = stream.last
            return stream.add((self.now_ms, 0) if self.now_ms > ms else (ms, seq + 1), list(pairs))
        return stream.add(parse_id(entry), list(pairs))

    def cmd_xdel(self, key: bytes, *ids: bytes) -> int:
        return self.streams[key].delete([parse_id(entry) for entry in ids]) if key in self.streams else 0

    def cmd_xtrim(self, key: bytes, kind: bytes, exact: bytes, floor: bytes) -> int:
        assert (kind, exact) == (b"MINID", b"=")
        return self.streams[key].trim(bound(floor)) if key in self.streams else 0

    def cmd_xlen(self, key: bytes) -> int:
        return len(self.streams[key].entries) if key in self.streams else 0

    def cmd_xrange(self, key: bytes, start: bytes, end: bytes, *count: bytes) -> list[Any]:
        if key not in self.streams:
            return []
        stream, most = self.streams[key], int(count[1]) if count else None
        return [[written(entry), stream.entries[entry]] for entry in stream.range(bound(start), bound(end, end=True))][
            :most
        ]

    def cmd_xgroup(self, verb: bytes, key: bytes, group: bytes, *rest: bytes) -> Any:
        if verb == b"CREATE":
            stream = self.streams.setdefault(key, Stream(eager=self._eager))
            stream.create_group(group, stream.last if rest[0] == b"$" else bound(rest[0]))
            return b"OK"
        stream = self.stream(key)
        if verb == b"DESTROY":
            return int(stream.groups.pop(group, None) is not None)
        if verb == b"CREATECONSUMER":
            new = rest[0] not in stream.group(group).consumers
            stream.group(group).consumers.add(rest[0])
            return int(new)
        assert verb == b"DELCONSUMER", verb
        lost = stream.delete_consumer(group, rest[0])
        self.deleted(group, rest[0], lost)
        return lost

    def cmd_xreadgroup(self, _: bytes, name: bytes, consumer: bytes, *rest: bytes) -> Any:
        """Return what is there now; a caller that waits for more (BLOCK) asks again."""
        at = rest.index(b"STREAMS")
        options = dict(zip(rest[:at:2], rest[1:at:2], strict=True))
        half = (len(rest) - at - 1) // 2
        count, asked = int(options.get(b"COUNT", 0)), list(zip(rest[at + 1 : -half], rest[-half:], strict=True))
        for key, _start in asked:
            self.stream(key).group(name)
        found = []
        for key, start in asked:
            if start == b">":
                entries = self.streams[key].read_new(name, consumer, count, self.now_ms)
            else:
                entries = self.streams[key].read_own(name, consumer, bound(start), count, self.now_ms)
            if entries or start != b">":
                found.append([key, entries])
        return found or None

    def cmd_xack(self, key: bytes, group: bytes, *ids: bytes) -> int:
        return self.streams[key].ack(group, [parse_id(entry) for entry in ids]) if key in self.streams else 0

    def cmd_xclaim(self, key: bytes, group: bytes, consumer: bytes, min_idle: bytes, *rest: bytes) -> list[Any]:
        stream = self.stream(key)
        words = [flat(word).upper() for word in rest]
        at = next((at for at, word in enumerate(words) if word in _CLAIM_OPTIONS), len(words))
        claimed = stream.claim(
            group,
            consumer,
            [parse_id(entry) for entry in rest[:at]],
            self.now_ms,
            min_idle_ms=int(min_idle),
            idle_ms=int(words[words.index(b"IDLE") + 1]) if b"IDLE" in words else 0,
            force=b"FORCE" in words,
            justid=b"JUSTID" in words,
            times=int(words[words.index(b"RETRYCOUNT") + 1]) if b"RETRYCOUNT" in words else None,
        )
        if b"JUSTID" in words:
            return [written(entry) for entry in claimed]
        return [[written(entry), stream.entries[entry]] for entry in claimed]

    def cmd_xpending(self, key: bytes, name: bytes, *rest: bytes) -> list[Any]:
        group = self.stream(key).group(name)
        if not rest:
            return self._pending_in_all(group)
        idle_ms = 0
        if rest[0].upper() == b"IDLE":
            idle_ms, rest = int(rest[1]), rest[2:]
        start, end, count, *consumer = rest
        found = []
        for entry in group.pending.between(bound(start), bound(end, end=True)):
            held = group.pending[entry]
            if self.now_ms - held.since_ms >= idle_ms and consumer in ([], [held.consumer]):
                found.append([written(entry), held.consumer, max(0, self.now_ms - held.since_ms), held.times])
        return found[: int(count)]

    @staticmethod
    def _pending_in_all(group: Any) -> list[Any]:
        if not group.pending:
            return [0, None, None, None]
        counts = [[name, flat(len(group.of(name)))] for name in sorted(group.consumers) if group.of(name)]
        return [len(group.pending), written(group.pending.order[0]), written(group.pending.order[-1]), counts]

    def cmd_xinfo(self, what: bytes, key: bytes, *name: bytes) -> Any:
        """As dicts; of what the supervisor looks at, and no idle times (see `test_conformance.py`)."""
        if key not in self.streams:
            raise ResponseError("no such key")
        stream = self.streams[key]
        if what == b"CONSUMERS":
            group = stream.group(name[0])
            return [{b"name": of, b"pending": len(group.of(of))} for of in sorted(group.consumers)]
        if what == b"STREAM":  # as before Redis 7.0, which does not say how many entries were added
            return {b"length": len(stream.entries), b"last-generated-id": written(stream.last)}
        assert what == b"GROUPS", what
        return [
            {
                b"name": of,
                b"consumers": len(group.consumers),
                b"pending": len(group.pending),
                b"last-delivered-id": written(group.last),
            }
            for of, group in sorted(stream.groups.items())
        ]

    # Hashes and strings

    def cmd_hset(self, key: bytes, *pairs: bytes) -> int:
        held = self.hashes.setdefault(key, {})
        new = [name for name in pairs[::2] if name not in held]
        held.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(set(new))

    def cmd_hget(self, key: bytes, name: bytes) -> bytes | None:
        return self.hashes.get(key, {}).get(name)

    def cmd_hrandfield(self, key: bytes, count: bytes, *how: bytes) -> list[bytes]:
        """The first ones: a history is the same each time."""
        found = sorted(self.hashes.get(key, {}).items())[: int(count)]
        return [word for field, value in found for word in ([field, value] if how else [field])]

    def cmd_hmget(self, key: bytes, *names: bytes) -> list[bytes | None]:
        return [self.hashes.get(key, {}).get(name) for name in names]

    def cmd_hkeys(self, key: bytes) -> list[bytes]:
        return list(self.hashes.get(key, {}))

    def cmd_hgetall(self, key: bytes) -> dict[bytes, bytes]:
        return dict(self.hashes.get(key, {}))

    def cmd_hdel(self, key: bytes, *names: bytes) -> int:
        held = self.hashes.get(key, {})
        return sum(held.pop(name, None) is not None for name in names)

    def cmd_hincrby(self, key: bytes, name: bytes, amount: bytes) -> int:
        held = self.hashes.setdefault(key, {})
        held[name] = flat(int(held.get(name, 0)) + int(amount))
        return int(held[name])

    def cmd_get(self, key: bytes) -> bytes | None:
        value, expires_ms = self.strings.get(key, (None, 0))
        return value if expires_ms > self.now_ms else None

    def cmd_set(self, key: bytes, value: bytes, *how: bytes) -> bytes | None:
        if b"NX" in how and self.cmd_get(key) is not None:
            return None
        self.strings[key] = value, self.now_ms + int(how[how.index(b"PX") + 1]) if b"PX" in how else float("inf")
        return b"OK"

    def cmd_exists(self, *keys: bytes) -> int:
        return sum(self._is_there(key) for key in keys)

    def _is_there(self, key: bytes) -> bool:
        held = (self.streams, self.sorted_sets, self.sets)
        return self.cmd_get(key) is not None or bool(self.hashes.get(key)) or any(key in kind for kind in held)

    def cmd_expire(self, key: bytes, seconds: bytes) -> int:
        """Only sorted sets expire: no history is as long as what the supervisor asks for other keys."""
        if key in self.sorted_sets:
            self.expiring[key] = self.now_ms + 1000 * int(seconds), self.sorted_sets[key]
        return self.cmd_exists(key)

    def cmd_persist(self, key: bytes) -> int:
        return int(self.expiring.pop(key, None) is not None)

    def _expire(self) -> None:
        for key, (expires_ms, members) in list(self.expiring.items()):
            if self.now_ms >= expires_ms:
                del self.expiring[key]
                if self.sorted_sets.get(key) is members:  # else it was removed, and made again without an end
                    del self.sorted_sets[key]

    def cmd_time(self) -> list[bytes]:
        return [flat(self.now_ms // 1000), flat(self.now_ms % 1000 * 1000)]

    def cmd_ping(self) -> bytes:
        return b"PONG"

    def cmd_info(self, _: bytes) -> dict[str, Any]:
        return {"run_id": f"start {self.starts}", "server_time_usec": self.now_ms * 1000}

    def cmd_del(self, key: bytes) -> int:
        found = self.cmd_exists(key)
        for kind in (self.strings, self.streams, self.hashes, self.sorted_sets, self.sets):
            kind.pop(key, None)  # type: ignore[attr-defined]
        return found
