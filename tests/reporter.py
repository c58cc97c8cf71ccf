"""Prints a line for each file of tests with its time, in one process and with pytest-xdist."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import pytest


class FileReporter:
    """Replaces pytest's dots. A file's seconds are those of its tests, one after the other."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal
        self._left: Counter[str] = Counter()
        self._outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._seconds: Counter[str] = Counter()

    def _expect(self, tests: Iterable[str]) -> None:
        self._left = Counter(map(_file_of, tests))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._expect(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: list[str]) -> None:
        if not self._left:  # every worker collects the same tests
            self._expect(ids)

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(self, report: pytest.TestReport):
        category, letter, word = yield
        # Asked for the second time, it is for the summary at the end.
        if not isinstance(report, pytest.TestReport) or hasattr(report, "is_counted"):
            return category, letter, word
        report.is_counted = True
        self._outcomes[_file_of(report.nodeid)][category] += 1
        return category, "", ""

    @pytest.hookimpl(trylast=True)  # after the outcome was counted
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = _file_of(report.nodeid)
        self._seconds[file] += report.duration
        if report.failed:
            self._terminal.write_line(f"{report.nodeid}: failed", red=True)
        if report.when == "teardown":
            self._left[file] -= 1
            if self._left[file] == 0:
                self._tell(file)

    def _tell(self, file: str) -> None:
        outcomes = ", ".join(
            f"{count} {category}" for category, count in self._outcomes[file].items() if category
        )
        self._terminal.write_line(f"{file}: {outcomes}, {self._seconds[file]:.1f} s")


def _file_of(test: str) -> str:
    return test.partition("::")[0]


def pytest_configure(config: pytest.Config) -> None:
    """Called by conftest.py."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if config.get_verbosity() <= 0 and terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FileReporter(terminal), "file reporter")
