"""The client of the control socket."""

import contextlib
import errno
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from supervisor.control.protocol import ANSWER_BYTES_MAX, encode
from supervisor.errors import AnswerLostError, NotRunningError, OtherUserError, SupervisorError
from supervisor.settings.paths import PoolPaths
from supervisor.text import path_text
from supervisor.unix_path import socket_path

#: The wait before a retry after the arbiter closed the connection.
RETRY_S = 0.05


def request(paths: PoolPaths, cmd: str, *, patience_s: float = 5.0, **args: Any) -> dict[str, Any]:
    """Send a command to the arbiter and return the data of its answer.

    Retries if the arbiter closes the connection, because it has too many clients or is replacing its own
    image. A command may therefore run twice.

    Raises NotRunningError if nobody takes the command within `patience_s`, AnswerLostError if it was sent and has no
    answer by then, and SupervisorError with the arbiter's message if it refuses; OtherUserError if the pool is another
    user's.
    """
    deadline_s = time.monotonic() + patience_s
    line, sent = encode({"cmd": cmd, **args}), False
    while True:
        try:
            with _connected(paths, deadline_s) as connection:
                sent = True
                with contextlib.suppress(BrokenPipeError):  # it was refused already: that is to be read
                    connection.sendall(line)
                answer = json.loads(_read_line(connection, deadline_s))
            break
        except ConnectionResetError as error:
            if time.monotonic() + RETRY_S > deadline_s:
                raise _no_answer(paths, error, sent=sent) from None
            time.sleep(RETRY_S)
        except PermissionError:
            raise _other_user(paths) from None
        except (OSError, ValueError) as error:
            raise _no_answer(paths, error, sent=sent) from None
    if not answer.get("ok"):
        raise SupervisorError(str(answer.get("error", "the supervisor refused without giving a reason")))
    data: dict[str, Any] = answer["data"]
    return data


@contextlib.contextmanager
def _connected(paths: PoolPaths, deadline_s: float) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(max(0.001, deadline_s - time.monotonic()))
        while True:
            try:
                with socket_path(paths.control) as path:
                    connection.connect(path)
                break
            except BlockingIOError:  # too many wait already
                if time.monotonic() + RETRY_S > deadline_s:
                    raise TimeoutError from None
                time.sleep(RETRY_S)
        yield connection


def _read_line(connection: socket.socket, deadline_s: float) -> bytes:
    received = b""
    while not received.endswith(b"\n"):
        connection.settimeout(max(0.001, deadline_s - time.monotonic()))
        chunk = connection.recv(65536)
        received += chunk
        if not chunk:
            raise ConnectionResetError("the connection was closed before the answer")
        if len(received) > ANSWER_BYTES_MAX:
            raise ConnectionError("the answer is too long")
    return received


def has_socket(paths: PoolPaths) -> bool:
    """Return whether the control socket exists, whoever listens; True where that can't be seen."""
    try:
        return paths.control.exists()
    except OSError:
        return True


def is_held(paths: PoolPaths) -> bool:
    """Return whether a process has the control socket open, also one that does not answer."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        with socket_path(paths.control) as path:
            return connection.connect_ex(path) in (0, errno.EAGAIN)  # EAGAIN: too many wait for an answer already
    return False


def not_running(paths: PoolPaths) -> NotRunningError:
    """Return the error for a control socket that does not exist."""
    return _no_answer(paths, FileNotFoundError(), sent=False)


def _other_user(paths: PoolPaths) -> OtherUserError:
    import pwd

    owner = ""
    with contextlib.suppress(OSError, KeyError):
        owner = pwd.getpwuid(paths.state_dir.stat().st_uid).pw_name
    return OtherUserError(
        f"no permission for {path_text(paths.control)}: the pool belongs to {owner or 'another user'}, and only that"
        f" user and root may ask it; `sudo -u {owner or 'USER'} supervisor ...` runs a command as that user"
    )


def _no_answer(paths: PoolPaths, error: Exception, *, sent: bool) -> NotRunningError:
    kind = AnswerLostError if sent else NotRunningError
    return kind(f"no supervisor answers on {path_text(paths.control)}: {_why(paths, error)}")


def stopped_pid(paths: PoolPaths) -> int | None:
    """Return the pid of the pool's process if it is stopped, as by Ctrl-Z; None where that can't be seen."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int(paths.lock.read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return pid if state in "Tt" else None
    return None


def _why(paths: PoolPaths, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the socket does not exist"
    if isinstance(error, ConnectionRefusedError):
        return "its supervisor is gone"
    if isinstance(error, TimeoutError):
        pid = stopped_pid(paths)
        hint = f"; its process {pid} is stopped: `fg` in its terminal, or `kill -CONT {pid}`, lets it go on"
        return f"no answer in time{hint if pid else ''}"
    return str(error)
