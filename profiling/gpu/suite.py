"""The tests marked `gpu`: what every backend must pass, with CuPy's arrays, and what only a GPU can show."""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from . import children, outcomes
from .children import Deadline
from .results import Results

# A kernel is compiled when first used, on one core: several processes share the wait.
MOST_PROCESSES = 4


def run(results: Results, deadline: Deadline) -> str:
    """Run the tests until they or the time end; return how far it came."""
    if importlib.util.find_spec("pytest") is None:
        return "skipped: pytest isn't installed"
    log = results.log("tests")
    with tempfile.TemporaryDirectory() as scratch, open(log, "w") as output:
        reports = Path(scratch) / "outcomes.jsonl"
        variables = {outcomes.VARIABLE: str(reports)}
        status = children.run(command(), deadline.left - 8, output, polite=6, **variables)
        counted = outcomes.tally(reports)
    results.data.update(counted)
    tests = counted["tests"]
    print(
        f"suite: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped", flush=True
    )
    ran = tests["passed"] + tests["failed"]
    if status == 0 and ran:
        log.unlink()
        return "complete"
    print("\n".join(log.read_text(errors="replace").splitlines()[-25:]))
    if status is None:
        return f"stopped: out of time in {', '.join(counted['tests_unfinished'][:4]) or 'no test'}"
    if status == 1 and ran:
        return "complete"
    return f"failed: pytest's status is {status} after {ran} tests, see {log.name}"


def command() -> list[str]:
    """Return pytest's command, with as many processes as pytest-xdist and the cores allow.

    A file that can't be imported, as of a package that isn't there, is a failure and no end of all others.
    """
    processes = min(MOST_PROCESSES, len(os.sched_getaffinity(0)) // 2)
    spread = ["-n", str(processes)] if processes > 1 and importlib.util.find_spec("xdist") else []
    plugins = ["-p", outcomes.__name__, "-p", "no:cacheprovider"]
    options = ["-m", "gpu", "-q", "--tb=short", "--continue-on-collection-errors"]
    return [sys.executable, "-m", "pytest", "tests", *options, *plugins, *spread]
