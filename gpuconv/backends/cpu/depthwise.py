"""Depthwise convolution: every channel is filtered alone, so a GEMM over channels would be one row high.

Channels first, a channel's kernel becomes a band matrix instead. A row of t neighbouring outputs reads u
inputs per kernel row, so with the kernel written t times along the diagonals of a matrix T, [kh * u, t],

    Y  = A T          A: [rows * tiles, kh * u], what each tile of t outputs reads, along all kernel rows
    dT = A^T dY       dw[i, j] = sum over the diagonal that holds w[i, j] in T

One GEMM a channel, all channels in one batched call. It multiplies u / kw times too much, mostly by zeros,
but reads x only kh * u / t times, in runs of u. Measured on one AVX-512 core, 8 images, 3x3: 8.6 ms for
32 channels of 112x112 and 1.4 ms for 960 of 7x7, where a pass over x per tap takes 10.6 and 5.2 ms.

Channels last, the channels themselves are the run to go along: one multiplication and one addition a tap.
"""

from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpuconv.backends.cpu.blocks import Block, alike, cut_groups, cut_places, length
from gpuconv.backends.cpu.columns import Bounds, cut, padded_size, row_bounds, tap_slices, view_as
from gpuconv.backends.cpu.threads import buffer, count, parallel, used
from gpuconv.backends.dispatch import accumulator
from gpuconv.backends.plans import Account
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]

# Outputs of a tile, at most. Fewer copy more, more multiply more: 8, 16, 28 and 56 took 12.3, 8.6, 12.2 and
# 16.9 ms on the 112x112 example above.
TILE = 16

# Bytes of A at a time: 112x112 above took 13.1, 7.3, 5.0 and 6.5 ms with 0.5, 1, 4 and 8 MB on two cores: the
# threads of small blocks wait for the interpreter lock.
BLOCK_BYTES = 4 << 20


def forward(x: Array, w: Array, b: Array | None, window: Window, y: Array, channels_last: bool) -> None:
    """Write conv(x, w) + b to y; w is [C, 1, *kernel], all arrays are canonical views."""
    run = _forward_by_taps if channels_last else _forward_by_bands
    run(x, w[:, 0], b, window, y)


def weight_grad(dy: Array, x: Array, window: Window, dw: Array, channels_last: bool) -> None:
    """Write the gradient by w to dw, [C, 1, *kernel]."""
    run = _weight_grad_by_taps if channels_last else _weight_grad_by_bands
    run(dy, x, window, dw[:, 0])


def why(channels_last: bool) -> str:
    """Return in a sentence how it is computed."""
    if channels_last:
        return "every channel is filtered alone: tap by tap, along the channels"
    return (
        "every channel is filtered alone: its kernel becomes a band matrix, all channels one batched product"
    )


def plan_forward(
    x: Array, window: Window, y: Array, channels_last: bool, account: Account
) -> tuple[int, int]:
    """Add what `forward` would do to an account; return how many jobs there are, and threads."""
    dtype, work = accumulator(y.dtype), y.size * window.taps
    if channels_last:
        blocks = _blocks(x, window, dtype, count())
        _plan_taps(x.shape[1], window, blocks, dtype, account)
        return len(blocks), used(len(blocks), work)
    _, t, _ = _tiling(window)
    jobs = _jobs(x, window, dtype, count())
    for (group, (n0, n1, r0, r1)), number in alike(jobs):
        rows, k = _plan_rows(x, window, length(group), Block(n0, n1, r0, r1), dtype, number, account)
        account.step("gemm", number, m=rows, k=k, n=t, batch=length(group))
        if not _writes_directly(window, n1 - n0) or y.dtype != dtype:
            account.buffer("product", length(group) * rows * t * dtype.itemsize)
    return len(jobs), used(len(jobs), work)


def plan_weight_grad(
    dy: Array, x: Array, window: Window, dtype: np.dtype[Any], channels_last: bool, account: Account
) -> tuple[int, int, int]:
    """Add what `weight_grad` would do to an account; return jobs, threads, bytes that they share."""
    work, c = dy.size * window.taps, x.shape[1]
    if channels_last:
        blocks = _blocks(x, window, dtype, 4)
        _plan_taps(c, window, blocks, dtype, account)
        return len(blocks), used(len(blocks), work), len(blocks) * window.taps * c * dtype.itemsize
    _, t, u = _tiling(window)
    jobs = _jobs(x, window, dtype, 4)
    for (group, (n0, n1, r0, r1)), number in alike(jobs):
        rows, k = _plan_rows(x, window, length(group), Block(n0, n1, r0, r1), dtype, number, account)
        account.step("gemm", number, m=k, k=rows, n=t, batch=length(group))
        account.buffer("matrices", length(group) * rows * t * dtype.itemsize)
        account.buffer("term", length(group) * k * t * dtype.itemsize)
    apart = len({group.start for group, _ in jobs})
    return apart, used(apart, work), c * prod(window.kernel[:-1]) * u * t * dtype.itemsize


def _plan_rows(
    x: Array, window: Window, c: int, block: Block, dtype: np.dtype[Any], number: int, account: Account
) -> tuple[int, int]:
    """Account for A of so many channels; return how many rows and columns it has."""
    tiles, _, u = _tiling(window)
    n0, n1, r0, r1 = block
    bounds = _bounds(window, r0, r1)
    rows = (n1 - n0) * prod(hi - lo for lo, hi in bounds[:-1]) * tiles
    k = prod(window.kernel[:-1]) * u
    account.step("im2col", number, rows=rows, columns=k, batch=c)
    account.buffer("columns", c * rows * k * dtype.itemsize)
    account.buffer("padded", padded_size(x[n0:n1, :c], window, bounds) * x.itemsize)
    return rows, k


def _plan_taps(c: int, window: Window, blocks: list[Block], dtype: np.dtype[Any], account: Account) -> None:
    rest = prod(window.out_size[1:])
    for (_, (n0, n1, r0, r1)), number in alike([(slice(0, c), block) for block in blocks]):
        places = (n1 - n0) * (r1 - r0) * rest
        account.step("multiply and add", number * window.taps, places=places, channels=c)
        account.buffer("product", places * c * dtype.itemsize)
        # Taps at the edge come first, and have smaller terms: the last one is there while a larger is made.
        account.buffer("term", 2 * places * c * dtype.itemsize)


def _forward_by_bands(x: Array, w: Array, b: Array | None, window: Window, y: Array) -> None:
    dtype = accumulator(y.dtype)
    tiles, t, u = _tiling(window)
    c, rest = y.shape[1], window.out_size[1:-1]
    bands = np.zeros((c, *window.kernel[:-1], u, t), dtype)
    _diagonals(bands, window)[...] = w[..., None]
    bands = bands.reshape(c, -1, t)
    bias = None if b is None else b.astype(dtype, copy=False)[:, None, None]

    def one(job: tuple[slice, Block]) -> None:
        group, (n0, n1, r0, r1) = job
        a = _rows(x[n0:n1, group], window, r0, r1, dtype)
        target = y[n0:n1, group, r0:r1]
        direct = None
        if _writes_directly(window, n1 - n0) and y.dtype == dtype:
            direct = view_as(target, (*a.shape[:2], t))
        out = buffer("product", (*a.shape[:2], t), dtype) if direct is None else direct
        with np.errstate(invalid="ignore", over="ignore"):
            np.matmul(a, bands[group], out=out)
            whole = np.isfinite(out.sum())
        if (
            not whole
        ):  # an inf or NaN times a band's zeros spoils its neighbours; a sum that overflows is rare
            share = None if b is None else b[group]
            _taps(x[:, group], w[group], share, window, Block(n0, n1, r0, r1), y[:, group])
            return
        if bias is not None:
            out += bias[group]
        if direct is None:
            padded = out.reshape(length(group), n1 - n0, r1 - r0, *rest, tiles * t)
            target[...] = padded[..., : window.out_size[-1]].swapaxes(0, 1)

    parallel(one, _jobs(x, window, dtype, count()), y.size * window.taps, blas=True)


def _weight_grad_by_bands(dy: Array, x: Array, window: Window, dw: Array) -> None:
    dtype = dw.dtype
    tiles, t, u = _tiling(window)
    c, rest = dy.shape[1], window.out_size[1:-1]
    jobs: dict[int, list[tuple[slice, Block]]] = {}
    for group, block in _jobs(x, window, dtype, 4):
        jobs.setdefault(group.start, []).append((group, block))
    bands = np.zeros((c, prod(window.kernel[:-1]) * u, t), dtype)

    def one(share: list[tuple[slice, Block]]) -> None:  # all blocks of its channels, in order
        for group, (n0, n1, r0, r1) in share:
            a = _rows(x[n0:n1, group], window, r0, r1, dtype)
            shape = (length(group), n1 - n0, r1 - r0, *rest, tiles * t)
            gradient = buffer("matrices", shape, dtype)
            gradient[..., window.out_size[-1] :] = 0
            gradient[..., : window.out_size[-1]] = dy[n0:n1, group, r0:r1].swapaxes(0, 1)
            with np.errstate(invalid="ignore", over="ignore"):
                bands[group] += np.matmul(a.swapaxes(1, 2), gradient.reshape(length(group), -1, t))

    parallel(one, jobs.values(), dy.size * window.taps, blas=True)
    dw[...] = _diagonals(bands.reshape(c, *window.kernel[:-1], u, t), window).sum(axis=-1)
    if not np.isfinite(
        dw
    ).all():  # an inf in x that no window reads meets the zeros of the last, partial tile
        _weight_grad_by_taps(dy, x, window, dw)


def _tiling(window: Window) -> tuple[int, int, int]:
    """Return along the last axis: tiles, outputs t of a tile, and the inputs u that a tile reads."""
    size = window.out_size[-1]
    tiles = -(-size // TILE)
    t = -(-size // tiles)
    return tiles, t, (t - 1) * window.stride[-1] + window.span[-1]


def _writes_directly(window: Window, images: int) -> bool:
    """Tell whether the tiles of so many images lie in y as they come out of the product."""
    tiles, t, _ = _tiling(window)
    return images == 1 and tiles * t == window.out_size[-1]


def _bounds(window: Window, r0: int, r1: int) -> Bounds:
    """Return the bounds of whole tiles in output rows r0..r1, axis by axis."""
    tiles, t, _ = _tiling(window)
    return *row_bounds(window, r0, r1)[:-1], (0, tiles * t)


def _diagonals(bands: Array, window: Window) -> Array:
    """View [C, *lead, u, t] as [C, *lead, kw, t]: tap j of output q stands at [..., q*stride + j*d, q]."""
    *lead, down, right = bands.strides
    return as_strided(
        bands,
        (*bands.shape[:-2], window.kernel[-1], bands.shape[-1]),
        (*lead, down * window.dilation[-1], down * window.stride[-1] + right),
    )


def _rows(x: Array, window: Window, r0: int, r1: int, dtype: Any) -> Array:
    """Return A, [C, images * rows * tiles, kernel rows * u], for output rows r0..r1 of x."""
    tiles, t, u = _tiling(window)
    bounds = _bounds(window, r0, r1)
    x = cut(x, window, bounds)
    sn, sc, *lead, last = x.strides
    lead_steps = [d * s for d, s in zip(window.dilation[:-1], lead, strict=True)]
    out_steps = [step * s for step, s in zip(window.stride[:-1], lead, strict=True)]
    sizes = [hi - lo for lo, hi in bounds[:-1]]
    view = as_strided(
        x,
        (x.shape[1], x.shape[0], *sizes, tiles, *window.kernel[:-1], u),
        (sc, sn, *out_steps, t * window.stride[-1] * last, *lead_steps, last),
        writeable=False,
    )
    a = buffer("columns", view.shape, dtype)
    np.copyto(a, view, casting="unsafe")
    return a.reshape(x.shape[1], x.shape[0] * prod(sizes) * tiles, prod(window.kernel[:-1]) * u)


def _jobs(x: Array, window: Window, dtype: Any, share: int) -> list[tuple[slice, Block]]:
    """Cut channels and places into blocks whose A fits BLOCK_BYTES; at least `share` batches of channels."""
    _, t, u = _tiling(window)
    place_bytes = max(1, prod(window.kernel[:-1]) * u * dtype.itemsize // t)
    images, c = x.shape[:2]
    batches = cut_groups(c, place_bytes, images * window.places, min(share, c), BLOCK_BYTES)
    share_of_places = -(-share // len(batches))
    places = cut_places(images, window, length(batches[0]) * place_bytes, share_of_places, BLOCK_BYTES)
    return list(product(batches, places))


def _forward_by_taps(x: Array, w: Array, b: Array | None, window: Window, y: Array) -> None:
    dtype = accumulator(y.dtype)
    blocks = _blocks(x, window, dtype, count())
    parallel(lambda block: _taps(x, w, b, window, block, y), blocks, y.size * window.taps)


def _blocks(x: Array, window: Window, dtype: np.dtype[Any], share: int) -> list[Block]:
    """Cut places into blocks whose sums fit BLOCK_BYTES; x is canonical."""
    return cut_places(x.shape[0], window, x.shape[1] * dtype.itemsize, share, BLOCK_BYTES)


def _taps(x: Array, w: Array, b: Array | None, window: Window, block: Block, y: Array) -> None:
    """Write one block of y, tap by tap along the channels."""
    n0, n1, r0, r1 = block
    dtype = accumulator(y.dtype)
    x, y, w = np.moveaxis(x, 1, -1), np.moveaxis(y, 1, -1), np.moveaxis(w, 0, -1)
    total = buffer("product", y[n0:n1, r0:r1].shape, dtype)
    total[...] = 0 if b is None else b
    for tap in np.ndindex(*window.kernel):
        places, taken = tap_slices(window, tap, r0, r1)
        part = total[:, *taken]
        term = buffer("term", part.shape, dtype)
        np.multiply(x[n0:n1, *places], w[tap], out=term, dtype=dtype, casting="unsafe")
        part += term
    y[n0:n1, r0:r1] = total


def _weight_grad_by_taps(dy: Array, x: Array, window: Window, dw: Array) -> None:
    dtype = dw.dtype
    blocks = _blocks(x, window, dtype, 4)
    x, dy = (np.moveaxis(array, 1, -1) for array in (x, dy))
    sums = np.zeros((len(blocks), *window.kernel, x.shape[-1]), dtype)

    def one(number: int) -> None:
        n0, n1, r0, r1 = blocks[number]
        for tap in np.ndindex(*window.kernel):
            places, taken = tap_slices(window, tap, r0, r1)
            gradient = dy[n0:n1, r0:r1][:, *taken]
            term = buffer("term", gradient.shape, dtype)
            np.multiply(x[n0:n1, *places], gradient, out=term, dtype=dtype, casting="unsafe")
            while term.ndim > 1:  # axis by axis: no sum gets long
                term = term.sum(axis=-2)
            sums[number, *tap] = term

    parallel(one, range(len(blocks)), dy.size * window.taps)
    dw[...] = np.moveaxis(sums.sum(axis=0), -1, 0)
