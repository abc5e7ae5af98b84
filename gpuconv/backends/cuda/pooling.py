"""Max and average pooling and their gradients: one kernel each, one thread a few outputs side by side."""

from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.cuda import runtime as runtimes
from gpuconv.backends.cuda.columns import (
    Laid,
    channel_lanes,
    dense,
    inner_divisors,
    laid,
    places_lanes,
    three,
    window_struct,
)
from gpuconv.backends.cuda.kernels import C_TYPES, divisor, needs_wide, specialise
from gpuconv.backends.cuda.program import At, Launch, Program, kernel_launch, planned, run
from gpuconv.geometry import Window

Array = Any


@runtimes.on_device("y", "argmax")
def max_pool(x: Array, y: Array, argmax: Array | None, window: Window, channels_last: bool) -> None:
    """Write each window's maximum to y, and to argmax the offset of the first place that holds it."""
    runtime = runtimes.of(x)
    if y.size:
        n, c, source = described(runtime, x, channels_last)
        program = _max_pool(window, n, c, source, x.dtype, channels_last, argmax is not None)
        mask = 0 if argmax is None else runtime.address(argmax)
        run(runtime, program, [runtime.address(x), runtime.address(y), mask])


@planned
def _max_pool(
    window: Window, n: int, c: int, x: Laid, dtype: np.dtype[Any], channels_last: bool, return_argmax: bool
) -> Program:
    constants = {"MASK": C_TYPES[window.mask], "WITH_MASK": int(return_argmax)}
    return _forward("max_pool", window, n, c, x, dtype, channels_last, 3, constants, {})


@runtimes.on_device("dx")
def max_pool_backward(dy: Array, argmax: Array, dx: Array, window: Window, channels_last: bool) -> None:
    """Write dx: each dy goes to the place its window's argmax names; overlapping windows add up.

    What argmax holds is not checked, since that would make the GPU wait: an offset that names no place of x
    counts for none.
    """
    _to_argmax(dy, argmax, dx, window, channels_last, last_only=False)


@runtimes.on_device("y")
def max_unpool(x: Array, argmax: Array, y: Array, window: Window, channels_last: bool) -> None:
    """Write y: each x at the place its window's argmax names, of several the last; zeros elsewhere.

    An offset that names no place of y is not written, as in `max_pool_backward`.
    """
    _to_argmax(x, argmax, y, window, channels_last, last_only=True)


def _to_argmax(
    dy: Array, argmax: Array, dx: Array, window: Window, channels_last: bool, *, last_only: bool
) -> None:
    runtime = runtimes.of(dy)
    if dx.size:
        n, c, source = described(runtime, dy, channels_last)
        mask = laid(argmax, runtime.address(argmax), channels_last)
        kinds = (dy.dtype, argmax.dtype)
        program = _max_pool_backward(window, n, c, source, mask, kinds, channels_last, last_only)
        run(runtime, program, [runtime.address(a) for a in (dy, argmax, dx)])


@planned
def _max_pool_backward(
    window: Window,
    n: int,
    c: int,
    dy: Laid,
    argmax: Laid,
    dtypes: tuple[np.dtype[Any], np.dtype[Any]],
    channels_last: bool,
    last_only: bool,
) -> Program:
    dtype, mask = dtypes
    constants = {"MASK": C_TYPES[mask.name], "LAST_ONLY": int(last_only)}
    launch = _backward(
        "max_pool_backward",
        window,
        n,
        c,
        (dy, argmax),
        dtype,
        channels_last,
        constants,
        {"argmax": argmax.struct(n, c, window.out_size)},
    )
    return Program((launch,))


@runtimes.on_device("dx")
def max_unpool_backward(dy: Array, argmax: Array, dx: Array, window: Window, channels_last: bool) -> None:
    """Write dx: dy at the place where each window's x was written, or 0 where a later window wrote."""
    runtime = runtimes.of(dy)
    if dx.size:
        n, c, source = described(runtime, dy, channels_last)
        mask = laid(argmax, runtime.address(argmax), channels_last)
        kinds = (dy.dtype, argmax.dtype)
        program = _max_unpool_backward(window, n, c, source, mask, kinds, channels_last)
        run(runtime, program, [runtime.address(a) for a in (dy, argmax, dx)])


@planned
def _max_unpool_backward(
    window: Window,
    n: int,
    c: int,
    dy: Laid,
    argmax: Laid,
    dtypes: tuple[np.dtype[Any], np.dtype[Any]],
    channels_last: bool,
) -> Program:
    items = n * c * window.places
    wide = needs_wide(items, dy.extent(n, c, window.in_size), argmax.extent(n, c, window.out_size))
    kernel = specialise(
        "max_unpool_backward",
        window,
        dtypes[0],
        vector=1,
        wide=wide,
        CHANNELS_LAST=int(channels_last),
        MASK=C_TYPES[dtypes[1].name],
    )
    launch = kernel_launch(
        kernel,
        items,
        (At(0), At(1), At(2)),
        window=window_struct(window),
        dy=dy.struct(n, c, window.in_size),
        argmax=argmax.struct(n, c, window.out_size),
        channels=divisor(c, wide),
        plane=divisor(window.places, wide),
        inner=inner_divisors(window.out_size, wide),
    )
    return Program((launch,))


@runtimes.on_device("indices")
def argmax_to_indices(argmax: Array, indices: Array, window: Window, channels_last: bool) -> None:
    """Write the flat index into the input's plane of each window's maximum, int64; -1 for none."""
    runtime = runtimes.of(argmax)
    if indices.size:
        n, c, source = described(runtime, argmax, channels_last)
        program = _argmax_to_indices(window, n, c, source, argmax.dtype, channels_last)
        run(runtime, program, [runtime.address(argmax), runtime.address(indices)])


@planned
def _argmax_to_indices(
    window: Window, n: int, c: int, argmax: Laid, dtype: np.dtype[Any], channels_last: bool
) -> Program:
    items = n * c * window.places
    wide = needs_wide(items, argmax.extent(n, c, window.out_size))
    kernel = specialise(
        "argmax_to_indices", window, dtype, vector=1, wide=wide, CHANNELS_LAST=int(channels_last)
    )
    launch = kernel_launch(
        kernel,
        items,
        (At(0), At(1)),
        window=window_struct(window),
        argmax=argmax.struct(n, c, window.out_size),
        channels=divisor(c, wide),
        plane=divisor(window.places, wide),
        inner=inner_divisors(window.out_size, wide),
    )
    return Program((launch,))


@runtimes.on_device("y")
def avg_pool(
    x: Array,
    y: Array,
    window: Window,
    channels_last: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> None:
    """Write each window's mean."""
    runtime = runtimes.of(x)
    if y.size:
        n, c, source = described(runtime, x, channels_last)
        program = _avg_pool(window, n, c, source, x.dtype, channels_last, count_include_pad)
        run(runtime, program, [runtime.address(x), runtime.address(y)])


@planned
def _avg_pool(
    window: Window,
    n: int,
    c: int,
    x: Laid,
    dtype: np.dtype[Any],
    channels_last: bool,
    count_include_pad: bool,
) -> Program:
    ends = _ends(window, count_include_pad)
    return _forward("avg_pool", window, n, c, x, dtype, channels_last, 2, {}, ends)


@runtimes.on_device("dx")
def avg_pool_backward(
    dy: Array,
    dx: Array,
    window: Window,
    channels_last: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> None:
    """Write dx: each dy, divided, spread over its window."""
    runtime = runtimes.of(dy)
    if dx.size:
        n, c, source = described(runtime, dy, channels_last)
        program = _avg_pool_backward(window, n, c, source, dy.dtype, channels_last, count_include_pad)
        run(runtime, program, [runtime.address(dy), runtime.address(dx)])


@planned
def _avg_pool_backward(
    window: Window,
    n: int,
    c: int,
    dy: Laid,
    dtype: np.dtype[Any],
    channels_last: bool,
    count_include_pad: bool,
) -> Program:
    ends = _ends(window, count_include_pad)
    return Program((_backward("avg_pool_backward", window, n, c, (dy,), dtype, channels_last, {}, ends),))


def _forward(
    name: str,
    window: Window,
    n: int,
    c: int,
    x: Laid,
    dtype: np.dtype[Any],
    channels_last: bool,
    arrays: int,
    constants: dict[str, Any],
    more: dict[str, Any],
) -> Program:
    """One thread a vector of y, which is new and so in order; x lies as it lies."""
    places = window.places
    if channels_last:
        vector = channel_lanes(dtype.itemsize, c, x)
    else:
        vector = places_lanes(dtype.itemsize, window.out_size, dense(c, window.out_size, False))
    wide = needs_wide(n * c * places, x.extent(n, c, window.in_size))
    kernel = specialise(
        name, window, dtype, vector=vector, wide=wide, CHANNELS_LAST=int(channels_last), **constants
    )
    launch = kernel_launch(
        kernel,
        n * c * places // vector,
        tuple(At(slot) for slot in range(arrays)),
        window=window_struct(window),
        x=x.struct(n, c, window.in_size),
        vectors=divisor((c if channels_last else places) // vector, wide),
        channels=divisor(c, wide),
        plane=divisor(places, wide),
        inner=inner_divisors(window.out_size, wide),
        **more,
    )
    return Program((launch,))


def _backward(
    name: str,
    window: Window,
    n: int,
    c: int,
    read: tuple[Laid, ...],
    dtype: np.dtype[Any],
    channels_last: bool,
    constants: dict[str, Any],
    more: dict[str, Any],
) -> Launch:
    """One thread a vector of dx, which is new and so in order; what is read lies as it lies."""
    places = prod(window.in_size)
    if channels_last:
        vector = channel_lanes(dtype.itemsize, c, *read)
    else:
        vector = places_lanes(dtype.itemsize, window.in_size, dense(c, window.in_size, False))
    wide = needs_wide(n * c * places, *(x.extent(n, c, window.out_size) for x in read))
    kernel = specialise(
        name, window, dtype, vector=vector, wide=wide, CHANNELS_LAST=int(channels_last), **constants
    )
    return kernel_launch(
        kernel,
        n * c * places // vector,
        tuple(At(slot) for slot in range(len(read) + 1)),
        window=window_struct(window),
        dy=read[0].struct(n, c, window.out_size),
        vectors=divisor((c if channels_last else places) // vector, wide),
        channels=divisor(c, wide),
        plane=divisor(places, wide),
        inner=inner_divisors(window.in_size, wide),
        **more,
    )


def _ends(window: Window, count_include_pad: bool) -> dict[str, Any]:
    """Return the kernels' bounds of the places that a divisor counts."""
    none = (0,) * window.axes
    before, after = (window.before, window.after) if count_include_pad else (none, none)
    high = tuple(n + a for n, a in zip(window.in_size, after, strict=True))
    return {"low": three([-b for b in before], 0), "high": three(high, 1)}


def described(runtime: runtimes.Runtime, x: Array, channels_last: bool) -> tuple[int, int, Laid]:
    """Return an array's images, channels and how it lies."""
    c = x.shape[-1 if channels_last else 1]
    return x.shape[0], c, laid(x, runtime.address(x), channels_last)
