"""Convolution by our C kernels, without columns: products with shifted runs of a padded image (native/*.c).

An image's group is copied once, padding included, into a *flat* layout in which what a tap reads for all
output places is one run of memory; the products then take their operands from there. This file says how large
that layout is, cuts the work into boxes of output places, and hands them to threads; all arrays are canonical
views.
"""

import ctypes
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backends.cpu import compiled
from gpuconv.backends.cpu.compiled import Kernels, address, strides
from gpuconv.backends.cpu.threads import buffer, parallel, workers
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]
Triple = tuple[int, int, int]


class Struct(ctypes.Structure):
    """What one call works on; see native/convolution.h."""

    _fields_ = compiled.fields("Convolution")


# What is read beyond the last place: a whole block of vectors, of at most 64 bytes each.
SLACK_BYTES = 8 * 64

# Bytes of a flat image and its outputs at a time, about a core's L2.
BOX_BYTES = 1 << 20

# Kernels of a register block in native/multiply.c; packed weights are rounded up to it.
ROWS = 8


class Flat(NamedTuple):
    """The flat layout of a box of output places; see native/flat.c."""

    extent: Triple  # slices, rows, pitch
    plane: int  # elements of a channel's phase
    places: int  # flat numbers up to the last output
    residues: Array  # [phases, 3]
    phase: Array  # [taps]
    shift: Array  # [taps]

    def image(self, channels: int) -> int:
        """Elements of an image of so many channels."""
        return len(self.residues) * channels * self.plane

    def offsets(self, channels: int) -> Array:
        """Where each tap reads its first channel, for output place 0."""
        return self.phase * (channels * self.plane) + self.shift


def _three(values: tuple[int, ...], fill: int) -> Triple:
    return (fill,) * (3 - len(values)) + values  # type: ignore[return-value]


Box = tuple[tuple[int, int], ...]  # output places along each of three axes


@lru_cache(maxsize=512)
def flat(window: Window, box: Box) -> Flat:
    """Return the flat layout for these output places."""
    kernel, stride = _three(window.kernel, 1), _three(window.stride, 1)
    dilation, before = _three(window.dilation, 1), _three(window.before, 0)
    size, out = _three(window.in_size, 1), [hi - lo for lo, hi in box]
    jumps = [np.arange(k) * d for k, d in zip(kernel, dilation, strict=True)]
    residues = [list(dict.fromkeys((jump % s).tolist())) for jump, s in zip(jumps, stride, strict=True)]
    reach = [int((jump // s).max()) for jump, s in zip(jumps, stride, strict=True)]
    full = [n + more for n, more in zip(out, reach, strict=True)]
    # Zeros that end every row, and those that begin it, are the same memory.
    zeros = full[2]
    for residue in residues[2]:
        first = box[2][0] * stride[2] - before[2] + residue
        lead = max(0, -(first // stride[2]))
        last = first + (full[2] - 1) * stride[2]
        trail = max(0, -((size[2] - 1 - last) // stride[2])) if last >= size[2] else 0
        zeros = min(zeros, lead, trail)
    zeros = min(zeros, reach[2])
    extent = (full[0], full[1], full[2] - zeros)
    index = [[r.index(int(v)) for v in jump % s] for r, jump, s in zip(residues, jumps, stride, strict=True)]
    shift = [jump // s for jump, s in zip(jumps, stride, strict=True)]
    counts = [len(r) for r in residues]
    taps = list(np.ndindex(*kernel))
    phase = np.array(
        [np.ravel_multi_index([i[t] for i, t in zip(index, tap, strict=True)], counts) for tap in taps]
    )
    shifts = np.array(
        [(shift[0][i] * extent[1] + shift[1][j]) * extent[2] + shift[2][k] for i, j, k in taps], np.int64
    )
    places = ((out[0] - 1) * extent[1] + out[1] - 1) * extent[2] + out[2]
    return Flat(
        extent,
        prod(extent) + zeros,
        places,
        np.array(list(product(*residues)), np.int64),
        phase.astype(np.int64),
        shifts,
    )


def _struct(window: Window, box: Box, layout: Flat, x: Array, y: Array, images: int, groups: int) -> Struct:
    """Describe a call for C; x and y are canonical, of whole images."""
    s = Struct()
    s.images, s.groups = images, groups
    s.channels, s.kernels = x.shape[1] // window.groups, y.shape[1] // window.groups
    s.taps = window.taps
    s.size = _three(window.in_size, 1)
    stride = _three(window.stride, 1)
    before = _three(window.before, 0)
    s.first = tuple(lo * step - b for (lo, _), step, b in zip(box, stride, before, strict=True))
    s.stride = stride
    s.phases, s.extent, s.plane = len(layout.residues), layout.extent, layout.plane
    s.box, s.places = tuple(hi - lo for lo, hi in box), layout.places
    s.x, s.y = _five(x), _five(y)
    return s


def _five(x: Array) -> tuple[int, ...]:
    n, c, *rest = strides(x)
    return (n, c, *_three(tuple(rest), 0))


def _boxes(window: Window, image_bytes: int, wanted: int) -> list[Box]:
    """Cut an image's output places along its longest axis, so that a box's flat image fits BOX_BYTES."""
    out = _three(window.out_size, 1)
    whole: Box = tuple((0, n) for n in out)
    pieces = max(wanted, -(-image_bytes // BOX_BYTES))
    axis = next((a for a in range(3) if out[a] > 1), 2)
    pieces = min(pieces, max(1, out[axis] // 4) if wanted == 1 else out[axis])
    size = -(-out[axis] // pieces)
    return [
        (*whole[:axis], (lo, min(out[axis], lo + size)), *whole[axis + 1 :])
        for lo in range(0, out[axis], size)
    ]


class Forward(NamedTuple):
    """A forward convolution cut into jobs: images, groups, boxes."""

    jobs: list[tuple[int, slice, Box]]
    work: float


def cut_forward(x: Array, og: int, cg: int, window: Window) -> Forward:
    """Cut a forward convolution into jobs."""
    images, work = x.shape[0], x.shape[0] * og * window.groups * window.places * cg * window.taps
    share = workers(work)
    image_bytes = cg * prod(window.in_size) * x.itemsize
    # Several groups share a job while there are jobs enough for all threads.
    jobs_wanted = 4 * share if share > 1 else 1
    pieces = 1 if images >= share else -(-share // max(1, images * window.groups))
    boxes = _boxes(window, image_bytes, pieces)
    groups_a_job = max(1, window.groups * images * len(boxes) // jobs_wanted)
    size = min(window.groups, groups_a_job)
    batches = [slice(g, min(window.groups, g + size)) for g in range(0, window.groups, size)]
    return Forward(list(product(range(images), batches, boxes)), work)


def forward(c: Kernels, x: Array, w: Array, b: Array | None, window: Window, y: Array) -> None:
    """Write conv(x, w) + b to y."""
    og, cg = w.shape[0] // window.groups, w.shape[1]
    cut = cut_forward(x, og, cg, window)
    packed, bias, padded = _packed(c, w, b, window, cut.work)
    x_at, y_at, item = address(x), address(y), x.itemsize
    x_steps, y_steps = _five(x), _five(y)
    packed_at, bias_at = address(packed), address(bias)
    rows_bytes = padded * cg * window.taps * item

    def one(job: tuple[int, slice, Box]) -> None:
        n, groups, box = job
        layout = flat(window, box)
        s = _struct(window, box, layout, x, y, 1, groups.stop - groups.start)
        offset = layout.offsets(cg)
        memory = buffer("flat", (layout.image(cg) + SLACK_BYTES // item,), x.dtype)
        g = groups.start
        corner = sum(lo * step for (lo, _), step in zip(box, y_steps[2:], strict=True))
        c.convolve(
            ctypes.byref(s),
            address(layout.residues),
            address(offset),
            x_at + (n * x_steps[0] + g * cg * x_steps[1]) * item,
            packed_at + g * rows_bytes,
            bias_at + g * padded * item,
            y_at + (n * y_steps[0] + g * og * y_steps[1] + corner) * item,
            padded,
            address(memory),
        )

    parallel(one, cut.jobs, cut.work)


def _packed(c: Kernels, w: Array, b: Array | None, window: Window, work: float) -> tuple[Array, Array, int]:
    """Return the weights as the kernels read them, the biases, and the kernels of a group with padding."""
    groups, cg = window.groups, w.shape[1]
    og = w.shape[0] // groups
    padded = og if og < ROWS else -(-og // ROWS) * ROWS
    padded = {3: 4, 5: 8, 6: 8, 7: 8}.get(padded, padded)
    packed = np.empty(groups * padded * cg * window.taps, w.dtype)
    bias = np.empty(groups * padded, w.dtype)
    if b is not None:
        b = np.ascontiguousarray(b)
    kernel = (ctypes.c_ssize_t * 3)(*_three(window.kernel, 1))
    steps = (ctypes.c_ssize_t * 5)(*_five(w))
    pieces = list(range(0, padded, max(ROWS, padded // 4 // ROWS * ROWS)))
    bounds = [*pieces, padded]

    def one(i: int) -> None:
        c.pack(
            *(address(w), None if b is None else address(b), og, padded, cg, kernel, steps, 0, groups),
            *(bounds[i], bounds[i + 1], address(packed), address(bias)),
        )

    parallel(one, range(len(pieces)), packed.size * 4)
    return packed, bias, padded


def weight_grad(c: Kernels, dy: Array, x: Array, window: Window, dw: Array) -> bool:
    """Write the gradient by w to dw (its memory in any order); return False where it isn't finite.

    An infinity may then stand where a place without an output reads it, times that place's 0.
    """
    groups, cg, og = window.groups, dw.shape[1], dw.shape[0] // window.groups
    taps, item = window.taps, x.itemsize
    padded = og if og == 1 else -(-og // 4) * 4
    images = x.shape[0]
    work = dy.size * cg * taps
    # Channels of a job: as many jobs as keep a few threads busy, whatever their number, so that each sum runs
    # in the same order.
    parts = max(1, min(cg, -(-8 // groups)))
    size = -(-cg // parts)
    jobs = [(g, c0, min(cg, c0 + size)) for g in range(groups) for c0 in range(0, cg, size)]
    total = np.zeros((groups, len(range(0, cg, size)), padded, size * taps), x.dtype)
    x_steps, y_steps = _five(x), _five(dy)
    x_at, dy_at = address(x), address(dy)
    bytes_of_image = (size * prod(window.in_size) + og * window.places) * item
    boxes = _boxes(window, bytes_of_image, 1)
    together = max(1, min(images, BOX_BYTES // max(1, bytes_of_image))) if len(boxes) == 1 else 1

    def one(job: tuple[int, int, int]) -> None:
        g, c0, c1 = job
        target = total[g, c0 // size]
        for n in range(0, images, together):
            for box in boxes:
                layout = flat(window, box)
                s = _struct(window, box, layout, x, dy, min(together, images - n), 1)
                s.channels = c1 - c0
                offsets = (layout.offsets(c1 - c0) + np.arange(c1 - c0)[:, None] * layout.plane).ravel()
                dy_row = layout.places + 64 // item
                elements = s.images * (layout.image(c1 - c0) + padded * dy_row) + 2 * SLACK_BYTES // item
                memory = buffer("flat", (elements,), x.dtype)
                corner = sum(lo * step for (lo, _), step in zip(box, y_steps[2:], strict=True))
                c.weight_gradient(
                    ctypes.byref(s),
                    address(layout.residues),
                    address(offsets),
                    x_at + (n * x_steps[0] + (g * cg + c0) * x_steps[1]) * item,
                    dy_at + (n * y_steps[0] + g * og * y_steps[1] + corner) * item,
                    address(target),
                    address(memory),
                )

    parallel(one, jobs, work)
    for g, c0, c1 in jobs:
        part = (
            total[g, c0 // size].ravel()[: padded * (c1 - c0) * taps].reshape(padded, c1 - c0, *window.kernel)
        )
        dw[g * og : (g + 1) * og, c0:c1] = part[:og]
    return bool(np.isfinite(total).all())
