"""The last stage of sums over the batch: the sums of its parts, added up in an order that never changes."""

from typing import Any

import numpy as np

from gpuconv.backends.cuda.kernels import THREADS, grid, needs_wide, specialise
from gpuconv.backends.cuda.program import At, Launch
from gpuconv.backends.dispatch import accumulator

# Parts that a thread adds up one after another, at least: four reads from memory, of eight parts each.
PARTS, TEAM = 32, 32


def sum_parts(sums: At, out: At, items: int, parts: int, dtype: np.dtype[Any]) -> Launch:
    """Return the launch that writes so many sums, of this dtype, to `out`: those of all parts at `sums`."""
    team = 1
    while team < TEAM and team * PARTS < parts:
        team *= 2
    kernel = specialise("sum_parts", None, dtype, vector=1, wide=needs_wide(items * parts))
    struct = kernel.arguments(items=items, parts=parts, team=team)
    return Launch(kernel, grid(items * team), (sums, out), struct, THREADS * accumulator(dtype).itemsize)
