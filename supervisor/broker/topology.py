"""Where the server for a key is now: the master that Sentinel names, or the node that owns the key's slot.

1. A route is asked at each connect; nothing about the topology is kept that could be out of date.
2. With Sentinel, what is connected is watched: Sentinel demotes an old master only seconds after it has named a
   new one, and all that is written there meanwhile is lost. So connections to it are ended at once.

redis-py's own Sentinel client would do for the first of these, but it needs the right to list all masters and
does not say why none was found.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakSet

from redis.asyncio.connection import Connection
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from supervisor.settings.redis_url import netloc

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from supervisor.broker.routed import Routed

#: One sentinel or node has this long to answer before the next is asked.
ASK_LIMIT_S = 1.0
#: How often Sentinel is asked whether the master is still the same.
WATCH_S = 0.25


class Address(NamedTuple):
    """Of a server."""

    host: str
    port: int


class Slots(NamedTuple):
    """A range of slots, both ends included, and the node that owns it."""

    first: int
    last: int
    owner: Address


class Route(Protocol):
    """The way to a server."""

    async def find(self, key: str, told: Address | None) -> Address:
        """Where the server for `key` is; `told` is what the last one said of it, which others may not know yet.

        Raises redis-py's errors and OSError when nobody can tell.
        """

    def keep(self, connection: Routed) -> None:
        """`connection` was just made to where `find` said."""


class Fixed:
    """To one server, whatever the key; where its name leads is found at each connect."""

    def __init__(self, address: Address) -> None:
        """Always there."""
        self._address = address

    async def find(self, key: str, told: Address | None) -> Address:
        """The address."""
        return self._address

    def keep(self, connection: Routed) -> None:
        """There is no other."""


class Asker:
    """Asks the first of several servers that answers, and stays connected to it until it is closed."""

    def __init__(self, hosts: Iterable[Address], kind: type[Connection], options: dict[str, Any]) -> None:
        """`options` are those of redis-py's connections but for host and port."""
        self._connections = [kind(**{**options, "host": host, "port": port}) for host, port in hosts]

    async def ask(self, *command: str) -> tuple[Address, Any]:
        """Who answered, and what; None is no answer. Raises redis-py's errors when nobody did."""
        failures: list[tuple[Connection, Exception | str]] = []
        for at, connection in enumerate(self._connections):
            try:
                async with asyncio.timeout(ASK_LIMIT_S):
                    await connection.connect()
                    await connection.send_command(*command)
                    reply = await connection.read_response()
            except (RedisError, OSError) as error:
                await connection.disconnect(nowait=True)
                failures.append((connection, error))
                continue
            if reply is not None:
                self._connections.insert(0, self._connections.pop(at))
                return Address(connection.host, connection.port), reply
            failures.append((connection, "knows none"))
        raise _nobody(failures)

    async def close(self) -> None:
        """Disconnect."""
        for connection in self._connections:
            await connection.disconnect(nowait=True)


def _nobody(failures: Sequence[tuple[Connection, Exception | str]]) -> Exception:
    told = "; ".join(
        f"{netloc(connection.host, connection.port)}: {error or 'no answer in time'}" for connection, error in failures
    )
    # What waiting will not mend comes as what it is.
    refusal = next((error for _, error in failures if isinstance(error, AuthenticationError | ResponseError)), None)
    return type(refusal)(told) if refusal is not None else RedisConnectionError(told)


class ToMaster:
    """To the master that Sentinel names; all keys are there."""

    def __init__(self, hosts: Sequence[Address], master: str, kind: type[Connection], options: dict[str, Any]) -> None:
        """`hosts` are the sentinels, `options` those of connections to them."""
        self._hosts = hosts
        self._master = master
        self._kind = kind
        self._options = options
        self._watches: WeakKeyDictionary[asyncio.AbstractEventLoop, _Watch] = WeakKeyDictionary()

    async def find(self, key: str, told: Address | None) -> Address:
        """As of the first sentinel that knows. Raises redis-py's errors."""
        asker = self.asker()
        try:
            return await self.ask(asker)
        finally:
            await asker.close()

    def keep(self, connection: Routed) -> None:
        """Ends it when Sentinel names another master."""
        loop = asyncio.get_running_loop()
        watch = self._watches.get(loop)
        if watch is None:
            watch = self._watches[loop] = _Watch(self)
        watch.add(connection)

    def asker(self) -> Asker:
        """For the sentinels."""
        return Asker(self._hosts, self._kind, self._options)

    async def ask(self, asker: Asker) -> Address:
        """Which master Sentinel names now. Raises redis-py's errors."""
        try:
            _, (host, port) = await asker.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._master)
        except RedisConnectionError as error:
            if isinstance(error, AuthenticationError):
                raise
            raise RedisConnectionError(f"no sentinel names a master {self._master!r}: {error}") from None
        return Address(host.decode(), int(port))


class _Watch:
    """Asks while there is a connection to end; belongs to one event loop."""

    def __init__(self, route: ToMaster) -> None:
        self._route = route
        self._connections: WeakSet[Routed] = WeakSet()
        self._task: asyncio.Task[None] | None = None

    def add(self, connection: Routed) -> None:
        self._connections.add(connection)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        asker = self._route.asker()
        try:
            while any(connection.is_connected for connection in self._connections):
                await asyncio.sleep(WATCH_S)
                try:
                    master = await self._route.ask(asker)
                except (RedisError, OSError):  # who connects anew is told
                    continue
                for connection in list(self._connections):
                    connection.leave_unless_at(master)
        finally:
            self._task = None
            await asker.close()


class ToOwner:
    """To the cluster node that owns the key's slot."""

    def __init__(self, hosts: Sequence[Address], kind: type[Connection], options: dict[str, Any]) -> None:
        """`hosts` are some of the nodes, `options` those of connections to them."""
        self._seeds = hosts
        self._known: list[Address] = []
        self._kind = kind
        self._options = options

    async def find(self, key: str, told: Address | None) -> Address:
        """As told, or of the first node that answers. Raises redis-py's errors."""
        return told or owner(await self.slots(), key)

    async def slots(self) -> list[Slots]:
        """Who owns what. Raises redis-py's errors when no node tells."""
        asker = Asker(dict.fromkeys((*self._known, *self._seeds)), self._kind, self._options)
        try:
            asked, reply = await asker.ask("CLUSTER", "SLOTS")
        finally:
            await asker.close()
        found = [Slots(first, last, _address(node, asked)) for first, last, node, *_ in reply]
        self._known = list(dict.fromkeys(slots.owner for slots in found))
        return found

    def keep(self, connection: Routed) -> None:
        """A node that no longer owns the slot says so itself."""


def owner(slots: Iterable[Slots], key: str) -> Address:
    """Who owns the slot of `key`. Raises ConnectionError when nobody does."""
    slot = key_slot(key.encode(errors="surrogateescape"))
    for first, last, address in slots:
        if first <= slot <= last:
            return address
    raise RedisConnectionError(f"no node of the cluster serves slot {slot}, that of {key!r}")


def _address(node: Sequence[Any], asked: Address) -> Address:
    """A node that does not know its own name is the one that was asked."""
    host = (node[0] or b"").decode()
    return Address(asked.host if host in ("", "?") else host, int(node[1]))
