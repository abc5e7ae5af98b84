"""Adaptive pooling and its gradients (with one output: global pooling), axis by axis, a few planes at a time.

Window o of an axis has the places floor(o*in / out) <= i < ceil((o+1)*in / out). A plane's windows are all
pairs (or triples) of those of its axes, so sums and maxima are taken along one axis after the other.
"""

from functools import lru_cache, reduce
from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.cpu import pooling_compiled
from gpuconv.backends.cpu.columns import channels_first
from gpuconv.backends.cpu.pooling import alike_planes, along, by_parts, plane_blocks, scratch
from gpuconv.backends.cpu.threads import parallel, used
from gpuconv.backends.dispatch import accumulator, real_dtype
from gpuconv.backends.plans import Account, Part
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]
Sizes = tuple[int, ...]


def avg_pool(x: Array, y: Array, channels_last: bool) -> None:
    """Write the mean of each window."""
    source, target = channels_first(x, channels_last), channels_first(y, channels_last)
    if (p := _by_kernels(source, target, mean=True)) is not None:
        pooling_compiled.avg_pool(p, _shares(p.window))
        return
    wide = accumulator(x.dtype)
    in_size, out_size = source.shape[2:], target.shape[2:]
    if not channels_last:  # there NumPy adds up one by one, so that short sums of sums are more exact
        in_size, out_size = _merged(in_size, out_size)
    places = [_ends(size, out) for size, out in zip(in_size, out_size, strict=True)]
    counts = _counts(places).astype(real_dtype(wide))

    def one(planes: tuple[slice, slice]) -> None:
        total = source[planes]
        total = total.reshape(*total.shape[:2], *in_size)
        for axis in reversed(range(len(places))):
            sizes = (*total.shape[2 : 2 + axis], out_size[axis], *total.shape[3 + axis :])
            sums = scratch(f"sum{axis}", total.shape[:2], sizes, channels_last, wide)
            for o, (begin, end) in enumerate(places[axis]):
                part = total[along(axis, slice(begin, end))]
                np.sum(part, 2 + axis, wide, sums[along(axis, slice(o, o + 1))], keepdims=True)
            total = sums
        by_parts(np.divide, total, counts, total)
        result = target[planes]
        result[...] = total.reshape(result.shape)

    parallel(one, plane_blocks(source, channels_last), x.size)


def avg_pool_backward(dy: Array, dx: Array, channels_last: bool) -> None:
    """Write dx: each dy, divided, spread over its window."""
    source, target = channels_first(dy, channels_last), channels_first(dx, channels_last)
    if (p := _by_kernels(target, source, mean=True, backward=True)) is not None:
        pooling_compiled.avg_pool_backward(p, _shares(p.window))
        return
    wide = accumulator(dy.dtype)
    places = [_ends(size, out) for size, out in zip(target.shape[2:], source.shape[2:], strict=True)]
    counts = _counts(places).astype(real_dtype(wide))

    def one(planes: tuple[slice, slice]) -> None:
        part = source[planes]
        total = scratch("shared", part.shape[:2], part.shape[2:], channels_last, wide)
        by_parts(np.divide, part, counts, total)
        for axis in range(len(places)):
            sizes = (*total.shape[2 : 2 + axis], target.shape[2 + axis], *total.shape[3 + axis :])
            spread = scratch(f"spread{axis}", total.shape[:2], sizes, channels_last, wide)
            spread[...] = 0
            for o, (begin, end) in enumerate(places[axis]):
                spread[along(axis, slice(begin, end))] += total[along(axis, slice(o, o + 1))]
            total = spread
        target[planes] = total

    parallel(one, plane_blocks(target, channels_last), dx.size)


def max_pool(x: Array, y: Array, argmax: Array | None, channels_last: bool) -> None:
    """Write each window's maximum to y, and to argmax the flat place of x where it is first."""
    source, target = channels_first(x, channels_last), channels_first(y, channels_last)
    mask = None if argmax is None else channels_first(argmax, channels_last)
    if (p := _by_kernels(source, target, mask)) is not None:
        pooling_compiled.max_pool(p)
        return
    in_size, out_size = _merged(source.shape[2:], target.shape[2:])
    places = [_ends(size, out) for size, out in zip(in_size, out_size, strict=True)]

    def one(planes: tuple[slice, slice]) -> None:
        best = source[planes]
        best = best.reshape(*best.shape[:2], *in_size)
        at: Array | None = None  # flat, along the axes that are done
        for axis in reversed(range(len(places))):
            step = prod(in_size[axis + 1 :])
            found: list[tuple[Array, ...]] = []
            for begin, end in places[axis]:
                where = along(axis, slice(begin, end))
                part = best[where]
                if mask is None:
                    found.append((part.max(2 + axis, keepdims=True),))
                    continue
                first = part.argmax(2 + axis, keepdims=True)
                inner = 0 if at is None else np.take_along_axis(at[where], first, 2 + axis)
                value = np.take_along_axis(part, first, 2 + axis)
                found.append((value, (first + begin) * step + inner))
            best, *flat = (np.concatenate(parts, 2 + axis) for parts in zip(*found, strict=True))
            at = flat[0] if flat else None
        result = target[planes]
        result[...] = best.reshape(result.shape)
        if mask is not None and at is not None:
            mask[planes] = at.reshape(result.shape)

    parallel(one, plane_blocks(source, channels_last), x.size)


def max_pool_backward(dy: Array, argmax: Array, dx: Array, channels_last: bool, op: str) -> None:
    """Write dx: each dy goes to the place that argmax names; those of several windows add up."""
    source, target = channels_first(dy, channels_last), channels_first(dx, channels_last)
    mask = channels_first(argmax, channels_last)
    in_size = target.shape[2:]
    p = _by_kernels(target, source, mask, backward=True)
    if p is None or not pooling_compiled.masks_name_places(p):
        check_places(op, mask, in_size)
    if p is not None:
        pooling_compiled.max_pool_backward(p)
        return

    def one(planes: tuple[slice, slice]) -> None:
        part, values, plane = target[planes], source[planes], prod(in_size)
        starts = np.arange(0, part.size, plane).reshape(*part.shape[:2], *(1,) * len(in_size))
        index = (mask[planes].astype(np.int64) + starts).ravel()
        flat: Array
        if dy.dtype.kind == "f":
            flat = np.bincount(index, values.ravel(), part.size)  # sums in float64
        else:
            flat = np.zeros(part.size, dy.dtype)
            np.add.at(flat, index, values.ravel())
        part[...] = flat.reshape(part.shape)

    parallel(one, plane_blocks(target, channels_last), dx.size)


def plan(name: str, **p: Any) -> Part:
    """Return how one of this module's primitives would compute; arrays are only viewed."""
    account, last = Account(), p["channels_last"]
    large, small = (channels_first(p[a if a in p else b], last) for a, b in (("dx", "x"), ("dy", "y")))
    in_size, out_size = large.shape[2:], small.shape[2:]
    mean, mask = name.startswith("avg"), p.get("argmax")
    mask = None if mask is None else channels_first(mask, last)
    if (fast := _by_kernels(large, small, mask, mean=mean, backward=name.endswith("backward"))) is not None:
        return pooling_compiled.plan(fast)
    blocks = plane_blocks(large, last)
    for planes, number in alike_planes(blocks):
        account.step("pool", number, planes=planes, windows=prod(out_size))
        account.buffer("pool", planes * _plane_bytes(name, p, in_size, out_size))
    if name == "max_pool_backward":
        why = "each value is added at its flat place"
        return account.part("places", why, len(blocks), used(len(blocks), large.size))
    why = "windows along one axis after the other, a few planes at a time"
    return account.part("axes", why, len(blocks), used(len(blocks), large.size))


def _by_kernels(
    large: Array, small: Array, mask: Array | None = None, *, mean: bool = False, backward: bool = False
) -> pooling_compiled.Pooling | None:
    """Return how C computes this, if it does."""
    window = _window(large.shape[2:], small.shape[2:], mask is not None)
    return pooling_compiled.pooling(large, small, mask, window, mean=mean, backward=backward)


@lru_cache(maxsize=256)
def _window(in_size: Sizes, out_size: Sizes, masked: bool) -> Window:
    """Return the windows as C is told of them; where they are alike, a pooling's with a stride."""
    alike = all(size % out == 0 for size, out in zip(in_size, out_size, strict=True))
    # A pooling's masks name taps, which are places of the plane only where that is one window.
    if not alike or (masked and prod(out_size) > 1):
        return pooling_compiled.sharing(in_size, out_size)
    kernel = tuple(size // out for size, out in zip(in_size, out_size, strict=True))
    ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
    return Window(in_size, kernel, kernel, ones, zeros, zeros, out_size)


@lru_cache(maxsize=256)
def _shares(window: Window) -> Array:
    """Return 1 / the places that windows have along each of three axes, one axis after the other."""
    ends = [_ends(size, out) for size, out in zip(window.in_size, window.out_size, strict=True)]
    return np.array([1.0] * (3 - len(ends)) + [1 / (end - begin) for axis in ends for begin, end in axis])


def _plane_bytes(name: str, p: dict[str, Any], in_size: Sizes, out_size: Sizes) -> int:
    """Return the bytes that a thread takes for each plane at once, beside arguments and results."""
    dtype: np.dtype[Any] = p["dy" if "dy" in p else "x"].dtype
    if name == "max_pool_backward":
        sums = 8 if dtype.kind == "f" else dtype.itemsize
        return (16 + (8 if dtype != np.float64 else 0)) * prod(out_size) + sums * prod(in_size)
    if (name == "avg_pool" and not p["channels_last"]) or name == "max_pool":
        in_size, out_size = _merged(in_size, out_size)
    item, axes = accumulator(dtype).itemsize, range(len(in_size))
    if name == "avg_pool_backward":
        return item * sum(prod(in_size[:i] + out_size[i:]) for i in (*axes, len(in_size)))
    half = [prod(in_size[:i] + out_size[i:]) for i in axes]
    if name == "avg_pool":
        return item * sum(half)
    # Windows' maxima one by one, then side by side; with their places.
    return 2 * (dtype.itemsize + (0 if p["argmax"] is None else 8)) * max(half)


def check_places(op: str, argmax: Array, in_size: Sizes) -> None:
    """Refuse flat places, [N, C, *out], that aren't in their window."""
    if not argmax.size:
        return
    rest = argmax.astype(np.int64)
    for axis in reversed(range(len(in_size))):
        # the first axis takes what is left, so that what lies beyond the plane lies beyond it
        place, rest = (rest % in_size[axis], rest // in_size[axis]) if axis else (rest, rest)
        ends = np.array(_ends(in_size[axis], argmax.shape[2 + axis]))
        begin, end = ends.T.reshape(2, -1, *(1,) * (len(in_size) - 1 - axis))
        wrong = (place < begin) | (place >= end)
        if wrong.any():
            raise ValueError(
                f"{op}: argmax holds {argmax[wrong][0]}, "
                f"which is no place of its window in a plane of {in_size}"
            )


def _merged(in_size: Sizes, out_size: Sizes) -> tuple[Sizes, Sizes]:
    """Return the sizes; where the plane is one window, those of all axes as one, which takes one pass."""
    return ((prod(in_size),), (1,)) if prod(out_size) == 1 else (in_size, out_size)


def _ends(size: int, out: int) -> list[tuple[int, int]]:
    """Return where each window along an axis begins and ends."""
    return [(o * size // out, -(-(o + 1) * size // out)) for o in range(out)]


def _counts(shares: list[list[tuple[int, int]]]) -> Array:
    """Return the number of each window's places, shaped like the output's places."""
    return reduce(np.multiply.outer, [np.array([end - begin for begin, end in ends]) for ends in shares])
