"""Pooling by our C kernels (native/pool*.c): a pass over memory each, whatever the window.

This file says whether they compute a pooling, along what their vectors lie, and cuts it into jobs of whole
planes; all arrays are canonical views, [N, C, *spatial].
"""

import ctypes
from collections.abc import Iterable
from functools import lru_cache
from itertools import repeat
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backends.cpu import compiled
from gpuconv.backends.cpu.compiled import Kernels, address, five, strides, three
from gpuconv.backends.cpu.jobs import EASY_WORK, run
from gpuconv.backends.cpu.threads import VECTOR_BYTES, count, used
from gpuconv.backends.plans import Account, Part
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]
Planes = tuple[slice, slice]

# Bytes of x that a job takes; C holds no interpreter lock, so that jobs may be smaller than NumPy's.
BLOCK_BYTES = 1 << 20

# Rows of outputs for which rows are laid out at a time, as in native/pool_rows.c.
LAID_BLOCK = 8

# The masks that are read.
MASKS = {np.dtype(np.uint8), np.dtype(np.int32), np.dtype(np.int64)}

# Along what vectors lie: channels; a row of outputs (or of dx); a window's own places; whole planes; a row of
# x. Without vectors: places that masks name.
BY_CHANNELS, BY_ROWS, BY_WINDOWS, BY_PLANES, BY_COLUMNS, BY_PLACES = range(6)
WAYS = ("channels", "rows", "windows", "planes", "columns", "places")
WHY = "C kernels, with vectors of {}: each output, or place of a gradient, is written once"
WHY_PLACES = "C kernels: each value goes to the place that its mask names, or comes from there"

# Of more rivals (native/unpool.c) each call would list too many: 13x13 windows with stride 1 have 14196.
MOST_RIVALS = 1 << 14
RIVAL_BYTES = 40


class Struct(ctypes.Structure):
    """What one call works on; see native/pooling.h."""

    _fields_ = compiled.fields("pooling.h", "Pooling")


Steps = tuple[int, ...]  # strides in elements


class Told(NamedTuple):
    """What C is told of all poolings of a geometry: a window of as few axes as will do, and how to go."""

    window: Window
    way: int
    together: bool  # a place's channels lie side by side
    struct: Struct
    memory: int  # bytes that a thread takes beside arguments and results
    cuts: "dict[tuple[int, int], Cut]"  # by images and threads, once made


class Cut(NamedTuple):
    """A pooling's jobs, and for each what C is told of it and how far into the arrays it begins."""

    jobs: list[Planes]
    structs: list[Struct]
    addresses: list[int]  # of the structs
    begins: dict[str, list[int]]  # bytes, by the array: x, y, mask


class Pooling(NamedTuple):
    """A pooling that C computes, with canonical x and y, or dx and dy."""

    kernels: Kernels
    x: Array
    y: Array
    mask: Array | None
    told: Told
    takes_masks: bool  # and so checks them first
    cut: Cut

    @property
    def window(self) -> Window:
        """The window as C sees it."""
        return self.told.window

    @property
    def work(self) -> int:
        """How much it is, for the number of threads."""
        return _work(self.x, self.y, self.window)


def sharing(in_size: tuple[int, ...], out_size: tuple[int, ...]) -> Window:
    """Return windows that share out an image, as C is told of them (native/pooling.h): their stride is 0."""
    ones, zeros = (1,) * len(in_size), (0,) * len(in_size)
    return Window(in_size, in_size, zeros, ones, zeros, zeros, out_size)


def _is_sharing(window: Window) -> bool:
    """Tell whether windows share out the image."""
    return not window.stride[0]


def pooling(
    x: Array,
    y: Array,
    mask: Array | None,
    window: Window,
    *,
    mean: bool = False,
    backward: bool = False,
    unpool: bool = False,
) -> Pooling | None:
    """Return how C computes a pooling with these arrays; None where NumPy does. An unpooling's image is x."""
    kernels = compiled.kernels(x, y, part="pooling")
    if kernels is None or not x.size:
        return None
    if mask is not None and (mask.dtype not in MASKS or any(step % mask.itemsize for step in mask.strides)):
        return None
    if mask is not None and window.taps >= 1 << 31:  # they are counted in integers as wide as float32
        return None
    if (mean and _many_sums(window)) or (unpool and backward and _rivals(window) > MOST_RIVALS):
        return None
    masks, bytes_each = (None, 0) if mask is None else (tuple(strides(mask)), mask.itemsize)
    steps = tuple(strides(x)), tuple(strides(y)), masks
    told = _told(window, x.shape[1], x.itemsize, *steps, bytes_each, backward, unpool)
    takes_masks = mask is not None and (backward or unpool)
    key = x.shape[0], count()
    if (cut := told.cuts.get(key)) is None:
        if len(told.cuts) >= MOST_CUTS:
            told.cuts.clear()
        cut = told.cuts[key] = _cut(x, y, mask, told)
    return Pooling(kernels, x, y, mask, told, takes_masks, cut)


# Batches of different sizes whose cut is remembered.
MOST_CUTS = 16


def _many_sums(window: Window) -> bool:
    """Tell whether sums axis by axis, which NumPy takes, are so much less work that they are faster."""
    overlapping = window.places * window.taps > 4 * prod(window.in_size)
    return not _is_sharing(window) and overlapping and window.taps > 8 * sum(window.kernel)


@lru_cache(maxsize=512)
def _told(
    window: Window,
    channels: int,
    item: int,
    x: Steps,
    y: Steps,
    mask: Steps | None,
    mask_bytes: int,
    backward: bool,
    unpool: bool,
) -> Told:
    for axis in reversed(range(1, window.axes)):
        if _is_whole(window, axis) and x[1 + axis] == window.in_size[axis] * x[2 + axis]:
            window = _without_axis(window, axis, window.in_size[axis])
            x = (*x[: 1 + axis], *x[2 + axis :])
            y = (*y[: 2 + axis], *y[3 + axis :])
            mask = None if mask is None else (*mask[: 2 + axis], *mask[3 + axis :])
    lanes = VECTOR_BYTES // item
    dense = x[1] == y[1] == 1 and (mask is None or mask[1] == 1) and channels >= lanes
    if unpool:
        way = BY_PLACES
    elif not dense and window.axes == 1 and _is_whole(window, 0) and x[2] == 1:
        way = BY_PLANES
    elif backward:
        way = _way_back(window, lanes, dense, mask is not None)
    elif _is_sharing(window):
        way = BY_CHANNELS if dense else BY_COLUMNS
    else:
        way = BY_CHANNELS if dense else _way(window, lanes)
    s = Struct()
    s.size, s.out = three(window.in_size, 1), three(window.out_size, 1)
    s.kernel, s.stride, s.dilation = (
        three(window.kernel, 1),
        three(window.stride, 1),
        three(window.dilation, 1),
    )
    s.before = three(window.before, 0)
    s.x, s.y, s.way = five(x), five(y), way
    if mask is not None:
        s.mask, s.mask_bytes = five(mask), mask_bytes
    return Told(window, way, dense, s, _memory_bytes(window, way, item, x[-1] == 1, backward), {})


def _is_whole(window: Window, axis: int) -> bool:
    """Tell whether the window has an axis in one piece, so that rows that lie end to end are one."""
    return (
        window.kernel[axis] == window.in_size[axis]
        and not _is_sharing(window)
        and window.out_size[axis] == 1
        and not window.before[axis]
        and window.dilation[max(axis - 1, 0)] == window.dilation[axis] == 1
    )


def _without_axis(window: Window, axis: int, size: int) -> Window:
    """Return the window with the axis before this one counted in places of this one."""

    def one_less(values: tuple[int, ...], scale: int = 1) -> tuple[int, ...]:
        return (*values[: axis - 1], values[axis - 1] * scale, *values[axis + 1 :])

    return Window(
        in_size=one_less(window.in_size, size),
        kernel=one_less(window.kernel, size),
        stride=one_less(window.stride, size),
        dilation=one_less(window.dilation),
        before=one_less(window.before, size),
        after=one_less(window.after, size),
        out_size=one_less(window.out_size),
    )


def _way(window: Window, lanes: int) -> int:
    """Return along what vectors lie where channels don't."""
    # Vectors that a row of outputs takes, of each tap or of each window; the latter's lanes are then joined.
    width, kernel = window.out_size[-1], window.kernel[-1]
    taps = window.taps // kernel
    by_rows, by_windows = taps * kernel * -(-width // lanes), width * (taps * -(-kernel // lanes) + 4)
    return BY_ROWS if by_rows <= by_windows else BY_WINDOWS


def _way_back(window: Window, lanes: int, dense: bool, masked: bool) -> int:
    """Return along what a gradient's vectors lie; `dense`: channels lie side by side."""
    if masked and _is_sharing(window):
        return BY_PLACES
    # Windows that have a place: so many terms a vector gathers, where a window is added to once.
    readers = _readers(window)
    if dense and readers <= 4 * lanes:
        return BY_CHANNELS
    if _is_sharing(window):
        return BY_COLUMNS
    width, kernel = window.out_size[-1], window.kernel[-1]
    # A masked window is one addition: only where each place has one window do vectors have less to do.
    each = window.taps // kernel * -(-kernel // lanes) + 4
    if masked:
        pairs = kernel == 2 and not window.before[-1]  # what native/pool_rows_backward.c is fastest with
        few = window.taps <= lanes // 2 and (width >= lanes or pairs)
        return BY_ROWS if readers == 1 and few else BY_WINDOWS
    return BY_ROWS if window.taps * -(-width // lanes) <= width * each else BY_WINDOWS


def _readers(window: Window) -> int:
    """Return how many windows have a place, at most."""
    spans = (window.out_size, window.in_size) if _is_sharing(window) else (window.span, window.stride)
    return prod(-(-span // step) for span, step in zip(*spans, strict=True))


def _rivals(window: Window) -> int:
    """Return how many times, over all taps, another window that comes later may have the same place."""
    return window.taps * (_readers(window) - 1) // 2


def _memory_bytes(window: Window, way: int, item: int, dense: bool, backward: bool) -> int:
    lanes, stride = VECTOR_BYTES // item, window.stride[-1]
    (kd, _, kw), span = three(window.kernel, 1), three(window.span, 1)
    size, width = three(window.in_size, 1), window.out_size[-1]
    if way == BY_CHANNELS and backward:  # native/pool_channels_backward.c
        return 16 * size[2]
    if way == BY_COLUMNS:  # native/pool_columns.c, native/pool_columns_backward.c
        return 16 * size[2] + item * (size[2] + width) if backward else 2 * item * (size[2] + lanes)
    if way == BY_PLACES and _is_sharing(window):  # native/pool_check_places.c, native/pool_places.c
        return 16 * sum(three(window.out_size, 1))
    if way == BY_PLACES and backward and _readers(window) > 1:  # native/unpool.c
        return 8 * (2 * window.taps + 1) + RIVAL_BYTES * _rivals(window)
    if way == BY_PLACES:  # native/pool_places.c
        return 8 * window.taps if window.taps <= window.places else 0
    if way == BY_WINDOWS and backward and window.taps <= window.places:  # native/pool_windows_backward.c
        return 8 * window.taps
    if way != BY_ROWS:
        return 0
    reach = (span[2] - 1) // stride
    if not backward:  # native/pool_rows.c
        table = 8 * kw + item * (width + lanes)
        if dense and stride <= 2:
            return table
        rows = min(size[1], span[1] + (LAID_BLOCK - 1) * three(window.stride, 1)[1])
        return table + item * kd * rows * (width + reach + lanes) * min(stride, span[2])
    steps = three(window.stride, 1)  # native/pool_rows_backward.c
    kept = -(-span[0] // steps[0]) * -(-span[1] // steps[1])
    line = (size[2] - 1 + window.before[-1]) // stride + 1 + lanes
    return kept * (24 + 2 * item * (reach + line)) + 2 * item * line


def _cut(x: Array, y: Array, mask: Array | None, told: Told) -> Cut:
    """Cut a pooling into jobs; those as large share a struct."""
    jobs = _jobs(x, told.together, _work(x, y, told.window))
    structs: dict[tuple[int, int], Struct] = {}
    sizes = [(images.stop - images.start, channels.stop - channels.start) for images, channels in jobs]
    for size in sizes:
        if size not in structs:
            structs[size] = Struct.from_buffer_copy(told.struct)
            structs[size].images, structs[size].channels = size
    begins = {
        name: [n.start * array.strides[0] + c.start * array.strides[1] for n, c in jobs]
        for name, array in (("x", x), ("y", y), ("mask", mask))
        if array is not None
    }
    return Cut(jobs, list(structs.values()), [ctypes.addressof(structs[size]) for size in sizes], begins)


def _jobs(x: Array, together: bool, work: int) -> list[Planes]:
    """Cut a pooling into jobs: several small images, or some channels of one."""
    n, c = x.shape[:2]
    if work <= EASY_WORK:  # one thread's: a call less for each block
        return [(slice(0, n), slice(0, c))]
    threads, plane = count(), prod(x.shape[2:]) * x.itemsize
    channels = max(1, min(c, BLOCK_BYTES // plane))
    if together:  # cut only to occupy all threads
        lanes = VECTOR_BYTES // x.itemsize
        channels = c if n >= threads else max(lanes, -(-c // threads // lanes) * lanes)
    share = n // (2 * threads) if threads > 1 else n
    images = max(1, min(BLOCK_BYTES // (plane * channels), share)) if channels == c else 1
    starts = list(range(0, c, channels))
    if together and c - starts[-1] < VECTOR_BYTES // x.itemsize:
        starts.pop()  # the last few join those before them
    ends = [*starts[1:], c]
    return [
        (slice(i, min(n, i + images)), slice(j, end))
        for i in range(0, n, images)
        for j, end in zip(starts, ends, strict=True)
    ]


def plan(p: Pooling) -> Part:
    """Return how a pooling would be computed."""
    account, jobs = Account(), p.cut.jobs
    for images, channels in jobs:
        planes = (images.stop - images.start) * (channels.stop - channels.start)
        account.step("pool", planes=planes, places=p.window.places)
    account.buffer("pool", p.told.memory)
    # What takes masks goes to the threads twice: masks are checked first.
    calls, way = 2 if p.takes_masks else 1, WAYS[p.told.way]
    why = WHY_PLACES if p.told.way == BY_PLACES else WHY.format(way)
    return account.part(way, why, calls * len(jobs), used(len(jobs), p.work))


def _work(x: Array, y: Array, window: Window) -> int:
    """Return a pooling's work: memory passed over, and taps. Global pooling has few taps for its memory."""
    taps = -(-window.taps // window.places) if _is_sharing(window) else window.taps
    return x.size + y.size * taps


def max_pool(p: Pooling) -> None:
    """Write each window's maximum to y, and to the mask the offset of the first place that holds it."""
    _run(p, "max_pool", "x", "y", 0 if p.mask is None else "mask")


def avg_pool(p: Pooling, shares: Array) -> None:
    """Write each window's mean; `shares` are 1 / places, one axis after the other."""
    _run(p, "avg_pool", "x", address(shares), "y")


def masks_name_places(p: Pooling) -> bool:
    """Tell whether all offsets are those of places inside of x."""
    wrong = ctypes.c_ssize_t()  # any thread may write: all write the same
    _run(p, "check_mask", "mask", ctypes.addressof(wrong), work=p.y.size)
    return not wrong.value


def max_pool_backward(p: Pooling) -> None:
    """Write to x (dx) each y (dy) at the place that its window's mask names; several add up."""
    _run(p, "max_pool_backward", "y", "mask", "x")


def max_unpool(p: Pooling) -> None:
    """Write to x (an unpooling's y) each y at the place that its window's mask names, zeros elsewhere."""
    _run(p, "max_unpool", "y", "mask", "x")


def max_unpool_backward(p: Pooling) -> None:
    """Write to y (an unpooling's dx) what x has where each was written; 0 where another was, later."""
    _run(p, "max_unpool_backward", "x", "mask", "y")


def avg_pool_backward(p: Pooling, shares: Array) -> None:
    """Write to x (dx) each y (dy), divided, on all places of its window; several add up."""
    _run(p, "avg_pool_backward", "y", address(shares), "x")


def _run(p: Pooling, name: str, *given: str | int, work: int | None = None) -> None:
    """Call a kernel for each job with its planes of arrays, or with what is the same for all, and memory."""
    columns: list[Iterable[int]] = []
    for each in given:
        if isinstance(each, int):
            columns.append(repeat(each))
        else:
            base = address(getattr(p, each))
            columns.append([base + begin for begin in p.cut.begins[each]])
    # None asked for, as where a window's offsets aren't worth working out beforehand: none given.
    own = {1 + len(given): ("pool", p.told.memory)} if p.told.memory else {}
    rows = list(zip(p.cut.addresses, *columns, repeat(0), strict=False))
    run(p.kernels, name, rows, p.work if work is None else work, own)
