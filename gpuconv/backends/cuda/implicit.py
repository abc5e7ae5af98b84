"""Convolution as matrix products whose columns are never written: implicit GEMM.

A block of threads computes a tile of the result from slices of both factors in shared memory; columns exist
there alone: cuda/implicit_gemm.cu for y and dx, the latter in phases of the stride, and
cuda/implicit_weight_grad.cu for dw. Where tiles would be too few for a GPU, sums are cut into parts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

from gpuconv.backends.cuda.columns import (
    Laid,
    channel_lanes,
    inner_divisors,
    places_lanes,
    three,
    window_struct,
)
from gpuconv.backends.cuda.kernels import THREADS, divisor, needs_wide, specialise
from gpuconv.backends.cuda.parts import sum_parts
from gpuconv.backends.cuda.problem import (
    AS_IT_IS,
    BIAS,
    LEFT,
    RESULT,
    RIGHT,
    WORK,
    Epilogue,
    Problem,
    round_up,
)
from gpuconv.backends.cuda.program import At, Launch, Program, lanes, planned
from gpuconv.backends.dispatch import accumulator
from gpuconv.geometry import Window

# Taps at most: each is a bit of a mask, of 32 bits where they suffice.
MOST_TAPS, NARROW_MASK = 64, 32
DTYPES = ("float16", "float32", "float64")


def takes(problem: Problem, which: str) -> bool:
    """Tell whether it can compute this."""
    return problem.window.taps <= MOST_TAPS and problem.dtype.name in DTYPES


class Tile(NamedTuple):
    """A block's share of the result, a thread's share of that, and how the factors come to shared memory."""

    channels: int
    places: int
    my_channels: int
    my_places: int
    depth: int
    stages: int
    resident: int
    tensor: int = 0  # products that tensor cores compute of each; 0 where they don't

    def defines(self, rows_are_places: bool) -> dict[str, int]:
        """Return the kernels' constants; rows are places, or channels."""
        block, mine = (self.channels, self.places), (self.my_channels, self.my_places)
        if rows_are_places:
            block, mine = block[::-1], mine[::-1]
        names = ("ROWS", "COLUMNS", "MY_ROWS", "MY_COLUMNS", "DEPTH", "STAGES", "RESIDENT", "TENSOR")
        values = (*block, *mine, self.depth, self.stages, self.resident, self.tensor)
        return dict(zip(names, values, strict=True))

    def lanes(self, itemsize: int, multiple: int) -> int:
        """Return how many results a thread writes at once; from tensor cores it has two side by side."""
        return min(lanes(itemsize, multiple), 2 if self.tensor else 4)

    def shared(self, itemsize: int, along: tuple[bool, bool], taps: int, wide: bool) -> int:
        """Return the bytes of shared memory: slices, and the table of terms, two offsets and a mask each.

        `along` tells of weights (or dy) and of places whether their terms lie side by side in memory.
        """
        term = 32 if wide or taps > NARROW_MASK else 16
        sides = zip((self.channels, self.places), along, strict=True)
        return self.stages * itemsize * sum(self._slice(*side, itemsize) for side in sides) + THREADS * term

    def _slice(self, size: int, along_depth: bool, itemsize: int) -> int:
        """Return the elements of a factor's slice, as product.cuh has them."""
        if self.tensor and along_depth:
            return size * (self.depth + 16 // itemsize)
        return self.depth * (size + (8 if self.tensor else 4))


# The largest first. Sums are registers: a thread of the first has 64, beside 16 factors of a term. Where it
# has fewer, slices are deeper, so that what is to be done beside multiplying is shared by more (docs/gpu.md).
SINGLE = (
    Tile(128, 128, 8, 8, 8, 3, 2),
    Tile(64, 128, 4, 8, 16, 2, 2),
    Tile(32, 256, 4, 8, 16, 2, 2),
    Tile(16, 256, 4, 4, 16, 2, 2),
)
DOUBLE = (Tile(64, 64, 4, 4, 8, 3, 2), Tile(32, 128, 4, 4, 8, 3, 2))
# Where large tiles are too few for a GPU's multiprocessors.
SMALL = Tile(64, 64, 4, 4, 16, 3, 2)
ENOUGH_BLOCKS = 264  # two for each of an H200's
# By tensor cores, which take 16 rows of a warp at least. They are done with a slice sooner, so it is deeper:
# as deep as 48 KB allow. Of float16 twice the terms are as many bytes; channels first 16, as tensor cores
# take at once, since some wait in registers.
TENSOR = tuple(
    tile._replace(depth=depth, stages=2, tensor=1) for tile, depth in zip(SINGLE, (16, 16, 8), strict=False)
)
HALF_FIRST = 16
# Of three products what is left of both factors takes registers, too: the largest would spill.
THREE = tuple(tile._replace(tensor=3) for tile in TENSOR[1:])
BY_PRECISION = {"ieee": SINGLE, "tf32": TENSOR, "3xtf32": THREE}


def tile(problem: Problem, channels: int, places: int) -> Tile:
    """Return the tile that leaves the fewest channels idle; a smaller one where there would be few blocks."""
    half, double = problem.itemsize == 2, problem.itemsize == 8
    choices = DOUBLE if double else TENSOR if half else BY_PRECISION[problem.precision]
    best = min(choices, key=lambda tile: round_up(channels, tile.channels))
    blocks = -(-channels // best.channels) * -(-places // best.places)
    if blocks < ENOUGH_BLOCKS and best.channels > SMALL.channels:
        best = SMALL._replace(tensor=best.tensor)
    if half:
        best = best._replace(depth=2 * best.depth if problem.channels_last else HALF_FIRST)
    return best


@planned
def plan_forward(problem: Problem, x: Laid, alignment: int, epilogue: Epilogue, limit: int) -> Program:
    """Return the program for x (LEFT), w (RIGHT, at a multiple of `alignment` elements), b (BIAS) and y."""
    p = problem
    return _product(p, p.window, (p.cg, p.og), x, alignment, epilogue, limit, backward=False)


@planned
def plan_input_grad(problem: Problem, dy: Laid, alignment: int, epilogue: Epilogue, limit: int) -> Program:
    """Return the program for dy (LEFT), w (RIGHT), b (BIAS) and dx."""
    p = problem
    turned = replace(p.window, in_size=p.window.out_size, out_size=p.window.in_size)
    return _product(p, turned, (p.og, p.cg), dy, alignment, epilogue, limit, backward=True)


# Of the weight gradient. Places that a part sums at least, so that writing and adding up its sums stays a
# small part of the work; blocks are as many as multiprocessors can take at once, twice over.
LEAST_LENGTH, BLOCKS = 512, 2 * ENOUGH_BLOCKS


@planned
def plan_weight_grad(problem: Problem, x: Laid, dy: Laid, limit: int) -> Program:
    """Return the program for dy (LEFT), x (RIGHT), dw (RESULT), and the sums of parts (WORK)."""
    p, window, pairs, size = problem, problem.window, problem.rows, problem.c_out * problem.rows
    itemsize = accumulator(p.dtype).itemsize
    total = p.images * window.places
    chosen = tile(p, p.og, pairs * window.groups * (total // LEAST_LENGTH))
    tiles = -(-pairs // chosen.places), -(-p.og // chosen.channels)
    together = prod(tiles) * window.groups
    parts = max(1, min(-(-total // LEAST_LENGTH), -(-BLOCKS // together), limit // (size * itemsize)))
    length = round_up(-(-total // parts), chosen.depth)
    parts = -(-total // length)
    vector = chosen.lanes(p.itemsize, p.og if p.channels_last else pairs)
    if p.channels_last:
        widths = channel_lanes(p.itemsize, p.cg, x), channel_lanes(p.itemsize, p.og, dy)
    else:
        widths = 1, places_lanes(p.itemsize, window.out_size, dy) if chosen.tensor else 1
    wide = needs_wide(
        total + length,
        parts * size,
        x.extent(p.images, p.c_in, _padded(window)),
        dy.extent(p.images, p.c_out, window.out_size),
    )
    kernel = specialise(
        "implicit_weight_grad",
        window,
        p.dtype,
        vector=vector,
        wide=wide,
        CHANNELS_LAST=int(p.channels_last),
        X_WIDTH=widths[0],
        DY_WIDTH=widths[1],
        IN_PARTS=int(parts > 1),
        MASK=_mask(window),
        **chosen.defines(p.channels_last),
    )
    struct = kernel.arguments(
        window=window_struct(window),
        x=x.struct(p.images, p.c_in, window.in_size),
        dy=dy.struct(p.images, p.c_out, window.out_size),
        inner=inner_divisors(window.out_size, wide),
        plane=divisor(window.places, wide),
        total=total,
        length=length,
        read=p.cg,
        written=p.og,
        pair_tiles=tiles[0],
        filter_tiles=tiles[1],
        groups=window.groups,
        size=size,
    )
    shared = chosen.shared(p.itemsize, (not p.channels_last,) * 2, window.taps, wide)
    to = At(RESULT if parts == 1 else WORK)
    first = Launch(kernel, together * parts, (At(LEFT), At(RIGHT), to), struct, shared)
    return _in_parts(first, parts, size, p)


def _in_parts(
    first: Launch, parts: int, size: int, p: Problem, epilogue: Epilogue = AS_IT_IS, *, channels: int = 1,
    plane: int = 1,
) -> Program:  # fmt: skip
    """Return a launch as a program, followed by what adds up its parts if there are several."""
    if parts == 1:
        return Program((first,))
    last = sum_parts(At(WORK), At(RESULT), size, parts, p.dtype, epilogue, plane=plane, channels=channels)
    return Program((first, last), parts * size * accumulator(p.dtype).itemsize)


def _padded(window: Window) -> tuple[int, ...]:
    """Return sizes that no place of a window lies beyond, in the padding neither."""
    each = zip(window.in_size, window.before, window.after, window.span, strict=True)
    return tuple(sum(numbers) for numbers in each)


def _mask(window: Window) -> str:
    """Return a type with a bit for each tap."""
    return "unsigned" if window.taps <= NARROW_MASK else "unsigned long long"


def _taps_of_phases(window: Window, steps: Sequence[int]) -> list[Counter[int]]:
    """Return of each axis how many taps the places of a phase read with; phases with none aren't there."""
    each = zip(window.kernel, steps, window.dilation, window.before, window.out_size, strict=True)
    return [
        Counter(phase for tap in range(k) if (phase := (tap * d - before) % step) < size)
        for k, step, d, before, size in each
    ]


# Of y and dx. Slices that a part sums at least, so that what is done for each part beside multiplying, and
# adding up, stay a small part of the work.
LEAST_SLICES = 8


def count_parts(taps: list[Counter[int]], read: int, blocks: int, depth: int, size: int, limit: int) -> int:
    """Return into how many parts sums are cut: of `blocks` a phase, and so many bytes of one part."""
    phases = max(1, prod(map(len, taps)))  # blocks of phases without taps do nothing
    slices = read * prod(axis.total() for axis in taps) // phases // depth
    return max(1, min(ENOUGH_BLOCKS // (blocks * phases), slices // LEAST_SLICES, limit // size))


def _product(
    p: Problem,
    window: Window,
    channels: tuple[int, int],
    source: Laid,
    alignment: int,
    epilogue: Epilogue,
    limit: int,
    *,
    backward: bool,
) -> Program:
    """Return the program for these channels of a group, read and written."""
    groups, (read, written) = window.groups, channels
    steps = window.stride if backward else (1,) * window.axes
    grid = [-(-size // step) for size, step in zip(window.out_size, steps, strict=True)]
    counts = [min(step, size) for step, size in zip(steps, window.out_size, strict=True)]
    places, phases = p.images * prod(grid), prod(counts)
    chosen = tile(p, written, places * phases * groups)
    if backward and p.channels_last and window.taps == 1 and chosen == SINGLE[0]:
        chosen = SINGLE[1]  # the largest would spill up to 56 bytes (sm_90)
    tiles = -(-places // chosen.places), -(-written // chosen.channels)
    blocks, taps = prod(tiles) * groups, _taps_of_phases(window, steps)
    size, itemsize = p.images * groups * written * prod(window.out_size), accumulator(p.dtype).itemsize
    parts = count_parts(taps, read, blocks, chosen.depth, size * itemsize, limit)
    # What lies side by side: of the source channels or places, of weights channels of the result or terms.
    along = not (p.channels_last and not backward), p.channels_last
    if p.channels_last:
        vector = chosen.lanes(p.itemsize, written)
        together = p.og
    else:
        vector = chosen.lanes(p.itemsize, prod(window.out_size)) if phases == 1 else 1
        together = 1 if backward else p.rows
    # Multiplied one by one, terms of a row don't stay side by side.
    by_depth = chosen.tensor > 0
    source_width = channel_lanes(p.itemsize, read, source) if p.channels_last and by_depth else 1
    weights_width = lanes(p.itemsize, together, alignment) if by_depth or not along[0] else 1
    wide = needs_wide(
        places + chosen.places,
        parts * size,
        source.extent(p.images, groups * read, _padded(window)),
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
        SOURCE_WIDTH=source_width,
        WEIGHTS_WIDTH=weights_width,
        MASK=_mask(window),
        IN_PARTS=int(parts > 1),
        **(epilogue if parts == 1 else AS_IT_IS).defines(),  # else it is sum_parts' to do
        **chosen.defines(p.channels_last),
    )
    first_taps = prod(axis[0] for axis in taps)
    last_taps = prod(axis[n - 1] for axis, n in zip(taps, counts, strict=True))
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
        last_phase_first=int(first_taps < last_taps),
        size=size,
        parts=parts,
        **p.weight_strides(backward=backward),
    )
    shared = chosen.shared(p.itemsize, along, window.taps, wide)
    to, b = At(RESULT if parts == 1 else WORK), At(BIAS if epilogue.bias else RIGHT)
    first = Launch(kernel, blocks * phases * parts, (At(LEFT), At(RIGHT), b, to), struct, shared)
    plane = 1 if p.channels_last else prod(window.out_size)
    return _in_parts(first, parts, size, p, epilogue, channels=groups * written, plane=plane)
