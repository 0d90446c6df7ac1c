"""`publish`, `read` and `tail` on real servers that restart and die."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from supervisor.cli import publish
from supervisor.cli.main import EXIT_INTERRUPTED
from tests.cli.run import COMMAND, data, environment, lines_of, run, run_on_terminal, spawn
from tests.support.servers import RedisServer
from tests.support.waiting import eventually

STREAM = "events:user_created"
UNREAD = f"no consumer group reads {STREAM!r} yet"


class Output:
    """What a running command has printed so far, read by threads so that no pipe fills."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.out: list[str] = []
        self.err: list[str] = []
        pipes = ((process.stdout, self.out), (process.stderr, self.err))
        self._threads = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in pipes]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _read(pipe: Any, lines: list[str]) -> None:
        for line in pipe:
            lines.append(line.decode().rstrip("\n"))

    def wait(self, limit_s: float = 20.0) -> int:
        code = self.process.wait(limit_s)
        for thread in self._threads:
            thread.join(limit_s)
        return code


@contextmanager
def running(*words: str, cwd: Path, redis_url: str) -> Iterator[Output]:
    with spawn(*words, cwd=cwd, redis_url=redis_url) as process:
        try:
            yield Output(process)
        finally:
            process.kill()


def test_publish_and_read_back(tmp_path: Path, every_server) -> None:
    first = run(
        "publish", STREAM, "user_id=1", "email=ada@example.com", "note=a b=c", cwd=tmp_path, redis_url=every_server.url
    )
    second = run(
        "publish", STREAM, "--json", "-", cwd=tmp_path, redis_url=every_server.url, stdin='[{"n": 1}, {"n": 2}]'
    )
    ids = [*first.stdout.split(), *second.stdout.split()]
    read = lines_of(run("read", STREAM, "--json", cwd=tmp_path, redis_url=every_server.url))
    assert [entry["id"] for entry in read] == ids
    assert [entry["fields"] for entry in read] == [
        {"user_id": "1", "email": "ada@example.com", "note": "a b=c"},
        {"n": "1"},
        {"n": "2"},
    ]
    with every_server.sync() as client:
        assert client.xlen(STREAM) == 3


def test_read_in_pages_ranges_and_backwards(tmp_path: Path, redis_server) -> None:
    with redis_server.sync() as client:
        pipe = client.pipeline()
        for number in range(1, 2501):
            pipe.xadd(STREAM, {"n": number}, id=f"{number}-0")
        pipe.execute()

    def numbers(*words: str) -> list[int]:
        done = run("read", STREAM, "--json", *words, cwd=tmp_path, redis_url=redis_server.url)
        return [int(entry["fields"]["n"]) for entry in lines_of(done)]

    assert numbers() == list(range(1, 2501))
    assert numbers("--reverse") == list(range(2500, 0, -1))
    assert numbers("--from", "0", "--count", "2") == [1, 2]
    assert numbers("--count", "1000") == list(range(1, 1001))
    assert numbers("--from", "(5", "--to", "7") == [6, 7]
    assert numbers("--from", "5", "--reverse", "--count", "1500") == list(range(2500, 1000, -1))
    assert numbers("--from", "3000") == []


def test_read_for_people(tmp_path: Path, redis_server) -> None:
    with redis_server.sync() as client:
        client.xadd(STREAM, {"plain": "x", "blank": "a b", "empty": "", "line": "1\n2", b"raw": b"\xff"}, id="1-1")
    done = run("read", STREAM, cwd=tmp_path, redis_url=redis_server.url)
    assert done.stdout == '1-1  plain=x blank="a b" empty="" line="1\\n2" raw="\\\\xff"\n'


@pytest.mark.parametrize(
    "words", [["--from", "$"], ["--to", "yesterday"], ["--to", "99999999999999999999"], ["--count", "0"]]
)
def test_read_refuses_what_it_can_not_mean(tmp_path: Path, words: list[str]) -> None:
    assert run("read", STREAM, *words, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    "words", [[], ["user_id"], ["=1"], ["a=1", "a=2"], ["a=1", "--json", "-"], ["--json", "no-such-file"]], ids=" ".join
)
def test_publish_refuses_what_it_can_not_mean(tmp_path: Path, words: list[str], redis_server) -> None:
    done = run("publish", STREAM, *words, cwd=tmp_path, redis_url=redis_server.url)
    assert (done.returncode, done.stdout) == (2, "")
    with redis_server.sync() as client:
        assert client.exists(STREAM) == 0


def test_publish_many(tmp_path: Path, redis_server) -> None:
    lines = "\n".join(json.dumps({"n": number}) for number in range(20_000))
    done = run("publish", STREAM, "--json", "-", "--quiet", cwd=tmp_path, redis_url=redis_server.url, stdin=lines)
    assert (done.returncode, done.stdout) == (0, "20000\n")
    assert "20,000 messages stored in" in done.stderr
    with redis_server.sync() as client:
        assert [int(fields[b"n"]) for _, fields in client.xrange(STREAM)] == list(range(20_000))


def test_a_bad_line_stores_only_whole_chunks_before_it(tmp_path: Path, redis_server) -> None:
    path = tmp_path / "users.ndjson"
    path.write_text('{"n": 1}\n' * 700 + '{"n": \n')
    done = run("publish", STREAM, "--json", str(path), cwd=tmp_path, redis_url=redis_server.url)
    assert done.returncode == 2
    assert f"error: {path}:701: not valid JSON" in done.stderr
    assert done.stderr.endswith("500 messages were stored\n")
    assert len(done.stdout.splitlines()) == 500
    with redis_server.sync() as client:
        assert client.xlen(STREAM) == 500


def test_a_full_server_is_told_with_the_count(tmp_path: Path, redis_server) -> None:
    with redis_server.sync() as client:
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", used + 3_000_000)
        lines = "\n".join('{"text": "' + "x" * 1000 + '"}' for _ in range(20_000))
        done = run("publish", STREAM, "--json", "-", "--quiet", cwd=tmp_path, redis_url=redis_server.url, stdin=lines)
        stored = client.xlen(STREAM)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: Redis refused: OOM" in done.stderr or "error: Redis refused: command not allowed" in done.stderr
    assert 0 < stored < 20_000
    assert f"{stored:,} messages were stored" in done.stderr


def test_ctrl_c_while_stdin_is_silent_ends_it_with_the_count(tmp_path: Path, redis_server) -> None:
    with running("publish", STREAM, "--json", "-", cwd=tmp_path, redis_url=redis_server.url) as publishing:
        stdin = publishing.process.stdin
        assert stdin is not None
        stdin.write(b'{"n": 1}\n')
        stdin.flush()
        eventually(lambda: publishing.out and publishing.err == [UNREAD], what="the id and the note are printed")
        publishing.process.send_signal(signal.SIGINT)
        code = publishing.wait()
    assert (code, publishing.err) == (EXIT_INTERRUPTED, [UNREAD, "1 message was stored"])


def test_a_server_that_is_silent_is_told_in_plain_words(tmp_path: Path, redis_server) -> None:
    redis_server.pause()
    code = "from supervisor.cli import main, publish; publish.REPLY_LIMIT_S = 0.3; main.main()"
    words = [sys.executable, "-c", code, "publish", STREAM, "n=1"]
    env = environment(redis_server.url)
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    redis_server.resume()
    assert done.returncode == 3
    assert done.stderr == (
        f"error: Redis at {redis_server.url} can't be reached: no answer within 0.3 s\n0 messages were stored\n"
    )


@pytest.mark.parametrize(("unsure", "told"), [(1, "1 more was sent"), (500, "500 more were sent")])
def test_what_was_not_confirmed_is_counted_in_plain_words(unsure: int, told: str) -> None:
    progress = publish._Progress(quiet=True)
    progress.unsure = unsure
    assert progress.so_far() == f"0 messages were stored; {told} and not confirmed"


def test_a_server_that_dies_under_way_leaves_an_honest_count(tmp_path: Path, durable_server) -> None:
    line = b'{"text": "' + b"x" * 100 + b'"}\n'
    with running("publish", STREAM, "--json", "-", cwd=tmp_path, redis_url=durable_server.url) as publishing:
        stdin = publishing.process.stdin
        assert stdin is not None
        stdin.write(line * 1000)
        stdin.flush()
        eventually(lambda: len(publishing.out) == 1000, what="1000 ids are printed")
        durable_server.kill()
        stdin.write(line * 10)
        stdin.close()
        code = publishing.wait()
    assert code == 3
    told = "\n".join(publishing.err)
    assert "can't be reached" in told
    # The ten were sent only if the death was not noticed before.
    assert re.search(r"\b1,000 messages were stored(; 10 more were sent and not confirmed)?$", told)
    durable_server.start()
    with durable_server.sync() as client:
        assert client.xlen(STREAM) == len(publishing.out) == 1000


@pytest.mark.parametrize("options", [(), ("--after", "1h"), ("--key", "k"), ("--quiet",)], ids=" ".join)
def test_publish_notes_that_no_group_reads_the_stream(tmp_path: Path, every_server, options: tuple[str, ...]) -> None:
    url = every_server.url
    done = run("publish", STREAM, "n=1", *options, cwd=tmp_path, redis_url=url)
    assert done.returncode == 0 and len(done.stdout.split()) == 1
    assert done.stderr.splitlines()[0] == UNREAD
    with every_server.sync() as client:
        client.xgroup_create(STREAM, "g", mkstream=True)
    done = run("publish", STREAM, "n=1", *options, cwd=tmp_path, redis_url=url)
    assert "no consumer group" not in done.stderr


def test_publish_notes_it_once_for_a_file(tmp_path: Path, redis_server) -> None:
    lines = '{"n": 1}\n' * 1_200
    done = run("publish", STREAM, "--json", "-", cwd=tmp_path, redis_url=redis_server.url, stdin=lines)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1_200)
    assert done.stderr.splitlines()[0] == UNREAD and done.stderr.count("no consumer group") == 1
    assert run("publish", STREAM, "--json", "-", cwd=tmp_path, redis_url=redis_server.url, stdin="[]").stdout == ""


def test_publish_suggests_a_stream_that_a_handler_of_the_pool_reads(start_pool, redis_server) -> None:
    handlers = f"""
    from supervisor import handler
    @handler("{STREAM}", group="g")
    async def handle(fields: dict[str, str]) -> None: ...
    """
    pool = start_pool(handlers, redis_url=redis_server.url, workers=1)
    wrong = STREAM.replace("events", "evnts")
    assert pool.command("publish", STREAM, "n=1").stderr == ""
    hint = f"no consumer group reads {wrong!r} yet, did you mean {STREAM!r}?\n"
    assert pool.command("publish", wrong, "n=1").stderr == hint
    pool.stop()
    assert pool.command("publish", wrong, "n=1").stderr == hint
    assert pool.command("publish", "unlike", "n=1").stderr == "no consumer group reads 'unlike' yet\n"


@pytest.mark.parametrize("bad", ["", '{"n": '], ids=["good", "bad"])
def test_publish_takes_its_count_away_before_it_prints_a_line(tmp_path: Path, redis_server, bad: str) -> None:
    (tmp_path / "file").write_text('{"n": 1}\n' * 1_200 + bad)
    words = ("publish", STREAM, "--json", "file", "--quiet")
    printed = run_on_terminal(*words, cwd=tmp_path, redis_url=redis_server.url)
    assert "\r500 messages stored" in printed
    lines = [line.rpartition("\r")[2] for line in printed.split("\n")]
    assert lines[:2] == [UNREAD, "error: file:1201: not valid JSON: Expecting value" if bad else "1200"]


def test_publish_asks_over_its_own_connection_and_only_where_it_may(tmp_path: Path, redis_server) -> None:
    with redis_server.sync() as client:
        before = client.info("stats")["total_connections_received"]
        assert run("publish", STREAM, "n=1", cwd=tmp_path, redis_url=redis_server.url).stderr == f"{UNREAD}\n"
        assert client.info("stats")["total_connections_received"] == before + 1
        client.execute_command("ACL", "SETUSER", "default", "-xinfo")
        done = run("publish", STREAM, "n=1", cwd=tmp_path, redis_url=redis_server.url)
        assert (done.returncode, len(done.stdout.split()), done.stderr) == (0, 1, "")


def test_publish_does_without_the_note_where_no_connection_is_left_for_it(tmp_path: Path) -> None:
    lines = '{"n": 1}\n' * 500
    with RedisServer() as server, server.sync() as client:
        client.config_set("maxclients", 2)
        done = run("publish", STREAM, "--json", "-", cwd=tmp_path, redis_url=server.url, stdin=lines)
        assert (done.returncode, len(done.stdout.splitlines())) == (0, 500), done.stderr


def test_publish_passes_a_slow_pipe_on_at_once(tmp_path: Path, redis_server) -> None:
    with running("publish", STREAM, "--json", "-", cwd=tmp_path, redis_url=redis_server.url) as publishing:
        stdin = publishing.process.stdin
        assert stdin is not None
        for number in range(3):
            stdin.write(b'{"n": %d}\n' % number)
            stdin.flush()
            eventually(lambda n=number: len(publishing.out) == n + 1, what="its id is printed")
        stdin.close()
        assert publishing.wait() == 0


def test_tail_prints_what_comes(tmp_path: Path, every_server) -> None:
    with every_server.sync() as client:
        client.xadd(STREAM, {"n": "old"})
        with running("tail", STREAM, "--json", "--count", "3", cwd=tmp_path, redis_url=every_server.url) as tailing:
            eventually(lambda: tailing.err, what="it follows")
            for number in range(5):
                client.xadd(STREAM, {"n": number})
            assert tailing.wait() == 0
    assert [json.loads(line)["fields"]["n"] for line in tailing.out] == ["0", "1", "2"]


def test_tail_from_an_id_begins_with_history(tmp_path: Path, redis_server) -> None:
    with redis_server.sync() as client:
        ids = [client.xadd(STREAM, {"n": number}).decode() for number in range(3)]
    words = ("tail", STREAM, "--json", "--count", "2", "--from")
    assert [e["id"] for e in lines_of(run(*words, "0", cwd=tmp_path, redis_url=redis_server.url))] == ids[:2]
    assert [e["id"] for e in lines_of(run(*words, ids[0], cwd=tmp_path, redis_url=redis_server.url))] == ids[1:]


@pytest.mark.parametrize("exists", [True, False])
def test_tail_misses_nothing_across_a_restart(tmp_path: Path, durable_server, exists: bool) -> None:
    if exists:
        with durable_server.sync() as client:
            client.xadd(STREAM, {"n": "old"})
    with running("tail", STREAM, "--json", cwd=tmp_path, redis_url=durable_server.url) as tailing:
        eventually(lambda: tailing.err, what="it follows")
        with durable_server.sync() as client:
            client.xadd(STREAM, {"n": 0})
        eventually(lambda: len(tailing.out) == 1, what="the first is printed")
        durable_server.kill()
        eventually(lambda: any("can't be reached" in line for line in tailing.err), what="it says that Redis is gone")
        durable_server.start()
        with durable_server.sync() as client:
            for number in range(1, 4):
                client.xadd(STREAM, {"n": number})
        eventually(lambda: len(tailing.out) == 4, what="what came meanwhile is printed")
        tailing.process.send_signal(signal.SIGINT)
        assert tailing.wait() == 130
    assert [json.loads(line)["fields"]["n"] for line in tailing.out] == ["0", "1", "2", "3"]
    assert sum("can't be reached" in line for line in tailing.err) == 1
    assert tailing.err[-1] == "connected again"
    assert not any("Traceback" in line for line in tailing.err)


def test_tail_into_a_pipe_that_closes(tmp_path: Path, redis_server) -> None:
    with redis_server.sync() as client:
        for number in range(3):
            client.xadd(STREAM, {"n": number})
    program = " ".join(COMMAND) + f" tail {STREAM} --from 0 | head -n 1"
    with subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", program],
        cwd=tmp_path,
        env=environment(redis_server.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        tailing = Output(process)
        eventually(lambda: tailing.out, what="one line is printed")
        with redis_server.sync() as client:
            eventually(lambda: client.xadd(STREAM, {"n": 1}) and process.poll() is not None, what="it leaves")
        assert tailing.wait() == 0
    assert len(tailing.out) == 1 and not any("Traceback" in line for line in tailing.err)


def test_nothing_to_show_is_said(tmp_path: Path, redis_server) -> None:
    with redis_server.sync() as client:
        client.xgroup_create("there", "g", mkstream=True)
    empty = run("read", "there", cwd=tmp_path, redis_url=redis_server.url)
    assert (empty.returncode, empty.stdout, empty.stderr) == (0, "", "")
    pending = run("pending", "there", "g", cwd=tmp_path, redis_url=redis_server.url)
    assert (pending.returncode, pending.stdout, pending.stderr) == (0, "", "nothing is pending\n")
    assert data(run("pending", "there", "g", "--json", cwd=tmp_path, redis_url=redis_server.url)) == []
