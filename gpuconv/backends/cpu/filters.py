"""Depthwise convolution by our C kernels (native/depthwise.c), in either layout; arrays are canonical views.

Every output, place of dx and tap of dw is a sum in a register: there are no columns, bands or copies. An
input gradient is, as in `convolution`, a convolution of dy for each phase of the stride, but in one pass.
"""

import ctypes
from itertools import product
from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.cpu import compiled
from gpuconv.backends.cpu.compiled import Kernels, address, strides
from gpuconv.backends.cpu.threads import buffer, parallel, used, workers
from gpuconv.backends.plans import Account
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]
Bounds = tuple[int, int]


class Struct(ctypes.Structure):
    """A convolution, or a phase of an input gradient; see native/depthwise.h."""

    _fields_ = compiled.fields("Depthwise")


# A vector's bytes, at most.
VECTOR_BYTES = 64


class Tap(ctypes.Structure):
    """A tap of the axes across a block of outputs."""

    _fields_ = compiled.fields("AcrossTap")


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
    _run(
        c, (Struct * 1)(_struct(window, last, x, w, y)), 1, x, w, b, y, _cut(x, window, window.out_size, last)
    )


def input_grad(c: Kernels, dy: Array, w: Array, b: Array | None, window: Window, dx: Array) -> None:
    """Write the gradient by x, plus b, to dx; w is [C, 1, *kernel]."""
    last = _channels_lie_together(dy, dx)
    w = _beside(w, last)
    adjoint = window.adjoint()
    phases = (Struct * len(adjoint))()
    for i, (places, taps, phase) in enumerate(adjoint):
        turned = np.flip(w[:, :, *taps], axis=tuple(range(2, w.ndim)))
        part = dx[:, :, *places]
        phases[i] = _struct(phase, last, dy, turned, part)
        phases[i].tap = (address(turned) - address(w)) // w.itemsize
        phases[i].place = (address(part) - address(dx)) // dx.itemsize
    rows = adjoint[0].window.out_size  # the first phase has the most
    together = 2 if _come_in_pairs(dx, window, last) else 1
    _run(c, phases, together, dy, w, b, dx, _cut(dy, window, rows, last))


def weight_grad(c: Kernels, dy: Array, x: Array, window: Window, dw: Array) -> None:
    """Write the gradient by w to dw, [C, 1, *kernel]."""
    last = _channels_lie_together(x, dy)
    channels = x.shape[1]
    parts, jobs = _cut_gradient(x, window, last)
    shape = (len(parts), *window.kernel, channels) if last else (len(parts), channels, *window.kernel)
    memory = np.zeros(shape, x.dtype)
    sums = np.moveaxis(memory, -1, 1) if last else memory
    struct = _struct(window, last, x, sums[0][:, None], dy)
    steps, dy_steps = strides(x), strides(dy)
    at_once = _at_once(window)
    part_step, channel_step = strides(sums)[:2]

    def one(job: tuple[int, tuple[int, int]]) -> None:
        number, (c0, c1) = job
        (n0, n1), (h0, h1) = parts[number]
        taps = buffer("taps", (window.taps, TAP_BYTES), np.uint8)
        vectors = buffer("sums", (at_once * window.taps + 1, VECTOR_BYTES), np.uint8)
        c.depthwise_gradient(
            *(ctypes.byref(struct), n1 - n0, c1 - c0, h0, h1),
            address(x) + (n0 * steps[0] + c0 * steps[1]) * x.itemsize,
            address(dy) + (n0 * dy_steps[0] + c0 * dy_steps[1]) * x.itemsize,
            address(sums) + (number * part_step + c0 * channel_step) * x.itemsize,
            *(address(vectors), at_once, address(taps)),
        )

    parallel(one, jobs, dy.size * window.taps * COST)
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


def _struct(window: Window, last: bool, x: Array, w: Array, y: Array) -> Struct:
    stride, before = _three(window.stride, 1), _three(window.before, 0)
    return Struct(
        last=last,
        size=_three(window.in_size, 1),
        box=_three(window.out_size, 1),
        first=tuple(-b for b in before),
        kernel=_three(window.kernel, 1),
        stride=stride,
        dilation=_three(window.dilation, 1),
        x=_steps(x, 2),
        w=_steps(w[:, 0], 1),
        y=_steps(y, 2),
    )


def _three(values: tuple[int, ...], fill: int) -> tuple[int, ...]:
    return (fill,) * (3 - len(values)) + values


def _steps(x: Array, lead: int) -> tuple[int, ...]:
    steps = strides(x)
    return (*steps[:lead], *_three(tuple(steps[lead:]), 0))


Jobs = list[tuple[Bounds, Bounds, Bounds]]  # images, channels, rows of each phase


def _run(
    c: Kernels,
    phases: "ctypes.Array[Struct]",
    together: int,
    x: Array,
    w: Array,
    b: Array | None,
    y: Array,
    cut: tuple[Jobs, float],
) -> None:
    jobs, work = cut
    item = x.itemsize
    x_at, w_at, y_at = address(x), address(w), address(y)
    (xn, xc), wc, (yn, yc) = strides(x)[:2], strides(w)[0], strides(y)[:2]
    if b is not None:
        b = np.ascontiguousarray(b)

    taps = sum(prod(phase.kernel) for phase in phases)

    def one(job: tuple[Bounds, Bounds, Bounds]) -> None:
        (n0, n1), (c0, c1), (h0, h1) = job
        c.depthwise(
            *(phases, len(phases), together, n1 - n0, c1 - c0, h0, h1),
            x_at + (n0 * xn + c0 * xc) * item,
            w_at + c0 * wc * item,
            None if b is None else address(b) + c0 * item,
            y_at + (n0 * yn + c0 * yc) * item,
            address(buffer("taps", (taps, TAP_BYTES), np.uint8)),
        )

    parallel(one, jobs, work)


def _cut(x: Array, window: Window, out_size: tuple[int, ...], last: bool) -> tuple[Jobs, float]:
    """Cut images, channels and rows into jobs; return these and their work."""
    images, channels = x.shape[:2]
    work = images * channels * window.places * window.taps * COST
    share, rows = workers(work), _three(out_size, 1)[1]
    pieces = JOBS * share if share > 1 else 1
    by_image = _bounds(images, pieces)
    pieces = -(-pieces // max(1, len(by_image)))
    if last:
        by_row = _bounds(rows, pieces)
        by_channel = _bounds(channels, -(-pieces // len(by_row)), VECTOR_BYTES // x.itemsize)
    else:
        by_channel = _bounds(channels, pieces)
        by_row = _bounds(rows, -(-pieces // len(by_channel)))
    return list(product(by_image, by_channel, by_row)), work


def _cut_gradient(x: Array, window: Window, last: bool) -> tuple[list[tuple[Bounds, Bounds]], list[Any]]:
    """Return parts, (images, rows), each summed apart, and jobs, (part, channels).

    The parts do not depend on the number of threads, nor does a channel's sum on the others.
    """
    images, channels = x.shape[:2]
    pieces = PARTS if last or channels < GRADIENT_JOBS else 1
    by_image = _bounds(images, pieces)
    by_row = _bounds(_three(window.out_size, 1)[1], -(-pieces // max(1, len(by_image))))
    parts = list(product(by_image, by_row)) or [((0, 0), (0, 0))]
    unit = VECTORS * VECTOR_BYTES // x.itemsize if last else 1
    by_channel = _bounds(channels, -(-GRADIENT_JOBS // len(parts)), unit)
    return parts, list(product(range(len(parts)), by_channel))


def _at_once(window: Window) -> int:
    """Return the channels, or vectors of them, whose sums of a weight gradient are computed at once."""
    return max(1, AT_ONCE_BYTES // (window.taps * VECTOR_BYTES))


def _bounds(number: int, pieces: int, unit: int = 1) -> list[Bounds]:
    """Cut a number of things into so many equal pieces, in multiples of a unit, or into fewer."""
    size = max(1, -(-number // (pieces * unit))) * unit
    return [(lo, min(number, lo + size)) for lo in range(0, number, size)]
