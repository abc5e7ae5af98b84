"""Convolution, its input gradient and its weight gradient as GEMM on blocks of columns: what NumPy alone can.

With X_col the columns of a block of output places ([C_in/groups * taps, places]) and W the weights as a
matrix ([C_out/groups, C_in/groups * taps]), for each group

    forward           Y  = W X_col + b
    weight gradient   dW = sum over blocks of dY X_col^T
    input gradient    dX = col2im(W^T dY)

A block is some images, or some output rows of one image, whose columns fit a thread's share of the cache.
Arrays are canonical views, weights [groups, C_out/groups, C_in/groups, *kernel].
"""

from itertools import groupby, product
from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.cpu.blocks import (
    Block,
    Job,
    alike,
    channels,
    cut_channels,
    cut_groups,
    cut_places,
    length,
)
from gpuconv.backends.cpu.columns import fold, padded_size, row_bounds, unfold, view_as
from gpuconv.backends.cpu.threads import buffer, parallel, used, workers
from gpuconv.backends.dispatch import accumulator
from gpuconv.backends.plans import Account
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

# Bytes of columns per block. Smaller ones stay in a core's L2, but threads wait for the interpreter lock:
# with 1, 2, 4 and 8 MB, 64 channels of 56x56 took 19.6, 13.3, 12.0 and 15.4 ms (3x3, 8 images, two cores), 32
# groups of 4 channels 19.8, 8.4, 6.3 and 6.1 ms.
BLOCK_BYTES = 4 << 20


def forward(x: Array, w: Array, b: Array | None, window: Window, y: Array, channels_last: bool) -> None:
    """Write conv(x, w) + b to y."""
    cut = _Forward(x, w.shape, window, y)
    dtype, og = cut.dtype, cut.og
    weights = _weight_matrices(w, channels_last).astype(dtype, copy=False)[:, None]
    bias = None if b is None else b.astype(dtype, copy=False).reshape(-1, 1, og, 1)

    def one(job: Job) -> None:
        groups, (n0, n1, r0, r1) = job
        source, target, apart, col, direct = cut.views(job)
        if col is None:
            col, canonical = _column_buffer(
                groups, cut.cg, n1 - n0, window, r1 - r0, channels_last, dtype, apart
            )
            unfold(source, window, r0, r1, canonical)
        out = buffer("product", (*col.shape[:2], og, col.shape[3]), dtype) if direct is None else direct
        multiply(weights[groups], col, out)
        if bias is not None:
            out += bias[groups]
        if direct is None:  # [G, images, C, places], or with the images among the places
            images = 1 if apart else 2
            whole = out.reshape(
                length(groups), *((n1 - n0, og) if apart else (og, n1 - n0)), *target.shape[3:]
            )
            target[...] = np.moveaxis(whole, images, 0)

    parallel(one, cut.jobs, cut.work, blas=True)


class _Forward:
    """A convolution cut into jobs, and what each finds where it lies."""

    def __init__(self, x: Array, w_shape: Shape, window: Window, y: Array) -> None:
        self._x, self._y, self._window = x, y, window
        self.dtype = accumulator(y.dtype)
        self.og, self.cg = w_shape[1:3]
        self.rows = self.cg * window.taps
        self._pointwise = window.is_pointwise and x.dtype == self.dtype
        self.work = y.size * self.rows
        group_bytes = self.rows * self.dtype.itemsize
        share, places = workers(self.work), x.shape[0] * window.places
        batches = cut_groups(window.groups, group_bytes, places, min(share, window.groups), BLOCK_BYTES)
        column_bytes = length(batches[0]) * group_bytes
        blocks = cut_places(x.shape[0], window, column_bytes, -(-share // len(batches)), BLOCK_BYTES)
        self.jobs: list[Job] = list(product(batches, blocks))

    def views(self, job: Job) -> tuple[Array, Array, bool, Array | None, Array | None]:
        """Return x, y, whether images stay apart, and columns and products where they need no buffer."""
        groups, (n0, n1, r0, r1) = job
        source = by_group(self._x[n0:n1, channels(groups, self.cg)], groups)
        target = by_group(self._y[n0:n1, channels(groups, self.og), r0:r1], groups)
        apart = prod(target.shape[3:]) >= ENOUGH_COLUMNS
        # A 1x1 kernel's columns are x itself.
        col = _as_matrices(source[:, :, :, r0:r1], apart) if self._pointwise else None
        direct = _as_matrices(target, apart) if self._y.dtype == self.dtype else None
        return source, target, apart, col, direct


def why(window: Window) -> str:
    """Return in a sentence how it is computed."""
    if window.is_pointwise:
        return "a 1x1 kernel's columns are the image itself"
    return "BLAS multiplies w and columns, so many at a time as stay in the cache"


def plan_forward(
    x: Array, w_shape: Shape, window: Window, y: Array, channels_last: bool, account: Account
) -> tuple[int, int]:
    """Add what `forward` would do to an account; return how many jobs there are, and threads."""
    cut = _Forward(x, w_shape, window, y)
    for job, number in alike(cut.jobs):
        groups, (n0, n1, r0, r1) = job
        source, target, apart, col, direct = cut.views(job)
        columns = prod(target.shape[3:]) * (1 if apart else n1 - n0)
        batch = length(groups) * (n1 - n0 if apart else 1)
        if col is None:
            account.step("im2col", number, rows=cut.rows, columns=columns, batch=batch)
            account.buffer("columns", batch * cut.rows * columns * cut.dtype.itemsize)
            account.buffer("padded", padded_size(source, window, row_bounds(window, r0, r1)) * x.itemsize)
        for at_once, times in products(cut.og, cut.rows, columns):
            account.step("gemm", number * times, m=cut.og, k=cut.rows, n=at_once, batch=batch)
        if direct is None:
            account.buffer("product", batch * cut.og * columns * cut.dtype.itemsize)
    return len(cut.jobs), used(len(cut.jobs), cut.work)


def input_grad(dy: Array, w: Array, b: Array | None, window: Window, dx: Array, channels_last: bool) -> None:
    """Write col2im(W^T dy) + b to dx."""
    dtype = accumulator(dx.dtype)
    og, cg = w.shape[1:3]
    w = w.astype(dtype, copy=False)
    bias = None if b is None else b.astype(dtype, copy=False).reshape(-1, cg, *(1,) * window.axes)
    jobs, work = _cut_input_grad(dy, cg, window, dtype)

    def one(job: GradJob) -> None:
        groups, part, rows = job
        n0, n1 = rows[0].n0, rows[0].n1
        weights = _weight_matrices(w[groups, :, part], channels_last)
        exact = by_group(dx[n0:n1, channels(groups, cg)], groups)[:, :, part]
        total = exact if exact.dtype == dtype else np.empty(exact.shape, dtype)
        total[...] = 0 if bias is None else bias[groups, part]
        for _, _, r0, r1 in rows:
            col, canonical = _column_buffer(
                groups, length(part), n1 - n0, window, r1 - r0, channels_last, dtype
            )
            gradient = _matrices(by_group(dy[n0:n1, channels(groups, og), r0:r1], groups), dtype)
            multiply(weights.swapaxes(1, 2)[:, None], gradient, col)
            fold(canonical, window, r0, total)
        if total is not exact:
            exact[...] = total

    parallel(one, jobs, work, blas=True)


# Groups, channels of each, and blocks: those of an input gradient are all rows of their images, as what they
# write overlaps; those of a weight gradient are added up.
GradJob = tuple[slice, slice, list[Block]]


def _cut_input_grad(dy: Array, cg: int, window: Window, dtype: np.dtype[Any]) -> tuple[list[GradJob], int]:
    """Return the jobs of `_input_grad_by_columns`, and its work."""
    images, work = dy.shape[0], dy.size * cg * window.taps
    group_bytes, share = cg * window.taps * dtype.itemsize, workers(work)
    batches = cut_groups(
        window.groups, group_bytes, images * window.places, min(share, window.groups), BLOCK_BYTES
    )
    parts = cut_channels(cg, -(-share // (len(batches) * max(1, images))))
    column_bytes = length(batches[0]) * length(parts[0]) * window.taps * dtype.itemsize
    blocks = cut_places(images, window, column_bytes, min(max(images, 1), share), BLOCK_BYTES)
    by_image = [list(rows) for _, rows in groupby(blocks, key=lambda block: block.n0)]
    return list(product(batches, parts, by_image)), work


# Rows of dW that one GEMM computes: with more, the columns of a block would be too few for BLAS.
WEIGHT_ROWS = 576


def weight_grad(dy: Array, x: Array, window: Window, dw: Array, channels_last: bool) -> None:
    """Write dY X_col^T to dw; each sum runs in the same order whatever the number of threads."""
    dtype = accumulator(dw.dtype)
    og, cg = dw.shape[1:3]
    jobs = _cut_weight_grad(x.shape[0], cg, window, dtype)
    sums: list[Array | None] = [None] * len(jobs)

    def one(number: int) -> None:
        groups, part, share = jobs[number]
        total = np.zeros((length(groups), og, length(part) * window.taps), dtype)
        term = np.empty_like(total)
        for n0, n1, r0, r1 in share:
            col, canonical = _column_buffer(
                groups, length(part), n1 - n0, window, r1 - r0, channels_last, dtype
            )
            unfold(by_group(x[n0:n1, channels(groups, cg)], groups)[:, :, part], window, r0, r1, canonical)
            gradient = _matrices(by_group(dy[n0:n1, channels(groups, og), r0:r1], groups), dtype)
            np.matmul(gradient[:, 0], col[:, 0].swapaxes(1, 2), out=term)
            total += term
        sums[number] = total

    parallel(one, range(len(jobs)), dy.size * cg * window.taps, blas=True)
    whole = np.zeros(dw.shape, dtype)
    for (groups, part, _), total in zip(jobs, sums, strict=True):
        assert total is not None
        target = whole[groups, :, part]
        if channels_last:
            total = np.moveaxis(total.reshape(*target.shape[:2], *window.kernel, -1), -1, 2)
        target += total.reshape(target.shape)
    dw[...] = whole


def _cut_weight_grad(images: int, cg: int, window: Window, dtype: np.dtype[Any]) -> list[GradJob]:
    """Return the jobs of `_weight_grad`; as many on any number of threads."""
    group_bytes, places = cg * window.taps * dtype.itemsize, images * window.places
    batches = cut_groups(window.groups, group_bytes, places, min(4, window.groups), BLOCK_BYTES)
    parts = cut_channels(cg, -(-cg * window.taps // WEIGHT_ROWS))
    pieces = 4 if len(parts) * len(batches) < 4 else 1  # too few jobs: sum the batch in pieces
    column_bytes = length(batches[0]) * length(parts[0]) * window.taps * dtype.itemsize
    blocks = cut_places(images, window, column_bytes, pieces, BLOCK_BYTES)
    shares = [blocks[i * len(blocks) // pieces : (i + 1) * len(blocks) // pieces] for i in range(pieces)]
    return list(product(batches, parts, shares))


def plan_input_grad(
    dy: Array, w_shape: Shape, dx: Array, window: Window, account: Account
) -> tuple[int, int]:
    """Add what `input_grad` would do to an account; return how many jobs there are, and threads."""
    cg, dtype = w_shape[2], accumulator(dx.dtype)
    jobs, work = _cut_input_grad(dy, cg, window, dtype)
    _plan_grad(dx, dy, cg, window, jobs, dtype, "col2im", account)
    if dx.dtype != dtype:
        most = max((rows[0].n1 - rows[0].n0) * length(g) * length(p) for g, p, rows in jobs)
        account.buffer("total", most * prod(window.in_size) * dtype.itemsize)
    return len(jobs), used(len(jobs), work)


def plan_weight_grad(
    dy: Array, x: Array, dw: Array, window: Window, account: Account
) -> tuple[int, int, int]:
    """Add what `weight_grad` would do to an account; return jobs, threads, bytes that they share."""
    og, cg = dw.shape[1:3]
    dtype = accumulator(dw.dtype)
    jobs = _cut_weight_grad(x.shape[0], cg, window, dtype)
    _plan_grad(x, dy, cg, window, jobs, dtype, "im2col", account)
    sums = [length(groups) * og * length(part) * window.taps * dtype.itemsize for groups, part, _ in jobs]
    account.buffer("term", max(sums))
    return len(jobs), used(len(jobs), dy.size * cg * window.taps), dw.size * dtype.itemsize + sum(sums)


def _plan_grad(
    x: Array,
    dy: Array,
    cg: int,
    window: Window,
    jobs: list[GradJob],
    dtype: np.dtype[Any],
    what: str,
    account: Account,
) -> None:
    """Account for the jobs of a gradient that has `what` done to columns: im2col of x, col2im to dx."""
    og = dy.shape[1] // window.groups
    for groups, part, blocks in jobs:
        rows, batch = length(part) * window.taps, length(groups)
        for (_, (n0, n1, r0, r1)), number in alike([(groups, block) for block in blocks]):
            gradient = by_group(dy[n0:n1, channels(groups, og), r0:r1], groups)
            columns = gradient.size // (batch * og)
            account.step(what, number, rows=rows, columns=columns, batch=batch)
            account.buffer("columns", batch * rows * columns * dtype.itemsize)
            if dy.dtype != dtype or _as_matrices(gradient) is None:
                account.buffer("matrices", gradient.size * dtype.itemsize)
            if what == "col2im":
                for at_once, times in products(rows, og, columns):
                    account.step("gemm", number * times, m=rows, k=og, n=at_once, batch=batch)
                continue
            account.step("gemm", number, m=og, k=columns, n=rows, batch=batch)
            source = by_group(x[n0:n1, channels(groups, cg)], groups)[:, :, part]
            account.buffer("padded", padded_size(source, window, row_bounds(window, r0, r1)) * x.itemsize)


def by_group(x: Array, groups: slice) -> Array:
    """View [images, G * C, *places] as [images, G, C, *places]."""
    return x.reshape(x.shape[0], length(groups), x.shape[1] // length(groups), *x.shape[2:])


# Matrices come in batches [G, I, rows, columns]. Either the images' columns stand side by side in one matrix
# (I is 1), or, apart, each image has a matrix of its own, which BLAS can write to where y lies. A column's
# order is (C, taps) or, channels last, (taps, C), as the channels lie in x.

# Columns that are enough for a GEMM of one image: from here on, images stay apart.
ENOUGH_COLUMNS = 128


def _weight_matrices(w: Array, channels_last: bool) -> Array:
    """Return weights as [groups, C_out/groups, C * taps], copied where they must be."""
    view = matrices_of(w, channels_last)
    return (
        _in_column_order(w, channels_last).reshape(*w.shape[:2], prod(w.shape[2:])) if view is None else view
    )


def matrices_of(w: Array, channels_last: bool) -> Array | None:
    """View weights as [groups, C_out/groups, C * taps], or return None where that takes a copy."""
    return view_as(_in_column_order(w, channels_last), (*w.shape[:2], prod(w.shape[2:])))


def _in_column_order(w: Array, channels_last: bool) -> Array:
    return np.moveaxis(w, 2, -1) if channels_last else w


def _column_buffer(
    groups: slice,
    c: int,
    images: int,
    window: Window,
    rows: int,
    channels_last: bool,
    dtype: Any,
    apart: bool = False,
) -> tuple[Array, Array]:
    """Return column matrices [G, I, C * taps, columns], and the view [images, G, C, *kernel, rows, *rest]."""
    d, g = window.axes, length(groups)
    kernel, places = window.kernel, (rows, *window.out_size[1:])
    matrices = (g, images, prod(places)) if apart else (g, 1, images * prod(places))
    if channels_last:
        memory = buffer("columns", (g, images, *places, *kernel, c), dtype)
        canonical = memory.transpose(1, 0, 2 * d + 2, *range(d + 2, 2 * d + 2), *range(2, d + 2))
        return memory.reshape(*matrices, c * window.taps).swapaxes(2, 3), canonical
    if apart:
        memory = buffer("columns", (g, images, c, *kernel, *places), dtype)
        canonical = memory.swapaxes(0, 1)
    else:
        memory = buffer("columns", (g, c, *kernel, images, *places), dtype)
        canonical = np.moveaxis(memory, d + 2, 0)
    return memory.reshape(*matrices[:2], c * window.taps, matrices[2]), canonical


def _as_matrices(x: Array, apart: bool = False) -> Array | None:
    """View [images, G, C, *places] as [G, I, C, columns], or return None where that takes a copy."""
    images, g, c, *places = x.shape
    by_place = np.moveaxis(x, 2, -1).swapaxes(0, 1)
    matrices = (g, images, prod(places)) if apart else (g, 1, images * prod(places))
    view = view_as(by_place, (*matrices, c))
    return None if view is None else view.swapaxes(2, 3)


def _matrices(x: Array, dtype: Any) -> Array:
    """[images, G, C, *places] as [G, 1, C, images * places] of this dtype, copied where it must be."""
    if x.dtype == dtype and (view := _as_matrices(x)) is not None:
        return view
    swapped = np.moveaxis(x, 0, 2)
    copy = buffer("matrices", swapped.shape, dtype)
    np.copyto(copy, swapped, casting="same_kind")
    return copy.reshape(copy.shape[0], 1, copy.shape[1], prod(copy.shape[2:]))


# Up to a million multiply-adds, OpenBLAS needs no copies of matrices on processors with AVX-512: 32 x 288 by
# 288 x n runs at 110 GFLOP/s with 64 or 96 columns, 85 with 192. Others take 0.9 of their time more for
# fewer columns than this.
SMALL_PRODUCT = 1_000_000
SMALL_COLUMNS = 64


def products(m: int, k: int, columns: int) -> list[tuple[int, int]]:
    """Return how many columns `multiply` takes at once, and how often."""
    most = SMALL_PRODUCT // max(1, m * k) // SMALL_COLUMNS * SMALL_COLUMNS
    if not SMALL_COLUMNS <= most < columns:
        return [(columns, 1)]
    whole, rest = divmod(columns, most)
    return [(most, whole), (rest, 1)] if rest else [(most, whole)]


def multiply(a: Array, b: Array, out: Array) -> None:
    """Write a @ b to out, whose matrices may lie by rows or by columns: BLAS needs one axis dense."""
    begin = 0
    for at_once, times in products(a.shape[-2], *b.shape[-2:]):
        for _ in range(times):
            part = slice(begin, begin + at_once)
            _multiply(a, b[..., part], out[..., part])
            begin += at_once


def _multiply(a: Array, b: Array, out: Array) -> None:
    if out.strides[-1] == out.itemsize:
        np.matmul(a, b, out=out)
    else:
        np.matmul(b.swapaxes(-1, -2), a.swapaxes(-1, -2), out=out.swapaxes(-1, -2))
