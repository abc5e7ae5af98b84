"""Convolution by our C kernels, without columns: products with shifted runs of a padded image (native/*.c).

An image's group is copied once, padding included, into a *flat* layout in which what a tap reads for all
output places is one run of memory; the products then take their operands from there. This file says how large
that layout is, cuts the work into boxes of output places, and hands them to threads; all arrays are canonical
views.
"""

import ctypes
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backends.cpu import compiled
from gpuconv.backends.cpu.compiled import Kernels, address, strides
from gpuconv.backends.cpu.threads import buffer, parallel, used, workers
from gpuconv.backends.plans import Account
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]
Triple = tuple[int, int, int]


WHY = "C kernels multiply w and shifted runs of the padded image: no columns"


class Struct(ctypes.Structure):
    """What one call works on; see native/convolution.h."""

    _fields_ = compiled.fields("Convolution")


# Of the largest vectors; a block of eight may be read beyond the last place.
VECTOR_BYTES = 64

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


def _three(values: Sequence[int], fill: int) -> Triple:
    return (fill,) * (3 - len(values)) + tuple(values)  # type: ignore[return-value]


Box = tuple[tuple[int, int], ...]  # output places along each of three axes


@lru_cache(maxsize=512)
def flat(window: Window, box: Box) -> Flat:
    """Return the flat layout for these output places."""
    stride, size = _three(window.stride, 1), _three(window.in_size, 1)
    jumps = [
        np.arange(k) * d for k, d in zip(_three(window.kernel, 1), _three(window.dilation, 1), strict=True)
    ]
    shift = [jump // s for jump, s in zip(jumps, stride, strict=True)]
    residue, phase = zip(
        *(np.unique(jump % s, return_inverse=True) for jump, s in zip(jumps, stride, strict=True)),
        strict=True,
    )
    out = [hi - lo for lo, hi in box]
    slices, rows, columns = (n + int(moves.max()) for n, moves in zip(out, shift, strict=True))
    # Zeros that end every row, in every phase, and zeros that begin every row, can be the same memory.
    first = box[2][0] * stride[2] - _three(window.before, 0)[2] + residue[2]
    lead, inside = -(first // stride[2]), -((first - size[2]) // stride[2])
    trail = columns - np.clip(inside, 0, columns)
    zeros = int(min(np.clip(np.minimum(lead, trail), 0, shift[2].max())))
    pitch = columns - zeros
    counts = [len(r) for r in residue]
    return Flat(
        (slices, rows, pitch),
        slices * rows * pitch + zeros,
        ((out[0] - 1) * rows + out[1] - 1) * pitch + out[2],
        np.array(list(product(*residue)), np.intp),
        _over_taps((phase[0] * counts[1] * counts[2], phase[1] * counts[2], phase[2])),
        _over_taps((shift[0] * rows * pitch, shift[1] * pitch, shift[2])),
    )


def _over_taps(by_axis: tuple[Array, Array, Array]) -> Array:
    """Return, for every tap, the sum of what belongs to its places along the axes."""
    d, h, w = by_axis
    return np.ascontiguousarray(d[:, None, None] + h[:, None] + w, np.intp).ravel()


class Call(NamedTuple):
    """What the C functions take that is the same for all images and calls of this geometry."""

    struct: Any  # a pointer to the Struct
    residues: int
    offsets: int  # of all channels' taps for weight gradients, of the first one's else
    corner: int  # elements from y's first to the box's first
    elements: int  # of the flat copies
    alive: tuple[Any, ...]


@lru_cache(maxsize=512)
def _call(
    window: Window,
    box: Box,
    x_steps: tuple[int, ...],
    y_steps: tuple[int, ...],
    images: int,
    groups: int,
    channels: int,
    kernels: int,
    gradient: bool,
) -> Call:
    """Describe a call on so many images and groups, with channels and kernels of each, for C.

    Steps are those of canonical views, in elements, y's also those of dy for a weight gradient.
    """
    layout = flat(window, box)
    s = Struct()
    s.images, s.groups, s.channels, s.kernels, s.taps = images, groups, channels, kernels, window.taps
    s.size, s.stride = _three(window.in_size, 1), _three(window.stride, 1)
    before = _three(window.before, 0)
    s.first = tuple(lo * step - b for (lo, _), step, b in zip(box, s.stride, before, strict=True))
    s.phases, s.extent, s.plane = len(layout.residues), layout.extent, layout.plane
    s.box, s.places = tuple(hi - lo for lo, hi in box), layout.places
    s.x, s.y = x_steps, y_steps
    inside = all(lo >= 0 and lo + n <= size for lo, n, size in zip(s.first, s.extent, s.size, strict=True))
    one_by_one = tuple(s.stride) == (1, 1, 1)
    s.x_in_place = inside and one_by_one and _lies_flat(s.x, layout.extent, layout.extent)
    # No number between its places may belong to another's element: it is read as a 0.
    s.y_in_place = layout.places == prod(s.box) and _lies_flat(s.y, layout.extent, s.box)
    vector = VECTOR_BYTES // 4
    if gradient:
        plane = x_steps[1] if s.x_in_place else layout.plane
        offsets = (layout.offsets(channels) + np.arange(channels)[:, None] * plane).ravel()
        elements = 0 if s.x_in_place else images * layout.image(channels)
        elements += 0 if s.y_in_place else images * kernels * (layout.places + vector)
    else:  # whose blocks read beyond the last place, so only 1x1 kernels find x in place: see multiply.c
        s.x_in_place = s.x_in_place and window.taps == 1
        offsets = layout.offsets(channels)
        elements = channels * vector if s.x_in_place else layout.image(channels)
    corner = sum(lo * step for (lo, _), step in zip(box, y_steps[2:], strict=True))
    return Call(
        ctypes.addressof(s),
        address(layout.residues),
        address(offsets),
        corner,
        elements,
        (s, layout, offsets),
    )


def _lies_flat(steps: Any, extent: Triple, sizes: Any) -> bool:
    """Tell whether the strides n, c, d, h, w are the flat layout's, along axes of several places."""
    flat_steps = (extent[1] * extent[2], extent[2], 1)
    return all(size == 1 or a == b for size, a, b in zip(sizes, steps[2:], flat_steps, strict=True))


def _five(x: Array) -> tuple[int, ...]:
    n, c, *rest = strides(x)
    return (n, c, *_three(rest, 0))


def _boxes(window: Window, image_bytes: int, wanted: int) -> list[Box]:
    """Cut an image's output places into boxes whose flat images fit BOX_BYTES, and into so many at least.

    Boxes that share what they read copy it each, so they keep four places along an axis, unless threads would
    have no work.
    """
    ranges = []
    pieces = -(-image_bytes // BOX_BYTES)
    for size in _three(window.out_size, 1):
        number = max(min(pieces, max(1, size // 4)), min(wanted, size))
        pieces, wanted = -(-pieces // number), -(-wanted // number)
        ranges.append([(part.start, part.stop) for part in _shares(size, number)])
    return list(product(*ranges))


def _shares(n: int, number: int) -> list[slice]:
    size = max(1, -(-n // max(1, min(number, n))))
    return [slice(i, min(n, i + size)) for i in range(0, n, size)]


Job = tuple[int, slice, Box]  # an image, groups, output places


def cut_forward(x: Array, og: int, window: Window) -> tuple[list[Job], float]:
    """Cut a forward convolution into jobs; return them, and the multiply-adds of all."""
    images, groups, cg = x.shape[0], window.groups, x.shape[1] // window.groups
    work = images * og * groups * window.places * cg * window.taps
    share = workers(work)
    boxes = _boxes(window, cg * prod(window.in_size) * x.itemsize, -(-share // max(1, images * groups)))
    # Groups share a job while there are jobs enough for threads to finish together.
    size = max(1, groups * images * len(boxes) // (4 * share if share > 1 else 1))
    batches = [slice(g, min(groups, g + size)) for g in range(0, groups, size)]
    return list(product(range(images), batches, boxes)), work


def forward(c: Kernels, x: Array, w: Array, b: Array | None, window: Window, y: Array) -> None:
    """Write conv(x, w) + b to y; w is [groups, C_out/groups, C_in/groups, *kernel], of any strides."""
    og, cg = w.shape[1:3]
    jobs, work = cut_forward(x, og, window)
    packed, bias, padded = _packed(c, w, b, work)
    x_at, y_at, item = address(x), address(y), x.itemsize
    x_steps, y_steps = _five(x), _five(y)
    packed_at, bias_at = address(packed), address(bias)

    def one(job: Job) -> None:
        n, groups, box = job
        g, count = groups.start, groups.stop - groups.start
        call = _call(window, box, x_steps, y_steps, 1, count, cg, og, False)
        c.convolve(
            call.struct,
            call.residues,
            call.offsets,
            x_at + (n * x_steps[0] + g * cg * x_steps[1]) * item,
            packed_at + g * padded * cg * window.taps * item,
            bias_at + g * padded * item,
            y_at + (n * y_steps[0] + g * og * y_steps[1] + call.corner) * item,
            padded,
            _aligned("flat", call.elements * item + 8 * VECTOR_BYTES),
        )

    parallel(one, jobs, work)


def plan_forward(
    x: Array, w_shape: tuple[int, ...], window: Window, account: Account
) -> tuple[int, int, int]:
    """Add what `forward` would do to an account; return jobs, threads, and the bytes that they share."""
    _, og, cg = w_shape[:3]
    jobs, work = cut_forward(x, og, window)
    for (_, groups, box), number in Counter((0, b.stop - b.start, box) for _, b, box in jobs).items():
        places = prod(hi - lo for lo, hi in box)
        account.step("direct", number, kernels=og, channels=cg, places=places, groups=groups)
        call = _call(window, box, _five(x), (0,) * 5, 1, groups, cg, og, False)
        account.buffer("flat", call.elements * x.itemsize + 9 * VECTOR_BYTES)
    padded = _padded(og)
    shared = window.groups * padded * (cg * window.taps + 1) * x.itemsize
    return len(jobs), used(len(jobs), work), shared


def _padded(og: int) -> int:
    """Return the kernels of a group that are packed: a last block of 5 to 7 is filled up."""
    return og if og % ROWS <= 4 else -(-og // ROWS) * ROWS


def _aligned(slot: str, size: int) -> int:
    """Return the address of a buffer that begins where a vector may."""
    at = address(buffer(slot, (size + VECTOR_BYTES,), np.uint8))
    return at + -at % VECTOR_BYTES


def _packed(c: Kernels, w: Array, b: Array | None, work: float) -> tuple[Array, Array, int]:
    """Return the weights as the kernels read them, the biases, and the kernels of a group with padding."""
    groups, og, cg, *kernel = w.shape
    padded = _padded(og)
    taps = prod(kernel)
    packed = buffer("packed", (groups, padded * cg * taps), w.dtype)
    bias = np.empty((groups, padded), w.dtype)
    b = None if b is None else np.ascontiguousarray(b).reshape(groups, og)
    by_group, by_kernel, by_channel, *steps = strides(w)
    d, h, j = (np.arange(k) * step for k, step in zip(_three(kernel, 1), _three(steps, 0), strict=True))
    place = _over_taps((d, h, j))
    at, place_at, item = address(w), address(place), w.itemsize

    def prepare(job: tuple[int, int]) -> None:
        g, k0 = job
        c.pack(
            *(at + g * by_group * item, None if b is None else address(b[g]), k0, min(og, k0 + PACKED), og),
            *(cg, taps, by_kernel, by_channel, place_at, address(packed[g]), address(bias[g])),
        )

    parallel(prepare, product(range(groups), range(0, og, PACKED)), packed.size * 8)
    return packed, bias, padded


# Kernels of a job of packing, a multiple of ROWS.
PACKED = 64


# A weight gradient is cut alike on any number of threads, so that each sum runs in the same order: into so
# many jobs at least.
WEIGHT_JOBS = 4

# Bytes of dw up to which jobs are images, each with sums of its own; beyond, channels, and each lays out dy.
SUMS_BYTES = 1 << 20

WeightJob = tuple[int, slice, slice]  # a group, its channels, images


def cut_weight_grad(dw: Array, images: int) -> list[WeightJob]:
    """Cut a weight gradient into jobs; dw is [groups, C_out/groups, C_in/groups, *kernel]."""
    groups, _, cg = dw.shape[:3]
    wanted = -(-WEIGHT_JOBS // groups)
    by_image = images >= wanted and dw.nbytes <= SUMS_BYTES
    shares = _shares(images, wanted if by_image else 1)
    return list(product(range(groups), _shares(cg, 1 if by_image else wanted), shares))


def weight_grad(c: Kernels, dy: Array, x: Array, window: Window, dw: Array) -> bool:
    """Write dw, [groups, C_out/groups, C_in/groups, *kernel]; return False where it isn't finite.

    An infinity may then stand where a place without an output reads it, times that place's 0.
    """
    og, cg = dw.shape[1:3]
    taps, item = window.taps, x.itemsize
    jobs = cut_weight_grad(dw, x.shape[0])
    sums: list[Array] = [dw] * len(jobs)
    x_steps, y_steps = _five(x), _five(dy)
    x_at, dy_at = address(x), address(dy)

    def one(number: int) -> None:
        g, part, images = jobs[number]
        channels = part.stop - part.start
        total = sums[number] = np.zeros((og, channels, *dw.shape[3:]), x.dtype)
        for n, here, box in _pieces(window, channels, og, images, item):
            call = _call(window, box, x_steps, y_steps, here, 1, channels, og, True)
            c.weight_gradient(
                call.struct,
                call.residues,
                call.offsets,
                x_at + (n * x_steps[0] + (g * cg + part.start) * x_steps[1]) * item,
                dy_at + (n * y_steps[0] + g * og * y_steps[1] + call.corner) * item,
                address(total),
                _aligned("flat", call.elements * item + 2 * VECTOR_BYTES),
            )

    parallel(one, range(len(jobs)), dy.size * cg * taps)
    whole = np.zeros(dw.shape, dw.dtype)
    for (g, part, _), total in zip(jobs, sums, strict=True):
        whole[g, :, part] += total
    dw[...] = whole
    return bool(np.isfinite(whole).all())


def _pieces(window: Window, cg: int, og: int, images: slice, item: int) -> list[tuple[int, int, Box]]:
    """Cut a job into calls whose images fit the cache: first image, how many, and output places."""
    image_bytes = (cg * prod(window.in_size) + og * window.places) * item
    boxes = _boxes(window, image_bytes, 1)
    together = max(1, BOX_BYTES // image_bytes) if len(boxes) == 1 else 1
    return [
        (n, min(together, images.stop - n), box)
        for n, box in product(range(images.start, images.stop, together), boxes)
    ]


def plan_weight_grad(
    dy: Array, x: Array, window: Window, dw: Array, account: Account
) -> tuple[int, int, int]:
    """Add what `weight_grad` would do to an account; return jobs, threads, and the bytes that they share."""
    og, cg = dw.shape[1:3]
    jobs = cut_weight_grad(dw, x.shape[0])
    sums = 0
    for _, part, images in jobs:
        channels = part.stop - part.start
        sums += og * channels * window.taps * x.itemsize
        for _, here, box in _pieces(window, channels, og, images, x.itemsize):
            places = prod(hi - lo for lo, hi in box)
            account.step("direct", kernels=og, channels=channels, places=places, images=here)
            call = _call(window, box, _five(x), _five(dy), here, 1, channels, og, True)
            account.buffer("flat", call.elements * x.itemsize + 3 * VECTOR_BYTES)
    return len(jobs), used(len(jobs), dy.size * cg * window.taps), sums + dw.nbytes
