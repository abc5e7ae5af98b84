"""Profiling ranges: each public operation, and each stage under it, is a range of the NVTX domain "gpuconv".

Where no tool listens, nvtx's decorator hands the function back as it is, so a range costs nothing; where
nvtx isn't installed, so does the stand-in here.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., object])

DOMAIN = "gpuconv"

try:
    import nvtx
except ImportError:  # nvtx has wheels for Linux and Windows only

    def traced(function: F) -> F:
        """Return the function unchanged: nvtx isn't installed."""
        return function

    def stage(name: str) -> AbstractContextManager[Any]:
        """Return a context that does nothing: nvtx isn't installed."""
        return nullcontext()

else:

    def traced(function: F) -> F:
        """Mark each call of the function as a range that bears its name."""
        marked: F = nvtx.annotate(message=function.__name__, domain=DOMAIN)(function)
        return marked

    @cache
    def stage(name: str) -> AbstractContextManager[Any]:
        """Return a context that is a range of this name; the same one again, as it may be entered again."""
        marked: AbstractContextManager[Any] = nvtx.annotate(message=name, domain=DOMAIN)
        return marked


def _probe() -> None: ...


# Whether a profiler listens; asked once, as tools attach when a process starts.
LISTENING = traced(_probe) is not _probe
