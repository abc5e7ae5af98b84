"""Convolution by our C kernels, without columns: products with shifted runs of a padded image (native/*.c).

An image's group is copied once, padding included, into a *flat* layout in which what a tap reads for all
output places is one run of memory; the products then take their operands from there. Either output places run
along the vectors (native/multiply.c, native/dots.c) or kernels do (native/outer.c), whichever fills them
better. This file says that, and how large the layout is, cuts the work into boxes of output places, and hands
them to threads; all arrays are canonical views.
"""

import ctypes
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, chain, product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backends.cpu import compiled
from gpuconv.backends.cpu.compiled import Kernels, address, five, strides, three
from gpuconv.backends.cpu.jobs import run
from gpuconv.backends.cpu.threads import VECTOR_BYTES, Memory, is_much, memory, used, workers
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

    def offsets(self, channels: int, last: bool = False) -> Array:
        """Where each tap reads its first channel, for output place 0; `last`: of a layout channels last."""
        shift: Array = self.shift * channels if last else self.shift
        return self.phase * (channels * self.plane) + shift


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


@lru_cache(maxsize=512)
def _by_outer(window: Window, og: int, item: int, turned: int = 0) -> bool:
    """Tell whether kernels fill vectors better than output places do, so that native/outer.c is faster.

    `turned` is how many products an element takes part in that must be laid out the other way round for it; 0
    where none must.
    """
    lanes = VECTOR_BYTES // item
    numbers = flat(window, tuple((0, n) for n in three(window.out_size, 1))).places
    kernels, places = _fullness(og, og, lanes), _fullness(window.places, numbers, lanes)
    return kernels >= OUTER_LEAST * places * (1 + TURNING / turned if turned else 1)


# 40 kernels of 14x14 places were as fast either way, where vectors were full to 0.83 and 0.88.
OUTER_LEAST = 0.95


# Turning an element round takes as long as so many of its products: dw of 64 channels, 1x1, lost 12 % with dy
# turned, of 24 channels 33 %.
TURNING = 16


def _fullness(useful: int, numbers: int, lanes: int) -> float:
    return useful / max(1, -(-numbers // lanes) * lanes)


class Call(NamedTuple):
    """What the C functions take that is the same for all images and calls of this geometry."""

    struct: Any  # a pointer to the Struct
    residues: int
    offsets: int  # of all channels' taps for weight gradients and outer.c, of the first one's else
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
    outer: bool,
    item: int,
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
    spans = zip(s.first, s.box, s.stride, three(window.span, 1), s.size, strict=True)
    inside = all(lo >= 0 and lo + (n - 1) * step + span <= size for lo, n, step, span, size in spans)
    vector = VECTOR_BYTES // item
    if outer:
        s.x_in_place = inside
        s.y_in_place = kernels % vector == 0 and y_steps[1] == 1 and _follow(y_steps[2:], s.box)
        offsets, s.reads = _reads(window, layout, x_steps, channels, inside)
        elements = 2 * prod(s.box) * NUMBER_BYTES // item
        dy = (kernels + vector) * prod(s.box)
    else:
        one_by_one = tuple(s.stride) == (1, 1, 1)
        s.x_in_place = inside and one_by_one and _lies_flat(s.x, layout.extent, layout.extent)
        # Its blocks read beyond the last place, so only 1x1 kernels find x in place: see multiply.c.
        s.x_in_place = s.x_in_place and (gradient or window.taps == 1)
        # No number between its places may belong to another's element: it is read as a 0.
        s.y_in_place = layout.places == prod(s.box) and _lies_flat(s.y, layout.extent, s.box)
        offsets = layout.offsets(channels)
        if gradient:
            offsets = _over_channels(offsets, channels, x_steps[1] if s.x_in_place else layout.plane)
        elements = channels * vector if s.x_in_place and not gradient else 0
        dy = kernels * (layout.places + vector)
    copies = images if gradient else 1
    elements += 0 if s.x_in_place else copies * layout.image(channels)
    elements += 0 if s.y_in_place or not gradient else copies * dy
    corner = sum(lo * step for (lo, _), step in zip(box, y_steps[2:], strict=True))
    return Call(
        ctypes.addressof(s),
        address(layout.residues),
        address(offsets),
        corner,
        elements,
        (s, layout, offsets),
    )


# Bytes of a place's number in outer.c.
NUMBER_BYTES = ctypes.sizeof(ctypes.c_ssize_t)


def _reads(
    window: Window, layout: Flat, x_steps: tuple[int, ...], channels: int, in_place: bool
) -> tuple[Array, Triple]:
    """Return where outer.c finds all channels' taps for the first output place, and how far places are apart.

    In a flat copy channels come last where they do in x, and the copy is rows of channels.
    """
    steps = x_steps[2:]
    if in_place:
        kernel, dilation, stride = (
            three(each, 1) for each in (window.kernel, window.dilation, window.stride)
        )
        d, h, w = (np.arange(k) * (by * step) for k, by, step in zip(kernel, dilation, steps, strict=True))
        far = stride[0] * steps[0], stride[1] * steps[1], stride[2] * steps[2]
        return _over_channels(_over_taps((d, h, w)), channels, x_steps[1]), far
    last = x_steps[1] == 1 and channels > 1
    _, rows, pitch = layout.extent
    each, plane = (channels, 1) if last else (1, layout.plane)
    return _over_channels(layout.offsets(channels, last), channels, plane), (
        rows * pitch * each,
        pitch * each,
        each,
    )


def _over_channels(taps: Array, channels: int, step: int) -> Array:
    return (taps + np.arange(channels)[:, None] * step).ravel()


def _follow(steps: tuple[int, ...], sizes: Sequence[int]) -> bool:
    """Tell whether places lie one after the other, all the same step apart."""
    d, h, w = steps
    return (sizes[1] == 1 or h == sizes[2] * w) and (sizes[0] == 1 or d == sizes[1] * sizes[2] * w)


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


class ForwardCut(NamedTuple):
    """The jobs of a forward convolution, and whether outer.c does them."""

    steps: list["Step"]
    outer: bool


class Step(NamedTuple):
    """A job of a forward convolution: the call, and how many bytes into the arrays it begins."""

    call: Call
    x: int
    packed: int
    bias: int
    y: int
    bytes: int  # of memory


@lru_cache(maxsize=256)
def _forward_cut(
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
) -> ForwardCut:
    outer = _by_outer(window, og, item)
    padded = _padded(og, item, outer)
    steps = []
    for of, groups, box in _cut_forward(window, images, og, cg, item, work, share):
        n, g = of.start, groups.start
        call = _call(window, box, x_steps, y_steps, of.stop - n, groups.stop - g, cg, og, False, outer, item)
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
    return ForwardCut(steps, outer)


def _cut_of_forward(
    x: Array, w_shape: tuple[int, ...], window: Window, y_steps: tuple[int, ...]
) -> tuple[ForwardCut, float]:
    """Return the jobs of a forward convolution, and its work."""
    groups, og, cg = w_shape[:3]
    images, item = x.shape[0], x.itemsize
    work = images * groups * og * cg * window.places * window.taps * COST
    limits = (BOX_BYTES, JOB_WORK)  # steps depend on them, and tests lower them
    return _forward_cut(
        window, five(strides(x)), y_steps, images, og, cg, item, work, workers(work), limits
    ), work


def forward(c: Kernels, x: Array, w: Array, b: Array | None, window: Window, y: Array) -> None:
    """Write conv(x, w) + b to y; w is [groups, C_out/groups, C_in/groups, *kernel], of any strides."""
    (steps, outer), work = _cut_of_forward(x, w.shape, window, five(strides(y)))
    packed, bias = _packed(c, w, b, outer)
    x_at, y_at, padded = address(x), address(y), _padded(w.shape[1], x.itemsize, outer)
    rows = [
        (
            *step.call[:3],
            x_at + step.x,
            packed.address + step.packed,
            bias + step.bias,
            y_at + step.y,
            padded,
            0,
        )
        for step in steps
    ]
    flat = max((step.bytes for step in steps), default=0)
    run(c, "convolve_outer" if outer else "convolve", rows, work, {8: ("flat", flat)})


def plan_forward(
    x: Array, w_shape: tuple[int, ...], window: Window, account: Account
) -> tuple[int, int, int]:
    """Add what `forward` would do to an account; return jobs, threads, and the bytes that they share."""
    groups, og, cg = w_shape[:3]
    (steps, outer), work = _cut_of_forward(x, w_shape, window, (0,) * 5)
    for step in steps:
        s = step.call.alive[0]
        sizes = {"kernels": og, "channels": cg, "places": prod(s.box), "groups": s.groups, "images": s.images}
        account.step("direct", **sizes)
        account.buffer("flat", step.bytes + VECTOR_BYTES)
    packed = _packed_bytes(groups, og, cg * window.taps, x.itemsize, outer)
    return len(steps), used(len(steps), work), packed


def _padded(og: int, item: int, outer: bool) -> int:
    """Return the kernels of a group that are packed: whole vectors, or a last block of 5 to 7 filled up."""
    if outer:
        lanes = VECTOR_BYTES // item
        return -(-og // lanes) * lanes
    return og if og % ROWS <= 4 else -(-og // ROWS) * ROWS


def _packed_bytes(groups: int, og: int, rows: int, item: int, outer: bool) -> int:
    return groups * _padded(og, item, outer) * (rows + 1) * item


def _packed(c: Kernels, w: Array, b: Array | None, outer: bool) -> tuple[Memory, int]:
    """Return the weights as the kernels read them, and the address of the biases behind them."""
    groups, og, cg, *kernel = w.shape
    by_group, by_kernel, by_channel, *steps = strides(w)
    place = _places(tuple(kernel), tuple(steps))
    taps, item = len(place.array), w.itemsize
    packed = memory("packed", _packed_bytes(groups, og, cg * taps, item, outer))
    bias = packed.address + groups * _padded(og, item, outer) * cg * taps * item
    b = None if b is None else np.ascontiguousarray(b)
    b_at, w_at = 0 if b is None else address(b), address(w)
    if (
        og % (2 * VECTOR_BYTES // item if outer else ROWS) == 0 and by_group == og * by_kernel
    ):  # blocks of kernels, wherever a group ends
        groups, og = 1, groups * og
    padded = _padded(og, item, outer)

    rows = [
        (
            w_at + g * by_group * item,
            b_at and b_at + g * og * item,
            k0,
            min(og, k0 + PACKED),
            og,
            cg,
            taps,
            by_kernel,
            by_channel,
            place.address,
            outer,
            packed.address + g * padded * cg * taps * item,
            bias + g * padded * item,
        )
        for g, k0 in product(range(groups), range(0, og, PACKED))
    ]
    run(c, "pack", rows, w.size * 8)
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
    outer: bool  # outer.c does them


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
    outer = _by_outer(window, og, item, 0 if y_steps[1] == 1 else cg * window.taps)
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
                for n, call in _pieces(window, x_steps, y_steps, job, og, item, outer)
            ]
        )
        begin = end
    return WeightCut(jobs, steps, len(shares), outer)


def _pieces(
    window: Window,
    x_steps: tuple[int, ...],
    y_steps: tuple[int, ...],
    job: WeightJob,
    og: int,
    item: int,
    outer: bool,
) -> list[tuple[int, Call]]:
    """Cut a job into calls whose images fit the cache; return each's first image and the call."""
    channels, images = job.channels.stop - job.channels.start, job.images
    image_bytes = (channels * prod(window.in_size) + og * window.places) * item
    boxes = _boxes(window, image_bytes, 1)
    together = max(1, BOX_BYTES // image_bytes) if len(boxes) == 1 else 1
    return [
        (
            n,
            _call(
                window,
                box,
                x_steps,
                y_steps,
                min(together, images.stop - n),
                1,
                channels,
                og,
                True,
                outer,
                item,
            ),
        )
        for n, box in product(range(images.start, images.stop, together), boxes)
    ]


def weight_grad(c: Kernels, dy: Array, x: Array, window: Window, dw: Array) -> bool:
    """Write dw, [groups, C_out/groups, C_in/groups, *kernel]; return False where it isn't finite.

    An infinity may then stand where a place without an output reads it, times that place's 0.
    """
    (jobs, steps, terms, outer), work = _cut_weight_grad(dy, x, window, dw)
    sums = np.zeros((max(1, terms), dw.size), dw.dtype)
    x_at, dy_at, sums_at = address(x), address(dy), address(sums)
    rows = [
        (*step.call[:3], x_at + step.x, dy_at + step.dy, sums_at + step.sums, 0)
        for step in chain.from_iterable(steps)
    ]
    begins = [0, *accumulate(len(pieces) for pieces in steps)]
    flat = max((step.bytes for step in chain.from_iterable(steps)), default=0)
    name = "weight_gradient_outer" if outer else "weight_gradient"
    run(c, name, rows, work, {6: ("flat", flat)}, begins)
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
    (jobs, steps, terms, _), work = _cut_weight_grad(dy, x, window, dw)
    alike = {id(step.call): step for step in chain.from_iterable(steps)}
    number = Counter(id(step.call) for step in chain.from_iterable(steps))
    for key, step in alike.items():
        s = step.call.alive[0]
        sizes = {"kernels": s.kernels, "channels": s.channels, "places": prod(s.box), "images": s.images}
        account.step("direct", number[key], **sizes)
        account.buffer("flat", step.bytes + VECTOR_BYTES)
    return len(jobs), used(len(jobs), work), terms * dw.nbytes
