"""Convolution, its input gradient and its weight gradient as GEMM on blocks of columns.

With X_col the columns of a block of output places ([C_in/groups * taps, places]) and W the weights as a
matrix ([C_out/groups, C_in/groups * taps]), for each group

    forward           Y  = W X_col + b
    weight gradient   dW = sum over blocks of dY X_col^T
    input gradient    dX = col2im(W^T dY), or, at stride 1, forward(pad(dY), rot180(W))

A block is some images, or some output rows of one image, whose columns fit a thread's share of the cache.
"""

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


def bias_grad(dy: Array, channels_last: bool, dtype: Any) -> Array:
    """Return db: dy summed over images and places, first within an image, then over images."""
    wide = accumulator(dtype)
    source = channels_first(dy, channels_last)
    partial = np.empty(source.shape[:2], wide)

    def one(n: int) -> None:
        # NumPy sums an innermost axis pairwise but outer axes one by one; axis by axis, no sum gets long.
        image = source[n]
        while image.ndim > 1:
            image = image.sum(axis=-1, dtype=wide)
        partial[n] = image

    parallel(one, range(dy.shape[0]), dy.size)
    db: Array = partial.sum(axis=0).astype(dtype, copy=False)
    return db


class Block(NamedTuple):
    """Output places that one GEMM computes: rows r0..r1 of images n0..n1."""

    n0: int
    n1: int
    r0: int
    r1: int


def _blocks(images: int, window: Window, column_bytes: int, share: int) -> list[Block]:
    """Cut the output into blocks whose columns fit BLOCK_BYTES: whole images if one fits, else rows.

    `column_bytes` is the size of one column, `share` how many blocks are wanted at least.
    """
    rows = window.out_size[0]
    row_bytes = column_bytes * (window.places // rows)
    at_once = min(rows, max(1, BLOCK_BYTES // row_bytes))
    if images < share:
        at_once = min(at_once, max(1, -(-rows * images // share)))
    if at_once == rows:
        per_block = min(max(1, BLOCK_BYTES // (row_bytes * rows)), max(1, images // share))
        return [Block(n, min(images, n + per_block), 0, rows) for n in range(0, images, per_block)]
    at_once = -(-rows // -(-rows // at_once))  # even blocks: 14 rows as 7 + 7, not as 12 + 2
    return [
        Block(n, n + 1, r, min(rows, r + at_once)) for n in range(images) for r in range(0, rows, at_once)
    ]


def _forward(x: Array, w: Array, b: Array | None, window: Window, y: Array, channels_last: bool) -> None:
    """Write conv(x, w) + b to y."""
    dtype = accumulator(y.dtype)
    cg, og = w.shape[1], w.shape[0] // window.groups
    groups = [slice(g * og, (g + 1) * og) for g in range(window.groups)]
    matrices = [_weight_matrix(w[outs], channels_last).astype(dtype, copy=False) for outs in groups]
    bias = None if b is None else b.astype(dtype, copy=False)[:, None]
    pointwise = window.is_pointwise and x.dtype == dtype

    def one(job: tuple[int, Block]) -> None:
        g, (n0, n1, r0, r1) = job
        source = x[n0:n1, g * cg : (g + 1) * cg]
        target = y[n0:n1, groups[g], r0:r1]
        col = _as_matrix(source[:, :, r0:r1]) if pointwise else None  # a 1x1 kernel's columns are x itself
        if col is None:
            col = _columns(source, window, r0, r1, channels_last, dtype)
        out = _as_matrix(target) if y.dtype == dtype else None
        if out is not None:
            _gemm(matrices[g], col, out)
            if bias is not None:
                out += bias[groups[g]]
        else:
            out = buffer("y", (og, col.shape[1]), dtype)
            _gemm(matrices[g], col, out)
            if bias is not None:
                out += bias[groups[g]]
            target[...] = out.reshape(og, n1 - n0, *target.shape[2:]).swapaxes(0, 1)

    blocks = _blocks(x.shape[0], window, cg * window.taps * dtype.itemsize, -(-count() // window.groups))
    parallel(one, [(g, block) for g in range(window.groups) for block in blocks], y.size * cg * window.taps)


def _input_grad_by_columns(dy: Array, w: Array, window: Window, dx: Array, channels_last: bool) -> None:
    """Write col2im(W^T dy) to dx."""
    dtype = accumulator(dx.dtype)
    cg, og = w.shape[1], w.shape[0] // window.groups
    w = w.astype(dtype, copy=False)
    rows, row_places = window.out_size[0], window.places // window.out_size[0]
    parts = _channel_parts(cg, -(-count() // (window.groups * max(1, dy.shape[0]))))
    jobs = [(n, g, part) for n in range(dy.shape[0]) for g in range(window.groups) for part in parts]

    def one(job: tuple[int, int, slice]) -> None:
        n, g, part = job
        c = part.stop - part.start
        outs = slice(g * og, (g + 1) * og)
        weights = _weight_matrix(w[outs, part], channels_last)
        exact = dx[n : n + 1, g * cg + part.start : g * cg + part.stop]
        total = exact if exact.dtype == dtype else np.empty(exact.shape, dtype)
        total[...] = 0
        at_once = max(1, BLOCK_BYTES // (c * window.taps * row_places * dtype.itemsize))
        for r in range(0, rows, at_once):
            stop = min(rows, r + at_once)
            col, canonical = _column_buffer(1, c, window, stop - r, channels_last, dtype)
            _gemm(weights.T, _matrix(dy[n : n + 1, outs, r:stop], dtype), col)
            fold(canonical, window, r, total)
        if total is not exact:
            exact[...] = total

    parallel(one, jobs, dy.size * cg * window.taps)


# Rows of dW that one GEMM computes: with more, the columns of a block would be too few for BLAS.
WEIGHT_ROWS = 576


def _weight_grad(dy: Array, x: Array, window: Window, dw: Array, channels_last: bool) -> None:
    """Write dY X_col^T to dw; each sum runs in the same order whatever the number of threads."""
    dtype = accumulator(dw.dtype)
    cg, og = dw.shape[1], dw.shape[0] // window.groups
    parts = _channel_parts(cg, -(-cg * window.taps // WEIGHT_ROWS))
    pieces = 4 if len(parts) * window.groups < 4 else 1  # too few jobs: sum the batch in pieces
    column_bytes = (parts[0].stop - parts[0].start) * window.taps * dtype.itemsize
    blocks = _blocks(x.shape[0], window, column_bytes, pieces)
    jobs = [
        (g, part, blocks[i * len(blocks) // pieces : (i + 1) * len(blocks) // pieces])
        for g in range(window.groups)
        for part in parts
        for i in range(pieces)
    ]
    sums: dict[int, Array] = {}

    def one(numbered: tuple[int, tuple[int, slice, list[Block]]]) -> None:
        number, (g, part, share) = numbered
        c = part.stop - part.start
        total = np.zeros((og, c * window.taps), dtype)
        product = np.empty_like(total)
        for n0, n1, r0, r1 in share:
            source = x[n0:n1, g * cg + part.start : g * cg + part.stop]
            col = _columns(source, window, r0, r1, channels_last, dtype)
            np.matmul(_matrix(dy[n0:n1, g * og : (g + 1) * og, r0:r1], dtype), col.T, out=product)
            total += product
        sums[number] = total

    parallel(one, list(enumerate(jobs)), dy.size * cg * window.taps)
    for number, (g, part, _) in enumerate(jobs):
        target = dw[g * og : (g + 1) * og, part]
        total = sums[number]
        if channels_last:
            target += np.moveaxis(total.reshape(og, *window.kernel, -1), -1, 1)
        else:
            target += total.reshape(target.shape)


def rotated(w: Array, groups: int) -> Array:
    """Return the weights of the input gradient: every kernel turned by 180 degrees, in and out swapped."""
    og, cg, kernel = w.shape[0] // groups, w.shape[1], w.shape[2:]
    swapped = w.reshape(groups, og, cg, *kernel).swapaxes(1, 2)
    return np.flip(swapped, axis=tuple(range(3, swapped.ndim))).reshape(groups * cg, og, *kernel)


def _is_cheaper_rotated(w: Array, window: Window) -> bool:
    """Whether dx by a convolution of dy moves less than by col2im, whose every step reads and writes."""
    if any(s != 1 for s in window.stride):
        return False
    adjoint = window.adjoint()
    if min(adjoint.before + adjoint.after) < 0:
        return False
    og, cg = w.shape[0] // window.groups, w.shape[1]
    return bool(og * adjoint.places <= 2 * cg * window.places)


def accumulator(dtype: Any) -> np.dtype[Any]:
    """Return the dtype to sum in: float16 is summed in float32."""
    return np.promote_types(dtype, np.float32)


def _empty(n: int, c: int, sizes: tuple[int, ...], channels_last: bool, dtype: Any) -> Array:
    return np.empty((n, *sizes, c) if channels_last else (n, c, *sizes), dtype)


def _weights_first(w: Array, channels_last: bool) -> Array:
    """View weights as [C_out, C_in/groups, *kernel]."""
    return np.moveaxis(w, (-1, -2), (0, 1)) if channels_last else w


def _channel_parts(channels: int, number: int) -> list[slice]:
    """Cut a group's input channels into `number` parts (or as many as there are), the first the largest."""
    size = -(-channels // max(1, min(number, channels)))
    return [slice(c, min(channels, c + size)) for c in range(0, channels, size)]


# In the matrices below a column's order is (C, taps) or, channels last, (taps, C): as it lies in x.


def _weight_matrix(w: Array, channels_last: bool) -> Array:
    """[C_out/groups, C, *kernel] as [C_out/groups, C * taps]."""
    return (np.moveaxis(w, 1, -1) if channels_last else w).reshape(w.shape[0], -1)


def _column_buffer(
    images: int, c: int, window: Window, rows: int, channels_last: bool, dtype: Any
) -> tuple[Array, Array]:
    """Return a column matrix [C * taps, places], and its canonical view [images, C, *kernel, rows, *rest]."""
    d = window.axes
    kernel, places = window.kernel, (rows, *window.out_size[1:])
    size = images * rows * (window.places // window.out_size[0])
    if channels_last:
        memory = buffer("columns", (images, *places, *kernel, c), dtype)
        canonical = memory.transpose(0, 2 * d + 1, *range(d + 1, 2 * d + 1), *range(1, d + 1))
        return memory.reshape(size, -1).T, canonical
    memory = buffer("columns", (c, *kernel, images, *places), dtype)
    canonical = memory.transpose(d + 1, 0, *range(1, d + 1), *range(d + 2, 2 * d + 2))
    return memory.reshape(-1, size), canonical


def _columns(x: Array, window: Window, r0: int, r1: int, channels_last: bool, dtype: Any) -> Array:
    """Return the column matrix [C * taps, places] of output rows r0..r1."""
    col, canonical = _column_buffer(x.shape[0], x.shape[1], window, r1 - r0, channels_last, dtype)
    unfold(x, window, r0, r1, canonical)
    return col


def _as_matrix(x: Array) -> Array | None:
    """View [images, C, *places] as a matrix [C, images * places], or return None where that takes a copy."""
    try:
        return np.moveaxis(x, 1, -1).reshape(-1, x.shape[1], copy=False).T
    except ValueError:
        return None


def _matrix(x: Array, dtype: Any) -> Array:
    """[images, C, *places] as a matrix [C, images * places] of this dtype, copied where it must be."""
    if x.dtype == dtype and (view := _as_matrix(x)) is not None:
        return view
    swapped = x.swapaxes(0, 1)
    copy = buffer("matrix", swapped.shape, dtype)
    np.copyto(copy, swapped, casting="same_kind")
    return copy.reshape(x.shape[1], -1)


def _gemm(a: Array, b: Array, out: Array) -> None:
    """Write a @ b to out, which may lie in memory by rows or by columns: BLAS needs one of its axes dense."""
    if out.strides[1] == out.itemsize:
        np.matmul(a, b, out=out)
    else:
        np.matmul(b.T, a.T, out=out.T)
