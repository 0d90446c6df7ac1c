"""Parses the forms of `[redis] url`: one server, a master that Sentinel names, or a cluster.

redis-py's URLs have no form for several hosts, the master's name and Sentinel's credentials. Everything else is left
to redis-py, as the URL of one of the hosts. Errors never quote text that may be a password.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlencode

from supervisor.text import did_you_mean

Kind = Literal["server", "sentinel", "cluster"]

#: Scheme -> its kind and redis-py's scheme for each server.
_SCHEMES: dict[str, tuple[Kind, str]] = {
    "redis": ("server", "redis"),
    "rediss": ("server", "rediss"),
    "unix": ("server", "unix"),
    "redis+sentinel": ("sentinel", "redis"),
    "rediss+sentinel": ("sentinel", "rediss"),
    "redis+cluster": ("cluster", "redis"),
    "rediss+cluster": ("cluster", "rediss"),
}
FORMS = "redis://..., rediss://... (TLS), unix://..., redis+sentinel://..., redis+cluster://..."
#: Schemes of other libraries -> ours.
_OTHER_SCHEMES = {
    "sentinel": "redis+sentinel",
    "sentinels": "rediss+sentinel",
    "redis-sentinel": "redis+sentinel",
    "rediss-sentinel": "rediss+sentinel",
    "sentinel+redis": "redis+sentinel",
    "cluster": "redis+cluster",
    "redis-cluster": "redis+cluster",
    "rediss-cluster": "rediss+cluster",
    "redis+ssl": "rediss",
    "redis+tls": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
    "redis-socket": "unix",
    "redis+socket": "unix",
    "redis+unix": "unix",
}
#: Query parameters in which other libraries expect the master's name.
_MASTER_WORDS = frozenset(
    {"master", "master_name", "mastername", "sentinelmasterid", "sentinelservice", "service_name"}
)
_PORTS = {"sentinel": 26379, "cluster": 6379}
_HOST = re.compile(r"(\[[0-9a-fA-F:.%a-z]+\]|[^\[\]:,\s]+)(?::([0-9]+))?")
_PORT_MAX = 65535
_EXAMPLES = {
    "server": "redis://host:6379/0",
    "sentinel": "redis+sentinel://host:26379,host2:26379/mymaster",
    "cluster": "redis+cluster://host:6379,host2:6379",
}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A parsed URL."""

    kind: Kind
    #: For redis-py: with the first host as the server.
    url: str
    #: The sentinels, or nodes of the cluster; empty for one server.
    hosts: tuple[tuple[str, int], ...] = ()
    #: The name by which Sentinel knows the master.
    master: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None


@lru_cache(maxsize=32)
def parse(url: str) -> RedisUrl:
    """Parse the URL. Raises ValueError, whose text says what to write instead."""
    scheme, mark, rest = url.partition("://")
    if not mark or not rest or scheme.lower() not in _SCHEMES:
        raise ValueError(_unknown(scheme if mark else ""))
    kind, plain = _SCHEMES[scheme.lower()]
    address, mark, query = rest.partition("?")
    user, at, places = address.rpartition("@")
    authority, _, path = places.partition("/")
    if kind == "server":
        if plain != "unix" and "," in authority:
            raise ValueError(f"several hosts are written as {_EXAMPLES['sentinel']} or as {_EXAMPLES['cluster']}")
        if plain != "unix":
            _check_server(authority, unquote(path))
        return RedisUrl(kind, f"{plain}://{rest}")
    hosts = tuple(_host(text, kind) for text in authority.split(","))
    options = dict(parse_qsl(query, keep_blank_values=True))
    master, database = _behind_sentinels(path, options) if kind == "sentinel" else _behind_nodes(path, options)
    credentials = options.pop("sentinel_username", None), options.pop("sentinel_password", None)
    tail = f"?{urlencode(options)}" if options else ""
    return RedisUrl(kind, f"{plain}://{user}{at}{netloc(*hosts[0])}/{database}{tail}", hosts, master, *credentials)


def is_cluster(url: str) -> bool:
    """Return whether the URL names a cluster. Raises ValueError as `parse` does."""
    return parse(url).kind == "cluster"


def netloc(host: str, port: int) -> str:
    """Return `host:port` as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _unknown(scheme: str) -> str:
    if scheme.lower() in _SCHEMES:
        return f"must be {scheme}:// with an address after it"
    near = _OTHER_SCHEMES.get(scheme.lower())
    return f"must be {FORMS} or empty" + (f", did you mean {near!r}?" if near else did_you_mean(scheme, _SCHEMES))


def _check_server(authority: str, path: str) -> None:
    """Check what redis-py ignores: for it, a database that is not a number is 0."""
    port = re.search(r":([0-9]+)$", authority)
    if port and not 0 < int(port[1]) <= _PORT_MAX:
        raise ValueError(f"must have a port from 1 to {_PORT_MAX}, as in {_EXAMPLES['server']}")
    if (database := path.replace("/", "")) and not database.isdecimal():
        raise ValueError(f"must have a number as the database after the host, as in {_EXAMPLES['server']}")


def _host(text: str, kind: Kind) -> tuple[str, int]:
    match = _HOST.fullmatch(unquote(text))
    port = int(match[2]) if match and match[2] else _PORTS[kind]
    if not match or not 0 < port <= _PORT_MAX:
        raise ValueError(f"must have hosts as in {_EXAMPLES[kind]}, with @ : / in user and password as %40 %3A %2F")
    return match[1].strip("[]"), port


def _behind_sentinels(path: str, options: dict[str, str]) -> tuple[str, str]:
    """Return the master's name and the database."""
    master, _, database = (unquote(part) for part in path.rstrip("/").partition("/"))
    stray = next((name for name in options if name.lower() in _MASTER_WORDS), None)
    if not master or master.isdecimal() or stray:
        raise ValueError(f"must have the master's name after the hosts, as in {_EXAMPLES['sentinel']}/0")
    if database and not database.isdecimal():
        raise ValueError(f"must have a number as the database after the master's name, as in {_EXAMPLES['sentinel']}/0")
    return master, database


def _behind_nodes(path: str, options: dict[str, str]) -> tuple[str, str]:
    """Check that nothing follows: a cluster has no master's name and only database 0."""
    if path.strip("/") not in ("", "0") or options.get("db", "0") != "0":
        raise ValueError(
            f"must have nothing after the hosts: a cluster has database 0 only, as in {_EXAMPLES['cluster']}"
        )
    return "", ""
