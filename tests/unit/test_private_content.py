"""The content of messages may be private: it is in dead letters, never in the log."""

from typing import Any

import pytest
from pydantic import BaseModel

from supervisor import Message, Reject, Retry
from supervisor.handling.decode import make_decoder
from supervisor.log import FaultLog
from supervisor.messages import DecodeError
from supervisor.text import public_text
from supervisor.worker.retry_or_dead_letter import _unexpected

SECRET = "ada@example.com"


class User(BaseModel):
    user_id: int
    note: str


class Lines:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append({"event": event, **fields})


def decode_failure() -> Exception:
    with pytest.raises(DecodeError) as caught:
        make_decoder(User)(Message("1-0", "s", "g", {"user_id": SECRET}))
    assert SECRET in str(caught.value), "the dead letter says it"
    return caught.value


def validation_failure() -> Exception:
    try:
        User.model_validate({"user_id": SECRET})
    except Exception as error:
        return error
    raise AssertionError


def caused_by(error: Exception) -> Exception:
    try:
        raise RuntimeError("can't save") from error
    except RuntimeError as made:
        return made


@pytest.mark.parametrize(
    "error",
    [
        decode_failure(),
        validation_failure(),
        caused_by(validation_failure()),
        ExceptionGroup("two", [validation_failure(), caused_by(decode_failure())]),
    ],
    ids=["decode", "validation", "cause", "group"],
)
def test_no_content_in_the_log(error: Exception) -> None:
    log = Lines()
    FaultLog(log)("handler failed", error, exc_info=error)
    (line,) = log.lines
    assert SECRET not in str(line)
    assert "user_id" in str(line) and "exception" in line


def test_the_reason_says_where_and_of_which_kind() -> None:
    error = decode_failure()
    assert public_text(str(error), error) == ("the message does not fit User: user_id (int_parsing), note (missing)")


def test_what_a_handler_has_chosen_has_no_traceback() -> None:
    assert [_unexpected(error) for error in (Retry(), Reject(), decode_failure(), None)] == [None] * 4
    other = ValueError()
    assert _unexpected(other) is other
