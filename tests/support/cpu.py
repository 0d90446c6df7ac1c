"""`pytest --cpu N`: the CPU time of tests, their processes included, and the N dearest of them.

Wall time says little on a machine that others use too. What counts is what a test and the children that it
has waited for have used; a process that outlives its test (a server of the session) counts for the last one.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

import pytest

from tests.support.command_server import Forked

PROPERTY = "cpu"
_BEGAN = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--cpu N`."""
    parser.addoption(
        "--cpu", type=int, default=0, metavar="N", help="show CPU time by folder and file, and the N dearest tests"
    )


def used_s() -> float:
    """CPU time of this process, of the children that it has waited for, and of commands in forks."""
    times = os.times()
    own_s = times.user + times.system + times.children_user + times.children_system
    return own_s + Forked.used_s


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Note where the test began."""
    item.stash[_BEGAN] = used_s()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Send the figure along with the last report, so that it arrives from the processes of pytest-xdist."""
    report = yield
    if report.when == "teardown":
        report.user_properties = [*report.user_properties, (PROPERTY, used_s() - item.stash[_BEGAN])]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the tables."""
    shown = config.getoption("cpu")
    if not shown:
        return
    reports = [one for some in terminalreporter.stats.values() for one in some if isinstance(one, pytest.TestReport)]
    for title, group in (("folder", lambda file: str(PurePosixPath(file).parent)), ("file", str)):
        terminalreporter.section(f"CPU time by {title}")
        for name, row in sorted(_sums(reports, group).items(), key=lambda item: -item[1].cpu_s):
            terminalreporter.write_line(f"{row.cpu_s:8.1f} s CPU {row.wall_s:8.1f} s wall {row.tests:5} tests  {name}")
    terminalreporter.section(f"the {shown} dearest tests")
    ended = [report for report in reports if report.when == "teardown"]
    dearest = sorted(((_cpu_s(report), report.nodeid) for report in ended), reverse=True)[:shown]
    for cpu_s, test in dearest:
        terminalreporter.write_line(f"{cpu_s:8.2f} s  {test}")


@dataclass
class _Sum:
    """What the tests of one file or folder took."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    tests: int = 0


def _sums(reports: Iterable[pytest.TestReport], group: Callable[[str], str]) -> dict[str, _Sum]:
    sums: dict[str, _Sum] = defaultdict(_Sum)
    for report in reports:
        row = sums[group(report.nodeid.partition("::")[0])]
        row.cpu_s += _cpu_s(report)
        row.wall_s += report.duration
        row.tests += report.when == "teardown"
    return sums


def _cpu_s(report: pytest.TestReport) -> float:
    return float(dict(report.user_properties).get(PROPERTY, 0.0))
