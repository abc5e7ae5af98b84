"""Convolution with 3x3 kernels by Winograd's F(4x4, 3x3): a quarter of the multiplications, and transforms.

A tile of 4x4 outputs reads 6x6 places d of x. With the matrices of Lavin and Gray (arXiv:1509.09308, Fast
Algorithms for Convolutional Neural Networks),

    V = B^T d B      U = G w G^T      M[p] = U[p] V[p] for each of 36 places p      y = A^T M A + b

where U[p] is [C_out, C_in], V[p] is [C_in, tiles]. By our C kernels (native/winograd.c) where there are any;
else by NumPy, where a transform is one product with a Kronecker product of matrices.

Every tile holds sums of x with coefficients up to 25, so results are less exact than other algorithms', and
an infinity spoils its whole tile: images with outputs that aren't finite are computed `again`, otherwise.
"""

import ctypes
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backends.cpu import compiled
from gpuconv.backends.cpu.blocks import Block, cut_places
from gpuconv.backends.cpu.compiled import Kernels, address, strides
from gpuconv.backends.cpu.threads import buffer, parallel, used, workers
from gpuconv.backends.plans import Account
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Again = Callable[[Array, Array], None]

TILE = 4  # outputs along an axis


class Struct(ctypes.Structure):
    """What one call works on; see native/winograd.h."""

    _fields_ = compiled.fields("Winograd")


# As in native/winograd.c: tiles at a time, and kernels of a block of U, along tiles or along kernels.
SUB = 48
NARROW = 8
WIDE_BYTES = 256
LINE_BYTES = 64

# V of so many bytes at most is made at once where threads share it; a part of the L3 cache.
SHARED_V_BYTES = 12 << 20

# U up to so many bytes is made once and read by all; a larger one, by each job for its own kernels.
SHARED_U_BYTES = 3 << 20


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def _grid(window: Window) -> tuple[int, ...]:
    """Return how many tiles there are along each axis."""
    return tuple(-(-size // TILE) for size in window.out_size)


def _work(tiles: int, og: int, cg: int, groups: int) -> int:
    """Return multiply-adds: those of the products, which are most."""
    return 36 * tiles * og * cg * groups


class _Cut:
    """A convolution cut into jobs for our C kernels.

    Where there are tiles enough, a job is some tiles: U is made once, for all. Else a job is some kernels, and
    V is made first, some channels a job.
    """

    def __init__(self, x: Array, og: int, cg: int, window: Window, y: Array) -> None:
        item, groups = x.itemsize, window.groups
        self.last = strides(x)[1] == strides(y)[1] == 1 and strides(x)[3] != 1
        self.grid = _grid(window)
        self.tiles = x.shape[0] * prod(self.grid)
        self.width = WIDE_BYTES // item if self.last else NARROW
        self.u_size = 36 * (_up(cg * self.width, LINE_BYTES // item) + 16)
        self.blocks = -(-og // self.width)
        self.plane = SUB * (_up(cg, LINE_BYTES // item) if self.last else cg) + 16
        self.v_size = 36 * self.plane
        self.m_size = 36 * (SUB * WIDE_BYTES // item + 16)
        self.work = _work(self.tiles, og, cg, groups)
        share, subs = workers(self.work), -(-self.tiles // SUB)
        self.by_tiles = (
            groups * subs >= 4 * share and groups * self.blocks * self.u_size * item <= SHARED_U_BYTES
        )
        if self.by_tiles:
            size = max(1, groups * subs // (8 * share)) * SUB
            self.chunks = [(0, self.tiles)]
            self.weights = list(product(range(groups), _ranges(og, max(1, self.blocks // 4) * self.width)))
            self.images: list[tuple[int, tuple[int, int]]] = []
            self.jobs = list(product(range(groups), _ranges(self.tiles, size)))
        else:
            together = max(1, SHARED_V_BYTES // (groups * self.v_size * item))
            even = -(-subs // max(1, -(-subs // together)))
            self.chunks = _ranges(self.tiles, even * SUB)
            self.weights = []
            parts = -(-4 * share // groups)
            self.images = list(product(range(groups), _ranges(cg, _up(-(-cg // parts), 16))))
            kernels = _up(-(-og // parts), self.width)
            self.jobs = list(product(range(groups), _ranges(og, kernels)))

    def struct(self, x: Array, w: Array, window: Window, y: Array) -> Struct:
        s = Struct()
        s.kernels, s.channels = w.shape[1:3]
        s.last = self.last
        s.size, s.before, s.out, s.tiles = window.in_size, window.before, window.out_size, self.grid
        s.x, s.y, s.w = tuple(strides(x)), tuple(strides(y)), tuple(strides(w)[1:])
        s.plane = self.plane
        return s


def _ranges(number: int, size: int) -> list[tuple[int, int]]:
    return [(i, min(number, i + size)) for i in range(0, number, size)]


def forward(x: Array, w: Array, b: Array | None, window: Window, y: Array, again: Again) -> None:
    """Write conv(x, w) + b to y.

    x and y are canonical views, w is [G, C_out/groups, C_in/groups, 3, 3] with any strides, all of one dtype.
    `again(x, y)` computes some of the images by another algorithm.
    """
    c = compiled.kernels(x, w, y)
    spoiled = np.zeros(x.shape[0], np.intp)
    if c is not None:
        _by_kernels(c, x, w, b, window, y, spoiled)
    else:
        _by_numpy(x, w, b, window, y, spoiled)
    for n in np.flatnonzero(spoiled):
        again(x[n : n + 1], y[n : n + 1])


def _by_kernels(
    c: Kernels, x: Array, w: Array, b: Array | None, window: Window, y: Array, spoiled: Array
) -> None:
    og, cg = w.shape[1:3]
    cut = _Cut(x, og, cg, window, y)
    s, item = cut.struct(x, w, window, y), x.itemsize
    here = ctypes.byref(s)
    x_at, w_at, y_at = (address(array) for array in (x, w, y))
    x_step, w_step, y_step = strides(x)[1] * cg * item, w.strides[0], strides(y)[1] * og * item
    if b is not None:
        b = np.ascontiguousarray(b)
    b_at = None if b is None else address(b)

    if cut.by_tiles:
        u = np.empty((window.groups, cut.blocks, cut.u_size), x.dtype)

        def weights(job: tuple[int, tuple[int, int]]) -> None:
            g, (k0, k1) = job
            c.winograd_weights(here, w_at + g * w_step, k0, k1, address(u[g, k0 // cut.width]))

        parallel(weights, cut.weights, u.size * 4)
    else:
        first = cut.chunks[0][1] if cut.chunks else 0
        v = np.empty((window.groups, -(-first // SUB) * cut.v_size), x.dtype)

    for t0, t1 in cut.chunks:

        def image(job: tuple[int, tuple[int, int]], t0: int = t0, t1: int = t1) -> None:
            g, (c0, c1) = job
            c.winograd_image(here, x_at + g * x_step, t0, t1, c0, c1, address(v[g]))

        def one(job: tuple[int, tuple[int, int]], t0: int = t0, t1: int = t1) -> None:
            g, part = job
            if cut.by_tiles:
                (t0, t1), (k0, k1) = part, (0, og)
                own_u, own_v = u[g], buffer("image", (cut.v_size,), x.dtype)
            else:
                k0, k1 = part
                own_u, own_v = buffer("weights", (cut.u_size,), x.dtype), v[g]
            m = buffer("products", (cut.m_size,), x.dtype)
            c.winograd(
                here,
                x_at + g * x_step if cut.by_tiles else None,
                None if cut.by_tiles else w_at + g * w_step,
                None if b_at is None else b_at + g * og * item,
                *(t0, t1, k0, k1, address(own_u), address(own_v), address(m)),
                y_at + g * y_step,
                address(spoiled),
            )

        parallel(image, cut.images, cut.work)
        parallel(one, cut.jobs, cut.work)


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

# Bytes of a block's tiles, V and M together.
BLOCK_BYTES = 6 << 20

Job = tuple[int, Block]  # group, and rows of tiles of some images


class _Blocks:
    """A convolution cut into jobs for NumPy: a group, and some rows of tiles of some images."""

    def __init__(self, x: Array, og: int, cg: int, window: Window) -> None:
        self.grid = _grid(window)
        self.work = _work(x.shape[0] * prod(self.grid), og, cg, window.groups)
        rows = replace(window, out_size=self.grid)  # whose places are tiles
        tile_bytes = 36 * (2 * cg + og) * x.itemsize
        share = -(-workers(self.work) // window.groups)
        blocks = cut_places(x.shape[0], rows, tile_bytes, share, BLOCK_BYTES)
        self.jobs: list[Job] = list(product(range(window.groups), blocks))
        self.weights = list(product(range(window.groups), _ranges(cg, -(-cg // 4))))


def _by_numpy(x: Array, w: Array, b: Array | None, window: Window, y: Array, spoiled: Array) -> None:
    og, cg = w.shape[1:3]
    cut = _Blocks(x, og, cg, window)
    image, kernel, output = (np.kron(m, m).astype(x.dtype) for m in (IMAGE, KERNEL, OUTPUT))
    u = np.empty((window.groups, 36, cg, og), x.dtype)

    def weights(job: tuple[int, tuple[int, int]]) -> None:
        g, (c0, c1) = job
        taps = w[g, :, c0:c1].transpose(2, 3, 1, 0).reshape(9, (c1 - c0) * og)
        with np.errstate(invalid="ignore", over="ignore"):
            np.matmul(kernel, taps, out=u[g, :, c0:c1].reshape(36, (c1 - c0) * og))

    def one(job: Job) -> None:
        g, (n0, n1, r0, r1) = job
        shape = n1 - n0, r1 - r0, cut.grid[1]  # of the tiles
        with np.errstate(invalid="ignore", over="ignore"):
            d = _tiles(x[n0:n1, g * cg : (g + 1) * cg], window, r0, *shape)
            v, m = (buffer(name, (36, prod(shape), c), x.dtype) for name, c in (("image", cg), ("products", og)))
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

    parallel(weights, cut.weights, u.size * 9)
    parallel(one, cut.jobs, cut.work)


def _tiles(x: Array, window: Window, r0: int, images: int, rows: int, columns: int) -> Array:
    """Return tiles of rows r0 on, [36, images * rows * columns * C], zero in the padding; x is [images, C, H, W].

    Whatever the layout of x, channels are last: along a row of tiles, runs would be short.
    """
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
