"""Run tests under the address sanitizer: `PYTHONPATH=tests python -m host.sanitized tests/test_host.py`.

A library that is compiled with it can only be loaded where the sanitizer itself was loaded first.
"""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from host.compiler import missing

TESTS = Path(__file__).resolve().parents[1]
# Reports become exceptions (cuda.h), every one of them. Python leaks on purpose.
OPTIONS = "detect_leaks=0:halt_on_error=0:suppress_equal_pcs=0:allocator_may_return_null=1"


@cache
def _libraries():
    # libstdc++ too: the sanitizer looks for its throw when it starts.
    names = ("libasan.so", "libubsan.so", "libstdc++.so.6")
    commands = (["g++", f"-print-file-name={name}"] for name in names)
    found = [subprocess.run(command, capture_output=True, text=True).stdout.strip() for command in commands]
    return [path for path in found if os.path.isabs(path)]  # a name it doesn't know it gives back


def missing_sanitizer():
    """Return why tests can't be run under the address sanitizer here, or ""."""
    return missing() or ("" if len(_libraries()) == 3 else "needs libasan and libubsan, which come with g++")


def run(*arguments, timeout=None):
    """Run pytest with these arguments; return the finished process, with its output as text."""
    return python("-m", "pytest", "-p", "no:cacheprovider", *arguments, timeout=timeout, ASAN_OPTIONS=OPTIONS)


def python(*arguments, timeout=None, **environment):
    """Run Python with these arguments; return the finished process. The first report ends it."""
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(_libraries()),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        **environment,
    }
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, timeout=timeout
    )


if __name__ == "__main__":
    if reason := missing_sanitizer():
        sys.exit(reason)
    finished = run(*sys.argv[1:])
    print(finished.stdout + finished.stderr)
    sys.exit(finished.returncode)
