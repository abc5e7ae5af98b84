"""A pytest plugin: writes each outcome down at once, so that a run that is killed leaves what it knew."""

import json
import os
from collections import Counter
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
        """Note a test that begins, so that one that never ends has a name."""
        self._write(test=nodeid, outcome="started")

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note what came of a test's setup, call or teardown."""
        why = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
        self._write(test=report.nodeid, outcome=report.outcome, when=report.when, why=why)

    def pytest_collectreport(self, report: Any) -> None:
        """Note a file that can't be imported."""
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
        elif line.get("when") == "call":
            tests[line["test"]] = "passed"
    counts = Counter(tests.values())
    return {
        "tests": {state: counts[state] for state in ("passed", "failed", "skipped")},
        "tests_failed": [test for test, state in tests.items() if state == "failed"],
        "tests_unfinished": [test for test, state in tests.items() if state == "unfinished"],
        "tests_skipped_because": dict(reasons.most_common()),
    }
