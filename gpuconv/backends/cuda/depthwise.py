"""Convolution of small groups by our own kernels, straight from the image: forward, and both gradients.

A group of few channels multiplies so little that the columns, written and read again, would be most of the
traffic. These kernels (cuda/depthwise.cu, cuda/depthwise_weight_grad.cu) read each element once from memory. A
thread computes a tile of places in registers; here is worked out how large, and how tiles follow each other.
"""

from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

from gpuconv.backends.cuda.columns import Laid, channel_lanes, dense, three, window_struct
from gpuconv.backends.cuda.kernels import THREADS, UNROLLED_TAPS, Kernel, divisor, needs_wide, specialise
from gpuconv.backends.cuda.problem import BIAS, LEFT, RESULT, RIGHT, WORK, Problem
from gpuconv.backends.cuda.program import (
    At,
    Launch,
    LimitTooSmall,
    Program,
    kernel_launch,
    lanes,
    planned,
)
from gpuconv.backends.dispatch import accumulator
from gpuconv.config import config
from gpuconv.geometry import Window

# Channels of a group at most, read or written: the products of more are matrix products.
MOST_CHANNELS = 8
# Larger steps share little between neighbouring places, wider windows don't fit the registers.
MOST_STRIDE, MOST_SPAN = 4, 64
# Places of a tile at most, along the last two axes. Channels first, a row's 8 are an access of float16 or two of
# float32; channels last, each place is an access of its own.
FIRST, LAST = (4, 8), (2, 4)
# Small planes are cut into at least so many tiles along their next to last axis, or few threads would have work.
LEAST_TILES = 7
# 32-bit values that a thread keeps at most, of the 255 registers that it can have: the compiler needs others for
# addresses, and for what it reads ahead.
REGISTERS = 96


def chosen(problem: Problem) -> bool:
    """Tell whether these kernels take it: by themselves where each group has one input channel, or asked for.

    Groups of several channels wait for a measurement: there, arithmetic and memory are closer together.
    """
    if config.algorithm == "gemm" or not _can(problem):
        return False
    return problem.cg == 1 or config.algorithm == "direct"


def _can(problem: Problem) -> bool:
    window = problem.window
    return (
        problem.dtype.kind == "f"
        and max(problem.cg, problem.og) <= MOST_CHANNELS
        and max(window.stride) <= MOST_STRIDE
        and max(window.span) <= MOST_SPAN
        and window.taps * accumulator(problem.dtype).itemsize // 4 <= UNROLLED_TAPS
    )


class Tile(NamedTuple):
    """Places of a thread along the last two axes, and the elements that one access moves."""

    rows: int
    columns: int
    vector: int


class Reading(NamedTuple):
    """From which window, of how many channels a group, is read; backward, the window's in and out are exchanged.

    `before` says, axis by axis, how far before a tile its reading begins, as cuda/tile.cuh counts.
    """

    window: Window
    channels: tuple[int, int]
    backward: bool
    phase: tuple[int, ...]

    def columns(self, places: int) -> int:
        """Return how many places of a row so many neighbours read; as READ in cuda/tile.cuh."""
        k, s, d = self.window.kernel[-1], self.window.stride[-1], self.window.dilation[-1]
        if not self.backward:
            return (places - 1) * s + (k - 1) * d + 1
        return max(0, (k - 1) * d - self.phase[-1]) // s + (self.phase[-1] + places - 1) // s + 1

    def steps(self, places: int) -> int:
        """Return by how many places the reading moves from a tile to the next, along the last axis."""
        return places // self.window.stride[-1] if self.backward else places * self.window.stride[-1]


def _forward(p: Problem) -> Reading:
    return Reading(p.window, (p.cg, p.og), False, (0,) * p.window.axes)


def _backward(p: Problem) -> Reading:
    window = p.window
    phase = tuple(b % s for b, s in zip(window.before, window.stride, strict=True))
    reach = zip(window.span, phase, window.before, window.stride, strict=True)
    before = [max(0, span - 1 - r) // s - b // s for span, r, b, s in reach]
    if window.axes == 3:  # slices are not cut into tiles: the kernel asks each tap whether it reads one
        before[0] = window.before[0]
    turned = replace(window, in_size=window.out_size, out_size=window.in_size, before=tuple(before))
    return Reading(turned, (p.og, p.cg), True, phase)


@planned
def plan_forward(problem: Problem, x: Laid, alignment: int, with_bias: bool) -> Program:
    """Return the program for x (LEFT), w (RIGHT, at a multiple of `alignment` elements), b (BIAS) and y."""
    p = problem
    reading = _forward(p)
    if p.channels_last:
        strides = {"group": p.og, "in": p.c_out, "out": 1, "tap": p.cg * p.c_out}
    else:
        strides = {"group": p.og * p.rows, "in": p.window.taps, "out": p.rows, "tap": 1}
    return _filter(p, reading, x, p.c_out, strides, alignment, with_bias)


@planned
def plan_input_grad(problem: Problem, dy: Laid, alignment: int, with_bias: bool) -> Program:
    """Return the program for dy (LEFT), w (RIGHT, at a multiple of `alignment` elements), b (BIAS) and dx."""
    p = problem
    reading = _backward(p)
    if p.channels_last:
        strides = {"group": p.og, "in": 1, "out": p.c_out, "tap": p.cg * p.c_out}
    else:
        strides = {"group": p.og * p.rows, "in": p.rows, "out": p.window.taps, "tap": 1}
    return _filter(p, reading, dy, p.c_in, strides, alignment, with_bias)


def _filter(
    p: Problem,
    reading: Reading,
    source: Laid,
    channels: int,
    strides: dict[str, int],
    alignment: int,
    with_bias: bool,
) -> Program:
    """Return the launch of depthwise.cu: `channels` of the result, w with these strides."""
    window, (read, written) = reading.window, reading.channels
    if p.channels_last:
        vector = _channel_lanes(p, reading, channels, source)
        if not reading.backward or read * written == 1:  # weights are read as vectors, too
            vector = min(vector, lanes(p.itemsize, alignment))
    else:
        vector = _place_lanes(p, reading, source, window.in_size)
    tile = _tile(p, reading, vector, taps=1)
    tiles = _tiles(window, tile)
    across = channels // vector if p.channels_last else channels
    items = p.images * across * prod(tiles)
    size = p.images * channels * prod(window.out_size)
    extent = source.extent(p.images, channels // written * read, window.in_size)
    wide = needs_wide(items, size, extent, p.c_out * p.rows)
    kernel = _kernel("depthwise", p, reading, tile, wide, WITH_BIAS=int(with_bias))
    launch = kernel_launch(
        kernel,
        items,
        (At(LEFT), At(RIGHT), At(BIAS) if with_bias else At(RIGHT), At(RESULT)),
        window=window_struct(window),
        source=source.struct(p.images, channels // written * read, window.in_size),
        channels=divisor(across, wide),
        tiles=_tiles_struct(tiles, wide),
        **strides,
    )
    return Program((launch,))


# Of the weight gradient: tiles that a thread takes at least, so that adding up the threads' sums stays a small part
# of the work; and blocks at most, some for each multiprocessor, so that adding up theirs does.
TILES, BLOCKS = 4, 1024
# Sums that the threads of a block add up at a time, as in the kernel.
TOGETHER = 16
# Vectors of channels that lie side by side in a block.
ACROSS = 32


@planned
def plan_weight_grad(problem: Problem, x: Laid, dy: Laid, limit: int) -> Program:
    """Return the program for dy (LEFT), x (RIGHT), dw (RESULT), and the sums of parts (WORK)."""
    p, window, taps = problem, problem.window, problem.window.taps
    reading, wide_dtype = _forward(p), accumulator(problem.dtype)
    if p.channels_last:
        vector = channel_lanes(p.itemsize, p.c_out, dy)
        vector = min(vector, _channel_lanes(p, reading, p.c_out, x))
    else:
        vector = _place_lanes(p, reading, x, window.in_size)
        vector = min(vector, _place_lanes(p, reading, dy, window.out_size))
    tile = _tile(p, reading, vector, taps)
    tiles = _tiles(window, tile)
    total, sums = p.images * prod(tiles), p.c_out * p.rows
    if sums * wide_dtype.itemsize > limit:
        raise LimitTooSmall(sums * wide_dtype.itemsize)
    if p.channels_last:
        vectors = p.c_out // tile.vector
        chunks = -(-vectors // ACROSS)
        across = -(-vectors // chunks)
    else:
        chunks, across = p.c_out, 1
    blocks = chunks * p.cg
    parts = min(-(-total // (THREADS // across * TILES)), BLOCKS // blocks, limit // (sums * wide_dtype.itemsize))
    length = -(-total // max(1, parts))
    parts = -(-total // length)
    wide = needs_wide(
        x.extent(p.images, p.c_in, window.in_size),
        dy.extent(p.images, p.c_out, window.out_size),
        total + length,
        parts * sums,
    )
    kernel = _kernel("depthwise_weight_grad", p, reading, tile, wide)
    struct = kernel.arguments(
        window=window_struct(window),
        x=x.struct(p.images, p.c_in, window.in_size),
        dy=dy.struct(p.images, p.c_out, window.out_size),
        total=total,
        length=length,
        tiles=_tiles_struct(tiles, wide),
        blocks=blocks,
        channels=p.c_out,
        **({"in": p.c_out, "out": 1, "tap": p.cg * p.c_out} if p.channels_last else {"in": taps, "out": p.rows, "tap": 1}),
        size=sums,
        across=across,
    )
    shared = THREADS * TOGETHER * wide_dtype.itemsize
    first = Launch(kernel, blocks * parts, (At(LEFT), At(RIGHT), At(WORK)), struct, shared)
    last = specialise("sum_parts", None, p.dtype, vector=1, wide=wide)
    return Program(
        (first, kernel_launch(last, sums, (At(WORK), At(RESULT)), parts=parts)), parts * sums * wide_dtype.itemsize
    )


def _channel_lanes(p: Problem, reading: Reading, channels: int, source: Laid) -> int:
    """Channels last: return how many channels of the result a thread may take; the source's lie as they lie."""
    read, written = reading.channels
    vector = channel_lanes(p.itemsize, channels, source) if read * written == 1 else lanes(p.itemsize, channels)
    while vector % written and written % vector:  # whole groups, or a part of one
        vector //= 2
    return vector


def _place_lanes(p: Problem, reading: Reading, source: Laid, sizes: tuple[int, ...]) -> int:
    """Channels first: return how many places of a row one access may move, reading a source or writing."""
    if source.place[-1] != 1:
        return 1
    columns = _columns(p, reading)
    multiples = (sizes[-1], reading.window.out_size[-1], columns, reading.steps(columns))
    return lanes(p.itemsize, *multiples, source.image, source.channel, *source.place[:-1], source.alignment)


def _columns(p: Problem, reading: Reading) -> int:
    """Return a tile's places along the last axis."""
    most = LAST[1] if p.channels_last else FIRST[1]
    if reading.window.out_size[-1] <= most // 2:
        most //= 2
    step = reading.window.stride[-1] if reading.backward else 1  # as for rows
    return max(1, most // step) * step


def _tile(p: Problem, reading: Reading, vector: int, taps: int) -> Tile:
    """Return the largest tile that fits the registers.

    `taps` are those whose sums a thread keeps; for others it keeps the weights of a row.
    """
    window, columns, words = reading.window, _columns(p, reading), accumulator(p.dtype).itemsize // 4
    rows = step = 1
    if window.axes > 1:
        step = window.stride[-2] if reading.backward else 1  # then all tiles have one phase
        most = LAST[0] if p.channels_last else FIRST[0]
        rows = max(1, min(most, window.out_size[-2] // LEAST_TILES) // step) * step

    def registers() -> int:
        values = rows * columns + reading.columns(columns) + max(taps, window.kernel[-1])
        return words * values * (vector if p.channels_last else 1)

    while rows > step and registers() > REGISTERS:
        rows = max(1, rows // 2 // step) * step
    while p.channels_last and vector > 1 and registers() > REGISTERS:
        vector //= 2
    return Tile(rows, columns, vector)


def _tiles(window: Window, tile: Tile) -> tuple[int, ...]:
    """Return how many tiles there are along each of three axes."""
    sizes = three(window.out_size, 1)
    return tuple(-(-n // step) for n, step in zip(sizes, (1, tile.rows, tile.columns), strict=True))


def _tiles_struct(tiles: tuple[int, ...], wide: bool) -> dict[str, Any]:
    return dict(zip(("slices", "rows", "columns"), (divisor(n, wide) for n in tiles), strict=True))


def _kernel(name: str, p: Problem, reading: Reading, tile: Tile, wide: bool, **more: int) -> Kernel:
    phases = three(reading.phase, 0)
    lead = 0 if p.channels_last else -reading.window.before[-1] % tile.vector
    return specialise(
        name,
        p.window,
        p.dtype,
        vector=tile.vector,
        wide=wide,
        CHANNELS_LAST=int(p.channels_last),
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        IN=reading.channels[0],
        OUT=reading.channels[1],
        LEAD=lead,
        BACKWARD=int(reading.backward),
        PHASE1=phases[1],
        PHASE2=phases[2],
        **more,
    )
