"""The bias, written to y before the products, and its gradient, in two stages that never change order."""

from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.cuda import runtime as runtimes
from gpuconv.backends.cuda.columns import (
    Laid,
    channel_lanes,
    inner_divisors,
    laid,
    order_lanes,
    order_struct,
    places_lanes,
)
from gpuconv.backends.cuda.kernels import THREADS, divisor, needs_wide, specialise
from gpuconv.backends.cuda.parts import sum_parts
from gpuconv.backends.cuda.problem import BIAS, RESULT
from gpuconv.backends.cuda.program import (
    At,
    Launch,
    LimitTooSmall,
    Program,
    kernel_launch,
    planned,
    run_within_limit,
)
from gpuconv.backends.dispatch import accumulator

Array = Any


def fill(n: int, c: int, sizes: tuple[int, ...], dtype: np.dtype[Any], channels_last: bool) -> Launch:
    """Return the launch that writes b (BIAS), broadcast over n images and places, to the result."""
    vector = order_lanes(dtype.itemsize, c, sizes, channels_last)
    items = n * c * prod(sizes)
    wide = needs_wide(items)
    return kernel_launch(
        specialise("bias", None, dtype, vector=vector, wide=wide, CHANNELS_LAST=int(channels_last)),
        items // vector,
        (At(BIAS), At(RESULT)),
        order=order_struct(c, sizes, vector, channels_last, wide),
    )


@runtimes.on_device("db")
def grad(dy: Array, db: Array, channels_last: bool) -> None:
    """Write db: dy summed over images and places."""
    runtime, dtype = runtimes.of(dy), db.dtype
    dy = dy.astype(dtype, copy=False)
    n, *sizes = dy.shape
    c = sizes.pop(-1 if channels_last else 0)
    if dy.size:
        source = laid(dy, runtime.address(dy), channels_last)

        def plan(limit: int) -> Program:
            return _grad(n, c, tuple(sizes), source, dtype, channels_last, limit)

        run_within_limit("bias gradient", runtime, plan, [runtime.address(dy), runtime.address(db)])
    else:
        db[...] = 0


# A part of the batch that a block sums: at least so many places, so that the second stage stays small, and no
# more parts than fill the GPU several times.
PART = 4096
BLOCKS = 2048
LANES = 32  # as in bias_grad.cu


@planned
def _grad(
    n: int,
    c: int,
    sizes: tuple[int, ...],
    dy: Laid,
    dtype: np.dtype[Any],
    channels_last: bool,
    limit: int,
) -> Program:
    places = prod(sizes)
    total, wide_dtype = n * places, accumulator(dtype)
    vector = (
        channel_lanes(dtype.itemsize, c, dy) if channels_last else places_lanes(dtype.itemsize, sizes, dy)
    )
    across = -(-c // (vector * LANES)) if channels_last else c
    # A block of a plane takes PART places; one of LANES channels reads as much in PART / LANES rows.
    part = PART // LANES if channels_last else PART
    sums = c * wide_dtype.itemsize
    if sums > limit:
        raise LimitTooSmall(sums)
    parts = max(1, min(-(-total // part), BLOCKS // across, limit // sums))
    length = -(-total // (parts * vector)) * vector
    parts = -(-total // length)
    wide = needs_wide(dy.extent(n, c, sizes), total + length, parts * c)
    kernel = specialise(
        "bias_grad", None, dtype, vector=vector, wide=wide, CHANNELS_LAST=int(channels_last), AXES=len(sizes)
    )
    struct = kernel.arguments(
        dy=dy.struct(n, c, sizes),
        total=total,
        length=length,
        parts=parts,
        channels=c,
        plane=divisor(places, wide),
        inner=inner_divisors(sizes, wide),
    )
    shared = THREADS * (vector if channels_last else 1) * wide_dtype.itemsize
    first = Launch(kernel, across * parts, (At(0), At(2)), struct, shared)
    return Program((first, sum_parts(At(2), At(1), c, parts, dtype)), parts * sums)
