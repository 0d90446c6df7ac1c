"""Sockets in folders of any length and any name, for asyncio's loop and for uvloop's."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError

from supervisor.broker.connect import connection
from supervisor.settings.load import load
from supervisor.settings.paths import pool_paths, redis_url
from supervisor.unix_path import SOCKET_PATH_BYTES_MAX, fits_socket, socket_path

FOLDERS = [
    "plain",
    "with blanks",
    "50%25#?&=@:,;",
    "quotes'\"`$(x)\\",
    "line\nbreak\ttab",
    "ünïcödé ⚙",
    os.fsdecode(b"not utf-8 \xff\xfe"),
    "x" * 200,
]


@pytest.mark.parametrize("name", FOLDERS, ids=ascii)
def test_a_socket_is_bound_and_found_in_any_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "s.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        with socket_path(path) as bound:
            listener.bind(bound)
        assert path.is_socket()
        listener.listen()
        with socket.socket(socket.AF_UNIX) as client, socket_path(path) as address:
            client.connect(address)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("name", FOLDERS, ids=ascii)
def test_the_embedded_servers_url_leads_to_its_socket(
    tmp_path: Path, name: str, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.toml").touch()
    settings = load(folder / "config.toml", environ={}).settings
    path = pool_paths(settings).redis_socket
    assert path == folder / ".supervisor" / "redis.sock"
    path.parent.mkdir(parents=True)
    url = redis_url(settings)
    assert url.isascii() and url.isprintable() and " " not in url

    async def ask() -> None:
        asked = asyncio.Event()

        def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            writer.close()

        with socket_path(path) as bound:
            server = await asyncio.start_unix_server(answer, bound)
        async with server:
            link = connection(url)
            with contextlib.suppress(RedisConnectionError):  # this server hangs up
                await link.connect()
            await asyncio.wait_for(asked.wait(), 30)
            await link.disconnect()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(ask())


def test_only_a_path_that_does_not_fit_needs_a_descriptor(tmp_path: Path) -> None:
    with socket_path("/run/s.sock") as same:
        assert same == "/run/s.sock"
    assert fits_socket("x" * SOCKET_PATH_BYTES_MAX) and not fits_socket("x" * (SOCKET_PATH_BYTES_MAX + 1))
    missing = tmp_path / ("x" * 200) / "s.sock"
    with pytest.raises(FileNotFoundError), socket_path(missing):
        pass
