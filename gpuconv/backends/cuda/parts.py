"""The last stage of a sum in parts: the parts' sums, added up in an order that never changes."""

from typing import Any

import numpy as np

from gpuconv.backends.cuda.kernels import THREADS, divisor, grid, needs_wide, specialise
from gpuconv.backends.cuda.problem import AS_IT_IS, BIAS, Epilogue
from gpuconv.backends.cuda.program import At, Launch
from gpuconv.backends.dispatch import accumulator

# Parts that a thread adds up one after another, at least: four reads from memory, of eight parts each.
PARTS, TEAM = 32, 32


def sum_parts(
    sums: At,
    out: At,
    items: int,
    parts: int,
    dtype: np.dtype[Any],
    epilogue: Epilogue = AS_IT_IS,
    *,
    plane: int = 1,
    channels: int = 1,
) -> Launch:
    """Return the launch that writes so many sums, of this dtype, to `out`: those of all parts at `sums`.

    With a bias, `plane` items follow each other that have the same channel, of so many.
    """
    team = 1
    while team < TEAM and team * PARTS < parts:
        team *= 2
    wide = needs_wide(items * parts)
    kernel = specialise("sum_parts", None, dtype, vector=1, wide=wide, **epilogue.defines())
    struct = kernel.arguments(
        items=items,
        parts=parts,
        team=team,
        plane=divisor(plane, wide),
        channels=divisor(channels, wide),
    )
    pointers = sums, At(BIAS) if epilogue.bias else sums, out
    return Launch(kernel, grid(items * team), pointers, struct, THREADS * accumulator(dtype).itemsize)
