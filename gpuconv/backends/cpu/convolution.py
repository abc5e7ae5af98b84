"""Convolution, its input gradient and its weight gradient as GEMM on blocks of columns.

With X_col the columns of a block of output places ([C_in/groups * taps, places]) and W the weights as a
matrix ([C_out/groups, C_in/groups * taps]), for each group

    forward           Y  = W X_col + b
    weight gradient   dW = sum over blocks of dY X_col^T
    input gradient    dX = col2im(W^T dY), or, at stride 1, forward(pad(dY), rot180(W))

A block is some images, or some output rows of one image, whose columns fit a thread's share of the cache.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backends.cpu.columns import channels_first, fold, unfold
from gpuconv.backends.cpu.threads import buffer, count, parallel
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]

# Bytes of columns per block, forward.
BLOCK_BYTES = 2 << 20


def forward(x: Array, w: Array, b: Array | None, window: Window, channels_last: bool, dtype: Any) -> Array:
    """Return y = conv(x, w) + b."""
    y = _empty(x.shape[0], w.shape[-1 if channels_last else 0], window.out_size, channels_last, dtype)
    _forward(
        channels_first(x, channels_last),
        _weights_first(w, channels_last),
        b,
        window,
        channels_first(y, channels_last),
        channels_last,
    )
    return y


def input_grad(dy: Array, w: Array, window: Window, channels_last: bool, dtype: Any) -> Array:
    """Return dx, the gradient by x of sum(dy * conv(x, w))."""
    weights = _weights_first(w, channels_last)
    c_in = weights.shape[1] * window.groups
    dx = _empty(dy.shape[0], c_in, window.in_size, channels_last, dtype)
    source, target = channels_first(dy, channels_last), channels_first(dx, channels_last)
    if _is_cheaper_rotated(weights, window):
        _forward(source, rotated(weights, window.groups), None, window.adjoint(), target, channels_last)
    else:
        _input_grad_by_columns(source, weights, window, target, channels_last)
    return dx


def weight_grad(dy: Array, x: Array, window: Window, channels_last: bool, dtype: Any) -> Array:
    """Return dw, the gradient by w of sum(dy * conv(x, w)): summed over the batch, never averaged."""
    c_in, c_out = (a.shape[-1 if channels_last else 1] for a in (x, dy))
    cg = c_in // window.groups
    shape = (*window.kernel, cg, c_out) if channels_last else (c_out, cg, *window.kernel)
    dw = np.zeros(shape, dtype)
    source, target = channels_first(x, channels_last), _weights_first(dw, channels_last)
    _weight_grad(channels_first(dy, channels_last), source, window, target, channels_last)
    return dw


def bias_grad(dy: Array, channels_last: bool) -> Array:
    """Return db: dy summed over images and places, first within an image, then over images."""
    dtype = _accumulator(dy.dtype)
    axes = tuple(range(1, dy.ndim - 1)) if channels_last else tuple(range(2, dy.ndim))
    partial = np.empty((dy.shape[0], dy.shape[-1 if channels_last else 1]), dtype)

    def one(n: int) -> None:
        image = dy[n : n + 1]
        if channels_last:  # NumPy sums the last axis pairwise, other axes one by one: go row by row
            image = image.sum(axis=-2, dtype=dtype, keepdims=True)
        image.sum(axis=axes, dtype=dtype, out=partial[n : n + 1])

    parallel(one, range(dy.shape[0]), dy.size)
    return partial.sum(axis=0).astype(dy.dtype, copy=False)


class Block(NamedTuple):
    """Output places that one GEMM computes: rows r0..r1 of images n0..n1, for one group."""

    group: int
    n0: int
    n1: int
    r0: int
    r1: int


def _blocks(images: int, window: Window, column_bytes: int, budget: int) -> Iterator[Block]:
    """Cut the output into blocks whose columns fit the budget: whole images if one fits, else rows."""
    rows = window.out_size[0]
    row_bytes = column_bytes * (window.places // rows)
    per_block = max(1, budget // (row_bytes * rows))
    at_once = min(rows, max(1, budget // row_bytes))
    at_once = -(-rows // -(-rows // at_once))  # even blocks: 14 rows as 7 + 7, not as 12 + 2
    if images * window.groups < count() and rows > 1:  # give every thread something
        at_once = min(at_once, -(-rows // count()))
    elif per_block > 1:
        per_block = max(1, min(per_block, images * window.groups // count()))
    for group in range(window.groups):
        if at_once == rows:
            for n in range(0, images, per_block):
                yield Block(group, n, min(images, n + per_block), 0, rows)
        else:
            for n in range(images):
                for r in range(0, rows, at_once):
                    yield Block(group, n, n + 1, r, min(rows, r + at_once))


def _forward(x: Array, w: Array, b: Array | None, window: Window, y: Array, channels_last: bool) -> None:
    """Write conv(x, w) + b to y; all arrays are canonical views."""
    dtype = _accumulator(y.dtype)
    cg, og = w.shape[1], w.shape[0] // window.groups
    matrices = [
        _weight_matrix(w[g * og : (g + 1) * og], channels_last).astype(dtype, copy=False)
        for g in range(window.groups)
    ]
    bias = None if b is None else b.astype(dtype, copy=False)
    pointwise = window.is_pointwise and x.dtype == dtype
    direct = y.dtype == dtype

    def one(block: Block) -> None:
        g, n0, n1, r0, r1 = block
        target = y[n0:n1, g * og : (g + 1) * og, r0:r1]
        source = x[n0:n1, g * cg : (g + 1) * cg]
        size = target[:, 0].size
        if pointwise and n1 - n0 == 1 and (col := _as_matrix(source[:, :, r0:r1])) is not None:
            pass  # a 1x1 kernel at stride 1: the image is its own column matrix
        else:
            col = _columns(source, window, r0, r1, channels_last, dtype)
        out = _as_matrix(target) if direct else None
        if out is None:
            out = _matrix_buffer("y", og, size, channels_last, dtype)
            _gemm(matrices[g], col, out)
            _store(out, target, None if bias is None else bias[g * og : (g + 1) * og])
        else:
            _gemm(matrices[g], col, out)
            if bias is not None:
                out += bias[g * og : (g + 1) * og, None]

    budget = BLOCK_BYTES
    blocks = _blocks(x.shape[0], window, cg * window.taps * dtype.itemsize, budget)
    parallel(one, blocks, y.size * cg * window.taps)


def _input_grad_by_columns(dy: Array, w: Array, window: Window, dx: Array, channels_last: bool) -> None:
    """Write col2im(W^T dy) to dx."""
    dtype = _accumulator(dx.dtype)
    cg, og = w.shape[1], w.shape[0] // window.groups
    parts = _channel_parts(cg, dy.shape[0] * window.groups)
    jobs = [
        (n, g, part) for n in range(dy.shape[0]) for g in range(window.groups) for part in parts
    ]
    w = w.astype(dtype, copy=False)

    def one(job: tuple[int, int, slice]) -> None:
        n, g, part = job
        c = part.stop - part.start
        weights = _weight_matrix(w[g * og : (g + 1) * og, part], channels_last)
        exact = dx[n : n + 1, g * cg + part.start : g * cg + part.stop]
        target = exact
        if exact.dtype != dtype:
            target = np.zeros(exact.shape, dtype)
        else:
            target[...] = 0
        rows = window.out_size[0]
        at_once = max(1, BLOCK_BYTES // (c * window.taps * dtype.itemsize * window.places // rows))
        for r in range(0, rows, at_once):
            stop = min(rows, r + at_once)
            source = dy[n : n + 1, g * og : (g + 1) * og, r:stop]
            matrix = _matrix(source, channels_last, dtype)
            col, canonical = _column_buffer(1, c, window, stop - r, channels_last, dtype)
            _gemm(weights.T, matrix, col)
            fold(canonical, window, r, target)
        if target is not exact:
            exact[...] = target

    parallel(one, jobs, dy.size * cg * window.taps)


def _weight_grad(dy: Array, x: Array, window: Window, dw: Array, channels_last: bool) -> None:
    """Add dY X_col^T to dw (zeros), in the same order whatever the number of threads."""
    dtype = _accumulator(dw.dtype)
    cg, og = dw.shape[1], dw.shape[0] // window.groups
    jobs = [
        (g, part)
        for g in range(window.groups)
        for part in _channel_parts(cg, window.groups)
    ]

    def one(job: tuple[int, slice]) -> None:
        g, part = job
        c = part.stop - part.start
        target = dw[g * og : (g + 1) * og, part]
        total = np.zeros((og, c * window.taps), dtype)
        product = np.empty_like(total)
        for _, n0, n1, r0, r1 in _blocks(x.shape[0], window._replace_groups(1), c * window.taps * dtype.itemsize, BLOCK_BYTES):
            source = x[n0:n1, g * cg + part.start : g * cg + part.stop]
            col = _columns(source, window, r0, r1, channels_last, dtype)
            matrix = _matrix(dy[n0:n1, g * og : (g + 1) * og, r0:r1], channels_last, dtype)
            np.matmul(matrix, col.T, out=product)
            total += product
        target[...] = _unmatrix(total, target.shape, channels_last)

    parallel(one, jobs, dy.size * cg * window.taps)
