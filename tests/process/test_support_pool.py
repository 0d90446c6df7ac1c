"""The tests' `Pool` sees what a pool leaves behind, so that tests built on it can fail."""

import os
import signal
import textwrap
from pathlib import Path

import psutil
import pytest

from tests.support.pool import Pool
from tests.support.waiting import eventually


def fake(folder: Path, main: str) -> Pool:
    """A project whose own `supervisor` package stands in for the real one: `-m` looks there first."""
    pool = Pool(folder, "")
    (folder / "supervisor").mkdir()
    (folder / "supervisor" / "__main__.py").write_text(textwrap.dedent(main))
    return pool


@pytest.mark.long
def test_orphan_in_a_session_of_its_own_is_found_and_ended(tmp_path: Path) -> None:
    pool = fake(
        tmp_path,
        """
        import os, signal
        pid = os.fork()
        if pid == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            open("orphan", "w").write(str(os.getpid()))
            signal.pause()
        signal.pause()
        """,
    ).start(ready=False)
    orphan = psutil.Process(int(eventually((tmp_path / "orphan").read_text)))
    with pytest.raises(AssertionError, match=f"left by the pool .*{orphan.pid}"):
        pool.close()
    eventually(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)


def test_pool_that_ignores_its_signal_fails_and_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = fake(
        tmp_path,
        """
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("up", flush=True)
        while True:
            signal.pause()
        """,
    ).start(ready=False)
    eventually(lambda: "up" in pool.lines)
    pid = pool.pid
    wait = pool.wait
    monkeypatch.setattr(pool, "wait", lambda _limit_s=0: wait(0.2))
    with pytest.raises(AssertionError, match="did not leave within"):
        pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_pool_that_leaves_early_says_why(tmp_path: Path) -> None:
    pool = fake(tmp_path, "raise SystemExit('no such thing')")
    with pytest.raises(AssertionError, match=r"(?s)the pool left with 1.*no such thing"):
        pool.start()
    assert pool.wait() == 1
    pool.close()


def test_environment_of_the_developer_does_not_reach_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERVISOR_POOL__WORKERS", "99")
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere")
    pool = fake(
        tmp_path, "import os; print(sorted(k for k in os.environ if k.startswith(('SUPERVISOR_', 'REDIS_URL'))))"
    )
    pool.start(ready=False)
    assert pool.wait() == 0
    assert pool.lines == ["[]"]
    pool.close()


def test_signal_reaches_the_arbiter(tmp_path: Path) -> None:
    pool = fake(
        tmp_path,
        """
        import signal, sys
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(7))
        print("up", flush=True)
        signal.pause()
        """,
    ).start(ready=False)
    eventually(lambda: "up" in pool.lines)
    pool.send(signal.SIGHUP)
    assert pool.wait() == 7
    pool.close()
