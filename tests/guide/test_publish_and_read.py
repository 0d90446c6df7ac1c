"""Step one of the guide: messages go into a stream, and its history can be read again at any time."""

from pathlib import Path

from tests.cli.run import lines_of, run

STREAM = "events:user_created"


def test_what_is_published_can_be_read_again(tmp_path: Path, redis_url: str) -> None:
    def supervisor(*words: str) -> str:
        done = run(*words, cwd=tmp_path, redis_url=redis_url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    ids = [supervisor("publish", STREAM, f"user_id={n}", f"email=user{n}@example.com").strip() for n in range(1, 3)]
    assert ids == sorted(ids) and len(set(ids)) == 2

    first = f"{ids[0]}  user_id=1 email=user1@example.com\n"
    assert supervisor("read", STREAM, "--from", "0", "--count", "1") == first
    # Reading takes nothing away.
    both = supervisor("read", STREAM, "--from", "0", "--count", "2")
    assert both == f"{first}{ids[1]}  user_id=2 email=user2@example.com\n"


def test_a_range_of_history(tmp_path: Path, redis_server) -> None:
    hour_ms = 3_600_000
    with redis_server.sync() as client:
        for hour in range(1, 25):
            client.xadd(STREAM, {"hour": hour}, id=f"{hour * hour_ms}-0")

    def hours(*words: str) -> list[int]:
        done = run("read", STREAM, "--json", *words, cwd=tmp_path, redis_url=redis_server.url)
        return [int(entry["fields"]["hour"]) for entry in lines_of(done)]

    assert hours("--from", f"{9 * hour_ms}", "--to", f"{12 * hour_ms}") == [9, 10, 11, 12]
    assert hours("--from", f"({9 * hour_ms}-0", "--to", f"{12 * hour_ms}", "--count", "2") == [10, 11]
