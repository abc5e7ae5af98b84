"""Programs that run beside this one and must end in time."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from .results import CHECKOUT


class Deadline:
    """The time until which a part may work."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, negative when it is over."""
        return self._end - time.monotonic()


def run(
    command: list[str], seconds: float, output: IO[Any] | None = None, polite: float = 5.0, **variables: str
) -> int | None:
    """Run a program, with those that it starts, for at most so many seconds.

    Return its exit status, or None where it was stopped: out of time, it is interrupted as by Ctrl-C and
    killed when it hasn't ended `polite` seconds later. It can import the checkout and its benchmarks.
    """
    path = [str(CHECKOUT), str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **variables}
    child = subprocess.Popen(
        command, cwd=CHECKOUT, env=environment, stdout=output, stderr=output and subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        return child.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        with suppress(subprocess.TimeoutExpired, ProcessLookupError):
            os.killpg(child.pid, signal.SIGINT)
            child.wait(polite)
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
