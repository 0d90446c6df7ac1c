"""What the benchmarks calculate with."""

import pytest

from benchmarks.arrivals import pack, replies, schedule
from benchmarks.contestants import Turn
from benchmarks.goals import Goal
from benchmarks.latency import percentile_us
from benchmarks.measure import ratios
from benchmarks.sections import Outcome
from benchmarks.suite import Results, section_text
from benchmarks.tools import Report


def test_arrivals_are_fixed_by_the_seed_and_keep_to_the_rate():
    first, again, other = schedule(1000, 5.0, 1), schedule(1000, 5.0, 1), schedule(1000, 5.0, 2)
    assert first == again != other
    assert first == sorted(first)
    assert first[0] > 0
    assert first[-1] < 5_000_000_000
    assert len(first) == pytest.approx(5000, rel=0.05)


def test_an_arrival_is_packed_as_an_xadd():
    assert pack("s", [12345]) == [b"*5\r\n$4\r\nXADD\r\n$1\r\ns\r\n$1\r\n*\r\n$2\r\nat\r\n$5\r\n12345\r\n"]


def test_replies_are_counted_and_errors_raised():
    assert replies(b"$15\r\n1700000000000-0\r\n$15\r\n17000") == 2
    with pytest.raises(RuntimeError, match="OOM"):
        replies(b"$3\r\n1-0\r\n-OOM command not allowed\r\n")


@pytest.mark.parametrize(("share", "expected"), [(0.5, 0.05), (0.99, 0.099), (0.999, 0.1), (1.0, 0.1)])
def test_a_percentile_is_a_value_that_was_seen(share, expected):
    assert percentile_us(list(range(100, 0, -1)), share) == pytest.approx(expected)


def test_ratios_are_of_neighbouring_turns():
    assert ratios([Turn(10, 1), Turn(30, 1)], [Turn(5, 1), Turn(10, 1)]) == [2, 3]


def test_a_report_as_markdown():
    report = Report("title", ("what", "rate"))
    report.row("a", 1234.5)
    report.notes.append("A note.")
    assert report.markdown() == "| what | rate |\n| --- | --: |\n| a | 1,234 |\n\nA note."


@pytest.mark.parametrize(
    ("goal", "row"),
    [
        (Goal("a", 0.9, [0.8, 0.9, 1.2]), ["a", "at least 0.9", "**0.90** (0.80-1.20)", "yes"]),
        (Goal("b", 0.9, [0.8, 0.8, 1.2]), ["b", "at least 0.9", "**0.80** (0.80-1.20)", "no"]),
        (Goal("c", 2, [1.0, 2.0, 5.0], at_most=True), ["c", "at most 2", "**2.00** (1.00-5.00)", "yes"]),
        (Goal("d", 2, [2.5], at_most=True), ["d", "at most 2", "**2.50** (2.50-2.50)", "no"]),
        (Goal("e", 2, []), ["e", "at least 2", "not available", ""]),
    ],
)
def test_the_median_decides_whether_a_goal_is_met(goal, row):
    assert goal.row() == row


def test_results_begin_with_the_goals_and_name_what_is_not_measured(tmp_path):
    results = Results(tmp_path / "new", {"machine": "2 cores"}, ["idle"], [Goal("a", 1, [2.0])])
    outcome = Outcome([Report("Memory", ("", "MiB"), rows=[["a", 1.5]])], {"memory.svg": lambda path: None})
    results.texts.append(section_text("Memory", "Of a worker.", outcome, 12.3))
    results.write()
    text = results.path.read_text()
    assert "- machine: 2 cores" in text
    assert text.index("## What is wanted") < text.index("## Memory\n\nOf a worker. Measured in 12 s.")
    assert "![Memory](results/memory.svg)" in text
    assert text.endswith("Not measured: An idle pool.\n")
