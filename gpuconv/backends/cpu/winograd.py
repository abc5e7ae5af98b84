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
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.cpu import compiled, winograd_blas
from gpuconv.backends.cpu.compiled import Kernels, address, strides
from gpuconv.backends.cpu.jobs import run
from gpuconv.backends.cpu.threads import used, workers
from gpuconv.backends.cpu.winograd_blas import Range, alike, grid, ranges, work
from gpuconv.backends.plans import Account
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Again = Callable[[Array, Array], None]


class Struct(ctypes.Structure):
    """What one call works on; see native/winograd.h."""

    _fields_ = compiled.fields("winograd.h", "Winograd")


# As in native/winograd.c: tiles at a time, and kernels of a block of U, along tiles or along kernels.
SUB = 48
NARROW = 8
WIDE_BYTES = 256
LINE_BYTES = 64

# Tiles of a row up to which vectors run along channels, though x isn't channels last: along tiles, a quarter
# of the lanes was full, and 16 to 32 channels of 14x14 took 1.24 ms instead of 0.86 (of 28x28, 0.85 either
# way). Not where U is large, for its wide blocks are slow to make from weights channels first.
NARROW_TILES = 4

# V of so many bytes at most is made at once where threads share it; a part of the L3 cache.
SHARED_V_BYTES = 12 << 20

# U up to so many bytes is made once and read by all; a larger one, by each job for its own kernels.
SHARED_U_BYTES = 3 << 20


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


class _Cut:
    """A convolution cut into jobs for our C kernels.

    Where there are tiles enough and U is small, a job is some tiles, and U is made first, for all. Else a job
    is some kernels, whose U it makes for itself, and V is made first; in chunks, where it is large.
    """

    def __init__(
        self, x: Shape, x_steps: Shape, y_steps: Shape, item: int, og: int, cg: int, window: Window
    ) -> None:
        groups = window.groups
        self.grid = grid(window)
        self.tiles = x[0] * prod(self.grid)
        self.work = work(self.tiles, og, cg, groups)
        share, subs = workers(self.work), max(1, -(-self.tiles // SUB))
        last = x_steps[1] == y_steps[1] == 1 and x_steps[3] != 1
        narrow = self.grid[1] <= NARROW_TILES and x_steps[3] == y_steps[3] == 1
        many, much = min(og, cg) * item >= LINE_BYTES, 36 * og * cg * item > SHARED_U_BYTES
        self.last = last or (narrow and many and not much)
        self.width = WIDE_BYTES // item if self.last else NARROW
        self.u_size = 36 * (_up(cg * self.width, LINE_BYTES // item) + 16)
        self.blocks = -(-og // self.width)
        self.plane = SUB * (_up(cg, LINE_BYTES // item) if self.last else cg) + 16
        self.v_size = 36 * self.plane
        self.m_size = 36 * (SUB * WIDE_BYTES // item + 16)
        self.by_tiles = (
            groups * subs >= 4 * share and groups * self.blocks * self.u_size * item <= SHARED_U_BYTES
        )
        if self.by_tiles:
            size = max(1, groups * subs // (8 * share)) * SUB
            self.chunks = ranges(self.tiles, max(1, self.tiles))
            self.weights = list(product(range(groups), ranges(og, max(1, self.blocks // 4) * self.width)))
            self.images: list[tuple[int, Range]] = []
            self.jobs = list(product(range(groups), ranges(self.tiles, size)))
        else:
            together = max(1, SHARED_V_BYTES // (groups * self.v_size * item))
            even = -(-subs // -(-subs // together))
            self.chunks = ranges(self.tiles, even * SUB)
            self.weights = []
            parts = -(-4 * share // groups)
            self.images = list(product(range(groups), ranges(cg, _up(-(-cg // parts), 16))))
            kernels = _up(-(-og // parts), self.width)
            self.jobs = list(product(range(groups), ranges(og, kernels)))

        u_blocks = groups * self.blocks * self.u_size
        first = self.chunks[0][1] if self.chunks else 0
        self.u_bytes = u_blocks * item
        self.v_bytes = groups * -(-first // SUB) * self.v_size * item
        self.job_bytes = (self.v_size if self.by_tiles else self.u_size) * item

    def struct(self, x: Array, w: Array, window: Window, y: Array) -> Struct:
        """Describe it for C; w is [G, C_out/groups, C_in/groups, 3, 3]."""
        s = Struct()
        s.kernels, s.channels = w.shape[1:3]
        s.last = self.last
        s.size, s.before, s.out, s.tiles = window.in_size, window.before, window.out_size, self.grid
        s.x, s.y, s.w = tuple(strides(x)), tuple(strides(y)), tuple(strides(w)[1:])
        s.plane = self.plane
        return s


def _cut(x: Array, og: int, cg: int, window: Window, y: Array) -> _Cut:
    limits = SHARED_U_BYTES, SHARED_V_BYTES, workers(float("inf"))
    return _cut_once(x.shape, tuple(strides(x)), tuple(strides(y)), x.itemsize, og, cg, window, limits)


@lru_cache(maxsize=256)
def _cut_once(
    x: Shape,
    x_steps: Shape,
    y_steps: Shape,
    item: int,
    og: int,
    cg: int,
    window: Window,
    _limits: tuple[int, ...],  # what a cut depends on, too
) -> _Cut:
    return _Cut(x, x_steps, y_steps, item, og, cg, window)


def fits(window: Window) -> bool:
    """Tell whether Winograd's algorithm can do this convolution: two axes, a 3x3 kernel, every place."""
    return window.kernel == (3, 3) and window.stride == window.dilation == (1, 1)


def pays(x: Array, w_shape: Shape, window: Window, y: Array) -> bool:
    """Tell whether this is the fastest way to convolve x with w, [groups, C_out/groups, C_in/groups, 3, 3].

    Never for float64, as other algorithms are more exact. x and y are canonical views.
    """
    if not fits(window) or not x.dtype == y.dtype == np.float32:
        return False
    (groups, og, cg), each = w_shape[:3], prod(grid(window))
    tiles = x.shape[0] * each
    if 9 * window.places < 1.2 * 36 * each:  # too little of each tile is in y
        return False
    if (
        cg * og < (7 if groups == 1 else 26) * (cg + og) or tiles < 8
    ):  # before asking for kernels, which may have to be compiled
        return False
    if compiled.kernels(x, y, part="winograd") is not None:
        return True
    return cg * og >= 26 * (cg + og) and tiles >= 100 and tiles * cg * og >= 700_000


# Transforms cost as much as the products of some number of channels; C_in and C_out count alike. U costs as
# much as the products of some number of tiles. Measured on one AVX-512 core, 8 images unless told: times of
# another algorithm over this one's, channels first and last.
#
#     channels, places     by C kernels, beside direct.py     by NumPy, beside columns
#     8, 32x32             1.3 0.9
#     16, 32x32            1.4 1.5                            0.7 0.7
#     32, 32x32            1.7 2.2                            0.8 0.9
#     8 to 64, 28x28       1.4 1.5
#     64, 14x14                                               0.8 0.9
#     64, 28x28                                               1.2 1.2
#     64, 56x56            2.4 2.7                            1.4 1.4
#     128, 28x28           2.5 3.2                            1.6 1.8
#     256, 14x14           2.1 2.4                            1.2 1.3
#     512, 7x7             2.2 2.4                            0.6 0.8
#     256, 7x7, 1 image    0.8 1.3
#     32 groups of 32, 7x7    0.7 0.7
#     32 groups of 16, 14x14  0.6 0.7
#     8 groups of 64, 14x14   1.3 1.3


def why(x: Array, y: Array) -> str:
    """Return in a sentence how it is computed."""
    by = "BLAS" if compiled.kernels(x, y, part="winograd") is None else "C kernels"
    return f"Winograd: 36 multiplications, not 144, for a tile of 4x4 places, by {by}"


def plan_forward(
    x: Array, w_shape: Shape, window: Window, y: Array, account: Account
) -> tuple[int, int, int]:
    """Add what `forward` would do to an account; return jobs, threads, bytes that they share."""
    og, cg = w_shape[1:3]
    if compiled.kernels(x, y, part="winograd") is None:
        return winograd_blas.plan_forward(x, og, cg, window, account)
    return _plan_kernels(x, og, cg, window, y, account)


def forward(x: Array, w: Array, b: Array | None, window: Window, y: Array, again: Again) -> None:
    """Write conv(x, w) + b to y.

    x and y are canonical views of one dtype, w is [G, C_out/groups, C_in/groups, 3, 3] with any strides.
    `again(x, y)` computes some of the images by another algorithm.
    """
    w = w.astype(x.dtype, copy=False)
    b = None if b is None else np.ascontiguousarray(b, x.dtype)
    c = compiled.kernels(x, w, y, part="winograd")
    spoiled = np.zeros(x.shape[0], np.intp)
    if c is not None:
        _by_kernels(c, x, w, b, window, y, spoiled)
    else:
        winograd_blas.forward(x, w, b, window, y, spoiled)
    for n in np.flatnonzero(spoiled):
        again(x[n : n + 1], y[n : n + 1])


def _plan_kernels(
    x: Array, og: int, cg: int, window: Window, y: Array, account: Account
) -> tuple[int, int, int]:
    cut = _cut(x, og, cg, window, y)
    for (_, (k0, k1)), number in alike(cut.weights):
        account.step("weights", number, channels=cg, kernels=k1 - k0)
    shared = cut.u_bytes if cut.by_tiles else cut.v_bytes
    for t0, t1 in cut.chunks:
        for (_, (c0, c1)), number in alike(cut.images):
            account.step("tiles", number, tiles=t1 - t0, channels=c1 - c0)
        for (_, (i0, i1)), number in alike(cut.jobs):
            tiles, kernels = (i1 - i0, og) if cut.by_tiles else (t1 - t0, i1 - i0)
            account.step("winograd", number, tiles=tiles, channels=cg, kernels=kernels)
    if cut.chunks:
        account.buffer("products", cut.m_size * x.itemsize)
        account.buffer("image" if cut.by_tiles else "weights", cut.job_bytes)
    jobs = len(cut.weights) + len(cut.chunks) * (len(cut.images) + len(cut.jobs))
    most = max(len(cut.weights), len(cut.images), len(cut.jobs))
    return jobs, used(most, cut.work), shared


def _by_kernels(
    c: Kernels, x: Array, w: Array, b: Array | None, window: Window, y: Array, spoiled: Array
) -> None:
    og, cg = w.shape[1:3]
    cut = _cut(x, og, cg, window, y)
    s, item = cut.struct(x, w, window, y), x.itemsize
    here = ctypes.addressof(s)
    x_at, w_at, y_at = (address(array) for array in (x, w, y))
    x_step, w_step, y_step = strides(x)[1] * cg * item, w.strides[0], strides(y)[1] * og * item
    b_at, spoiled_at = 0 if b is None else address(b), address(spoiled)
    m = ("products", cut.m_size * item)

    # U, or V, that all threads read; the other is each job's own.
    shared = np.empty((cut.u_bytes if cut.by_tiles else cut.v_bytes) // item, x.dtype)
    shared_at, shared_step = address(shared), shared.nbytes // window.groups
    if cut.by_tiles:
        block = cut.u_size * item
        rows = [
            (here, w_at + g * w_step, k0, k1, shared_at + g * shared_step + k0 // cut.width * block)
            for g, (k0, k1) in cut.weights
        ]
        run(c, "winograd_weights", rows, shared.size * 4)
    for t0, t1 in cut.chunks:
        images = [
            (here, x_at + g * x_step, t0, t1, c0, c1, shared_at + g * shared_step)
            for g, (c0, c1) in cut.images
        ]
        run(c, "winograd_image", images, cut.work)
        if cut.by_tiles:
            own = {9: ("image", cut.v_size * item), 10: m}
        else:
            own = {8: ("weights", cut.u_size * item), 10: m}
        products = []
        for g, part in cut.jobs:
            ours = shared_at + g * shared_step
            if cut.by_tiles:
                of, (tiles, kernels, u_and_v) = (x_at + g * x_step, 0), (part, (0, og), (ours, 0))
            else:
                of, (tiles, kernels, u_and_v) = (0, w_at + g * w_step), ((t0, t1), part, (0, ours))
            bias = b_at and b_at + g * og * item
            products.append((here, *of, bias, *tiles, *kernels, *u_and_v, 0, y_at + g * y_step, spoiled_at))
        run(c, "winograd", products, cut.work, own)
