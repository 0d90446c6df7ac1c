"""Finds the server of a key: the master that Sentinel names, or the cluster node that owns the key's slot.

1. A route is asked at each connect; no part of the topology is cached that could be out of date.
2. With Sentinel, open connections are watched: Sentinel demotes an old master only seconds after it has named
   a new one, and everything written to the old one in between is lost. So connections to it are dropped at once.

redis-py's own Sentinel client would do for the first of these, but it needs the right to list all masters and
does not say why it found none.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakSet

from redis.asyncio.connection import Connection
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from supervisor.broker.redis_errors import REDIS_FAULTS
from supervisor.settings.redis_url import netloc

#: Time limit for one sentinel or node to answer before the next is asked.
ASK_LIMIT_S = 1.0
#: Interval at which Sentinel is asked whether the master is still the same.
WATCH_S = 0.25


class Address(NamedTuple):
    """Host and port of a server."""

    host: str
    port: int


class SlotRange(NamedTuple):
    """A range of slots, both ends included, and the node that owns it."""

    first: int
    last: int
    owner: Address


class Watched(Protocol):
    """A connection that a route can end when its server is no longer the right one."""

    @property
    def is_connected(self) -> bool:
        """Whether there is anything to end."""

    def leave_unless_at(self, address: Address) -> None:
        """Drop the connection unless it goes to `address`."""


@dataclass(frozen=True, slots=True)
class FixedRoute:
    """One server for all keys; its host name is resolved at each connect."""

    address: Address

    async def find(self, key: str, moved_to: Address | None) -> Address:
        """Return the address."""
        return self.address

    def watch(self, connection: Watched) -> None:
        """Do nothing: there is no other server."""


class FirstResponder:
    """Asks several servers in turn until one answers, and stays connected to that one."""

    def __init__(self, hosts: Iterable[Address], kind: type[Connection], options: dict[str, Any]) -> None:
        """Prepare one connection for each host; `options` are redis-py's, without host and port."""
        self._connections = [kind(**{**options, "host": host, "port": port}) for host, port in hosts]

    async def ask(self, *command: str) -> tuple[Address, Any]:
        """Return the server that answered and its reply, which is not None. Raises redis-py's errors without one."""
        failures: list[tuple[Connection, Exception | str]] = []
        for at, connection in enumerate(self._connections):
            try:
                async with asyncio.timeout(ASK_LIMIT_S):
                    await connection.connect()
                    await connection.send_command(*command)
                    reply = await connection.read_response()
            except REDIS_FAULTS as error:
                await connection.disconnect(nowait=True)
                failures.append((connection, error))
                continue
            if reply is not None:
                self._connections.insert(0, self._connections.pop(at))
                return Address(connection.host, connection.port), reply
            failures.append((connection, "knows none"))
        raise _no_answer(failures)

    async def close(self) -> None:
        """Disconnect."""
        for connection in self._connections:
            await connection.disconnect(nowait=True)


def _no_answer(failures: Sequence[tuple[Connection, Exception | str]]) -> Exception:
    text = "; ".join(
        f"{netloc(connection.host, connection.port)}: {error or 'no answer in time'}" for connection, error in failures
    )
    # A refusal keeps its class, so that its permanent cause is recognized.
    refusal = next((error for _, error in failures if isinstance(error, AuthenticationError | ResponseError)), None)
    return type(refusal)(text) if refusal is not None else RedisConnectionError(text)


class SentinelRoute:
    """The master that Sentinel names, for all keys."""

    def __init__(self, hosts: Sequence[Address], master: str, kind: type[Connection], options: dict[str, Any]) -> None:
        """Ask the sentinels `hosts`; `options` are those of connections to them."""
        self._hosts = hosts
        self._master = master
        self._kind = kind
        self._options = options
        self._watchers: WeakKeyDictionary[asyncio.AbstractEventLoop, _MasterWatcher] = WeakKeyDictionary()

    async def find(self, key: str, moved_to: Address | None) -> Address:
        """Return the master that the first responding sentinel names. Raises redis-py's errors."""
        sentinels = self.sentinels()
        try:
            return await self.master(sentinels)
        finally:
            await sentinels.close()

    def watch(self, connection: Watched) -> None:
        """Drop the connection when Sentinel names another master."""
        loop = asyncio.get_running_loop()
        watcher = self._watchers.get(loop)
        if watcher is None:
            watcher = self._watchers[loop] = _MasterWatcher(self)
        watcher.add(connection)

    def sentinels(self) -> FirstResponder:
        """Return a responder for the sentinels, not yet connected."""
        return FirstResponder(self._hosts, self._kind, self._options)

    async def master(self, sentinels: FirstResponder) -> Address:
        """Ask which master Sentinel names now. Raises redis-py's errors."""
        try:
            _, (host, port) = await sentinels.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._master)
        except RedisConnectionError as error:
            if isinstance(error, AuthenticationError):
                raise
            raise RedisConnectionError(f"no sentinel names a master {self._master!r}: {error}") from None
        return Address(host.decode(), int(port))


class _MasterWatcher:
    """Polls Sentinel while there are connections to watch; belongs to one event loop."""

    def __init__(self, route: SentinelRoute) -> None:
        self._route = route
        self._connections: WeakSet[Watched] = WeakSet()
        self._task: asyncio.Task[None] | None = None

    def add(self, connection: Watched) -> None:
        self._connections.add(connection)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        sentinels = self._route.sentinels()
        try:
            while any(connection.is_connected for connection in self._connections):
                await asyncio.sleep(WATCH_S)
                try:
                    master = await self._route.master(sentinels)
                except REDIS_FAULTS:  # reported by the next connection that is made
                    continue
                for connection in list(self._connections):
                    connection.leave_unless_at(master)
        finally:
            self._task = None
            await sentinels.close()


class ClusterRoute:
    """The cluster node that owns the key's slot."""

    def __init__(self, hosts: Sequence[Address], kind: type[Connection], options: dict[str, Any]) -> None:
        """Ask the nodes, of which `hosts` are some; `options` are those of connections to them."""
        self._seeds = hosts
        self._known: list[Address] = []
        self._kind = kind
        self._options = options

    async def find(self, key: str, moved_to: Address | None) -> Address:
        """Return `moved_to`, or else the owner as the first responding node says. Raises redis-py's errors.

        `moved_to` was named by a MOVED reply; other nodes may not know of it yet.
        """
        return moved_to or slot_owner(await self.slots(), key)

    async def slots(self) -> list[SlotRange]:
        """Return which node owns which slots. Raises redis-py's errors when no node answers."""
        nodes = FirstResponder(dict.fromkeys((*self._known, *self._seeds)), self._kind, self._options)
        try:
            asked, reply = await nodes.ask("CLUSTER", "SLOTS")
        finally:
            await nodes.close()
        found = [SlotRange(first, last, _address(node, asked)) for first, last, node, *_ in reply]
        self._known = list(dict.fromkeys(slots.owner for slots in found))
        return found

    def watch(self, connection: Watched) -> None:
        """Do nothing: a node that no longer owns the slot answers MOVED."""


#: Finds the server of a key at each connect, and drops connections to one that is no longer right.
Route = FixedRoute | SentinelRoute | ClusterRoute


def slot_owner(slots: Iterable[SlotRange], key: str) -> Address:
    """Return the node that owns the slot of `key`. Raises ConnectionError when there is none."""
    slot = key_slot(key.encode(errors="surrogateescape"))
    for first, last, address in slots:
        if first <= slot <= last:
            return address
    raise RedisConnectionError(f"no node of the cluster serves slot {slot}, which {key!r} belongs to")


def _address(node: Sequence[Any], asked: Address) -> Address:
    """Return a node's address; one that does not know its own name is the node that was asked."""
    host = (node[0] or b"").decode()
    return Address(asked.host if host in ("", "?") else host, int(node[1]))
