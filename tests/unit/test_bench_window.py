"""The rate between two shares of a backlog."""

import pytest

from supervisor.bench.window import Look, Window


def fed(entries: int, *looks: tuple[float, float, float]) -> Window:
    window = Window(entries)
    for look in looks:
        window.saw(Look(*look))
    return window


def test_the_rate_leaves_start_and_end_out():
    # A second until anything is done, 1,000 in two seconds, and then the last ones very slowly.
    window = fed(1000, (0, 0, 0), (1, 0, 0.5), (3, 1000, 0.7), (99, 1000, 50))
    assert window.complete
    assert window.rate == pytest.approx(500)
    assert window.cpu_us == pytest.approx(200)


def test_between_two_looks_the_count_grows_evenly():
    window = fed(100, (0, 0, 0), (1, 50, 0), (2, 60, 0), (3, 100, 0))
    # 10 at 0.2 s, 90 at 2.75 s.
    assert window.rate == pytest.approx(80 / 2.55)


def test_one_look_that_sees_all_done_has_no_rate_to_speak_of():
    window = fed(100, (1, 100, 0))
    assert window.complete
    assert window.rate > 1e6


def test_an_open_window_has_no_rate():
    window = fed(100, (0, 0, 0), (1, 50, 0))
    assert not window.complete
    with pytest.raises(ValueError, match="not been seen to its end"):
        _ = window.rate
