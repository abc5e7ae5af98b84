"""Convolution as GEMM on unfolded rows: of a column only what one row of the kernel reads is copied.

With every row h of x unfolded along the other axes, for its taps j and places p,

    U[h, (c, j), (n, p)] = x[n, c, h, p * stride - before + j * dilation]

the columns of output row o are rows o * stride .. o * stride + kh of U: they lie one after the other, a
matrix [kh * C * kw, N * OW] without a copy. So an element of x is copied kw times, where columns have it
kh * kw times, and Y[o] = W U[o * stride :][: kh] + b is a product for each output row, of small matrices that
stay in the cache. Where rows are dilated, U takes every dilation-th of them, once for each remainder.

Channels first: with channels last, an element's neighbours in memory are other channels, and columns are
copied by runs of them. Arrays are canonical views, weights [groups, C_out/groups, C_in/groups, *kernel].
"""

from dataclasses import replace
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backends.cpu.blocks import channels, cut_groups, cut_places, length
from gpuconv.backends.cpu.columns import padded_size, row_bounds, unfold, view_as
from gpuconv.backends.cpu.gemm import BLOCK_BYTES, by_group, multiply, products
from gpuconv.backends.cpu.threads import buffer, parallel, used, workers
from gpuconv.backends.dispatch import accumulator
from gpuconv.backends.plans import Account
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

WHY = "BLAS multiplies w and rows of x, unfolded along the other axes: a kernel's rows need no copies"

# OpenBLAS starts no threads for a product of so few multiply-adds: nothing to hold it from.
ONE_THREAD = 1 << 18

# Times as many multiply-adds as elsewhere are worth a thread: seven million, 3 to 32 channels of 32x32, took
# 0.28 ms on one, 0.35 ms on two.
FAST = 3

# Columns of one output row, of all images, that are enough: with 14, BLAS takes twice as long.
LEAST_COLUMNS = 32

# From here on BLAS writes the row of one image to where y lies; more of them together, and a copy of what
# comes out, gain nothing: a stem, 112 columns, takes 24.4 ms by one image and 27.9 ms by two.
ENOUGH_COLUMNS = 96

# Copies are worth saving where few kernels share them. Time by columns over time by rows, one core, 8 images:
# 4 of 3x3 in 32 groups 1.2, 32 of 3x3 1.5, 64 of 3x3 1.05, 64 of 7x7 with stride 2 1.3, 128 of 9x9 1.13; but
# 96 of 11x11 with stride 4 1.0, 128 of 5x5 0.95, 128 of 3x3 with stride 2 0.95, 256 of 3x3 1.0.
MOST_KERNELS = 150


def pays(x: Array, w_shape: Shape, window: Window) -> bool:
    """Tell whether this is faster than columns, for an x with channels first."""
    saved = window.kernel[0] - window.stride[0]
    return (
        window.axes > 1
        and w_shape[1] * window.kernel[0] <= MOST_KERNELS * saved
        and x.shape[0] * prod(window.out_size[1:]) >= LEAST_COLUMNS
    )


def forward(x: Array, w: Array, b: Array | None, window: Window, y: Array) -> None:
    """Write conv(x, w) + b to y."""
    og, cg = w.shape[1:3]
    dtype, rows = accumulator(y.dtype), cg * window.taps
    weights = _by_row(w).astype(dtype, copy=False).reshape(window.groups, 1, og, rows)
    bias = None if b is None else b.astype(dtype, copy=False).reshape(-1, 1, og, 1)
    jobs, work = _cut(x, w.shape, window, y)

    def one(job: _Job) -> None:
        source, target = job.views(x, y, cg, og)
        images, g, _, height, *rest = target.shape
        canonical, col = _row_buffer(job.window, window, (images, g, cg), height, dtype)
        unfold(source, job.window, 0, job.window.out_size[0], canonical)
        direct = _as_matrices(target, dtype)
        out = buffer("product", (g, height, og, col.shape[3]), dtype) if direct is None else direct
        multiply(weights[job.groups], col, out)
        if bias is not None:
            out += bias[job.groups]
        if direct is None:
            whole = out.reshape(g, height, og, images, *rest)
            target[...] = whole.transpose(3, 0, 2, 1, *range(4, whole.ndim))

    parallel(one, jobs, work, blas=FAST * work > ONE_THREAD * window.groups * window.out_size[0])


def plan_forward(x: Array, w: Array, window: Window, y: Array, account: Account) -> tuple[int, int, int]:
    """Add what `forward` would do to an account; return jobs, threads, bytes that they share."""
    og, cg = w.shape[1:3]
    dtype, rows = accumulator(y.dtype), cg * window.taps
    jobs, work = _cut(x, w.shape, window, y)
    for job in jobs:
        source, target = job.views(x, y, cg, og)
        images, g, _, height, *rest = target.shape
        unfolded, columns = job.window.out_size[0], images * prod(rest)
        part = rows // window.kernel[0]
        account.step("im2col", rows=part, columns=columns, batch=g * unfolded)
        account.buffer("columns", g * unfolded * part * columns * dtype.itemsize)
        bounds = row_bounds(job.window, 0, unfolded)
        account.buffer("padded", padded_size(source, job.window, bounds) * x.itemsize)
        for at_once, times in products(og, rows, columns):
            account.step("gemm", times, m=og, k=rows, n=at_once, batch=g * height)
        if _as_matrices(target, dtype) is None:
            account.buffer("product", target.size * dtype.itemsize)
    copied = 0 if view_as(_by_row(w), (*w.shape[:2], rows)) is not None else w.nbytes
    return len(jobs), used(len(jobs), work), copied


class _Job(NamedTuple):
    """Output places computed at once: of some groups and images, every dilation-th of some rows."""

    groups: slice
    images: slice
    rows: slice
    window: Window  # unfolds the rows of x that these read

    def views(self, x: Array, y: Array, cg: int, og: int) -> tuple[Array, Array]:
        """Return what of x may be read and what of y is written, as [images, G, C, *places]."""
        source = by_group(x[self.images, channels(self.groups, cg)], self.groups)
        return source, by_group(y[self.images, channels(self.groups, og), self.rows], self.groups)


def _cut(x: Array, w_shape: Shape, window: Window, y: Array) -> tuple[list[_Job], int]:
    """Return the jobs of a convolution, and its work."""
    work = y.size * w_shape[2] * window.taps // FAST
    row_bytes = w_shape[2] * window.taps // window.kernel[0] * accumulator(y.dtype).itemsize
    return _jobs(window, x.shape[0], row_bytes, workers(work), BLOCK_BYTES), work


@lru_cache(maxsize=256)
def _jobs(window: Window, images: int, row_bytes: int, share: int, budget: int) -> list[_Job]:
    """Cut a convolution into `share` jobs at least; a column of U is of so many bytes for each group."""
    group_bytes, places = row_bytes * window.kernel[0], images * window.places
    batches = cut_groups(window.groups, group_bytes, places, min(share, window.groups), budget)
    together = max(1, min(images, -(-ENOUGH_COLUMNS // prod(window.out_size[1:]))))
    column_bytes = length(batches[0]) * row_bytes * window.stride[0] * together
    blocks = cut_places(-(-images // together), window, column_bytes, -(-share // len(batches)), budget)
    step = window.dilation[0]
    return [
        _Job(
            groups,
            slice(n0 * together, min(images, n1 * together)),
            slice(r, r1, step),
            _row_window(window, r, len(range(r, r1, step))),
        )
        for groups, (n0, n1, r0, r1) in product(batches, blocks)
        for r in range(r0, min(r1, r0 + step))
    ]


def _row_window(window: Window, first: int, height: int) -> Window:
    """Return the window that unfolds what output rows first, first + dilation, ... read: its rows are U's."""
    stride, dilation = window.stride[0], window.dilation[0]
    return replace(
        window,
        kernel=(1, *window.kernel[1:]),
        stride=(dilation, *window.stride[1:]),
        before=(window.before[0] - first * stride, *window.before[1:]),
        out_size=((height - 1) * stride + window.kernel[0], *window.out_size[1:]),
    )


def _by_row(w: Array) -> Array:
    """View weights as [groups, C_out/groups, kh, C_in/groups, *rest], in the order of U's rows."""
    return w.transpose(0, 1, 3, 2, *range(4, w.ndim))


def _row_buffer(
    rows: Window, window: Window, size: tuple[int, int, int], height: int, dtype: np.dtype[Any]
) -> tuple[Array, Array]:
    """Return U as [images, G, C, 1, *kernel, rows, *rest], and its matrices [G, height, K, columns].

    These overlap. `rows` is the window that unfolds, `size` that of the first three axes.
    """
    (images, g, c), (high, *rest), d = size, rows.out_size, rows.axes
    u = buffer("columns", (g, high, c, *rows.kernel, images, *rest), dtype)
    canonical = u.transpose(d + 3, 0, *range(2, d + 3), 1, *range(d + 4, 2 * d + 3))
    columns = images * prod(rest)
    shape = g, height, c * window.taps, columns
    strides = u.strides[0], window.stride[0] * u.strides[1], columns * u.itemsize, u.itemsize
    return canonical, np.ndarray(shape, dtype, u, strides=strides)


def _as_matrices(target: Array, dtype: np.dtype[Any]) -> Array | None:
    """View y as [G, rows, C, columns], or return None where products need a copy."""
    images, g, c, height, *rest = target.shape
    by_row = target.transpose(1, 3, 2, 0, *range(4, target.ndim))
    return view_as(by_row, (g, height, c, images * prod(rest))) if target.dtype == dtype else None
