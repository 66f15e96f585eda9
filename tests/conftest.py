"""Rules for every test: a time limit each, and under CI=true no test may be skipped."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Generator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, settings

IN_CI = os.environ.get("CI") == "true"

TIMES = os.environ.get("PTUNNEL_TEST_TIMES")
"""Where to note what each test takes, for `python -m tests.thorough`."""

os.environ.setdefault("PTUNNEL_PORTMAP", "off")  # no test asks anything of the router of the machine that runs it

# Every run tries the same inputs, and a busy machine fails none of them; scripts/fuzz is what looks for new ones.
settings.register_profile("tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

DEFAULT_LIMIT_S = 60
"""Seconds one test may take (set-up and tear-down included); `@pytest.mark.time_limit(seconds)` gives another."""

NETNS_LIMIT_S = 120
"""The same for tests that are marked `netns`."""

HARD_EXTRA_S = 30
"""Seconds after the limit at which the whole run is ended, with every thread's stack printed."""


THOROUGH = frozenset(Path(__file__).with_name("thorough.txt").read_text(encoding="utf-8").split())
"""Files and functions that `scripts/test quick` leaves out; `python -m tests.thorough` writes the list from measured times."""


class TestTookTooLong(Exception):
    """The test went over its limit."""

    __test__ = False


class FailuresAtOnce:
    """Name what failed when it fails: the summary comes many minutes later, and not at all where the run is ended."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and reporter is not None:
            reporter.write_line(f"\nfailed: {report.nodeid} ({report.when}, {report.duration:.1f} s)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "time_limit(seconds): how long this test may take")
    if "PTUNNEL_COVERAGE" in os.environ and (hasattr(config, "workerinput") or not config.getoption("numprocesses", None)):
        from coverage import Coverage

        measured = Coverage(data_suffix=True)
        measured.start()
        config.add_cleanup(measured.save)
        config.add_cleanup(measured.stop)  # the last goes first
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(FailuresAtOnce(config))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        file = item.path.relative_to(item.config.rootpath).as_posix()
        if file in THOROUGH or f"{file}::{getattr(item, 'originalname', item.name)}" in THOROUGH:
            item.add_marker("thorough")


def _limit_of(item: pytest.Item) -> int:
    mark = item.get_closest_marker("time_limit")
    if mark is not None:
        return int(mark.args[0])
    return NETNS_LIMIT_S if item.get_closest_marker("netns") else DEFAULT_LIMIT_S


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if not hasattr(signal, "SIGALRM"):
        return (yield)
    limit = _limit_of(item)

    def ring(signum: int, frame: FrameType | None) -> None:
        raise TestTookTooLong(f"{item.nodeid} took longer than {limit} s")

    cpu_before, began = sum(os.times()[:4]), time.monotonic()
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit)
    # Standard error is captured by now; the stacks must reach the real one.
    faulthandler.dump_traceback_later(limit + HARD_EXTRA_S, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()
        if TIMES:
            with open(f"{TIMES}.{os.getpid()}", "a", encoding="utf-8") as file:
                file.write(f"{sum(os.times()[:4]) - cpu_before:.3f} {time.monotonic() - began:.3f} {item.nodeid}\n")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    return str(report.longrepr)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.longrepr = f"skipped, which CI=true forbids: {_reason(report)}"
        report.outcome = "failed"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IN_CI and report.skipped:
        report.longrepr = f"{collector.nodeid} skipped, which CI=true forbids: {_reason(report)}"
        report.outcome = "failed"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lab = os.environ.get("PTUNNEL_LAB", "")
    left_out = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if report.nodeid.startswith(("tests/netns", "tests/programs"))
    ]
    if lab == "user":
        what = f"left out for want of root: {len(left_out)} tests" if left_out else "nothing was left out"
        terminalreporter.write_line(f"ran in an unprivileged user namespace; {what}")
    elif lab == "none" and "quick" not in sys.argv:
        deselected = terminalreporter.stats.get("deselected", [])
        names = sorted({item.nodeid.split("::")[0] for item in deselected if "tests/netns" in item.nodeid})
        if names:
            terminalreporter.write_line(f"left out, since no network namespaces may be made here: {', '.join(names)}")
