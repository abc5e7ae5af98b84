"""Adaptive pooling and its gradients (with one output: global pooling): one kernel forward, one backward."""

from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.cuda import runtime as runtimes
from gpuconv.backends.cuda.columns import Laid, channel_lanes, laid, order_struct, three
from gpuconv.backends.cuda.kernels import C_TYPES, THREADS, divisor, grid, needs_wide, specialise
from gpuconv.backends.cuda.pooling import described
from gpuconv.backends.cuda.program import At, Launch, Program, kernel_launch, planned, run
from gpuconv.backends.dispatch import accumulator
from gpuconv.geometry import spatial_sizes

Array = Any
Sizes = tuple[int, ...]

# Threads that share an output with so many places or more; each of a smaller one has a thread.
TEAM = 32
# A maximum and its place, as adaptive_pool.cu keeps them: bytes, and how many a thread holds at most.
PART, MOST_PARTS = 16, 4


@runtimes.on_device("y")
def avg_pool(x: Array, y: Array, channels_last: bool) -> None:
    """Write the mean of each window."""
    runtime = runtimes.of(x)
    if y.size:
        sizes = spatial_sizes(x.shape, channels_last), spatial_sizes(y.shape, channels_last)
        n, c, source = described(runtime, x, channels_last)
        program = _forward(*sizes, n, c, source, x.dtype, channels_last, None)
        run(runtime, program, [runtime.address(x), runtime.address(y), 0])


@runtimes.on_device("y", "argmax")
def max_pool(x: Array, y: Array, argmax: Array | None, channels_last: bool) -> None:
    """Write each window's maximum to y, and to argmax the flat place of x where it is first."""
    runtime = runtimes.of(x)
    if y.size:
        sizes = spatial_sizes(x.shape, channels_last), spatial_sizes(y.shape, channels_last)
        n, c, source = described(runtime, x, channels_last)
        program = _forward(*sizes, n, c, source, x.dtype, channels_last, argmax is not None)
        mask = 0 if argmax is None else runtime.address(argmax)
        run(runtime, program, [runtime.address(x), runtime.address(y), mask])


@planned
def _forward(
    in_size: Sizes,
    out_size: Sizes,
    n: int,
    c: int,
    x: Laid,
    dtype: np.dtype[Any],
    channels_last: bool,
    with_mask: bool | None,
) -> Program:
    """`with_mask` is None for averages."""
    maximum = with_mask is not None
    vector = channel_lanes(dtype.itemsize, c, x) if channels_last else 1
    vector = min(vector, MOST_PARTS) if maximum else vector
    team = TEAM if prod(in_size) >= TEAM * prod(out_size) else 1
    items = n * c * prod(out_size) // vector
    wide = needs_wide(items * vector, x.extent(n, c, in_size), *_products(in_size, out_size))
    kernel = specialise(
        "adaptive_pool",
        None,
        dtype,
        vector=vector,
        wide=wide,
        CHANNELS_LAST=int(channels_last),
        MAXIMUM=int(maximum),
        WITH_MASK=int(bool(with_mask)),
        TEAM=team,
        AXES=3,
    )
    struct = kernel.arguments(
        shares=_shares(in_size, out_size, wide),
        x=x.struct(n, c, in_size),
        items=items,
        order=order_struct(c, out_size, vector, channels_last, wide),
    )
    shared = 0 if team == 1 else THREADS * (PART if maximum else accumulator(dtype).itemsize)
    return Program((Launch(kernel, grid(items * team), (At(0), At(1), At(2)), struct, shared),))


@runtimes.on_device("dx")
def avg_pool_backward(dy: Array, dx: Array, channels_last: bool) -> None:
    """Write dx: each dy, divided, spread over its window."""
    _gradient(dy, None, dx, channels_last)


@runtimes.on_device("dx")
def max_pool_backward(dy: Array, argmax: Array, dx: Array, channels_last: bool, op: str) -> None:
    """Write dx: each dy goes to the place that argmax names; those of several windows add up.

    `op` has nothing to complain of: to look for places that aren't in their window would make the GPU wait.
    They get nothing.
    """
    _gradient(dy, argmax, dx, channels_last)


def _gradient(dy: Array, argmax: Array | None, dx: Array, channels_last: bool) -> None:
    runtime = runtimes.of(dy)
    if dx.size:
        sizes = spatial_sizes(dx.shape, channels_last), spatial_sizes(dy.shape, channels_last)
        n, c, source = described(runtime, dy, channels_last)
        address, mask, kind = 0, None, None
        if argmax is not None:
            address, kind = runtime.address(argmax), argmax.dtype
            mask = laid(argmax, address, channels_last)
        program = _backward(*sizes, n, c, source, mask, dy.dtype, kind, channels_last)
        run(runtime, program, [runtime.address(dy), address, runtime.address(dx)])


@planned
def _backward(
    in_size: Sizes,
    out_size: Sizes,
    n: int,
    c: int,
    dy: Laid,
    argmax: Laid | None,
    dtype: np.dtype[Any],
    mask: np.dtype[Any] | None,
    channels_last: bool,
) -> Program:
    items = n * c * prod(in_size)
    read = dy if argmax is None else argmax
    extents = (laid.extent(n, c, out_size) for laid in (dy, read))
    wide = needs_wide(items, *extents, *_products(in_size, out_size))
    kernel = specialise(
        "adaptive_pool_backward",
        None,
        dtype,
        vector=1,
        wide=wide,
        CHANNELS_LAST=int(channels_last),
        MAXIMUM=int(argmax is not None),
        MASK=C_TYPES["int64" if mask is None else mask.name],
        AXES=3,
    )
    launch = kernel_launch(
        kernel,
        items,
        (At(0), At(1), At(2)),
        shares=_shares(in_size, out_size, wide),
        dy=dy.struct(n, c, out_size),
        argmax=read.struct(n, c, out_size),
        order=order_struct(c, in_size, 1, channels_last, wide),
    )
    return Program((launch,))


def _products(in_size: Sizes, out_size: Sizes) -> list[int]:
    """Return one more than the largest numbers that are divided, axis by axis."""
    return [(size + 1) * (out + 1) for size, out in zip(in_size, out_size, strict=True)]


def _shares(in_size: Sizes, out_size: Sizes, wide: bool) -> dict[str, Any]:
    """Return the kernels' struct of this name.

    Raises
    ------
    ValueError
        Where an axis has 2^31 places or more.
    """
    for axis, size in enumerate(in_size):
        if size >= 2**31:
            raise ValueError(f"spatial axis {axis} has {size} places; on a GPU it must have fewer than 2^31")
    inside, outside = three(in_size, 1), three(out_size, 1)
    return {
        "in": inside,
        "out": outside,
        "by_in": [divisor(size, wide) for size in inside],
        "by_out": [divisor(size, wide) for size in outside],
    }
