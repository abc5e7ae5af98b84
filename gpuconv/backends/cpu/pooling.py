"""Max and average pooling and their gradients, tap by tap on a few planes at a time.

A tap of the window is a strided view of the input ("all top-left places"), so a pooling is a handful of
element-wise operations on such views; planes are taken a few at a time so that they stay in the cache. Views
hold only places inside the input: padding is never read, so it can't win a maximum.
"""

from collections import Counter
from collections.abc import Callable
from functools import lru_cache, reduce
from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.cpu import pooling_compiled
from gpuconv.backends.cpu.blocks import length
from gpuconv.backends.cpu.columns import axis_slices, channels_first, tap_slices
from gpuconv.backends.cpu.threads import buffer, count, parallel, used
from gpuconv.backends.dispatch import accumulator, real_dtype
from gpuconv.backends.plans import Account, Part
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]

# Bytes of input worked on at a time. What fits a core's L2 is too little: the threads then wait for the
# interpreter lock. Max pooling 2x2 of 8 x 64 planes of 224x224 took 47.7, 34.5, 22.7 and 22.4 ms with 0.25,
# 0.5, 1 and 2 MB on two cores, global pooling of 7x7 7.5, 4.7, 3.1 and 1.5 ms.
BLOCK_BYTES = 2 << 20


def max_pool(x: Array, y: Array, argmax: Array | None, window: Window, channels_last: bool) -> None:
    """Write each window's maximum to y, and to argmax the offset of the first place that holds it."""
    source, target = channels_first(x, channels_last), channels_first(y, channels_last)
    mask = None if argmax is None else channels_first(argmax, channels_last)
    if (p := pooling_compiled.pooling(source, target, mask, window)) is not None:
        pooling_compiled.max_pool(p)
        return
    taps = _taps(window)

    def one(planes: tuple[slice, slice]) -> None:
        image, best = source[planes], target[planes]
        best[...] = _lowest(x.dtype)
        for places, taken in taps:
            part = best[:, :, *taken]
            np.maximum(part, image[:, :, *places], out=part)
        if mask is not None:
            _first_of_maxima(image, best, taps, mask[planes])

    parallel(one, plane_blocks(source, channels_last), x.size * window.taps)


def plan(name: str, **p: Any) -> Part:
    """Return how one of this module's primitives would compute; arrays are only viewed."""
    account, window, last = Account(), p["window"], p["channels_last"]
    if (fast := _by_kernels(name, p)) is not None:
        return pooling_compiled.plan(fast)
    if name == "argmax_to_indices":
        account.step("take", elements=p["indices"].size)
        why = "one look-up gives all offsets, and one addition the windows' places"
        return account.part("take", why, 1, shared=p["indices"].nbytes)
    backward = name.endswith("backward")
    image = {"max_unpool": "y", "max_unpool_backward": "dy"}.get(name, "dx" if backward else "x")
    blocks = plane_blocks(channels_first(p[image], last), last)
    algorithm, operations, work = "taps", window.taps, window.taps
    why = "a tap of all windows is a view of the image: one operation each, a few planes at a time"
    if name == "max_pool_backward":
        algorithm, operations, why = "places", 1, "each value is added at the place that its mask names"
    elif name.startswith("avg") or (name.startswith("lp") and (not backward or p["norm"] == 2)):
        algorithm, operations = "axes", sum(window.kernel)
        work = window.taps if name == "lp_pool_backward" else operations
        why = "along one axis after the other, a few planes at a time"
    for planes, number in alike_planes(blocks):
        account.step("pool", number * operations, planes=planes, places=window.places)
        account.buffer("pool", planes * _plane_bytes(name, p))
    threads = used(len(blocks), p["dx" if backward else "x"].size * work)
    # The first places of windows, as flat indices, which all threads share.
    shared = 8 * window.places * alike_planes(blocks[:1])[0][0] if algorithm == "places" and blocks else 0
    return account.part(algorithm, why, len(blocks), threads, shared)


def _by_kernels(name: str, p: dict[str, Any]) -> pooling_compiled.Pooling | None:
    if not name.startswith(("max_pool", "max_unpool", "avg_pool")):
        return None
    backward, mean, unpool = name.endswith("backward"), name.startswith("avg"), name.startswith("max_unpool")
    argmax = None if mean else p["argmax"]
    mask = None if argmax is None else channels_first(argmax, p["channels_last"])
    names = ["dx", "dy"] if backward else ["x", "y"]
    large, small = (channels_first(p[name], p["channels_last"]) for name in names[:: -1 if unpool else 1])
    return pooling_compiled.pooling(
        large, small, mask, p["window"], mean=mean, backward=backward, unpool=unpool
    )


def alike_planes(blocks: list[tuple[slice, slice]]) -> list[tuple[int, int]]:
    """Return how many planes blocks have, and how many blocks have so many."""
    return list(Counter(length(images) * length(channels) for images, channels in blocks).items())


def _plane_bytes(name: str, p: dict[str, Any]) -> int:
    """Return the bytes that a thread takes for each plane at once, beside arguments and results."""
    window: Window = p["window"]
    dtype: np.dtype[Any] = p["y" if "y" in p else "dy"].dtype
    image, windows, axes = prod(window.in_size), window.places, range(window.axes)
    if name == "max_pool":
        return 0 if p["argmax"] is None else 3 * windows
    if name == "max_unpool":
        return windows
    if name == "max_unpool_backward":
        return image + 3 * windows
    if name == "max_pool_backward":  # flat indices; where windows overlap, sums in float64
        if not overlap(window):
            return 8 * windows + dtype.itemsize * image
        return (8 if dtype == np.float64 else 16) * windows + (
            8 if dtype.kind == "f" else dtype.itemsize
        ) * image
    item = accumulator(dtype).itemsize
    if name.endswith("backward"):
        spread = sum(prod(window.in_size[:i] + window.out_size[i:]) for i in (*axes, window.axes))
        if name == "avg_pool_backward":
            return item * spread
        return item * (spread + windows + image if p["norm"] == 2 else 2 * image + 4 * windows)
    sums = sum(prod(window.in_size[:i] + window.out_size[i:]) for i in axes)
    return item * (sums if name == "avg_pool" else sums + windows + image * (1 if p["norm"] == 1 else 2))


def _first_of_maxima(image: Array, best: Array, taps: "Taps", mask: Array) -> None:
    """Write to mask how many taps come before the first that holds the maximum."""
    _count_misses(image, best, taps, mask, np.not_equal)
    if (mask == len(taps)).any():  # no tap equals the maximum: it is NaN, which equals nothing

        def differs(a: Array, b: Array, out: Array) -> None:
            np.not_equal(a, b, out=out)
            np.logical_and(out, a == a, out=out)

        _count_misses(image, best, taps, mask, differs)


def _count_misses(image: Array, best: Array, taps: "Taps", mask: Array, differs: Callable[..., Any]) -> None:
    missing = np.ones_like(best, bool)
    mask[...] = 0
    for places, taken in taps:
        part = missing[:, :, *taken]
        miss = np.empty_like(part)
        differs(image[:, :, *places], best[:, :, *taken], out=miss)
        np.logical_and(part, miss, out=part)
        np.add(mask, missing.view(np.uint8), out=mask)


def max_pool_backward(dy: Array, argmax: Array, dx: Array, window: Window, channels_last: bool) -> None:
    """Write dx: each dy goes to the place its window's argmax names; overlapping windows add up."""
    mask = channels_first(argmax, channels_last)
    source, target = channels_first(dy, channels_last), channels_first(dx, channels_last)
    p = pooling_compiled.pooling(target, source, mask, window, backward=True)
    _check_mask(f"max_pool{window.axes}d_backward", mask, window, p)
    if p is not None:
        pooling_compiled.max_pool_backward(p)
        return
    blocks = plane_blocks(target, channels_last)
    first, jumps = _flat_index(window)
    images, c = target[blocks[0]].shape[:2] if blocks else (0, 0)
    starts = np.arange(images * c).reshape(images, c, *(1,) * window.axes) * prod(window.in_size) + first

    def one(planes: tuple[slice, slice]) -> None:
        index = jumps.take(mask[planes])
        index += starts[: index.shape[0], : index.shape[1]]
        part = target[planes]
        part[...] = _scatter(index, source[planes], part.size, window).reshape(part.shape)

    parallel(one, blocks, dx.size * window.taps)


def max_unpool(x: Array, argmax: Array, y: Array, window: Window, channels_last: bool) -> None:
    """Write y: each x at the place its window's argmax names, of several the last; zeros elsewhere."""
    mask = channels_first(argmax, channels_last)
    source, target = channels_first(x, channels_last), channels_first(y, channels_last)
    p = pooling_compiled.pooling(target, source, mask, window, unpool=True)
    _check_mask(f"max_unpool{window.axes}d", mask, window, p)
    if p is not None:
        pooling_compiled.max_unpool(p)
        return
    # Of the windows that read a place, a later one does so with an earlier tap; that is written last.
    taps = list(enumerate(_taps(window)))[::-1]

    def one(planes: tuple[slice, slice]) -> None:
        values, names, result = source[planes], mask[planes], target[planes]
        result[...] = 0
        for tap, (places, taken) in taps:
            here = (slice(None), slice(None), *taken)
            np.copyto(result[:, :, *places], values[here], where=names[here] == tap)

    parallel(one, plane_blocks(target, channels_last), x.size * window.taps)


def max_unpool_backward(dy: Array, argmax: Array, dx: Array, window: Window, channels_last: bool) -> None:
    """Write dx: dy at the place where each window's x was written, or 0 where a later window wrote."""
    mask = channels_first(argmax, channels_last)
    source, target = channels_first(dy, channels_last), channels_first(dx, channels_last)
    p = pooling_compiled.pooling(source, target, mask, window, backward=True, unpool=True)
    _check_mask(f"max_unpool{window.axes}d_backward", mask, window, p)
    if p is not None:
        pooling_compiled.max_unpool_backward(p)
        return
    taps = list(enumerate(_taps(window)))

    def one(planes: tuple[slice, slice]) -> None:
        gradient, names, result = source[planes], mask[planes], target[planes]
        result[...] = 0
        written = np.zeros(gradient.shape, bool)  # by a window that comes later
        for tap, (places, taken) in taps:
            here, there = (slice(None), slice(None), *taken), (slice(None), slice(None), *places)
            named = names[here] == tap
            np.copyto(result[here], gradient[there], where=named & ~written[there])
            written[there] |= named

    parallel(one, plane_blocks(source, channels_last), dx.size * window.taps)


def _check_mask(op: str, mask: Array, window: Window, p: pooling_compiled.Pooling | None) -> None:
    """Raise ValueError for an offset that names no place; NumPy looks where C doesn't, or finds one."""
    if p is None or not pooling_compiled.masks_name_places(p):
        _check_offsets(op, mask, window)


def _scatter(index: Array, values: Array, size: int, window: Window) -> Array:
    """Return `size` zeros with each value added at its index; index and values are [N, C, *out]."""
    apart = [-(-span // s) for span, s in zip(window.span, window.stride, strict=True)]
    if overlap(window) and values.dtype in (np.float16, np.float32, np.float64):
        return np.bincount(index.ravel(), values.ravel(), size)  # sums in float64
    # Every apart-th window shares no place with another, so that a plain indexed assignment adds rightly.
    flat = np.zeros(size, values.dtype)
    for corner in np.ndindex(*apart):
        every: tuple[Any, ...] = (..., *(slice(i, None, step) for i, step in zip(corner, apart, strict=True)))
        at, terms = index[every].ravel(), values[every].ravel()
        flat[at] = flat.take(at) + terms if overlap(window) else terms
    return flat


def overlap(window: Window) -> bool:
    """Tell whether windows share places."""
    return any(span > s for span, s in zip(window.span, window.stride, strict=True))


def _flat_index(window: Window) -> tuple[Array, Array]:
    """Return each output place's first tap as a flat index into the plane, and each tap's jump from it."""
    first, jumps = np.zeros((), np.int64), np.zeros((), np.int64)
    for axis, size in enumerate(window.in_size):
        start = np.arange(window.out_size[axis]) * window.stride[axis] - window.before[axis]
        first = np.add.outer(first * size, start)
        jumps = np.add.outer(jumps * size, np.arange(window.kernel[axis]) * window.dilation[axis])
    return first, jumps.ravel()


def _check_offsets(op: str, argmax: Array, window: Window) -> None:
    """Refuse offsets, [N, C, *out], that name no place of their window, or one in the padding."""
    if not argmax.size:
        return
    low, high = argmax.min(), argmax.max()
    if low < 0 or high >= window.taps:
        raise ValueError(
            f"{op}: argmax holds {low if low < 0 else high}, "
            f"but a window of {window.kernel} has {window.taps} places"
        )
    for axis, size in enumerate(window.in_size):
        start = np.arange(window.out_size[axis]) * window.stride[axis] - window.before[axis]
        border = np.flatnonzero((start < 0) | (start + window.span[axis] > size))
        tap = argmax.take(border, 2 + axis) // prod(window.kernel[axis + 1 :]) % window.kernel[axis]
        place = (
            start[border].reshape(-1, *(1,) * (window.axes - 1 - axis))
            + tap.astype(np.int64) * window.dilation[axis]
        )
        if ((place < 0) | (place >= size)).any():
            raise ValueError(
                f"{op}: argmax names a place in the padding along spatial axis {axis}; "
                "is it of another kernel_size, stride or padding?"
            )


def argmax_to_indices(argmax: Array, indices: Array, window: Window, channels_last: bool) -> None:
    """Write the flat index into the input's plane of each window's maximum, int64."""
    mask = channels_first(argmax, channels_last)
    _check_offsets("argmax_to_indices", mask, window)
    first, jumps = _flat_index(window)
    np.add(jumps.take(mask), first, out=channels_first(indices, channels_last))


def avg_pool(
    x: Array,
    y: Array,
    window: Window,
    channels_last: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> None:
    """Write each window's mean: sums axis by axis, then one division."""
    source, target = channels_first(x, channels_last), channels_first(y, channels_last)
    if (p := pooling_compiled.pooling(source, target, None, window, mean=True)) is not None:
        pooling_compiled.avg_pool(p, shares(p.window, count_include_pad, divisor_override))
        return
    wide = accumulator(x.dtype)
    share = (1 / divisor(window, count_include_pad, divisor_override)).astype(real_dtype(wide))

    def one(planes: tuple[slice, slice]) -> None:
        by_parts(np.multiply, _sums(source[planes], window, wide, channels_last), share, target[planes])

    parallel(one, plane_blocks(source, channels_last), x.size * sum(window.kernel))


def _sums(x: Array, window: Window, dtype: Any, channels_last: bool) -> Array:
    """Return the sum of every window, axis by axis."""
    for axis in reversed(range(window.axes)):
        x = _sum_along(axis, x, window, dtype, channels_last)
    return x


def _sum_along(axis: int, x: Array, window: Window, dtype: Any, channels_last: bool) -> Array:
    """Sum the window's taps along one spatial axis; the others stay as they are."""
    sizes = (*x.shape[2 : 2 + axis], window.out_size[axis], *x.shape[3 + axis :])
    total = scratch(f"sum{axis}", x.shape[:2], sizes, channels_last, dtype)
    total[...] = 0
    for j in range(window.kernel[axis]):
        places, taken = axis_slices(window, axis, j, 0, window.out_size[axis])
        total[along(axis, taken)] += x[along(axis, places)]
    return total


def avg_pool_backward(
    dy: Array,
    dx: Array,
    window: Window,
    channels_last: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> None:
    """Write dx: each dy, divided, spread over its window, axis by axis."""
    source, target = channels_first(dy, channels_last), channels_first(dx, channels_last)
    if (p := pooling_compiled.pooling(target, source, None, window, mean=True, backward=True)) is not None:
        pooling_compiled.avg_pool_backward(p, shares(p.window, count_include_pad, divisor_override))
        return
    wide = accumulator(dy.dtype)
    share = (1 / divisor(window, count_include_pad, divisor_override)).astype(real_dtype(wide))

    def one(planes: tuple[slice, slice]) -> None:
        part = source[planes]
        shared = scratch("shared", part.shape[:2], part.shape[2:], channels_last, wide)
        by_parts(np.multiply, part, share, shared)
        target[planes] = _spread(shared, window, wide, channels_last)

    parallel(one, plane_blocks(target, channels_last), dx.size * sum(window.kernel))


def _spread(x: Array, window: Window, dtype: Any, channels_last: bool) -> Array:
    """Return every place's sum over the windows that read it, axis by axis."""
    for axis in range(window.axes):
        x = _spread_along(axis, x, window, dtype, channels_last)
    return x


def _spread_along(axis: int, x: Array, window: Window, dtype: Any, channels_last: bool) -> Array:
    """Add every output place to the places of its window along one spatial axis."""
    sizes = (*x.shape[2 : 2 + axis], window.in_size[axis], *x.shape[3 + axis :])
    total = scratch(f"spread{axis}", x.shape[:2], sizes, channels_last, dtype)
    total[...] = 0
    for j in range(window.kernel[axis]):
        places, taken = axis_slices(window, axis, j, 0, window.out_size[axis])
        total[along(axis, places)] += x[along(axis, taken)]
    return total


def lp_pool(x: Array, y: Array, window: Window, channels_last: bool, norm: float) -> None:
    """Write each window's norm: magnitudes to a power, sums axis by axis, then the root."""
    source, target = channels_first(x, channels_last), channels_first(y, channels_last)
    wide = accumulator(y.dtype)

    def one(planes: tuple[slice, slice]) -> None:
        powers = _power(np.abs(source[planes]).astype(wide, copy=False), norm)
        sums = _sums(powers, window, wide, channels_last)
        target[planes] = np.sqrt(sums) if norm == 2 else _power(sums, 1 / norm)

    parallel(one, plane_blocks(source, channels_last), x.size * sum(window.kernel))


def lp_pool_backward(
    dy: Array, x: Array, y: Array, dx: Array, window: Window, channels_last: bool, norm: float
) -> None:
    """Write dx: each dy shared out over its window by what each place adds to the norm."""
    values, target = channels_first(x, channels_last), channels_first(dx, channels_last)
    gradient, norms = channels_first(dy, channels_last), channels_first(y, channels_last)
    wide = accumulator(y.dtype)
    taps = _taps(window)

    def one(planes: tuple[slice, slice]) -> None:
        total, shared = norms[planes].astype(wide), gradient[planes]
        total[total == 0] = np.inf  # no slope: it gives nothing
        part = values[planes].astype(accumulator(x.dtype), copy=False)
        if norm == 2:
            target[planes] = _spread(shared / total, window, wide, channels_last) * part
            return
        # Shares are powers of a quotient of at most 1: the powers alone may be beyond the dtype.
        size, sums = np.abs(part), np.zeros(part.shape, wide)
        for places, taken in taps:
            there, here = (slice(None), slice(None), *places), (slice(None), slice(None), *taken)
            sums[there] += shared[here] * _power(size[there] / total[here], norm - 1)
        target[planes] = np.sign(part) * sums

    parallel(one, plane_blocks(target, channels_last), dx.size * window.taps)


def _power(x: Array, exponent: float) -> Array:
    """Return x ** exponent; NumPy's power takes the long way even where a product would do."""
    if exponent == 1:
        return x
    return np.square(x) if exponent == 2 else np.power(x, exponent)


def divisor(window: Window, count_include_pad: bool, override: int | None = None) -> Array:
    """Return what each window's sum is divided by, shaped like the output's places: how many it has.

    With padding counted, a window still ends where the padding does: in ceil mode the last may be cut short.
    """
    if override is not None:
        return np.array(float(override))
    counts = [_counts(window, axis, count_include_pad) for axis in range(window.axes)]
    product: Array = reduce(np.multiply.outer, counts)
    return product


@lru_cache(maxsize=256)
def shares(window: Window, count_include_pad: bool, override: int | None = None) -> Array:
    """Return what `divisor` is the product of, inverted, for three axes one after the other."""
    axes = [np.ones(1)] * (3 - window.axes)
    if override is not None:
        axes += [np.ones(size) for size in window.out_size]
        axes[0] = axes[0] / override
    else:
        axes += [1 / _counts(window, axis, count_include_pad) for axis in range(window.axes)]
    return np.concatenate(axes)


def _counts(window: Window, axis: int, count_include_pad: bool) -> Array:
    """Return how many places each window has along an axis."""
    before, after = (window.before[axis], window.after[axis]) if count_include_pad else (0, 0)
    start = np.arange(window.out_size[axis]) * window.stride[axis] - window.before[axis]
    places = start[:, None] + np.arange(window.kernel[axis]) * window.dilation[axis]
    inside = (places >= -before) & (places < window.in_size[axis] + after)
    counts: Array = inside.sum(axis=1).astype(np.float64)
    return counts


def by_parts(operation: np.ufunc, x: Array, real: Array, out: Array) -> None:
    """Write to `out` what an operation gives of x and real numbers; of a complex x, of each part.

    As a complex number 2 is 2 + 0i, and infinity times 0 is NaN: parts would spoil each other.
    """
    parts = [(x.real, out.real), (x.imag, out.imag)] if x.dtype.kind == "c" else [(x, out)]
    for part, target in parts:
        operation(part, real, out=target, casting="same_kind")


Taps = list[tuple[tuple[slice, ...], tuple[slice, ...]]]


def _taps(window: Window) -> Taps:
    return [tap_slices(window, tap, 0, window.out_size[0]) for tap in np.ndindex(*window.kernel)]


def _lowest(dtype: np.dtype[Any]) -> Any:
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


def scratch(
    slot: str, planes: tuple[int, ...], sizes: tuple[int, ...], channels_last: bool, dtype: Any
) -> Array:
    """Return a canonical view [N, C, *sizes] of a buffer laid out like the arrays."""
    n, c = planes
    return channels_first(
        buffer(slot, (n, *sizes, c) if channels_last else (n, c, *sizes), dtype), channels_last
    )


def along(axis: int, where: slice) -> tuple[slice, ...]:
    """Return the index of some places along one spatial axis."""
    return (slice(None),) * (2 + axis) + (where,)


def plane_blocks(x: Array, channels_last: bool) -> list[tuple[slice, slice]]:
    """Cut [N, C, *in] into blocks of about BLOCK_BYTES: several small images, or some channels of one."""
    n, c = x.shape[:2]
    plane = max(1, prod(x.shape[2:]) * x.itemsize)
    channels = max(1, min(c, BLOCK_BYTES // plane))
    if channels_last:  # a few channels out of many would be read in fragments
        channels = max(channels, min(c, 64))
    images = max(1, BLOCK_BYTES // (plane * channels)) if channels == c else 1
    images = max(1, min(images, -(-n // count())))
    return [
        (slice(i, min(n, i + images)), slice(j, min(c, j + channels)))
        for i in range(0, n, images)
        for j in range(0, c, channels)
    ]
