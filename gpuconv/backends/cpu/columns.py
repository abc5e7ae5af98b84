"""im2col and col2im: the two data movements under convolution by GEMM, for any number of spatial axes.

Here and in the other files of this backend, arrays are handled through *canonical views*, channels first
([N, C, *spatial], [C_out, C_in/groups, *kernel]) whatever their layout in memory, so one code serves both
layouts: NumPy walks memory in the order it lies in, however the view's axes are named.
"""

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpuconv.backends.cpu.threads import buffer, parallel, used
from gpuconv.backends.dispatch import accumulator
from gpuconv.backends.plans import Account, Part
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]
Bounds = tuple[tuple[int, int], ...]  # start and stop of output places along each axis


def channels_first(x: Array, channels_last: bool) -> Array:
    """Return the view [N, C, *spatial] of an array of either layout."""
    if not channels_last:
        return x
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))  # np.moveaxis takes 3 us more


def im2col(x: Array, col: Array, window: Window, channels_last: bool) -> None:
    """Write each output place's window as a column: [N, C*taps, places], or [N, places, taps*C]."""
    canonical = _canonical(col, window, channels_last)
    source = channels_first(x, channels_last)

    def one(i: int) -> None:
        unfold(source[i : i + 1], window, 0, window.out_size[0], canonical[i : i + 1])

    parallel(one, range(len(x)), col.size)


def col2im(col: Array, x: Array, window: Window, channels_last: bool) -> None:
    """Write the adjoint of im2col: every place of x gets the sum of its copies in the columns."""
    wide = accumulator(col.dtype) if col.dtype == np.float16 else col.dtype
    canonical = _canonical(col, window, channels_last)
    target = channels_first(x, channels_last)

    def one(i: int) -> None:
        total = np.zeros(target[i : i + 1].shape, wide)
        fold(canonical[i : i + 1], window, 0, total)
        target[i : i + 1] = total

    parallel(one, range(len(x)), col.size)


def plan_im2col(x: Array, col: Array, window: Window, channels_last: bool) -> Part:
    """Return how `im2col` would compute; arrays are only viewed."""
    account, threads = Account(), used(len(x), col.size)
    if col.size:
        source = channels_first(x[:1], channels_last)
        places = row_bounds(window, 0, window.out_size[0])
        account.step("im2col", len(x), rows=source.shape[1] * window.taps, columns=window.places)
        account.buffer("padded", padded_size(source, window, places) * x.itemsize)
    return account.part("copy", "windows are views of the padded image, which are copied", len(x), threads)


def plan_col2im(col: Array, x: Array, window: Window, channels_last: bool) -> Part:
    """Return how `col2im` would compute; arrays are only viewed."""
    account, threads = Account(), used(len(x), col.size)
    if col.size:
        rows = col.shape[2 if channels_last else 1]
        wide = accumulator(col.dtype) if col.dtype == np.float16 else col.dtype
        account.step("col2im", len(x), rows=rows, columns=window.places)
        account.buffer("total", prod(x.shape[1:]) * wide.itemsize)
    return account.part("taps", "a tap's entries are a view, added to a view of the image", len(x), threads)


def _canonical(col: Array, window: Window, channels_last: bool) -> Array:
    """View columns, of whatever strides, as [N, C, *kernel, *out]."""
    c = col.shape[2 if channels_last else 1] // window.taps
    if not channels_last:
        return _split(_split(col, 2, window.out_size), 1, (c, *window.kernel))
    d = window.axes
    split = _split(_split(col, 2, (*window.kernel, c)), 1, window.out_size)
    return split.transpose(0, 2 * d + 1, *range(d + 1, 2 * d + 1), *range(1, d + 1))


def _split(x: Array, axis: int, sizes: tuple[int, ...]) -> Array:
    """View one axis as several."""
    return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :], copy=False)


# Below, x is [..., *in] and columns are [..., *kernel, rows, *rest of out], with any axes before.


def unfold(x: Array, window: Window, start: int, stop: int, out: Array) -> None:
    """Copy the windows of output rows start..stop (of the first spatial axis) to columns."""
    np.copyto(out, windows(x, window, start, stop), casting="unsafe")


def fold(col: Array, window: Window, start: int, x: Array) -> None:
    """Add columns to the places of x that they came from, output rows from `start` on."""
    lead = (slice(None),) * (x.ndim - window.axes)
    rows = col.shape[len(lead) + window.axes]
    for tap in np.ndindex(*window.kernel):
        places, taken = tap_slices(window, tap, start, start + rows)
        x[*lead, *places] += col[*lead, *tap, *taken]


def windows(x: Array, window: Window, start: int, stop: int) -> Array:
    """Return a read-only view [..., *kernel, stop - start, *rest of out] of x, or of a padded copy of it.

    The copy, made only where the windows of these rows touch padding, lies in the thread's buffer.
    """
    d = window.axes
    x = cut(x, window, row_bounds(window, start, stop))
    kernel_strides = [step * s for step, s in zip(window.dilation, x.strides[-d:], strict=True)]
    out_strides = [step * s for step, s in zip(window.stride, x.strides[-d:], strict=True)]
    return as_strided(
        x,
        (*x.shape[:-d], *window.kernel, stop - start, *window.out_size[1:]),
        (*x.strides[:-d], *kernel_strides, *out_strides),
        writeable=False,
    )


def row_bounds(window: Window, start: int, stop: int) -> Bounds:
    """Return the bounds, axis by axis, of the output places in rows start..stop."""
    return (start, stop), *((0, size) for size in window.out_size[1:])


def cut(x: Array, window: Window, outputs: Bounds) -> Array:
    """Return what these output places (start, stop along each axis) read of x, with zeros for padding.

    A view where they read no padding, else a copy in the thread's buffer.
    """
    axes = len(outputs)
    inside, places, middle = _read(window, outputs, x.shape[-axes:])
    x = x[..., *inside]
    if middle is None:
        return x
    lead = x.shape[:-axes]
    if x.strides[len(lead) - 1] == x.itemsize:  # channels last in memory: keep them so
        memory = buffer("padded", (*lead[:-1], *places, lead[-1]), x.dtype)
        padded = np.moveaxis(memory, -1, len(lead) - 1)
    else:
        padded = memory = buffer("padded", (*lead, *places), x.dtype)
    memory.fill(0)  # all of it, in one run: a column of zeros alone would be written element by element
    padded[..., *middle] = x
    return padded


@lru_cache(maxsize=1024)
def _read(
    window: Window, outputs: Bounds, sizes: tuple[int, ...]
) -> tuple[tuple[Any, ...], tuple[int, ...], tuple[Any, ...] | None]:
    """Return what these output places read: slices of x, sizes with padding, and where in these x lies.

    None for the last where no padding is read.
    """
    inside: list[slice] = []
    places: list[int] = []
    middle: list[slice] = []
    padded = False
    for (start, stop), s, p, span, n in zip(
        outputs, window.stride, window.before, window.span, sizes, strict=True
    ):
        low, high = start * s - p, (stop - 1) * s - p + span
        inside.append(slice(min(max(low, 0), n), max(min(high, n), 0)))
        places.append(high - low)
        before = min(max(-low, 0), high - low)
        middle.append(slice(before, high - low - min(max(high - n, 0), high - low - before)))
        padded |= low < 0 or high > n
    return tuple(inside), tuple(places), tuple(middle) if padded else None


def padded_size(x: Array, window: Window, outputs: Bounds) -> int:
    """Return the elements of the copy that `cut` makes; 0 where it makes none."""
    axes = len(outputs)
    _, places, middle = _read(window, outputs, x.shape[-axes:])
    return 0 if middle is None else int(prod(x.shape[:-axes])) * prod(places)


def tap_slices(
    window: Window, tap: tuple[int, ...], start: int, stop: int
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return what one tap reads, as slices of the input, and for which outputs (rows counted from start)."""
    bounds = row_bounds(window, start, stop)
    pairs = [axis_slices(window, axis, j, *bounds[axis]) for axis, j in enumerate(tap)]
    return tuple(places for places, _ in pairs), tuple(taken for _, taken in pairs)


def axis_slices(window: Window, axis: int, tap: int, start: int, stop: int) -> tuple[slice, slice]:
    """Return what a tap reads along one axis, padding left out, and which outputs of start..stop read it."""
    s = window.stride[axis]
    offset = tap * window.dilation[axis] - window.before[axis]
    # 0 <= o * s + offset < in_size
    first = max(start, -(offset // s))
    last = min(stop, (window.in_size[axis] - 1 - offset) // s + 1)
    if last <= first:
        return slice(0, 0), slice(0, 0)
    begin = first * s + offset
    return slice(begin, begin + (last - first - 1) * s + 1, s), slice(first - start, last - start)


def view_as(x: Array, shape: tuple[int, ...]) -> Array | None:
    """Reshape without a copy, or return None where that takes one."""
    try:
        return x.reshape(shape, copy=False)
    except ValueError:
        return None
