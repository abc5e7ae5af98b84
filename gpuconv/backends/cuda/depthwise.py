"""Convolution of small groups by kernels of our own, straight from the image: forward, and both gradients.

A group of few channels multiplies so little that columns, written and read again, would be most of what is
moved. These kernels (cuda/depthwise.cu, cuda/depthwise_weight_grad.cu) read each element from memory once. A
thread computes a tile of places in registers; worked out here is how large, and how tiles follow each other.
"""

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

from gpuconv.backends.cuda.columns import Laid, channel_lanes, three, window_struct
from gpuconv.backends.cuda.kernels import (
    THREADS,
    UNROLLED,
    UNROLLED_TAPS,
    Kernel,
    divisor,
    needs_wide,
    specialise,
)
from gpuconv.backends.cuda.parts import sum_parts
from gpuconv.backends.cuda.problem import BIAS, LEFT, RESULT, RIGHT, WORK, Problem
from gpuconv.backends.cuda.program import At, Launch, LimitTooSmall, Program, kernel_launch, lanes, planned
from gpuconv.backends.dispatch import accumulator
from gpuconv.config import config
from gpuconv.geometry import Window

# Channels of a group at most, read or written: the products of more are matrix products.
MOST_CHANNELS = 8
# Larger steps share little between neighbouring places; what wider windows read doesn't fit the registers.
MOST_STRIDE, MOST_SPAN = 4, 64


def chosen(problem: Problem) -> bool:
    """Tell whether these kernels take it: by themselves where a group has one input channel, else when asked.

    There bytes decide, and columns are taps times as many. Groups of several channels compute more for each
    byte: which way is faster then waits for a measurement.
    """
    asked = config.algorithm
    return asked != "gemm" and (problem.cg == 1 or asked == "direct") and _computable(problem)


def _computable(problem: Problem) -> bool:
    window = problem.window
    return (
        problem.dtype.kind == "f"
        and max(problem.cg, problem.og) <= MOST_CHANNELS
        and max(window.stride) <= MOST_STRIDE
        and max(window.span) <= MOST_SPAN
        and window.taps * accumulator(problem.dtype).itemsize <= UNROLLED_TAPS * 4
    )


@planned
def plan_forward(problem: Problem, x: Laid, alignment: int, with_bias: bool) -> Program:
    """Return the program for x (LEFT), w (RIGHT, at a multiple of `alignment` elements), b (BIAS) and y."""
    p = problem
    if p.channels_last:
        strides = {"group": p.og, "in": p.c_out, "out": 1, "tap": p.cg * p.c_out}
    else:
        strides = {"group": p.og * p.rows, "in": p.window.taps, "out": p.rows, "tap": 1}
    return _filter(p, _forward(p), x, strides, alignment, with_bias)


@planned
def plan_input_grad(problem: Problem, dy: Laid, alignment: int, with_bias: bool) -> Program:
    """Return the program for dy (LEFT), w (RIGHT, at a multiple of `alignment` elements), b (BIAS) and dx."""
    p = problem
    if p.channels_last:
        strides = {"group": p.og, "in": 1, "out": p.c_out, "tap": p.cg * p.c_out}
    else:
        strides = {"group": p.og * p.rows, "in": p.rows, "out": p.window.taps, "tap": 1}
    return _filter(p, _backward(p), dy, strides, alignment, with_bias)


class Reading(NamedTuple):
    """How a result is computed from a source: y from x, or, backward, dx from dy.

    `window.in_size` is the source's, `out_size` the result's, and `before` how far before a tile of the
    result its reading begins, as cuda/tile.cuh counts; `channels` are a group's, of source and result.
    """

    window: Window
    channels: tuple[int, int]
    backward: bool
    phase: tuple[int, ...]

    def columns(self, places: int) -> int:
        """Return how many places of a row so many neighbours read, as READ in cuda/tile.cuh."""
        k, s, d = self.window.kernel[-1], self.window.stride[-1], self.window.dilation[-1]
        if not self.backward:
            return (places - 1) * s + (k - 1) * d + 1
        return max(0, (k - 1) * d - self.phase[-1]) // s + (self.phase[-1] + places - 1) // s + 1

    def step(self, axis: int) -> int:
        """Return of what a tile's places along an axis are a multiple, so that all tiles have one phase."""
        return self.window.stride[axis] if self.backward else 1


def _forward(p: Problem) -> Reading:
    return Reading(p.window, (p.cg, p.og), False, (0,) * p.window.axes)


def _backward(p: Problem) -> Reading:
    window = p.window
    phase = tuple(b % s for b, s in zip(window.before, window.stride, strict=True))
    each = zip(window.span, phase, window.before, window.stride, strict=True)
    before = [max(0, span - 1 - r) // s - b // s for span, r, b, s in each]
    if window.axes == 3:  # a tile has one slice, and the kernel asks of each tap whether it reads one
        before[0] = window.before[0]
    turned = replace(window, in_size=window.out_size, out_size=window.in_size, before=tuple(before))
    return Reading(turned, (p.og, p.cg), True, phase)


def _filter(
    p: Problem, reading: Reading, source: Laid, strides: dict[str, int], alignment: int, with_bias: bool
) -> Program:
    """Return the launch of depthwise.cu, with these strides of w."""
    window, (read, written) = reading.window, reading.channels
    channels, read_channels = window.groups * written, window.groups * read
    if p.channels_last:
        vector = _channels_at_once(p, reading, source)
        if not reading.backward or read * written == 1:  # weights are vectors, too
            vector = min(vector, lanes(p.itemsize, alignment))
    else:
        vector = _places_at_once(p, reading, source, window.in_size)
    tile = _tile(p, reading, vector, FILTER)
    tiles = _count(window, tile)
    vectors = channels // tile.vector if p.channels_last else channels
    items = p.images * vectors * prod(tiles)
    wide = needs_wide(
        items,
        p.images * channels * prod(window.out_size),
        source.extent(p.images, read_channels, window.in_size),
        p.c_out * p.rows,
    )
    launch = kernel_launch(
        _kernel("depthwise", p, reading, tile, wide, WITH_BIAS=int(with_bias)),
        items,
        (At(LEFT), At(RIGHT), At(BIAS if with_bias else RIGHT), At(RESULT)),
        window=window_struct(window),
        source=source.struct(p.images, read_channels, window.in_size),
        channels=divisor(vectors, wide),
        tiles=_tiles(tiles, wide),
        **strides,
    )
    return Program((launch,))


# Of the weight gradient. Tiles that a thread takes at least, so that adding up what the threads of a block
# have stays a small part of the work; blocks at most, so that adding up theirs does.
TILES, BLOCKS = 4, 1024
# Vectors of channels that lie side by side in a block, at most: a warp's.
ACROSS = 32
TOGETHER = 16  # as in the kernel


@planned
def plan_weight_grad(problem: Problem, x: Laid, dy: Laid, limit: int) -> Program:
    """Return the program for dy (LEFT), x (RIGHT), dw (RESULT), and the sums of parts (WORK)."""
    p, window, sums = problem, problem.window, problem.c_out * problem.rows
    reading, itemsize = _forward(p), accumulator(p.dtype).itemsize
    if sums * itemsize > limit:
        raise LimitTooSmall(sums * itemsize)
    if p.channels_last:
        vector = min(_channels_at_once(p, reading, x), channel_lanes(p.itemsize, p.c_out, dy))
        strides = {"in": p.c_out, "out": 1, "tap": p.cg * p.c_out}
    else:
        vector = min(
            _places_at_once(p, reading, x, window.in_size), _places_at_once(p, reading, dy, window.out_size)
        )
        strides = {"in": window.taps, "out": p.rows, "tap": 1}
    tap_rows = window.taps // window.kernel[-1]
    tile, split = _tile(p, reading, vector, WEIGHT_GRAD), False
    if p.channels_last and tile.vector < vector and tap_rows > 1:
        tile, split = _tile(p, reading, vector, ROW_OF_WEIGHT_GRAD)._replace(rows=1), True
    tiles = _count(window, tile)
    vectors = p.c_out // tile.vector if p.channels_last else p.c_out
    apart = tap_rows if split else 1
    chunks = -(-vectors // min(ACROSS, THREADS // apart)) if p.channels_last else vectors
    across = -(-vectors // chunks)
    blocks, total = chunks * p.cg, p.images * prod(tiles)
    per_block = THREADS // (across * apart) * TILES
    parts = min(-(-total // per_block), BLOCKS // blocks, limit // (sums * itemsize))
    length = -(-total // max(1, parts))
    parts = -(-total // length)
    wide = needs_wide(
        x.extent(p.images, p.c_in, window.in_size),
        dy.extent(p.images, p.c_out, window.out_size),
        total + length,
        parts * sums,
    )
    kernel = _kernel("depthwise_weight_grad", p, reading, tile, wide, SPLIT=int(split))
    struct = kernel.arguments(
        window=window_struct(window),
        x=x.struct(p.images, p.c_in, window.in_size),
        dy=dy.struct(p.images, p.c_out, window.out_size),
        total=total,
        length=length,
        tiles=_tiles(tiles, wide),
        blocks=blocks,
        channels=p.c_out,
        size=sums,
        across=across,
        **strides,
    )
    shared = THREADS * TOGETHER * itemsize
    first = Launch(kernel, blocks * parts, (At(LEFT), At(RIGHT), At(WORK)), struct, shared)
    last = sum_parts(At(WORK), At(RESULT), sums, parts, p.dtype)
    return Program((first, last), parts * sums * itemsize)


# Channels last, channels of a thread at most. With float16's 8 in 16 bytes, half as many places would fit the
# registers, for more instructions a result (docs/gpu.md).
MOST_LANES = 4


def _channels_at_once(p: Problem, reading: Reading, source: Laid) -> int:
    """Channels last: return how many channels of the result a thread may take."""
    read, written = reading.channels
    channels = reading.window.groups * written
    together = read * written == 1  # then the source's are vectors, too
    vector = channel_lanes(p.itemsize, channels, source) if together else lanes(p.itemsize, channels)
    vector = min(vector, MOST_LANES)
    while vector % written and written % vector:  # whole groups, or a part of one
        vector //= 2
    return vector


def _places_at_once(p: Problem, reading: Reading, source: Laid, sizes: tuple[int, ...]) -> int:
    """Channels first: return how many places of a row one access may move, of a source and of the result."""
    if source.place[-1] != 1:
        return 1
    columns, s = _columns(p, reading), reading.window.stride[-1]
    apart = columns // s if reading.backward else columns * s  # where neighbouring tiles begin to read
    multiples = (sizes[-1], reading.window.out_size[-1], columns, apart)
    return lanes(p.itemsize, *multiples, source.image, source.channel, *source.place[:-1], source.alignment)


class Registers(NamedTuple):
    """How many 32-bit values a thread may keep, beside addresses and what the compiler reads ahead.

    It has 255 registers; 128 where two blocks are resident on a multiprocessor, 80 where three are. The
    limits are those up to which none is spilled on sm_75 to sm_120 (profiling/compile_report.py).
    """

    beside: Callable[[Window, int], int]  # of each channel, beside the tile and what is read of a row
    most: int
    resident: tuple[int, ...]  # up to so many, one more block is resident


def _weights(window: Window, rows: int) -> int:
    """Return the weights that a tile of so many rows (of one phase) keeps: all, or those of a row of taps."""
    return window.kernel[-1] * (window.kernel[-2] if rows > 1 else 1)


FILTER = Registers(_weights, 96, (92, 51))
# With 95, a 7x7 window channels first, 4 bytes are spilled (NVRTC 13.5; none by 13.4).
WEIGHT_GRAD = Registers(lambda window, rows: window.taps, 94, (51,))
ROW_OF_WEIGHT_GRAD = Registers(lambda window, rows: window.kernel[-1], 100, (51,))
# A double takes an aligned pair of registers, and some are lost between pairs.
WORDS = {4: 1.0, 8: 2.5}
# What the loop over the channels of a group, or over the slices of taps, takes besides.
LOOP = 48

# Places of a tile at most, along the last two axes. Channels first, a row's 8 are one access of float16 or
# two of float32; channels last, each place is an access of its own.
FIRST, LAST = (4, 8), (4, 4)
# A plane is cut into at least so many tiles from top to bottom, or small ones would occupy few threads.
LEAST_TILES = 7


class Tile(NamedTuple):
    """A thread's places along the last two axes, elements of an access, blocks resident at once."""

    rows: int
    columns: int
    vector: int
    resident: int


def _tile(p: Problem, reading: Reading, vector: int, registers: Registers) -> Tile:
    """Return the largest tile that fits the registers."""
    window, columns = reading.window, _columns(p, reading)
    rows = step = 1
    if window.axes > 1:
        step, most = reading.step(-2), (LAST if p.channels_last else FIRST)[0]
        rows = max(1, min(most, window.out_size[-2] // LEAST_TILES) // step) * step

    def kept() -> float:
        of_channel = rows * columns + reading.columns(columns) + registers.beside(window, rows // step)
        values = of_channel * (vector if p.channels_last else 1)
        return WORDS[accumulator(p.dtype).itemsize] * values

    while rows > step and kept() > registers.most:
        rows = max(1, rows // 2 // step) * step
    while p.channels_last and vector > 1 and kept() > registers.most:
        vector //= 2
    in_use = kept() + LOOP * (reading.channels[0] > 1 or window.axes > 2)
    return Tile(rows, columns, vector, 1 + sum(in_use <= most for most in registers.resident))


def _columns(p: Problem, reading: Reading) -> int:
    """Return a tile's places along the last axis."""
    step, most = reading.step(-1), (LAST if p.channels_last else FIRST)[1]
    if reading.window.out_size[-1] <= most // 2:
        most //= 2
    return max(1, most // step) * step


def _count(window: Window, tile: Tile) -> tuple[int, ...]:
    """Return how many tiles there are along each of three axes; along the first they are slices."""
    sizes = three(window.out_size, 1)
    return tuple(-(-n // step) for n, step in zip(sizes, (1, tile.rows, tile.columns), strict=True))


def _tiles(count: tuple[int, ...], wide: bool) -> dict[str, Any]:
    """Return the kernels' struct Tiles."""
    divisors = (divisor(n, wide) for n in count)
    return dict(zip(("slices", "rows", "columns"), divisors, strict=True))


def _kernel(name: str, p: Problem, reading: Reading, tile: Tile, wide: bool, **more: int) -> Kernel:
    _, *phases = three(reading.phase, 0)
    return specialise(
        name,
        p.window,
        p.dtype,
        vector=tile.vector,
        wide=wide,
        CHANNELS_LAST=int(p.channels_last),
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        RESIDENT=tile.resident,
        UNROLL_ROWS=1 if tile.rows == 1 else UNROLLED,
        IN=reading.channels[0],
        OUT=reading.channels[1],
        LEAD=0 if p.channels_last else -reading.window.before[-1] % tile.vector,
        BACKWARD=int(reading.backward),
        PHASE1=phases[0],
        PHASE2=phases[1],
        **more,
    )
