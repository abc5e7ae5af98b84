"""Convolution by our C kernels, without columns: products with shifted runs of a padded image (native/*.c).

An image's group is copied once, padding included, into a *flat* layout in which what a tap reads for all
output places is one run of memory; the products then take their operands from there. This file says how large
that layout is, cuts the work into boxes of output places, and hands them to threads; all arrays are canonical
views.
"""

import ctypes
from functools import lru_cache
from itertools import chain, product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backends.cpu import compiled
from gpuconv.backends.cpu.compiled import Kernels, address, five, strides, three
from gpuconv.backends.cpu.threads import VECTOR_BYTES, Memory, is_much, memory, parallel, used, workers
from gpuconv.backends.plans import Account
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]
Triple = tuple[int, int, int]


WHY = "C kernels multiply w and shifted runs of the padded image: no columns"


class Struct(ctypes.Structure):
    """What one call works on; see native/convolution.h."""

    _fields_ = compiled.fields("convolution.h", "Convolution")


# Bytes of a flat image and its outputs at a time, about a core's L2.
BOX_BYTES = 1 << 20

# Kernels of a register block in native/multiply.c; packed weights are rounded up to it.
ROWS = 8


# A multiply-add's work, where NumPy's is 1: on cores that others used too, 3.7 million took 121 us on one
# thread and 152 on two, 15 million 362 and 296; after a pause they took 403 and 503, 582 and 685.
COST = 0.5


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


Box = tuple[tuple[int, int], ...]  # output places along each of three axes


@lru_cache(maxsize=512)
def flat(window: Window, box: Box) -> Flat:
    """Return the flat layout for these output places."""
    stride, size = three(window.stride, 1), three(window.in_size, 1)
    jumps = [
        np.arange(k) * d for k, d in zip(three(window.kernel, 1), three(window.dilation, 1), strict=True)
    ]
    shift = [jump // s for jump, s in zip(jumps, stride, strict=True)]
    residue, phase = zip(
        *(np.unique(jump % s, return_inverse=True) for jump, s in zip(jumps, stride, strict=True)),
        strict=True,
    )
    out = [hi - lo for lo, hi in box]
    slices, rows, columns = (n + int(moves.max()) for n, moves in zip(out, shift, strict=True))
    # Zeros that end every row, in every phase, and zeros that begin every row, can be the same memory.
    first = box[2][0] * stride[2] - three(window.before, 0)[2] + residue[2]
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
    s.size, s.stride = three(window.in_size, 1), three(window.stride, 1)
    before = three(window.before, 0)
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


def _boxes(window: Window, image_bytes: int, wanted: int) -> list[Box]:
    """Cut an image's output places into boxes whose flat images fit BOX_BYTES, and into so many at least.

    Boxes that share what they read copy it each, so they keep four places along an axis, unless threads would
    have no work.
    """
    ranges = []
    pieces = -(-image_bytes // BOX_BYTES)
    for size in three(window.out_size, 1):
        number = max(min(pieces, max(1, size // 4)), min(wanted, size))
        pieces, wanted = -(-pieces // number), -(-wanted // number)
        ranges.append([(part.start, part.stop) for part in _shares(size, number)])
    return list(product(*ranges))


def _shares(n: int, number: int) -> list[slice]:
    return _runs(n, -(-n // max(1, min(number, n))))


Job = tuple[slice, slice, Box]  # images, groups, output places


def _cut_forward(
    window: Window, images: int, og: int, cg: int, item: int, work: float, share: int
) -> list[Job]:
    """Cut a forward convolution into jobs for so many threads."""
    groups = window.groups
    boxes = _boxes(window, cg * prod(window.in_size) * item, -(-share // max(1, images * groups)))
    # Groups share a job, and small images, while there are jobs enough for threads to finish together.
    enough = 4 * share if share > 1 else 1
    together = min(int(JOB_WORK * images / work), images // enough) if work else images
    size = groups * images * len(boxes) // enough
    return list(product(_runs(images, together), _runs(groups, size), boxes))


# Work of a job of several images: about 50 us, beside which what Python takes for a job is little.
JOB_WORK = 1e6


def _runs(n: int, size: int) -> list[slice]:
    size = max(1, size)
    return [slice(i, min(n, i + size)) for i in range(0, n, size)]


class Step(NamedTuple):
    """A job of a forward convolution: the call, and how many bytes into the arrays it begins."""

    call: Call
    x: int
    packed: int
    bias: int
    y: int
    bytes: int  # of memory


@lru_cache(maxsize=256)
def _forward_steps(
    window: Window,
    x_steps: tuple[int, ...],
    y_steps: tuple[int, ...],
    images: int,
    og: int,
    cg: int,
    item: int,
    work: float,
    share: int,
    _limits: tuple[float, ...],
) -> list[Step]:
    padded = _padded(og)
    steps = []
    for of, groups, box in _cut_forward(window, images, og, cg, item, work, share):
        n, g = of.start, groups.start
        call = _call(window, box, x_steps, y_steps, of.stop - n, groups.stop - g, cg, og, False)
        steps.append(
            Step(
                call,
                (n * x_steps[0] + g * cg * x_steps[1]) * item,
                g * padded * cg * window.taps * item,
                g * padded * item,
                (n * y_steps[0] + g * og * y_steps[1] + call.corner) * item,
                call.elements * item + 8 * VECTOR_BYTES,  # as a block of eight is read beyond the last place
            )
        )
    return steps


def _steps_of_forward(x: Array, w_shape: tuple[int, ...], window: Window, y_steps: tuple[int, ...]) -> Any:
    """Return the jobs of a forward convolution, and its work."""
    groups, og, cg = w_shape[:3]
    images, item = x.shape[0], x.itemsize
    work = images * groups * og * cg * window.places * window.taps * COST
    limits = (BOX_BYTES, JOB_WORK)  # steps depend on them, and tests lower them
    return _forward_steps(
        window, five(strides(x)), y_steps, images, og, cg, item, work, workers(work), limits
    ), work


def forward(c: Kernels, x: Array, w: Array, b: Array | None, window: Window, y: Array) -> None:
    """Write conv(x, w) + b to y; w is [groups, C_out/groups, C_in/groups, *kernel], of any strides."""
    steps, work = _steps_of_forward(x, w.shape, window, five(strides(y)))
    packed, bias = _packed(c, w, b)
    x_at, y_at, padded = address(x), address(y), _padded(w.shape[1])

    def one(step: Step) -> None:
        call = step.call
        flat = memory("flat", step.bytes)
        c.convolve(
            call.struct,
            call.residues,
            call.offsets,
            x_at + step.x,
            packed.address + step.packed,
            bias + step.bias,
            y_at + step.y,
            padded,
            flat.address,
        )

    parallel(one, steps, work)


def plan_forward(
    x: Array, w_shape: tuple[int, ...], window: Window, account: Account
) -> tuple[int, int, int]:
    """Add what `forward` would do to an account; return jobs, threads, and the bytes that they share."""
    groups, og, cg = w_shape[:3]
    steps, work = _steps_of_forward(x, w_shape, window, (0,) * 5)
    for step in steps:
        s = step.call.alive[0]
        sizes = {"kernels": og, "channels": cg, "places": prod(s.box), "groups": s.groups, "images": s.images}
        account.step("direct", **sizes)
        account.buffer("flat", step.bytes + VECTOR_BYTES)
    return len(steps), used(len(steps), work), _packed_bytes(groups, og, cg * window.taps, x.itemsize)


def _padded(og: int) -> int:
    """Return the kernels of a group that are packed: a last block of 5 to 7 is filled up."""
    return og if og % ROWS <= 4 else -(-og // ROWS) * ROWS


def _packed_bytes(groups: int, og: int, rows: int, item: int) -> int:
    return groups * _padded(og) * (rows + 1) * item


def _packed(c: Kernels, w: Array, b: Array | None) -> tuple[Memory, int]:
    """Return the weights as the kernels read them, and the address of the biases behind them."""
    groups, og, cg, *kernel = w.shape
    by_group, by_kernel, by_channel, *steps = strides(w)
    place = _places(tuple(kernel), tuple(steps))
    taps, item = len(place.array), w.itemsize
    packed = memory("packed", _packed_bytes(groups, og, cg * taps, item))
    bias = packed.address + groups * _padded(og) * cg * taps * item
    b = None if b is None else np.ascontiguousarray(b)
    b_at, w_at = None if b is None else address(b), address(w)
    if og % ROWS == 0 and by_group == og * by_kernel:  # blocks of kernels, wherever a group ends
        groups, og = 1, groups * og
    padded = _padded(og)

    def prepare(job: tuple[int, int]) -> None:
        g, k0 = job
        c.pack(
            w_at + g * by_group * item,
            None if b_at is None else b_at + g * og * item,
            k0,
            min(og, k0 + PACKED),
            og,
            cg,
            taps,
            by_kernel,
            by_channel,
            place.address,
            packed.address + g * padded * cg * taps * item,
            bias + g * padded * item,
        )

    parallel(prepare, product(range(groups), range(0, og, PACKED)), w.size * 8)
    return packed, bias


@lru_cache(maxsize=256)
def _places(kernel: tuple[int, ...], steps: tuple[int, ...]) -> Memory:
    """Return where the taps of a kernel lie, in elements from the first."""
    d, h, j = (np.arange(k) * step for k, step in zip(three(kernel, 1), three(steps, 0), strict=True))
    place = _over_taps((d, h, j))
    return Memory(place, address(place))


# Kernels of a job of packing, a multiple of ROWS.
PACKED = 64


# A weight gradient that is worth waking threads for is cut into so many jobs at least, on any number of them,
# so that each sum runs in the same order.
WEIGHT_JOBS = 4

# Bytes of dw up to which jobs are images, each with sums of its own; beyond, channels, and each lays out dy.
SUMS_BYTES = 1 << 20


class WeightJob(NamedTuple):
    """A group's channels, and images whose terms are added up one after the other."""

    images: slice
    group: int
    channels: slice
    sums: slice  # where they are kept, [C_out/groups, channels, *kernel]


class WeightStep(NamedTuple):
    """A call for a weight gradient, and how many bytes into the arrays it begins."""

    call: Call
    x: int
    dy: int
    sums: int
    bytes: int  # of memory


class WeightCut(NamedTuple):
    """The jobs of a weight gradient, and the calls of each."""

    jobs: list[WeightJob]
    steps: list[list[WeightStep]]
    terms: int  # sums of different images, each as large as dw


def _cut_weight_grad(dy: Array, x: Array, window: Window, dw: Array) -> tuple[WeightCut, int]:
    """Cut a weight gradient into jobs; return them, and its work."""
    work = dy.size * dw.shape[2] * window.taps * COST
    wanted = WEIGHT_JOBS if is_much(work) else 1
    limits = (BOX_BYTES, SUMS_BYTES)
    cut = _weight_cut(
        window, five(strides(x)), five(strides(dy)), x.shape[0], dw.shape, x.itemsize, wanted, limits
    )
    return cut, work


@lru_cache(maxsize=256)
def _weight_cut(
    window: Window,
    x_steps: tuple[int, ...],
    y_steps: tuple[int, ...],
    images: int,
    shape: tuple[int, ...],
    item: int,
    wanted: int,
    _limits: tuple[int, ...],
) -> WeightCut:
    groups, og, cg, *kernel = shape
    wanted = -(-wanted // groups)
    by_image = images >= wanted and prod(shape) * item <= SUMS_BYTES
    shares, parts = _shares(images, wanted if by_image else 1), _shares(cg, 1 if by_image else wanted)
    jobs, steps, begin = [], [], 0
    for share, g, part in product(shares, range(groups), parts):
        end = begin + og * (part.stop - part.start) * prod(kernel)
        job = WeightJob(share, g, part, slice(begin, end))
        jobs.append(job)
        steps.append(
            [
                WeightStep(
                    call,
                    (n * x_steps[0] + (g * cg + part.start) * x_steps[1]) * item,
                    (n * y_steps[0] + g * og * y_steps[1] + call.corner) * item,
                    begin * item,
                    call.elements * item + 2 * VECTOR_BYTES,
                )
                for n, call in _pieces(window, x_steps, y_steps, job, og, item)
            ]
        )
        begin = end
    return WeightCut(jobs, steps, len(shares))


def _pieces(
    window: Window, x_steps: tuple[int, ...], y_steps: tuple[int, ...], job: WeightJob, og: int, item: int
) -> list[tuple[int, Call]]:
    """Cut a job into calls whose images fit the cache; return each's first image and the call."""
    channels, images = job.channels.stop - job.channels.start, job.images
    image_bytes = (channels * prod(window.in_size) + og * window.places) * item
    boxes = _boxes(window, image_bytes, 1)
    together = max(1, BOX_BYTES // image_bytes) if len(boxes) == 1 else 1
    return [
        (n, _call(window, box, x_steps, y_steps, min(together, images.stop - n), 1, channels, og, True))
        for n, box in product(range(images.start, images.stop, together), boxes)
    ]


def weight_grad(c: Kernels, dy: Array, x: Array, window: Window, dw: Array) -> bool:
    """Write dw, [groups, C_out/groups, C_in/groups, *kernel]; return False where it isn't finite.

    An infinity may then stand where a place without an output reads it, times that place's 0.
    """
    (jobs, steps, terms), work = _cut_weight_grad(dy, x, window, dw)
    sums = np.zeros((max(1, terms), dw.size), dw.dtype)
    x_at, dy_at, sums_at = address(x), address(dy), address(sums)

    def one(pieces: list[WeightStep]) -> None:
        for step in pieces:
            call = step.call
            flat = memory("flat", step.bytes)
            c.weight_gradient(
                call.struct,
                call.residues,
                call.offsets,
                x_at + step.x,
                dy_at + step.dy,
                sums_at + step.sums,
                flat.address,
            )

    parallel(one, steps, work)
    total = sums[0]
    for term in sums[1:]:
        total += term
    if len(jobs) == terms * window.groups:
        dw[...] = total.reshape(dw.shape)
    else:
        for _, g, part, where in jobs:
            dw[g, :, part] = total[where].reshape(dw[g, :, part].shape)
    return bool(np.isfinite(total).all())


def plan_weight_grad(
    dy: Array, x: Array, window: Window, dw: Array, account: Account
) -> tuple[int, int, int]:
    """Add what `weight_grad` would do to an account; return jobs, threads, and the bytes that they share."""
    (jobs, steps, terms), work = _cut_weight_grad(dy, x, window, dw)
    for step in chain.from_iterable(steps):
        s = step.call.alive[0]
        account.step("direct", kernels=s.kernels, channels=s.channels, places=prod(s.box), images=s.images)
        account.buffer("flat", step.bytes + VECTOR_BYTES)
    return len(jobs), used(len(jobs), work), terms * dw.nbytes
