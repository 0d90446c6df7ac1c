"""A real server, asked as the model is, and what of a reply is compared."""

from typing import Any

from redis.exceptions import ResponseError

from supervisor.broker.redis_errors import code_of
from tests.model.commands import Argument
from tests.support.servers import AnyServer

#: The stream whose ids the test chooses.
STREAM = "events"


class Real:
    """A real server, by raw commands and replies of RESP2."""

    def __init__(self, server: AnyServer) -> None:
        self._client = server.sync(protocol=2)
        self._connection = self._client.connection_pool.get_connection()
        # Redis says 7.0, Valkey says 7.2.4 and its own version besides.
        version = str(self._client.info("server")["redis_version"])
        self.eager = tuple(map(int, version.split(".")[:2])) >= (7, 2)

    def call(self, *command: Argument) -> Any:
        if command:
            self._connection.send_command(*command)
        return self._connection.read_response()

    def call_all(self, commands: list[tuple[Argument, ...]]) -> list[Any]:
        """At once; of an error its first word."""
        for command in commands:
            self._connection.send_command(*command)
        return [said(self, ()) for _ in commands]

    def close(self) -> None:
        self._connection.disconnect()
        self._client.close()


def said(by: Any, command: tuple[Argument, ...]) -> Any:
    """The reply, or the code of the error."""
    try:
        return by.call(*command)
    except ResponseError as error:
        return code_of(error)


def as_dicts(rows: Any) -> list[dict[bytes, Any]]:
    """XINFO's flat lists, or the model's dicts."""
    return [row if isinstance(row, dict) else dict(zip(row[::2], row[1::2], strict=True)) for row in rows]


def without_idle(rows: Any) -> Any:
    """Of XPENDING's rows: id, consumer, times delivered."""
    return [(row[0], row[1], row[3]) for row in rows] if isinstance(rows, list) else rows


def comparable(command: tuple[Argument, ...], reply: Any) -> Any:
    """Without what only the server knows: idle times, ids that it chose."""
    if isinstance(reply, str):
        return reply
    if command[0] == "XPENDING" and len(command) > 3:
        return without_idle(reply)
    if command[0] == "XINFO":
        names = (b"name", b"pending", b"consumers", b"last-delivered-id")
        return [[row.get(name) for name in names] for row in as_dicts(reply)]
    if command[0] == "HGETALL":
        return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    return [row[1] for row in reply] if command[0] == "XRANGE" and command[1] != STREAM else reply
