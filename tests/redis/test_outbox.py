"""`once`, `add` and the relay on SQLite and PostgreSQL, with sync and async sessions: once, and in order of commit."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import create_engine, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from supervisor import EncodeError, Message, UsageError
from supervisor.broker.entry_lookup import collect
from supervisor.contrib.sqlalchemy import add, create_tables, once
from supervisor.core.origin import OriginKind
from supervisor.core.relay_state import RelayState
from supervisor.keys import relayed_key
from supervisor.outbox.database import ROWS_MAX
from supervisor.outbox.rows import row_fields
from supervisor.outbox.tables import lease, outbox
from supervisor.shared_state import HeaderField
from tests.redis.relaying import STREAM, Place, numbers, relay_of, relaying, waiting
from tests.support.postgres import PostgresServer, postgres_server
from tests.support.waiting import eventually_async


class Event(BaseModel):
    n: int


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        made = Place(f"sqlite:///{tmp_path}/db", f"sqlite+aiosqlite:///{tmp_path}/db")
    else:
        server = request.getfixturevalue("postgres")
        url = server.url(server.create())
        made = Place(url, url, server)
    engine = create_engine(made.sync)
    create_tables(engine)
    create_tables(engine)
    engine.dispose()
    return made


@pytest.fixture
def engine(place: Place) -> Iterator[Any]:
    made = create_engine(place.sync)
    yield made
    made.dispose()


def message(n: int = 1) -> Message:
    return Message(f"{n}-1", STREAM, "group")


class TestSessions:
    async def test_once_is_true_the_first_time(self, place: Place, engine: Any) -> None:
        with Session(engine) as session, session.begin():
            assert once(session, message(1))
            assert not once(session, message(1))
            assert once(session, message(2), key="order-7")
        with Session(engine) as session:
            assert not once(session, message(3), key="order-7")
            assert once(session, message(3))  # rolled back
        own = create_async_engine(place.asynchronous)
        async with AsyncSession(own) as session, session.begin():
            assert not await once(session, message(1))
            assert await once(session, message(3))
            assert await once(session, Message("1-1", STREAM, "another group"))
        await own.dispose()

    async def test_add_writes_a_row_if_the_transaction_commits(self, place: Place, engine: Any) -> None:
        with Session(engine) as session:
            add(session, STREAM, Event(n=1))
            session.flush()
            session.rollback()
        with Session(engine) as session, session.begin():
            add(session, STREAM, Event(n=2))
            with pytest.raises(RuntimeError), session.begin_nested():
                add(session, STREAM, Event(n=3))
                session.flush()
                raise RuntimeError
        own = create_async_engine(place.asynchronous)
        async with AsyncSession(own) as session, session.begin():
            add(session, STREAM, {"n": 4})
        await own.dispose()
        with engine.connect() as connection:
            rows = connection.execute(select(outbox.c.fields, outbox.c.position).order_by(outbox.c.id)).all()
        assert [row_fields(row.fields) for row in rows] == [{"n": "2"}, {"n": "4"}]
        assert [row.position is None for row in rows] == [place.server is None] * 2

    def test_what_can_not_be_published_is_refused_at_once(self, engine: Any) -> None:
        with Session(engine) as session:
            with pytest.raises(EncodeError, match="add to 'events': field 'n'"):
                add(session, STREAM, {"n": object()})
            with pytest.raises(UsageError, match="the stream must be"):
                add(session, "", {"n": 1})

    def test_two_transactions_at_once_handle_a_message_once(self, engine: Any) -> None:
        found: list[object] = []

        def handle() -> None:
            try:
                with Session(engine) as session, session.begin():
                    found.append(once(session, message()))
                    if len(found) == 1:
                        other.start()
                        other.join(0.2)
            except Exception as error:
                found.append(error)

        other = threading.Thread(target=handle)
        handle()
        other.join()
        assert found == [True, False]


class TestRelay:
    @pytest.mark.parametrize("driver", ["sync", "asynchronous"])
    async def test_rows_are_published_in_order_and_deleted(
        self, place: Place, engine: Any, redis: Any, redis_url: str, driver: str
    ) -> None:
        for first in range(0, 1200, 200):
            with Session(engine) as session, session.begin():
                for n in range(first, first + 200):
                    add(session, STREAM if n % 2 else "other", Event(n=n))
        async with relaying(redis_url, getattr(place, driver)) as shared:
            await eventually_async(lambda: waiting(engine) == 0)
            assert shared.get(HeaderField.RELAYED) == 1200
            assert shared.get(HeaderField.RELAY_STATE) == RelayState.RELAYING
        assert await numbers(redis) == list(range(1, 1200, 2))
        assert await numbers(redis, "other") == list(range(0, 1200, 2))
        entries = await redis.xrange(STREAM, count=1)
        found, _ = await collect(redis, STREAM, entries[0][0].decode())
        assert found.origin is not None and found.origin.kind is OriginKind.OUTBOX and found.origin.row

    async def test_the_end_publishes_what_is_there(self, place: Place, engine: Any, redis: Any, redis_url: str) -> None:
        with Session(engine) as session, session.begin():
            for n in range(2 * ROWS_MAX + 1):
                add(session, STREAM, Event(n=n))
        relay, _ = relay_of(redis_url, place.sync)
        await relay.finish()
        await relay.close()
        assert await numbers(redis) == list(range(2 * ROWS_MAX + 1)) and waiting(engine) == 0

    async def test_a_row_whose_deletion_was_lost_is_published_once(
        self, place: Place, engine: Any, redis: Any, redis_url: str
    ) -> None:
        with Session(engine) as session, session.begin():
            for n in range(10):
                add(session, STREAM, Event(n=n))
        killed, _ = relay_of(redis_url, place.sync)
        await killed.run_cycle()  # published, and gone before the next cycle
        assert await numbers(redis) == list(range(10)) and waiting(engine) == 10
        with Session(engine) as session, session.begin():
            add(session, STREAM, Event(n=10))
        async with relaying(redis_url, place.sync):
            await eventually_async(lambda: waiting(engine) == 0)
        assert await numbers(redis) == list(range(11))
        await killed._database.close()
        await killed._publisher.aclose()

    async def test_one_publishes_and_the_others_stand_by(
        self, place: Place, engine: Any, redis: Any, redis_url: str
    ) -> None:
        async with relaying(redis_url, place.sync, "first") as first:
            await eventually_async(lambda: first.get(HeaderField.RELAY_STATE) == RelayState.RELAYING)
            async with relaying(redis_url, place.sync, "second") as second:
                await eventually_async(lambda: second.get(HeaderField.RELAY_STATE) == RelayState.STANDBY)
                with Session(engine) as session, session.begin():
                    add(session, STREAM, Event(n=1))
                await eventually_async(lambda: waiting(engine) == 0)
                assert second.get(HeaderField.RELAYED) == 0
        async with relaying(redis_url, place.sync, "third") as third:  # the lease was given up
            await eventually_async(lambda: third.get(HeaderField.RELAY_STATE) == RelayState.RELAYING)

    async def test_a_dead_relay_is_followed_when_its_lease_ends(
        self, place: Place, engine: Any, redis: Any, redis_url: str
    ) -> None:
        dead, _ = relay_of(redis_url, place.sync, "dead")
        await dead.run_cycle()
        async with relaying(redis_url, place.sync, "next") as shared:
            await eventually_async(lambda: shared.get(HeaderField.RELAY_STATE) == RelayState.STANDBY)
            with engine.begin() as connection:
                connection.execute(update(lease).values(until_ms=lease.c.until_ms - 20_000))
            await eventually_async(lambda: shared.get(HeaderField.RELAY_STATE) == RelayState.RELAYING)
        await dead._database.close()
        await dead._publisher.aclose()

    async def test_a_stream_that_refuses_holds_up_no_other(
        self, place: Place, engine: Any, redis: Any, redis_url: str
    ) -> None:
        await redis.set("broken", "text")
        with Session(engine) as session, session.begin():
            for n in range(600):
                add(session, "broken", Event(n=n))
            add(session, STREAM, Event(n=1))
            session.flush()
            session.execute(text("UPDATE supervisor_outbox SET fields = '[]' WHERE id = 300"))
        async with relaying(redis_url, place.sync):
            await eventually_async(lambda: waiting(engine) == 600)
            assert await numbers(redis) == [1]
            await redis.delete("broken")
            await eventually_async(lambda: waiting(engine) == 1)
        assert await numbers(redis, "broken") == [n for n in range(600) if n != 299]

    async def test_rows_of_a_wrong_shape_stay_and_hold_up_nothing(
        self, tmp_path: Path, redis: Any, redis_url: str
    ) -> None:
        """SQLite keeps whatever another program writes."""
        url = f"sqlite:///{tmp_path}/db"
        engine = create_engine(url)
        create_tables(engine)
        insert = text("INSERT INTO supervisor_outbox (key, stream, fields, added_at) VALUES (:k, :s, :f, :a)")
        wrong: list[tuple[object, object, object]] = [
            (b"k", STREAM, '{"n": "1"}'), ("", STREAM, '{"n": "1"}'), ("k1", b"\xff", '{"n": "1"}'),
            ("k2", "", '{"n": "1"}'), ("k3", STREAM, b"\xff"), ("k4", STREAM, '{"n": "\\ud800"}'),
            ("k5", STREAM, "[" * 100_000), ("k6", STREAM, '{"": "1"}'),
        ]  # fmt: skip
        with engine.begin() as connection:
            for key, stream, fields in wrong:
                row = {"k": key, "s": stream, "f": fields, "a": "yesterday"}
                connection.execute(insert, row)
            for number, added in enumerate(("2026-01-31T08:00:00Z", 5, b"\xff")):
                row = {"k": f"good{number}", "s": STREAM, "f": f'{{"n": "{number}"}}', "a": added}
                connection.execute(insert, row)
        async with relaying(redis_url, url) as shared:
            await eventually_async(lambda: waiting(engine) == len(wrong))
            assert shared.get(HeaderField.OUTBOX_ROWS) == len(wrong) + 3
        assert await numbers(redis) == [0, 1, 2]
        engine.dispose()

    async def test_many_rows_that_can_not_be_published_hold_up_nothing(
        self, place: Place, engine: Any, redis: Any, redis_url: str
    ) -> None:
        with engine.begin() as connection:
            wrong = [{"key": f"k{n}", "stream": STREAM, "fields": "[]"} for n in range(2_000)]
            connection.execute(outbox.insert(), wrong)
        with Session(engine) as session, session.begin():
            add(session, STREAM, Event(n=1))
        async with relaying(redis_url, place.asynchronous):
            await eventually_async(lambda: waiting(engine) == len(wrong))
        assert await numbers(redis) == [1]

    @pytest.mark.parametrize("place", ["postgresql"], indirect=True)
    @pytest.mark.parametrize("added", ["infinity", "-infinity", "20000-01-01"])
    async def test_a_row_of_a_time_that_python_does_not_know_is_published(
        self, place: Place, engine: Any, redis: Any, redis_url: str, added: str
    ) -> None:
        insert = text("INSERT INTO supervisor_outbox (key, stream, fields, added_at) VALUES (:k, :s, :f, :a)")
        with engine.begin() as connection:
            connection.execute(insert, {"k": "k", "s": STREAM, "f": '{"n": "1"}', "a": added})
        async with relaying(redis_url, place.sync):
            await eventually_async(lambda: waiting(engine) == 0)
        assert await numbers(redis) == [1]

    @pytest.mark.parametrize("place", ["postgresql"], indirect=True)
    async def test_a_table_that_is_locked_is_said(
        self, place: Place, engine: Any, redis: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("supervisor.outbox.database.LOCK_TIMEOUT_S", 0.05)
        with Session(engine) as session, session.begin():
            add(session, STREAM, Event(n=1))
        async with relaying(redis_url, place.sync) as shared:
            with engine.begin() as connection:
                connection.execute(text("LOCK TABLE supervisor_outbox IN ACCESS EXCLUSIVE MODE"))
                await eventually_async(lambda: shared.get(HeaderField.RELAY_STATE) == RelayState.NO_DATABASE)
            await eventually_async(lambda: waiting(engine) == 0)
        assert await numbers(redis) == [1]

    async def test_keys_are_forgotten_after_their_rows(
        self, place: Place, engine: Any, redis: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("supervisor.outbox.relay._FORGET_S", 0.0)
        async with relaying(redis_url, place.sync):
            for n in range(3):
                with Session(engine) as session, session.begin():
                    add(session, STREAM, Event(n=n))
                await eventually_async(lambda: waiting(engine) == 0)
        assert await numbers(redis) == [0, 1, 2]
        assert await redis.zcard(relayed_key(STREAM)) <= 1


class TestPostgres:
    """What SQLite can't show: transactions side by side, and a server that goes away."""

    @pytest.fixture(params=["postgresql"])
    def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
        server = request.getfixturevalue("postgres")
        url = server.url(server.create())
        engine = create_engine(url)
        create_tables(engine)
        engine.dispose()
        return Place(url, url, server)

    async def test_the_order_is_that_of_the_commits(
        self, place: Place, engine: Any, redis: Any, redis_url: str
    ) -> None:
        """The transaction that adds first, and has the lower ids, commits last."""
        late, early = Session(engine), Session(engine)
        add(late, STREAM, Event(n=3))
        late.flush()
        add(early, STREAM, Event(n=1))
        add(early, STREAM, Event(n=2))
        early.commit()
        late.commit()
        async with relaying(redis_url, place.sync):
            await eventually_async(lambda: waiting(engine) == 0)
        assert await numbers(redis) == [1, 2, 3]

    async def test_a_transaction_under_way_holds_up_nobody(
        self, place: Place, engine: Any, redis: Any, redis_url: str
    ) -> None:
        open_one = Session(engine)
        add(open_one, STREAM, Event(n=2))
        open_one.flush()
        async with relaying(redis_url, place.sync):
            with Session(engine) as session, session.begin():
                add(session, STREAM, Event(n=1))
            await eventually_async(lambda: waiting(engine) == 0)
            open_one.commit()
            await eventually_async(lambda: waiting(engine) == 0)
        assert await numbers(redis) == [1, 2]

    async def test_many_writers_at_once_lose_no_row_and_keep_the_order_of_each(
        self, place: Place, engine: Any, redis: Any, redis_url: str
    ) -> None:
        writers, each = 8, 25

        def write(writer: int) -> None:
            for n in range(each):
                with Session(engine) as session, session.begin():
                    add(session, STREAM, {"n": writer * each + n})

        async with relaying(redis_url, place.sync):
            await asyncio.gather(*(asyncio.to_thread(write, writer) for writer in range(writers)))
            await eventually_async(lambda: waiting(engine) == 0)
        found = await numbers(redis)
        assert sorted(found) == list(range(writers * each))
        for writer in range(writers):
            own = [n for n in found if n // each == writer]
            assert own == sorted(own)

    async def test_an_outage_is_waited_out(self, place: Place, engine: Any, redis: Any, redis_url: str) -> None:
        assert place.server is not None
        with Session(engine) as session, session.begin():
            add(session, STREAM, Event(n=1))
        async with relaying(redis_url, place.sync) as shared:
            await eventually_async(lambda: waiting(engine) == 0)
            engine.dispose()
            place.server.stop()
            try:
                await eventually_async(lambda: shared.get(HeaderField.RELAY_STATE) == RelayState.NO_DATABASE)
            finally:
                place.server.start()
            with Session(engine) as session, session.begin():
                add(session, STREAM, Event(n=2))
            await eventually_async(lambda: waiting(engine) == 0)
        assert await numbers(redis) == [1, 2]
