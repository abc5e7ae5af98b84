"""Convolution as matrix products whose columns are never written (cuda/implicit_gemm.cu): no workspace.

A block of threads computes a tile of the result, places by channels of a group, from slices of both factors in
shared memory; columns exist there alone. The input gradient is computed in phases of the stride.
"""

from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

from gpuconv.backends.cuda.columns import Laid, three, window_struct
from gpuconv.backends.cuda.kernels import THREADS, divisor, needs_wide, specialise
from gpuconv.backends.cuda.problem import BIAS, LEFT, RESULT, RIGHT, Epilogue, Problem, round_up
from gpuconv.backends.cuda.program import At, Launch, Program, lanes, planned
from gpuconv.geometry import Window

# Taps at most: each is a bit of a mask.
MOST_TAPS = 64
DTYPES = ("float32", "float64")


def takes(problem: Problem, which: str) -> bool:
    """Tell whether it can compute this."""
    fits = problem.window.taps <= MOST_TAPS and problem.dtype.name in DTYPES
    return fits and which != "weight_grad"


class Tile(NamedTuple):
    """A block's share of the result, a thread's share of that, and how the factors come to shared memory."""

    channels: int
    places: int
    my_channels: int
    my_places: int
    depth: int
    stages: int
    resident: int

    def defines(self, rows_are_places: bool) -> dict[str, int]:
        """Return the kernels' constants; rows are places, or channels."""
        block, mine = (self.channels, self.places), (self.my_channels, self.my_places)
        if rows_are_places:
            block, mine = block[::-1], mine[::-1]
        names = ("ROWS", "COLUMNS", "MY_ROWS", "MY_COLUMNS", "DEPTH", "STAGES", "RESIDENT")
        return dict(zip(names, (*block, *mine, self.depth, self.stages, self.resident), strict=True))

    def shared(self, itemsize: int, wide: bool) -> int:
        """Return the bytes of shared memory: slices, and the table of terms."""
        term = 32 if wide else 16
        return self.stages * self.depth * (self.channels + self.places + 8) * itemsize + THREADS * term


# The largest first. Sums are registers: a thread of the first has 64, beside 16 factors of a term.
SINGLE = (
    Tile(128, 128, 8, 8, 8, 3, 2),
    Tile(64, 128, 4, 8, 8, 3, 2),
    Tile(32, 256, 4, 8, 8, 3, 2),
    Tile(16, 256, 4, 4, 16, 2, 2),
)
DOUBLE = (Tile(64, 64, 4, 4, 8, 3, 2), Tile(32, 128, 4, 4, 8, 3, 2))
# Where large tiles are too few for a GPU's multiprocessors.
SMALL = Tile(64, 64, 4, 4, 16, 3, 2)
ENOUGH_BLOCKS = 264  # two for each of an H200's


def tile(dtype: Any, channels: int, places: int) -> Tile:
    """Return the tile that leaves the fewest channels idle; a smaller one where there would be few blocks."""
    choices = SINGLE if dtype.itemsize == 4 else DOUBLE
    best = min(choices, key=lambda tile: round_up(channels, tile.channels))
    blocks = -(-channels // best.channels) * -(-places // best.places)
    return SMALL if blocks < ENOUGH_BLOCKS and best.channels > SMALL.channels else best


@planned
def plan_forward(problem: Problem, x: Laid, alignment: int, epilogue: Epilogue, limit: int) -> Program:
    """Return the program for x (LEFT), w (RIGHT, at a multiple of `alignment` elements), b (BIAS) and y."""
    p = problem
    if p.channels_last:
        strides = {"group": p.og, "in": p.c_out, "out": 1, "tap": p.cg * p.c_out}
    else:
        strides = {"group": p.og * p.rows, "in": p.window.taps, "out": p.rows, "tap": 1}
    weights = lanes(p.itemsize, p.og, alignment) if p.channels_last else 1
    return _product(p, p.window, (p.cg, p.og), x, strides, weights, epilogue, backward=False)


@planned
def plan_input_grad(problem: Problem, dy: Laid, alignment: int, epilogue: Epilogue, limit: int) -> Program:
    """Return the program for dy (LEFT), w (RIGHT), b (BIAS) and dx."""
    p = problem
    if p.channels_last:
        strides = {"group": p.og, "in": 1, "out": p.c_out, "tap": p.cg * p.c_out}
    else:
        strides = {"group": p.og * p.rows, "in": p.rows, "out": p.window.taps, "tap": 1}
    turned = replace(p.window, in_size=p.window.out_size, out_size=p.window.in_size)
    return _product(p, turned, (p.og, p.cg), dy, strides, 1, epilogue, backward=True)


def _product(
    p: Problem,
    window: Window,
    channels: tuple[int, int],
    source: Laid,
    strides: dict[str, int],
    weights: int,
    epilogue: Epilogue,
    *,
    backward: bool,
) -> Program:
    """Return the launch for these channels of a group, read and written, and these strides of w."""
    groups, (read, written) = window.groups, channels
    steps = window.stride if backward else (1,) * window.axes
    grid = [-(-size // step) for size, step in zip(window.out_size, steps, strict=True)]
    places, phases = p.images * prod(grid), prod(steps)
    chosen = tile(p.dtype, written, places * phases * groups)
    if p.channels_last:
        vector = lanes(p.itemsize, written)
    else:
        vector = lanes(p.itemsize, prod(window.out_size)) if phases == 1 else 1
    padded = tuple(
        size + before + after + span
        for size, before, after, span in zip(
            window.in_size, window.before, window.after, window.span, strict=True
        )
    )
    wide = needs_wide(
        places + chosen.places,
        p.images * groups * written * prod(window.out_size),
        source.extent(p.images, groups * read, padded),
        p.c_out * p.rows,
    )
    kernel = specialise(
        "implicit_gemm",
        window,
        p.dtype,
        vector=vector,
        wide=wide,
        CHANNELS_LAST=int(p.channels_last),
        BACKWARD=int(backward),
        WITH_BIAS=int(epilogue.bias),
        RELU=0,
        WEIGHTS=weights,
        MASK="unsigned" if window.taps <= 32 else "unsigned long long",
        **chosen.defines(p.channels_last),
    )
    tiles = -(-places // chosen.places), -(-written // chosen.channels)
    struct = kernel.arguments(
        window=window_struct(window),
        source=source.struct(p.images, groups * read, window.in_size),
        grid=[divisor(size, wide) for size in three(grid, 1)],
        places=places,
        read=read,
        written=written,
        depth=divisor(read, wide),
        place_tiles=tiles[0],
        channel_tiles=tiles[1],
        groups=groups,
        **strides,
    )
    pointers = At(LEFT), At(RIGHT), At(BIAS if epilogue.bias else RIGHT), At(RESULT)
    blocks = prod(tiles) * groups * phases
    return Program((Launch(kernel, blocks, pointers, struct, chosen.shared(p.itemsize, wide)),))
