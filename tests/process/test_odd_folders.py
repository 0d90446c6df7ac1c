"""A project in a folder with any name and any length, with the embedded server and the HTTP service."""

import os
import urllib.request
from pathlib import Path

import pytest

from supervisor.errors import EXIT_OK
from tests.support.pool import Pool
from tests.support.waiting import eventually

HANDLERS = """
    import pathlib
    from supervisor import handler

    @handler("events", group="g")
    async def handle(fields: dict[str, str]) -> None:
        pathlib.Path("handled" + fields["n"]).touch()
"""
FOLDERS = [
    " 100%25 #1?&'\"\\ [x]\n",
    os.fsdecode(b"not utf-8 \xff") + "x" * 120,
]


@pytest.mark.parametrize("name", [FOLDERS[0], pytest.param(FOLDERS[1], marks=pytest.mark.long)], ids=["odd", "long"])
def test_a_pool_lives_in_any_folder_and_is_found_from_any_environment(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pool(tmp_path / name, HANDLERS, workers=1, api=True) as pool:
        pool.start()
        for n, environment in enumerate(({}, {"TMPDIR": "/var/tmp", "XDG_RUNTIME_DIR": "/nowhere", "HOME": "/"})):
            for variable, value in environment.items():
                monkeypatch.setitem(pool._env, variable, value)
            done = pool.command("publish", "events", f"n={n}")
            assert done.returncode == EXIT_OK, done.stderr
            eventually((pool.folder / f"handled{n}").exists)
            shown = pool.command("status")
            assert shown.returncode == EXIT_OK and "Traceback" not in shown.stderr, shown.stderr
        with urllib.request.urlopen(f"{pool.base_url}/readyz", timeout=10) as answer:
            assert answer.status == 200
        with urllib.request.urlopen(f"{pool.base_url}/health", timeout=10) as answer:
            assert answer.status == 200
        done = pool.command("restart", "--wait")
        assert done.returncode == EXIT_OK, done.stderr
        assert pool.stop() == EXIT_OK
