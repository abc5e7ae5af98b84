"""Winograd's F(4x4, 3x3) by NumPy alone: transforms too are products of matrices; see winograd.py.

Within, channels are last whatever the layout: along a row of tiles, runs would be short. So tiles are copied
channel run by channel run, and M[p] is V[p] U[p], [tiles, C_in] by [C_in, C_out].
"""

from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.cpu.blocks import Block, cut_places
from gpuconv.backends.cpu.threads import buffer, parallel, used, workers
from gpuconv.backends.plans import Account
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]
Range = tuple[int, int]

TILE = 4  # outputs along an axis


# B^T, G and A^T. The transform of a tile, B^T d B, is kron(B^T, B^T) times its 36 places in a row.
IMAGE = np.array(
    [
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ]
)
KERNEL = np.array([(6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24)]) / 24
OUTPUT = np.array([(1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)])

# A block's tiles, and the bytes of their places, V and M together. More tiles leave the cache (64 channels of
# 56x56: 18.9 ms by 196 at a time, 29.6 ms by 392, one core), fewer make U be read more often (256 of 14x14 on
# two: 60, 36 and 32 ms with 3, 6 and 12 MB).
BLOCK_TILES = 200
BLOCK_BYTES = 12 << 20

Job = tuple[int, Block]  # group, and rows of tiles of some images


def alike(jobs: list[tuple[int, Range]]) -> list[tuple[tuple[int, Range], int]]:
    """Return, of the jobs of equal size, one and how many they are."""
    found: dict[int, tuple[tuple[int, Range], int]] = {}
    for job in jobs:
        size = job[1][1] - job[1][0]
        first, number = found.get(size, (job, 0))
        found[size] = first, number + 1
    return list(found.values())


def grid(window: Window) -> tuple[int, ...]:
    """Return how many tiles there are along each axis."""
    return tuple(-(-size // TILE) for size in window.out_size)


def work(tiles: int, og: int, cg: int, groups: int) -> int:
    """Return multiply-adds: those of the products, which are most."""
    return 36 * tiles * og * cg * groups


def ranges(number: int, size: int) -> list[Range]:
    """Cut 0..number into ranges of this size, the last one of what is left."""
    return [(i, min(number, i + size)) for i in range(0, number, size)]


class _Blocks:
    """A convolution cut into jobs for NumPy: a group, and some rows of tiles of some images."""

    def __init__(self, x: Array, og: int, cg: int, window: Window) -> None:
        self.grid = grid(window)
        self.work = work(x.shape[0] * prod(self.grid), og, cg, window.groups)
        rows = replace(window, out_size=self.grid)  # whose places are tiles
        tile_bytes = 36 * (2 * cg + og) * x.itemsize
        share = -(-workers(self.work) // window.groups)
        budget = min(BLOCK_BYTES, BLOCK_TILES * tile_bytes)
        blocks = cut_places(x.shape[0], rows, tile_bytes, share, budget)
        self.jobs: list[Job] = list(product(range(window.groups), blocks))
        self.weights = list(product(range(window.groups), ranges(cg, -(-cg // 4))))


def forward(x: Array, w: Array, b: Array | None, window: Window, y: Array, spoiled: Array) -> None:
    """Write conv(x, w) + b to y, and 1 to `spoiled` for images with results that aren't finite."""
    og, cg = w.shape[1:3]
    cut = _Blocks(x, og, cg, window)
    image, kernel, output = (np.kron(m, m).astype(x.dtype) for m in (IMAGE, KERNEL, OUTPUT))
    u = np.empty((window.groups, 36, cg, og), x.dtype)

    def weights(job: tuple[int, Range]) -> None:
        g, (c0, c1) = job
        taps = np.ascontiguousarray(w[g, :, c0:c1].transpose(2, 3, 1, 0)).reshape(9, -1)
        with np.errstate(invalid="ignore", over="ignore"):
            np.matmul(kernel, taps, out=u[g, :, c0:c1].reshape(36, -1))

    def one(job: Job) -> None:
        g, (n0, n1, r0, r1) = job
        shape = n1 - n0, r1 - r0, cut.grid[1]  # of the tiles
        with np.errstate(invalid="ignore", over="ignore"):
            d = _tiles(x[n0:n1, g * cg : (g + 1) * cg], window, r0, *shape)
            v = buffer("image", (36, prod(shape), cg), x.dtype)
            m = buffer("products", (36, prod(shape), og), x.dtype)
            np.matmul(image, d, out=v.reshape(36, -1))
            np.matmul(v, u[g], out=m)
            parts = buffer("tiles", (16, prod(shape) * og), x.dtype)  # d is no more needed
            np.matmul(output, m.reshape(36, -1), out=parts)
            whole = buffer("image", (shape[0], TILE * shape[1], TILE * shape[2], og), x.dtype)
            for (i, j), part in zip(np.ndindex(TILE, TILE), parts, strict=True):
                whole[:, i::TILE, j::TILE] = part.reshape(*shape, og)
            spoiled[n0:n1][~np.isfinite(whole.sum(axis=(1, 2, 3)))] = 1
        target = y[n0:n1, g * og : (g + 1) * og, TILE * r0 : TILE * r1]
        rows, columns = target.shape[2:]
        if b is not None:
            whole += b[g * og : (g + 1) * og]
        target[...] = whole[:, :rows, :columns].transpose(0, 3, 1, 2)

    parallel(weights, cut.weights, u.size * 9, blas=True)
    parallel(one, cut.jobs, cut.work, blas=True)


def _tiles(x: Array, window: Window, r0: int, images: int, rows: int, columns: int) -> Array:
    """Return the tiles of some rows, [36, images * rows * columns * C]; x is [images, C, H, W]."""
    c = x.shape[1]
    padded = buffer("padded", (images, TILE * rows + 2, TILE * columns + 2, c), x.dtype)
    padded[...] = 0
    top, left = TILE * r0 - window.before[0], -window.before[1]
    h0, h1 = max(0, top), min(x.shape[2], top + padded.shape[1])
    w0, w1 = max(0, left), min(x.shape[3], left + padded.shape[2])
    if h0 < h1 and w0 < w1:
        inside = padded[:, h0 - top : h1 - top, w0 - left : w1 - left]
        inside[...] = x[:, :, h0:h1, w0:w1].transpose(0, 2, 3, 1)
    d = buffer("tiles", (36, images, rows, columns, c), x.dtype)
    for (i, j), part in zip(np.ndindex(6, 6), d, strict=True):
        part[...] = padded[:, i : i + TILE * rows : TILE, j : j + TILE * columns : TILE]
    return d.reshape(36, -1)


def plan_forward(x: Array, og: int, cg: int, window: Window, account: Account) -> tuple[int, int, int]:
    """Add what `forward` would do to an account; return jobs, threads, bytes that they share."""
    cut, item = _Blocks(x, og, cg, window), x.itemsize
    for (_, (c0, c1)), number in alike(cut.weights):
        account.step("gemm", number, m=36, k=9, n=(c1 - c0) * og, batch=1)
        account.buffer("taps", 9 * (c1 - c0) * og * item)
    for _, (n0, n1, r0, r1) in cut.jobs:
        tiles = (n1 - n0) * (r1 - r0) * cut.grid[1]
        account.step("im2col", rows=36, columns=tiles, batch=cg)
        account.step("gemm", m=36, k=36, n=tiles * cg, batch=1)
        account.step("gemm", m=tiles, k=cg, n=og, batch=36)
        account.step("gemm", m=16, k=36, n=tiles * og, batch=1)
        padded = (n1 - n0) * (TILE * (r1 - r0) + 2) * (TILE * cut.grid[1] + 2) * cg
        account.buffer("padded", padded * item)
        account.buffer("products", 36 * tiles * og * item)
        for name in "tiles", "image":
            account.buffer(name, tiles * max(36 * cg, 16 * og) * item)
    most = max(len(cut.weights), len(cut.jobs))
    return len(cut.weights) + len(cut.jobs), used(most, cut.work), window.groups * 36 * cg * og * item
