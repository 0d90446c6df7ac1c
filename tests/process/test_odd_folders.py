"""A project in a folder with any name and any length, with the embedded server and the HTTP service."""

import os
import urllib.request
from pathlib import Path

import pytest

from supervisor.errors import EXIT_OK, EXIT_USAGE
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
        eventually(lambda: status(pool, "/readyz") == 200)
        assert status(pool, "/health") == 200
        done = pool.command("restart", "--wait")
        assert done.returncode == EXIT_OK, done.stderr
        assert pool.stop() == EXIT_OK


def status(pool: Pool, path: str) -> int:
    """The status of an answer."""
    with urllib.request.urlopen(f"{pool.base_url}{path}", timeout=30) as answer:
        found: int = answer.status
    return found


def test_a_folder_or_link_that_another_user_has_made_in_tmp_is_not_used(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root may give files away")
    nobody, shared, victim = 65534, tmp_path / "tmp", tmp_path / "victim"
    shared.mkdir()
    shared.chmod(0o1777)
    victim.mkdir()
    (shared / "made").mkdir()
    os.chown(shared / "made", nobody, nobody)
    (shared / "link").symlink_to(victim)
    os.lchown(shared / "link", nobody, nobody)
    for name in ("made", "made/below", "link"):
        pool = Pool(tmp_path / "project", HANDLERS, config=f'state_dir = "{shared / name}"', workers=1)
        assert pool.start(ready=False).wait() == EXIT_USAGE
        foreign = shared / name.split("/")[0]
        assert f"another user has made {foreign}, in a folder where anybody may" in pool.output, pool.output
        assert not list(victim.iterdir())
    # A project in such a folder runs code of its owner anyway.
    with Pool(shared / "made" / "project", HANDLERS, workers=1, args=("--burst",)) as pool:
        assert pool.start(ready=False).wait() == EXIT_OK


def test_a_link_in_the_state_directory_changes_no_other_file(tmp_path: Path) -> None:
    (tmp_path / ".supervisor").mkdir()
    (tmp_path / "precious").write_text("text")
    (tmp_path / ".supervisor/lock").symlink_to(tmp_path / "precious")
    pool = Pool(tmp_path, HANDLERS, workers=1, args=("--burst",))
    assert pool.start(ready=False).wait() == EXIT_USAGE
    assert "remove the link" in pool.output and (tmp_path / "precious").read_text() == "text"
    (tmp_path / ".supervisor/lock").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".supervisor/redis").symlink_to(tmp_path / "elsewhere")
    assert pool.start(ready=False).wait() == EXIT_USAGE
    assert "redis is a link: move the whole state directory instead" in pool.output
    assert not (tmp_path / ".supervisor/control.sock").exists()
