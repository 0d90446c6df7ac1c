"""Redis as it is run in production: with TLS, behind Sentinel, as a cluster. Each test starts its own processes."""

import contextlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import pytest
import redis as redis_py

from tests.support.certificates import Certificates
from tests.support.flavours import Flavour, own_flavours
from tests.support.servers import RedisServer, free_port
from tests.support.waiting import eventually


def binaries() -> list[Flavour]:
    """The kinds of server that are installed as programs. Skips the test where there is none."""
    found = [flavour for flavour in own_flavours() if flavour.binary]
    if not found:
        pytest.skip("no server program is here")
    return found


def tls_options(certificates: Certificates, port: int, *, client_certificates: bool = False) -> tuple[str, ...]:
    """For a server that speaks TLS on that port, with its peers too."""
    files = ("--tls-ca-cert-file", str(certificates.ca), "--tls-cert-file", str(certificates.server))
    return (
        "--tls-port", str(port), *files, "--tls-key-file", str(certificates.server_key), "--tls-replication", "yes",
        "--tls-auth-clients", "yes" if client_certificates else "no",
    )  # fmt: skip


def tls_server(certificates: Certificates, *, client_certificates: bool = False) -> RedisServer:
    """A server whose only TCP port speaks TLS (`tls_port`). Skips the test where no server can."""
    port = free_port()
    options = tls_options(certificates, port, client_certificates=client_certificates)
    for flavour in binaries():
        with contextlib.suppress(AssertionError):  # built without TLS
            server = RedisServer(flavour, options=options)
            server.tcp_url = f"rediss://127.0.0.1:{port}/0"
            return server
    pytest.skip("no server here was built with TLS")


class Group:
    """Several servers that end together."""

    def __init__(self) -> None:
        self.servers: list[RedisServer] = []

    def close(self) -> None:
        """End them all and remove their data."""
        for server in self.servers:
            server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Admin = redis_py.Redis


def bare(server: RedisServer, **options: Any) -> Admin:
    """A blocking client of that one server."""
    return server.sync(decode_responses=True, **options)


#: A master that has been silent for this long counts as dead to its sentinels.
DOWN_AFTER_MS = 1_000


def has_replica(server: RedisServer) -> bool:
    """Whether it has a replica that has received everything."""
    with bare(server) as asked:
        told = asked.info("replication")
    first = told.get("slave0")
    return bool(first and first["state"] == "online" and first["offset"] == told["master_repl_offset"])


def replicate(server: RedisServer, key: str = "mark") -> float:
    """Wait until a replica has all that was stored before the call; return when that was, by `time.monotonic`."""
    called_s = time.monotonic()
    with bare(server) as client:
        client.set(key, 1)
        eventually(lambda: client.wait(1, 1000) == 1, what="the replica has all that was stored")
    return called_s


class Sentinels(Group):
    """A master and a replica, watched by three sentinels."""

    MASTER = "mymaster"

    def __init__(self) -> None:
        """Wait until each sentinel knows the replica and the others."""
        super().__init__()
        binary = binaries()[0]
        try:
            first = RedisServer(binary, tcp=True)
            self.servers.append(first)
            second = RedisServer(binary, tcp=True, options=("--replicaof", f"127.0.0.1 {first.port}"))
            self.servers.append(second)
            self.sentinels = [self._sentinel(binary, first.port) for _ in range(3)]
            for sentinel in self.sentinels:
                eventually(lambda at=sentinel: self._whole(at), 20, 0.05, what="the sentinels know each other")
        except BaseException:
            self.close()
            raise
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://{hosts}/{self.MASTER}"

    @property
    def master(self) -> RedisServer:
        """The server that says that it is a master and that the sentinels name."""
        with bare(next(one for one in self.sentinels if one.process)) as asked:
            port = int(asked.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.MASTER)[1])
        return next(server for server in self.servers if server.port == port)

    def in_sync(self) -> RedisServer:
        """Wait until the replica has all that the master has: Sentinel sees to it only ten seconds after a failover."""

        def found() -> RedisServer | None:
            master = self.master
            return master if has_replica(master) else None

        return eventually(found, 30, 0.05, what="the replica has all that the master has")

    def fail_over(self) -> RedisServer:
        """Have the sentinels make the replica the master; the one that they name then."""
        before = self.master.port
        with bare(self.sentinels[0]) as asked:
            asked.execute_command("SENTINEL", "FAILOVER", self.MASTER)
        return eventually(lambda: self.master if self.master.port != before else None, 20, what="another master")

    def _whole(self, sentinel: RedisServer) -> bool:
        with bare(sentinel) as asked:
            told = asked.sentinel_master(self.MASTER)
        return bool(told["num-slaves"] == 1 and told["num-other-sentinels"] == 2)

    def _sentinel(self, binary: Flavour, master_port: int) -> RedisServer:
        made = Sentinel(binary, self.MASTER, master_port)
        self.servers.append(made)
        return made


class Sentinel(RedisServer):
    """One sentinel process."""

    def __init__(self, binary: Flavour, name: str, master_port: int, *, options: tuple[str, ...] = ()) -> None:
        self._lines = (
            f"sentinel monitor {name} 127.0.0.1 {master_port} 2",
            f"sentinel down-after-milliseconds {name} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {name} 4000",
        )
        super().__init__(binary, tcp=True, options=options)

    def words(self) -> list[str]:
        """Start it; Sentinel keeps its state in its configuration file."""
        path = self.folder / "sentinel.conf"
        if not path.exists():
            path.write_text("\n".join(self._lines) + "\n")
        place = ["--bind", "127.0.0.1", "--dir", str(self.folder), "--unixsocket", str(self.socket)]
        return [str(path), "--sentinel", "--port", str(self.port), *place, *self._options]


class Cluster(Group):
    """Three masters, each with a third of the slots, and as many replicas as are asked for."""

    MASTERS = 3

    def __init__(self, *, replicas: int = 0) -> None:
        """Wait until all of them serve all slots."""
        super().__init__()
        binary = binaries()[0]
        try:
            for _ in range(self.MASTERS + replicas):
                self.servers.append(Node(binary))
            self._join()
        except BaseException:
            self.close()
            raise
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.servers)

    @contextlib.contextmanager
    def client(self) -> Iterator[redis_py.RedisCluster]:
        """A blocking client of the whole."""
        nodes = [redis_py.cluster.ClusterNode("127.0.0.1", node.port) for node in self.servers]
        with redis_py.RedisCluster(startup_nodes=nodes, require_full_coverage=False, decode_responses=True) as client:
            yield client

    def stream_of(self, node: RedisServer) -> str:
        """Return a key name that belongs to the node."""
        return next(name for name in (f"flow{number}" for number in range(1000)) if self.owner(name) is node)

    def owner(self, key: str) -> RedisServer:
        """The node that serves the key."""
        slot = redis_py.crc.key_slot(key.encode())
        with bare(next(node for node in self.servers if node.process)) as asked:
            ranges = asked.execute_command("CLUSTER SLOTS")
        port = next(node[1] for first, last, node, *_ in ranges if first <= slot <= last)
        return next(node for node in self.servers if node.port == port)

    def move(self, key: str, target: RedisServer, half_way: Callable[[], object] = int) -> int:
        """Move the slot of the key to another node, key by key, as redis-cli does; how many keys that were.

        `half_way` is called when the keys are at the one node, and the slot still belongs to the other.
        """
        slot, source = redis_py.crc.key_slot(key.encode()), self.owner(key)
        moved = 0
        with bare(source) as giving, bare(target) as taking:
            ids = {id(one): one.execute_command("CLUSTER MYID") for one in (giving, taking)}
            taking.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[id(giving)])
            giving.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[id(taking)])
            while keys := giving.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                giving.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
                moved += len(keys)
            half_way()
            for one in (taking, giving):
                one.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[id(taking)])
        return moved

    def _join(self) -> None:
        masters, replicas = self.servers[: self.MASTERS], self.servers[self.MASTERS :]
        share = 16384 // self.MASTERS + 1
        for number, node in enumerate(masters):
            with bare(node) as asked:
                asked.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                last = min(16383, (number + 1) * share - 1)
                asked.execute_command("CLUSTER", "ADDSLOTSRANGE", number * share, last)
        for node in masters:
            with bare(node) as asked:
                for other in self.servers:
                    asked.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus_port)
        for number, node in enumerate(replicas):
            with bare(masters[number]) as asked:
                master = asked.execute_command("CLUSTER MYID")
            with bare(node) as asked:
                eventually(lambda a=asked, m=master: a.execute_command("CLUSTER", "REPLICATE", m), 20, 0.05)
        eventually(lambda: all(map(self._whole, self.servers)), 30, 0.05, what="the cluster is whole")
        for node, _ in zip(masters, replicas, strict=False):
            eventually(lambda n=node: has_replica(n), 30, 0.05, what="the replica has all that the master has")

    def _whole(self, node: RedisServer) -> bool:
        with bare(node) as asked:
            told = asked.execute_command("CLUSTER INFO")
        return told["cluster_state"] == "ok" and int(told["cluster_known_nodes"]) == len(self.servers)


class Node(RedisServer):
    """One node of a cluster."""

    def __init__(self, binary: Flavour) -> None:
        self.bus_port = free_port()
        options = ("--cluster-enabled", "yes", "--cluster-port", str(self.bus_port), "--cluster-node-timeout", "1500")
        options += ("--cluster-require-full-coverage", "no", "--cluster-replica-validity-factor", "0")
        super().__init__(binary, tcp=True, appendonly=True, options=options)
