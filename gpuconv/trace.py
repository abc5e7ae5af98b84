"""Profiling ranges: each public operation is a range of the NVTX domain "gpuconv" under nsys or ncu.

Where no tool listens, nvtx's decorator hands the function back as it is, so a range costs nothing; where
nvtx isn't installed, so does the stand-in here.
"""

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])

DOMAIN = "gpuconv"

try:
    import nvtx
except ImportError:  # nvtx has wheels for Linux and Windows only

    def traced(function: F) -> F:
        """Return the function unchanged: nvtx isn't installed."""
        return function

else:

    def traced(function: F) -> F:
        """Mark each call of the function as a range that bears its name."""
        marked: F = nvtx.annotate(message=function.__name__, domain=DOMAIN)(function)
        return marked
