"""Depthwise convolution by our C kernels (native/depthwise.c), in either layout; arrays are canonical views.

Every output, place of dx and tap of dw is a sum in a register: there are no columns, bands or copies. An
input gradient is, as in `convolution`, a convolution of dy for each phase of the stride, but in one pass.
"""

import ctypes
from functools import lru_cache
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from gpuconv.backends.cpu import compiled
from gpuconv.backends.cpu.compiled import Kernels, address, three
from gpuconv.backends.cpu.jobs import run
from gpuconv.backends.cpu.threads import VECTOR_BYTES, used, workers
from gpuconv.backends.plans import Account
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]
Bounds = tuple[int, int]


class Struct(ctypes.Structure):
    """A convolution, or a phase of an input gradient; see native/depthwise.h."""

    _fields_ = compiled.fields("depthwise.h", "Depthwise")


class Tap(ctypes.Structure):
    """A tap of the axes across a block of outputs."""

    _fields_ = compiled.fields("depthwise.h", "AcrossTap")


# What a tap takes in a call's memory: COLUMNS of native/depthwise.c.
TAP_BYTES = 16 * ctypes.sizeof(Tap)

# Bytes of the sums of a weight gradient that are computed at once, half of a core's L1.
AT_ONCE_BYTES = 20 << 10

# How many jobs a weight gradient is, at least, and how many sums of parts of the batch, whatever the number
# of threads. Channels last, a job takes so many vectors of them: fewer are too short a piece of a place.
GRADIENT_JOBS = 8
PARTS = 4
VECTORS = 4

# Jobs a thread, and what a multiply-add costs beside NumPy's, for which threads.py knows what is worth one.
# mbv2_dw4 (8 images, 5.4 million) is too little: back to back, two threads take 0.18 ms for 0.22 ms; after a
# pause, as `bench` makes them, 0.32 ms for 0.27 ms.
JOBS = 2
COST = 0.5

WHY = "every channel is filtered alone, by C kernels: along rows, or along channels where these lie together"


def kernels(w_shape: tuple[int, ...], window: Window, *arrays: Array | None) -> Kernels | None:
    """Return the kernels where every channel is filtered alone, once, and they can do it; else None."""
    if w_shape[:2] != (window.groups, 1):
        return None
    return compiled.kernels(*(x for x in arrays if x is not None), part="depthwise")


def forward(c: Kernels, x: Array, w: Array, b: Array | None, window: Window, y: Array) -> None:
    """Write conv(x, w) + b to y; w is [C, 1, *kernel]."""
    last = _channels_lie_together(x, y)
    w = _beside(w, last)
    phases = _forward_phases(window, last, x.strides, w.strides, y.strides, x.itemsize)
    _run(c, phases, 1, window.taps, x, w, b, y, _cut(x, window, window.out_size, last))


def input_grad(c: Kernels, dy: Array, w: Array, b: Array | None, window: Window, dx: Array) -> None:
    """Write the gradient by x, plus b, to dx; w is [C, 1, *kernel]."""
    last = _channels_lie_together(dy, dx)
    w = _beside(w, last)
    phases = _input_phases(window, last, dy.strides, w.strides, dx.strides, dx.itemsize)
    rows = window.adjoint()[0].window.out_size  # the first phase has the most
    together = 2 if _come_in_pairs(dx, window, last) else 1
    _run(c, phases, together, window.taps, dy, w, b, dx, _cut(dy, window, rows, last))


def weight_grad(c: Kernels, dy: Array, x: Array, window: Window, dw: Array) -> None:
    """Write the gradient by w to dw, [C, 1, *kernel]."""
    last = _channels_lie_together(x, dy)
    channels = x.shape[1]
    parts, jobs = _cut_gradient(x, window, last)
    shape = (len(parts), *window.kernel, channels) if last else (len(parts), channels, *window.kernel)
    zeros = np.zeros(shape, x.dtype)
    sums = np.moveaxis(zeros, -1, 1) if last else zeros
    item, at_once = x.itemsize, _at_once(window)
    one_part = (sums.strides[1], 0, *sums.strides[2:])
    struct = _forward_phases(window, last, x.strides, one_part, dy.strides, item)
    x_at, dy_at, sums_at = address(x), address(dy), address(zeros)
    (xn, xc), (dn, dc), (sn, sc) = x.strides[:2], dy.strides[:2], sums.strides[:2]
    taps_bytes, sums_bytes = window.taps * TAP_BYTES, (at_once * window.taps + 1) * VECTOR_BYTES

    rows = [
        (
            *(ctypes.addressof(struct), n1 - n0, c1 - c0, h0, h1),
            *(x_at + n0 * xn + c0 * xc, dy_at + n0 * dn + c0 * dc, sums_at + number * sn + c0 * sc),
            *(0, at_once, 0),
        )
        for number, (c0, c1) in jobs
        for (n0, n1), (h0, h1) in (parts[number],)
    ]
    own = {8: ("sums", sums_bytes), 10: ("taps", taps_bytes)}
    run(c, "depthwise_gradient", rows, dy.size * window.taps * COST, own)
    dw[:, 0] = sums[0] if len(parts) == 1 else sums.sum(axis=0)


def plan_forward(x: Array, y: Array, window: Window, account: Account) -> tuple[int, int]:
    """Add what `forward` would do to an account; return how many jobs there are, and threads."""
    last = _channels_lie_together(x, y)
    jobs, work = _cut(x, window, window.out_size, last)
    account.step("filter", places=x.shape[0] * window.places, channels=x.shape[1])
    account.buffer("taps", window.taps * TAP_BYTES)
    return len(jobs), used(len(jobs), work)


def plan_input_grad(dy: Array, dx: Array, window: Window, account: Account) -> tuple[int, int]:
    """Add what `input_grad` would do to an account; return how many jobs there are, and threads."""
    last = _channels_lie_together(dy, dx)
    adjoint = window.adjoint()
    jobs, work = _cut(dy, window, adjoint[0].window.out_size, last)
    for _, _, phase in adjoint:
        account.step("filter", places=dy.shape[0] * phase.places, channels=dy.shape[1])
    account.buffer("taps", window.taps * TAP_BYTES)
    return len(jobs), used(len(jobs), work)


def plan_weight_grad(dy: Array, x: Array, window: Window, account: Account) -> tuple[int, int, int]:
    """Add what `weight_grad` would do to an account; return jobs, threads, bytes that they share."""
    parts, jobs = _cut_gradient(x, window, _channels_lie_together(x, dy))
    account.step("filter", places=dy.shape[0] * window.places, channels=dy.shape[1])
    account.buffer("taps", window.taps * TAP_BYTES)
    account.buffer("sums", (_at_once(window) * window.taps + 1) * VECTOR_BYTES)
    threads = used(len(jobs), dy.size * window.taps * COST)
    return len(jobs), threads, len(parts) * x.shape[1] * window.taps * x.itemsize


def _channels_lie_together(x: Array, y: Array) -> bool:
    """Tell whether vectors of both go along channels."""
    places = x.strides[-1] == x.itemsize and y.strides[-1] == y.itemsize
    return not places and x.strides[1] == x.itemsize and y.strides[1] == y.itemsize


def _beside(w: Array, last: bool) -> Array:
    """Return w, or a copy whose channels lie together where they must and don't."""
    if not last or w.strides[0] == w.itemsize:
        return w
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(w, 0, -1)), -1, 0)


def _come_in_pairs(dx: Array, window: Window, last: bool) -> bool:
    """Tell whether each two phases write a row's even and odd places."""
    return not last and window.stride[-1] == 2 <= window.in_size[-1] and dx.strides[-1] == dx.itemsize


Phases: TypeAlias = "ctypes.Array[Struct]"
Steps = tuple[int, ...]  # bytes


@lru_cache(maxsize=512)
def _forward_phases(window: Window, last: bool, x: Steps, w: Steps, y: Steps, item: int) -> Phases:
    """Describe a convolution of arrays with such strides for C, or its weight gradient: y is then dy."""
    return (Struct * 1)(_struct(window, last, x, w, y, item))


@lru_cache(maxsize=512)
def _input_phases(window: Window, last: bool, dy: Steps, w: Steps, dx: Steps, item: int) -> Phases:
    """Describe the phases of an input gradient of arrays with such strides for C."""
    adjoint = window.adjoint()
    phases = (Struct * len(adjoint))()
    for i, (places, taps, phase) in enumerate(adjoint):
        # A phase reads its taps backwards, from the last one on.
        read = [range(k)[of] for k, of in zip(window.kernel, taps, strict=True)]
        written = [range(n)[of] for n, of in zip(window.in_size, places, strict=True)]
        turned = (*w[:2], *(-r.step * step for r, step in zip(read, w[2:], strict=True)))
        part = (*dx[:2], *(r.step * step for r, step in zip(written, dx[2:], strict=True)))
        struct = _struct(phase, last, dy, turned, part, item)
        struct.tap = sum(r[-1] * step for r, step in zip(read, w[2:], strict=True) if r) // item
        struct.place = sum(r[0] * step for r, step in zip(written, dx[2:], strict=True)) // item
        phases[i] = struct
    return phases


def _struct(window: Window, last: bool, x: Steps, w: Steps, y: Steps, item: int) -> Struct:
    before = three(window.before, 0)
    return Struct(
        last=last,
        size=three(window.in_size, 1),
        box=three(window.out_size, 1),
        first=tuple(-b for b in before),
        kernel=three(window.kernel, 1),
        stride=three(window.stride, 1),
        dilation=three(window.dilation, 1),
        x=_steps(x, 2, item),
        w=_steps((w[0], *w[2:]), 1, item),
        y=_steps(y, 2, item),
    )


def _steps(steps: Steps, lead: int, item: int) -> tuple[int, ...]:
    steps = tuple(step // item for step in steps)
    return (*steps[:lead], *three(steps[lead:], 0))


Jobs = tuple[tuple[Bounds, Bounds, Bounds], ...]  # images, channels, rows of each phase


def _run(
    c: Kernels,
    phases: Phases,
    together: int,
    number_of_taps: int,
    x: Array,
    w: Array,
    b: Array | None,
    y: Array,
    cut: tuple[Jobs, float],
) -> None:
    jobs, work = cut
    if b is not None:
        b = np.ascontiguousarray(b)
    x_at, w_at, b_at, y_at = address(x), address(w), 0 if b is None else address(b), address(y)
    (xn, xc), wc, (yn, yc), item = x.strides[:2], w.strides[0], y.strides[:2], x.itemsize

    rows = [
        (
            *(ctypes.addressof(phases), len(phases), together, n1 - n0, c1 - c0, h0, h1),
            x_at + n0 * xn + c0 * xc,
            w_at + c0 * wc,
            b_at and b_at + c0 * item,
            y_at + n0 * yn + c0 * yc,
            0,
        )
        for (n0, n1), (c0, c1), (h0, h1) in jobs
    ]
    run(c, "depthwise", rows, work, {11: ("taps", number_of_taps * TAP_BYTES)})


def _cut(x: Array, window: Window, out_size: tuple[int, ...], last: bool) -> tuple[Jobs, float]:
    """Cut images, channels and rows into jobs; return these and their work."""
    images, channels = x.shape[:2]
    work = images * channels * window.places * window.taps * COST
    return _jobs(
        images, channels, three(out_size, 1)[1], last, VECTOR_BYTES // x.itemsize, workers(work)
    ), work


@lru_cache(maxsize=512)
def _jobs(images: int, channels: int, rows: int, last: bool, lanes: int, share: int) -> Jobs:
    pieces = JOBS * share if share > 1 else 1
    by_image = _bounds(images, pieces)
    pieces = -(-pieces // max(1, len(by_image)))
    if last:
        by_row = _bounds(rows, pieces)
        by_channel = _bounds(channels, -(-pieces // len(by_row)), lanes)
    else:
        by_channel = _bounds(channels, pieces)
        by_row = _bounds(rows, -(-pieces // len(by_channel)))
    return tuple(product(by_image, by_channel, by_row))


def _cut_gradient(x: Array, window: Window, last: bool) -> tuple[list[tuple[Bounds, Bounds]], list[Any]]:
    """Return parts, (images, rows), each summed apart, and jobs, (part, channels).

    The parts do not depend on the number of threads, nor does a channel's sum on the others.
    """
    lanes = VECTOR_BYTES // x.itemsize
    return _gradient_jobs(*x.shape[:2], three(window.out_size, 1)[1], last, lanes)


@lru_cache(maxsize=512)
def _gradient_jobs(
    images: int, channels: int, rows: int, last: bool, lanes: int
) -> tuple[list[tuple[Bounds, Bounds]], list[Any]]:
    pieces = PARTS if last or channels < GRADIENT_JOBS else 1
    by_image = _bounds(images, pieces)
    by_row = _bounds(rows, -(-pieces // max(1, len(by_image))))
    parts = list(product(by_image, by_row)) or [((0, 0), (0, 0))]
    unit = VECTORS * lanes if last else 1
    by_channel = _bounds(channels, -(-GRADIENT_JOBS // len(parts)), unit)
    return parts, list(product(range(len(parts)), by_channel))


def _at_once(window: Window) -> int:
    """Return the channels, or vectors of them, whose sums of a weight gradient are computed at once."""
    return max(1, AT_ONCE_BYTES // (window.taps * VECTOR_BYTES))


def _bounds(number: int, pieces: int, unit: int = 1) -> list[Bounds]:
    """Cut a number of things into so many equal pieces, in multiples of a unit, or into fewer."""
    size = max(1, -(-number // (pieces * unit))) * unit
    return [(lo, min(number, lo + size)) for lo in range(0, number, size)]
