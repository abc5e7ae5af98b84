"""Max and average pooling and their gradients, one kernel each.

Where windows are small, a thread computes a tile in registers (cuda/tile.cuh); else a few results of a row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.cuda import runtime as runtimes
from gpuconv.backends.cuda import tiles
from gpuconv.backends.cuda.columns import Laid, laid, order_lanes, order_struct, three, window_struct
from gpuconv.backends.cuda.kernels import C_TYPES, needs_wide, specialise
from gpuconv.backends.cuda.program import At, Program, kernel_launch, planned, run
from gpuconv.backends.cuda.tiles import Numbers, Reading, Registers
from gpuconv.backends.dispatch import accumulator, real_dtype
from gpuconv.geometry import Window

Array = Any

_by_tiles: ContextVar[bool] = ContextVar("gpuconv.pooling.by_tiles", default=True)


def kernels(window: Window, dtype: np.dtype[Any]) -> tuple[str, ...]:
    """Return the kinds of kernels that compute maxima, means and their gradients, the taken one first."""
    return ("tile", "vector") if _fits(window, dtype) else ("vector",)


@contextmanager
def by(kind: str) -> Iterator[None]:
    """Take kernels of this kind, where there are some: for measurements, which compare the two."""
    token = _by_tiles.set(kind != "vector")
    try:
        yield
    finally:
        _by_tiles.reset(token)


@runtimes.on_device("y", "argmax")
def max_pool(x: Array, y: Array, argmax: Array | None, window: Window, channels_last: bool) -> None:
    """Write each window's maximum to y, and to argmax the offset of the first place that holds it."""
    runtime = runtimes.of(x)
    if y.size:
        n, c, source = described(runtime, x, channels_last)
        how = (channels_last, argmax is not None, _by_tiles.get())
        program = _max_pool(window, n, c, source, x.dtype, *how)
        mask = 0 if argmax is None else runtime.address(argmax)
        run(runtime, program, [runtime.address(x), runtime.address(y), mask])


@planned
def _max_pool(
    window: Window,
    n: int,
    c: int,
    x: Laid,
    dtype: np.dtype[Any],
    channels_last: bool,
    return_argmax: bool,
    by_tiles: bool,
) -> Program:
    if by_tiles and _fits(window, dtype):
        return _tiled(
            "max_pool_tile",
            tiles.forward(window),
            (n, c),
            {"x": x},
            Numbers(dtype, channels_last),
            MAX_POOL[channels_last],
            written=2,
            MASK=C_TYPES[window.mask],
            WITH_MASK=int(return_argmax),
        )
    return _program(
        "max_pool",
        window,
        n,
        c,
        window.out_size,
        {"x": (x, window.in_size)},
        dtype,
        channels_last,
        written=2,
        MASK=C_TYPES[window.mask],
        WITH_MASK=int(return_argmax),
    )


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
        how = (channels_last, last_only, _by_tiles.get())
        program = _max_pool_backward(window, n, c, source, mask, kinds, *how)
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
    by_tiles: bool,
) -> Program:
    dtype, mask = dtypes
    if by_tiles and _fits(window, dtype) and mask.itemsize <= 4 and not last_only:
        return _tiled(
            "max_pool_backward_tile",
            tiles.backward(window),
            (n, c),
            {"dy": dy, "argmax": argmax},
            Numbers(dtype, channels_last),
            MAX_POOL_BACKWARD,
            MASK=C_TYPES[mask.name],
        )
    return _program(
        "max_pool_backward",
        window,
        n,
        c,
        window.in_size,
        {"dy": (dy, window.out_size), "argmax": (argmax, window.out_size)},
        dtype,
        channels_last,
        MASK=C_TYPES[mask.name],
        LAST_ONLY=int(last_only),
    )


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
    dtype, mask = dtypes
    return _program(
        "max_unpool_backward",
        window,
        n,
        c,
        window.out_size,
        {"dy": (dy, window.in_size), "argmax": (argmax, window.out_size)},
        dtype,
        channels_last,
        one_by_one=True,
        MASK=C_TYPES[mask.name],
    )


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
    read = {"argmax": (argmax, window.out_size)}
    sizes = window.out_size
    return _program("argmax_to_indices", window, n, c, sizes, read, dtype, channels_last, one_by_one=True)


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
        how = (channels_last, count_include_pad, divisor_override, _by_tiles.get())
        program = _avg_pool(window, n, c, source, x.dtype, *how)
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
    divisor_override: int | None,
    by_tiles: bool,
) -> Program:
    counted = _counted(window, count_include_pad, divisor_override)
    if by_tiles and _fits(window, dtype):
        return _tiled(
            "avg_pool_tile",
            tiles.forward(window),
            (n, c),
            {"x": x},
            Numbers(dtype, channels_last),
            AVG_POOL,
            values={"counted": counted},
        )
    return _program(
        "avg_pool",
        window,
        n,
        c,
        window.out_size,
        {"x": (x, window.in_size)},
        dtype,
        channels_last,
        values={"counted": counted},
    )


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
        how = (channels_last, count_include_pad, divisor_override, _by_tiles.get())
        program = _avg_pool_backward(window, n, c, source, dy.dtype, *how)
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
    divisor_override: int | None,
    by_tiles: bool,
) -> Program:
    if by_tiles and _fits(window, dtype):
        return _tiled(
            "avg_pool_backward_tile",
            tiles.backward(window),
            (n, c),
            {"dy": dy},
            Numbers(dtype, channels_last),
            AVG_POOL_BACKWARD,
            values={"counted": _counted(window, count_include_pad, divisor_override, from_first=True)},
        )
    counted = _counted(window, count_include_pad, divisor_override)
    return _program(
        "avg_pool_backward",
        window,
        n,
        c,
        window.in_size,
        {"dy": (dy, window.out_size)},
        dtype,
        channels_last,
        values={"counted": counted},
    )


@runtimes.on_device("y")
def lp_pool(x: Array, y: Array, window: Window, channels_last: bool, norm: float) -> None:
    """Write each window's norm."""
    runtime = runtimes.of(x)
    if y.size:
        n, c, source = described(runtime, x, channels_last)
        program = _lp_pool(window, n, c, source, x.dtype, channels_last, norm)
        run(runtime, program, [runtime.address(x), runtime.address(y)])


@planned
def _lp_pool(
    window: Window, n: int, c: int, x: Laid, dtype: np.dtype[Any], channels_last: bool, norm: float
) -> Program:
    return _program(
        "lp_pool",
        window,
        n,
        c,
        window.out_size,
        {"x": (x, window.in_size)},
        dtype,
        channels_last,
        values={"norm": norm},
        **_norm_constants(dtype, norm),
    )


@runtimes.on_device("dx")
def lp_pool_backward(
    dy: Array, x: Array, y: Array, dx: Array, window: Window, channels_last: bool, norm: float
) -> None:
    """Write dx: each dy shared out over its window by what each place adds to the norm."""
    runtime = runtimes.of(dy)
    if dx.size:
        n, c, gradient = described(runtime, dy, channels_last)
        values, norms = (laid(a, runtime.address(a), channels_last) for a in (x, y))
        program = _lp_pool_backward(window, n, c, gradient, values, norms, x.dtype, channels_last, norm)
        run(runtime, program, [runtime.address(a) for a in (dy, x, y, dx)])


@planned
def _lp_pool_backward(
    window: Window,
    n: int,
    c: int,
    dy: Laid,
    x: Laid,
    y: Laid,
    dtype: np.dtype[Any],
    channels_last: bool,
    norm: float,
) -> Program:
    return _program(
        "lp_pool_backward",
        window,
        n,
        c,
        window.in_size,
        {"dy": (dy, window.out_size), "x": (x, window.in_size), "y": (y, window.out_size)},
        dtype,
        channels_last,
        values={"norm": norm},
        **_norm_constants(dtype, norm),
    )


def _norm_constants(dtype: np.dtype[Any], norm: float) -> dict[str, Any]:
    real = real_dtype(dtype)
    return {
        "Y": C_TYPES[real.name],
        "REAL": C_TYPES[accumulator(real).name],
        "NORM": int(norm) if norm in (1, 2) else -1,
    }


def _program(
    name: str,
    window: Window,
    n: int,
    c: int,
    sizes: tuple[int, ...],
    read: dict[str, tuple[Laid, tuple[int, ...]]],
    dtype: np.dtype[Any],
    channels_last: bool,
    *,
    written: int = 1,
    one_by_one: bool = False,
    values: dict[str, Any] | None = None,
    **constants: Any,
) -> Program:
    """Return one launch: a thread a vector of what is written, arrays of these sizes in order.

    Those that are read, each with its sizes, lie as they lie. `values` and `constants` are this kernel's own.
    """
    arrays = [array for array, _ in read.values()]
    vector = 1 if one_by_one else order_lanes(dtype.itemsize, c, sizes, channels_last, *arrays)
    items = n * c * prod(sizes)
    wide = needs_wide(items, *(array.extent(n, c, places) for array, places in read.values()))
    kernel = specialise(
        name, window, dtype, vector=vector, wide=wide, CHANNELS_LAST=int(channels_last), **constants
    )
    launch = kernel_launch(
        kernel,
        items // vector,
        tuple(At(slot) for slot in range(len(read) + written)),
        window=window_struct(window),
        order=order_struct(c, sizes, vector, channels_last, wide),
        **{name: array.struct(n, c, places) for name, (array, places) in read.items()},
        **(values or {}),
    )
    return Program((launch,))


# Of larger windows, the compiler reads so many values ahead that it spills some.
MOST_KERNEL, MOST_STRIDE = 3, 3


def _fits(window: Window, dtype: np.dtype[Any]) -> bool:
    """Tell whether a thread computes a tile."""
    small = max(window.span) <= MOST_KERNEL and max(window.stride) <= MOST_STRIDE
    return small and tiles.fits(window, dtype)


# Of a place, its maximum and where that is. The compiler reads some of the rows ahead: 4 values of each, say.
MAX_POOL = {
    False: Registers(lambda window, rows: 4 * rows, 62, (44, 30), each=2, done=True),
    True: Registers(lambda window, rows: 4 * rows, 90, (90, 50), each=2, done=True),
}
MAX_POOL_BACKWARD = Registers(lambda window, rows: 0, 84, (48, 40), read=2)  # dy and mask
AVG_POOL = Registers(lambda window, rows: 4 * rows, 90, (90, 50), done=True)
AVG_POOL_BACKWARD = Registers(lambda window, rows: 0, 84, (84, 51))


def _tiled(
    name: str,
    reading: Reading,
    sizes: tuple[int, int],
    read: dict[str, Laid],
    numbers: Numbers,
    registers: Registers,
    *,
    written: int = 1,
    values: dict[str, Any] | None = None,
    **constants: Any,
) -> Program:
    """Return one launch: a thread a tile. `sizes` are images and channels; `read` is the reading's source."""
    (n, c), window, last = sizes, reading.window, numbers.channels_last
    if last:
        vector = min(tiles.channels_at_once(numbers, reading, array, c) for array in read.values())
    else:
        vector = min(tiles.places_at_once(numbers, reading, array, window.in_size) for array in read.values())
    tile = tiles.tile(numbers, reading, vector, registers)
    items = tiles.items(reading, tile, n, c, numbers)
    extents = (array.extent(n, c, window.in_size) for array in read.values())
    wide = needs_wide(items, n * c * prod(window.out_size), *extents)
    launch = kernel_launch(
        tiles.kernel(name, numbers, reading, tile, wide, **constants),
        items,
        tuple(At(slot) for slot in range(len(read) + written)),
        **tiles.fields(reading, tile, c, numbers, wide),
        **{name: array.struct(n, c, window.in_size) for name, array in read.items()},
        **(values or {}),
    )
    return Program((launch,))


def _counted(
    window: Window, count_include_pad: bool, divisor_override: int | None, *, from_first: bool = False
) -> dict[str, Any]:
    """Return the kernels' struct Counted: the ends of the places that a divisor counts, or the divisor.

    Places are counted from x's first, or from where the first window begins.
    """
    none = (0,) * window.axes
    before, after = (window.before, window.after) if count_include_pad else (none, none)
    zero = window.before if from_first else none
    low = [z - b for z, b in zip(zero, before, strict=True)]
    high = tuple(z + n + a for z, n, a in zip(zero, window.in_size, after, strict=True))
    return {"low": three(low, 0), "high": three(high, 1), "divisor": divisor_override or 0}


def described(runtime: runtimes.Runtime, x: Array, channels_last: bool) -> tuple[int, int, Laid]:
    """Return an array's images, channels and how it lies."""
    c = x.shape[-1 if channels_last else 1]
    return x.shape[0], c, laid(x, runtime.address(x), channels_last)
