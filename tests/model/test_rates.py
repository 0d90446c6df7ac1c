"""The script that reserves starts keeps to the rate, whatever comes when and costs what."""

from hypothesis import given
from hypothesis import strategies as st

from supervisor.broker.scripts import RESERVE_RATE
from supervisor.core.rate import BURST_S, parse_rate
from tests.model.server import Server

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_KEYS = [b"orders", b"copies", b"due", b"behind", b"rates", b"rates:before", b"interval"]


@given(
    count=st.integers(1, 200),
    unit=st.sampled_from("smhd"),
    messages=st.lists(
        st.tuples(st.sampled_from([0, 0, 1, 40, 2_000]), st.sampled_from([1, 1, 3])), min_size=40, max_size=60
    ),
)
def test_no_window_has_more_than_the_rate_and_one_burst(count: int, unit: str, messages: list[tuple[int, int]]) -> None:
    rate = parse_rate(f"{count}/{unit}")
    server = Server()
    server.call("XGROUP", "CREATE", "orders", "billing", "0", "MKSTREAM")
    head = [b"billing", repr(rate.interval_us).encode(), repr(rate.tolerance_us).encode(), b"1", b"0"]
    starts = []
    for gap_ms, cost in messages:
        server.now_ms += gap_ms
        server.run_script(RESERVE_RATE.text.encode(), _KEYS, [*head, b"1-1", b"", str(cost).encode()])
        # Taken away, since the clock of the rates stands still while nobody takes what is due.
        due = server.call("ZRANGE", "due", 0, 0, "WITHSCORES")
        server.call("ZREM", "due", "1-1")
        starts.append((float(due[1]) if due else server.now_ms, cost))
        assert starts[-1][0] >= server.now_ms
    assert starts == sorted(starts, key=lambda start: start[0])
    burst = max(1.0, count * BURST_S / _UNITS_S[unit])
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            # Due times are rounded up to whole ms.
            took_us = (starts[last][0] - starts[first][0] + 1) * 1000
            # The last one starts when what came before is paid, whatever it costs itself.
            used = sum(cost for _, cost in starts[first:last]) + 1
            assert used <= took_us / rate.interval_us + burst + 1e-6 * used
