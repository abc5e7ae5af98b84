"""Poolings with one window, the whole plane, and their gradients: each block of an image gives its part.

A mean is the sum of the blocks' means, each times its share of the places. A maximum is the greatest of the
blocks' maxima: NaN before numbers, of equal ones the first of the plane. What blocks give is put together in
the plane's order, whatever order they are computed in.
"""

from math import prod
from operator import itemgetter, methodcaller
from typing import Any

import numpy as np
from dask.array import Array as DaskArray
from dask.array import broadcast_to, map_blocks
from dask.array.core import normalize_chunks
from dask.array.utils import meta_from_array

from gpuconv.backends import cpu
from gpuconv.backends.dask import graph
from gpuconv.backends.dask.graph import Result
from gpuconv.backends.dispatch import accumulator, array_module, backend_of
from gpuconv.config import config

Array = Any
Shape = tuple[int, ...]
Settings = dict[str, Any]


def avg_pool(op: str, x: DaskArray, y: Result, channels_last: bool) -> list[DaskArray]:
    """Return the mean of each plane."""
    x, axes = _without_empty_chunks(x), _axes(x.ndim, channels_last)
    places, wide = prod(x.shape[axis] for axis in axes), accumulator(x.dtype)
    (parts,) = _of_blocks(op, _mean, x, channels_last, {"part": wide}, places=places)
    return [parts.sum(axis=axes, dtype=wide, keepdims=True).astype(y.dtype)]


def max_pool(op: str, x: DaskArray, y: Result, argmax: Result | None, channels_last: bool) -> list[DaskArray]:
    """Return the maximum of each plane, and its flat place where that is wanted."""
    x, axes = _without_empty_chunks(x), _axes(x.ndim, channels_last)
    value, place = x.dtype, np.dtype(np.int64)
    parts = _of_blocks(op, _maximum, x, channels_last, {"part": value, "place": place})
    parts = [part.rechunk(dict.fromkeys(axes, -1)) for part in parts]
    chunks = _one_place(parts[0].chunks, axes)
    found = _laid_out(op, _greatest, parts, chunks, {"y": value, "argmax": place}, axes=axes)
    return found[: 1 if argmax is None else 2]


def avg_pool_backward(op: str, dy: DaskArray, dx: Result, channels_last: bool) -> list[DaskArray]:
    """Return dx: each dy, divided, at every place of its plane."""
    dy, axes = _without_empty_chunks(dy), _axes(dy.ndim, channels_last)
    each = (dy.astype(accumulator(dy.dtype)) / prod(dx.shape[axis] for axis in axes)).astype(dx.dtype)
    spread = broadcast_to(each, dx.shape, _chunks_of_dx(dy, dx, axes))
    # Of views somebody may want to write to one.
    return [spread.map_blocks(methodcaller("copy"), token=f"{op}-dx", meta=dy._meta)]


def max_pool_backward(
    _: str, dy: DaskArray, argmax: DaskArray, dx: Result, channels_last: bool, op: str
) -> list[DaskArray]:
    """Return dx: each dy at the place of its plane that argmax names."""
    dy = _without_empty_chunks(dy)
    chunks = _chunks_of_dx(dy, dx, _axes(dy.ndim, channels_last))
    spread = (broadcast_to(each, dx.shape, chunks) for each in (dy, argmax.rechunk(dy.chunks)))
    given = {"op": op, "x_shape": dx.shape, "channels_last": channels_last, "settings": graph.settings()}
    return [map_blocks(_placed, *spread, **given, token=f"{op}-dx", dtype=dx.dtype, meta=dy._meta)]


# What is done with a block.


def _mean(x: Array, channels_last: bool, settings: Settings, places: int) -> Array:
    axes, wide = _axes(x.ndim, channels_last), accumulator(x.dtype)
    x = x.astype(wide, copy=False)
    with config(**settings):
        backend = backend_of("global_avg_pool", x=x)
        y = backend.arrays.empty(_one(x.shape, axes), wide, x)
        backend.adaptive.avg_pool(x, y, channels_last)
    return y * (prod(x.shape[axis] for axis in axes) / places)


def _maximum(
    x: Array, channels_last: bool, settings: Settings, block_info: dict[Any, Any]
) -> tuple[Array, Array]:
    axes = _axes(x.ndim, channels_last)
    with config(**settings):
        backend = backend_of("global_max_pool", x=x)
        shape = _one(x.shape, axes)
        y, argmax = backend.arrays.empty(shape, x.dtype, x), backend.arrays.empty(shape, np.int64, x)
        backend.adaptive.max_pool(x, y, argmax, channels_last)
    flat, rest, step = 0, argmax, 1
    for axis in reversed(axes):
        start = block_info[0]["array-location"][axis][0]
        flat = flat + (rest % x.shape[axis] + start) * step
        rest, step = rest // x.shape[axis], step * block_info[0]["shape"][axis]
    return y, flat


def _greatest(y: Array, argmax: Array, axes: Shape) -> tuple[Array, Array]:
    xp, rest = array_module(y), tuple(axis for axis in range(y.ndim) if axis not in axes)
    # What the blocks gave along the last axis, which this adds.
    shape = (*_one(y.shape, axes), prod(y.shape[axis] for axis in axes))
    y, argmax = (xp.transpose(each, rest + axes).reshape(shape) for each in (y, argmax))
    wins = (y == y.max(-1, keepdims=True)) | (y != y)
    first = xp.where(wins, argmax, np.iinfo(np.int64).max).argmin(-1)[..., None]
    y, argmax = (xp.take_along_axis(each, first, -1)[..., 0] for each in (y, argmax))
    return y, argmax


def _placed(
    dy: Array, argmax: Array, op: str, x_shape: Shape, channels_last: bool, settings: Settings,
    block_info: dict[Any, Any],
) -> Array:  # fmt: skip
    shape, axes = dy.shape, _axes(dy.ndim, channels_last)
    one = tuple(slice(1) if axis in axes else slice(None) for axis in range(dy.ndim))
    dy, argmax = dy[one], argmax[one].astype(np.int64)
    if isinstance(argmax, np.ndarray):  # a GPU would have to be waited for
        plane = tuple(x_shape[axis] for axis in axes)
        cpu.adaptive.check_places(op, cpu.columns.channels_first(argmax, channels_last), plane)
    xp, here, flat, rest, step = array_module(dy), True, 0, argmax, 1
    for axis in reversed(axes):
        start, stop = block_info[None]["array-location"][axis]
        # The first axis takes what is left, so that what lies beyond the plane lies beyond it.
        place, rest = (rest % x_shape[axis], rest // x_shape[axis]) if axis > axes[0] else (rest, rest)
        here = here & (start <= place) & (place < stop)
        flat, step = flat + (place - start) * step, step * (stop - start)
    with config(**settings):
        backend = backend_of(op, dy=dy)
        dx = backend.arrays.empty(shape, dy.dtype, dy)
        dy, argmax = xp.where(here, dy, dy.dtype.type(0)), xp.where(here, flat, 0)
        backend.adaptive.max_pool_backward(dy, argmax, dx, channels_last, op)
    return dx


# Where blocks are.


def _axes(ndim: int, channels_last: bool) -> Shape:
    return tuple(range(1, ndim - 1) if channels_last else range(2, ndim))


def _one(shape: Shape, axes: Shape) -> Shape:
    """Return a shape with one place in the stead of a plane."""
    return tuple(1 if axis in axes else n for axis, n in enumerate(shape))


def _without_empty_chunks(x: DaskArray) -> DaskArray:
    """Leave out chunks of no places, which have no maximum, and of which no plane of dx can be made."""
    return x.rechunk(tuple(tuple(n for n in sizes if n) or (0,) for sizes in x.chunks))


def _one_place(chunks: graph.Chunks, axes: Shape) -> graph.Chunks:
    """Return chunks with one place in the stead of each block of a plane."""
    return tuple((1,) * len(sizes) if axis in axes else sizes for axis, sizes in enumerate(chunks))


def _chunks_of_dx(dy: DaskArray, dx: Result, axes: Shape) -> graph.Chunks:
    """Return dy's chunks, with planes cut where they exceed the size that Dask gives chunks."""
    planes = "auto" if prod(dx.shape) else -1
    wanted = tuple(planes if axis in axes else sizes for axis, sizes in enumerate(dy.chunks))
    found: graph.Chunks = normalize_chunks(wanted, dx.shape, dtype=dx.dtype)
    return found


def _of_blocks(
    op: str, work: Any, x: DaskArray, channels_last: bool, results: dict[str, np.dtype[Any]], **given: Any
) -> list[DaskArray]:
    """Return what blocks of an image give: arrays with a place for each block."""
    given |= {"channels_last": channels_last, "settings": graph.settings()}
    return _laid_out(op, work, [x], _one_place(x.chunks, _axes(x.ndim, channels_last)), results, **given)


def _laid_out(
    op: str, work: Any, arrays: list[DaskArray], chunks: graph.Chunks, results: dict[str, np.dtype[Any]],
    **given: Any,
) -> list[DaskArray]:  # fmt: skip
    """Return the one or more arrays that a function makes of each block."""
    metas = {name: meta_from_array(arrays[0]._meta, dtype=dtype) for name, dtype in results.items()}
    together, first = "-".join((op, *results)), next(iter(metas.values()))
    found = map_blocks(work, *arrays, **given, chunks=chunks, token=together, dtype=first.dtype, meta=first)
    if len(metas) == 1:
        return [found]
    return [
        map_blocks(itemgetter(i), found, token=f"{op}-{name}", meta=meta)
        for i, (name, meta) in enumerate(metas.items())
    ]
