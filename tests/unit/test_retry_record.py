"""What workers store in hashes is read back as written, and anything else as missing."""

from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.ids import parse_number
from supervisor.core.retry_record import RetryRecord, parse_retry

numbers = st.integers(0, 10**15 - 1)


@given(numbers, numbers, numbers)
def test_a_record_is_read_back_as_written(attempts: int, due_ms: int, delay_ms: int) -> None:
    record = RetryRecord(attempts, due_ms, delay_ms)
    assert parse_retry(record.encode().encode()) == record


@given(st.none() | st.binary() | st.sampled_from([b"", b"1", b"1:2", b"1:2:", b"1:2:3:4", b"1:-2:3", b"1:2:x", b"::"]))
def test_what_no_worker_wrote_is_no_record(text: bytes | None) -> None:
    found = parse_retry(text)
    assert found is None or list(map(int, (text or b"").split(b":"))) == list(found)


def test_numbers_have_ascii_digits_only() -> None:
    assert [parse_number(text) for text in (b"0", "12", b"9" * 15)] == [0, 12, 10**15 - 1]
    for text in (None, b"", "", b"-1", "1.5", " 1", "١", "²", b"\xb2", b"x", b"9" * 16, b"9" * 5_000):
        assert parse_number(text) is None
