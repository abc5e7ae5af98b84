"""Convolution of small groups by kernels of our own, straight from the image: forward, and both gradients.

A group of few channels multiplies so little that columns, written and read again, would be most of what is
moved. These kernels (cuda/depthwise.cu, cuda/depthwise_weight_grad.cu) read each element from memory once. A
thread computes a tile of places in registers (`tiles`).
"""

from math import prod

from gpuconv.backends.cuda import tiles
from gpuconv.backends.cuda.columns import Laid, channel_lanes, window_struct
from gpuconv.backends.cuda.kernels import THREADS, needs_wide
from gpuconv.backends.cuda.parts import sum_parts
from gpuconv.backends.cuda.problem import BIAS, LEFT, RESULT, RIGHT, WORK, Epilogue, Problem
from gpuconv.backends.cuda.program import At, Launch, LimitTooSmall, Program, kernel_launch, lanes, planned
from gpuconv.backends.cuda.tiles import Numbers, Reading, Registers
from gpuconv.backends.dispatch import accumulator
from gpuconv.geometry import Window

# Channels of a group at most, read or written: the products of more are matrix products.
MOST_CHANNELS = 8


def takes(problem: Problem, which: str) -> bool:
    """Tell whether it can compute this."""
    return max(problem.cg, problem.og) <= MOST_CHANNELS and tiles.fits(problem.window, problem.dtype)


def _weights(window: Window, rows: int) -> int:
    """Return the weights that a tile of so many rows (of one phase) keeps: all, or those of a row of taps."""
    return window.kernel[-1] * (window.kernel[-2] if rows > 1 else 1)


FILTER = Registers(_weights, 96, (92, 51))
# With 95, a 7x7 window channels first, 4 bytes are spilled (NVRTC 13.5; none by 13.4).
WEIGHT_GRAD = Registers(lambda window, rows: window.taps, 94, (51,))
ROW_OF_WEIGHT_GRAD = Registers(lambda window, rows: window.kernel[-1], 100, (51,))


@planned
def plan_forward(problem: Problem, x: Laid, alignment: int, epilogue: Epilogue, limit: int) -> Program:
    """Return the program for x (LEFT), w (RIGHT, at a multiple of `alignment` elements), b (BIAS) and y."""
    p = problem
    return _filter(p, tiles.forward(p.window, p.cg, p.og), x, alignment, epilogue)


@planned
def plan_input_grad(problem: Problem, dy: Laid, alignment: int, epilogue: Epilogue, limit: int) -> Program:
    """Return the program for dy (LEFT), w (RIGHT, at a multiple of `alignment` elements), b (BIAS) and dx."""
    p = problem
    return _filter(p, tiles.backward(p.window, p.og, p.cg), dy, alignment, epilogue)


def _filter(p: Problem, reading: Reading, source: Laid, alignment: int, epilogue: Epilogue) -> Program:
    """Return the launch of depthwise.cu."""
    window, (read, written) = reading.window, reading.channels
    numbers = Numbers(p.dtype, p.channels_last)
    channels, read_channels = window.groups * written, window.groups * read
    if p.channels_last:
        vector = tiles.channels_at_once(numbers, reading, source, channels)
        if not reading.backward or read * written == 1:  # weights are vectors, too
            vector = min(vector, lanes(p.itemsize, alignment))
    else:
        vector = tiles.places_at_once(numbers, reading, source, window.in_size)
    tile = tiles.tile(numbers, reading, vector, FILTER)
    items = tiles.items(reading, tile, p.images, channels, numbers)
    wide = needs_wide(
        items,
        p.images * channels * prod(window.out_size),
        source.extent(p.images, read_channels, window.in_size),
        p.c_out * p.rows,
    )
    launch = kernel_launch(
        tiles.kernel("depthwise", numbers, reading, tile, wide, **epilogue.defines()),
        items,
        (At(LEFT), At(RIGHT), At(BIAS if epilogue.bias else RIGHT), At(RESULT)),
        source=source.struct(p.images, read_channels, window.in_size),
        **tiles.fields(reading, tile, channels, numbers, wide),
        **p.weight_strides(backward=reading.backward),
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
    reading, itemsize = tiles.forward(window, p.cg, p.og), accumulator(p.dtype).itemsize
    numbers = Numbers(p.dtype, p.channels_last)
    if sums * itemsize > limit:
        raise LimitTooSmall(sums * itemsize)
    if p.channels_last:
        vector = min(
            tiles.channels_at_once(numbers, reading, x, p.c_out), channel_lanes(p.itemsize, p.c_out, dy)
        )
        strides = {"in": p.c_out, "out": 1, "tap": p.cg * p.c_out}
    else:
        vector = min(
            tiles.places_at_once(numbers, reading, x, window.in_size),
            tiles.places_at_once(numbers, reading, dy, window.out_size),
        )
        strides = {"in": window.taps, "out": p.rows, "tap": 1}
    tap_rows = window.taps // window.kernel[-1]
    tile, split = tiles.tile(numbers, reading, vector, WEIGHT_GRAD), False
    if p.channels_last and tile.vector < vector and tap_rows > 1:
        tile, split = tiles.tile(numbers, reading, vector, ROW_OF_WEIGHT_GRAD)._replace(rows=1), True
    counts = tiles.count(window, tile)
    vectors = p.c_out // tile.vector if p.channels_last else p.c_out
    apart = tap_rows if split else 1
    chunks = -(-vectors // min(ACROSS, THREADS // apart)) if p.channels_last else vectors
    across = -(-vectors // chunks)
    blocks, total = chunks * p.cg, p.images * prod(counts)
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
    kernel = tiles.kernel("depthwise_weight_grad", numbers, reading, tile, wide, SPLIT=int(split))
    struct = kernel.arguments(
        window=window_struct(window),
        x=x.struct(p.images, p.c_in, window.in_size),
        dy=dy.struct(p.images, p.c_out, window.out_size),
        total=total,
        length=length,
        tiles=tiles.tiles_struct(counts, wide),
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
