"""A plugin for pytest: a line of JSON for each test as it ends, so that a run that is stopped still tells what it has.

pytest -p tools.gpu_check.recorder --record=FILE
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

WORDS = 500  # characters of a message that are kept


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, help="where the outcomes of tests go")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("record")
    if path and not hasattr(config, "workerinput"):  # xdist's workers report to the process that has started them
        config.pluginmanager.register(Recorder(path))


class Recorder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, report: Any, **values: Any) -> None:
        line = {"id": report.nodeid, "outcome": report.outcome} | values
        with self.path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":  # set-up and tear-down say nothing unless they fail
            self.write(report, seconds=round(report.duration, 2), message=message_of(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.write(report, outcome="not collected", message=message_of(report))


def message_of(report: Any) -> str:
    """Why it failed or was skipped, in a few words."""
    if report.outcome == "passed":
        return ""
    if isinstance(report.longrepr, tuple):  # of a skip: file, line, reason
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else report.longreprtext.strip().rpartition("\n")[2])[:WORDS]
