"""A pytest plugin: writes each test's outcome down at once, so that a run that is killed leaves what it knew."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

VARIABLE = "GPUCONV_OUTCOMES"


class Outcomes:
    """The plugin; a line of JSON a report."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - pytest ends with the process

    def _write(self, **line: str) -> None:
        self._file.write(json.dumps(line) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(test=nodeid, outcome="started")

    def pytest_runtest_logreport(self, report: Any) -> None:
        why = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
        self._write(test=report.nodeid, outcome=report.outcome, when=report.when, why=why)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._write(test=report.nodeid, outcome="failed", when="collect", why="")


def pytest_configure(config: Any) -> None:
    """Register; with pytest-xdist in the process that hears of all tests only."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(os.environ[VARIABLE]))


def tally(path: Path) -> dict[str, Any]:
    """Count what the plugin wrote down."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    tests = {line["test"]: "unfinished" for line in lines}
    reasons: Counter[str] = Counter()
    for line in lines:
        if line["outcome"] == "failed":
            tests[line["test"]] = "failed"
        elif line["outcome"] == "skipped":
            tests[line["test"]] = "skipped"
            reasons[line["why"].removeprefix("Skipped: ")] += 1
        elif line.get("when") == "call" and tests[line["test"]] != "failed":
            tests[line["test"]] = "passed"
    return {
        "tests": {state: _named(tests, state, count=True) for state in ("passed", "failed", "skipped")},
        "tests_failed": _named(tests, "failed"),
        "tests_unfinished": _named(tests, "unfinished"),
        "tests_skipped_because": dict(reasons.most_common()),
    }


def _named(tests: dict[str, str], state: str, count: bool = False) -> Any:
    named: Iterable[str] = [test for test, found in tests.items() if found == state]
    return sum(1 for _ in named) if count else list(named)
