"""Winograd's F(2x2, 3x3) by kernels of our own: forward, and the input gradient, which has w turned.

cuda/winograd_weights.cu makes 16 matrices of the weights, in the workspace; cuda/winograd.cu does the rest.
Where the limit is too small for the weights of all channels, blocks of channels follow each other.
"""

import sys
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.cuda.columns import Laid, window_struct
from gpuconv.backends.cuda.kernels import divisor, needs_wide, specialise
from gpuconv.backends.cuda.problem import (
    BIAS,
    LEFT,
    RESULT,
    RIGHT,
    WORK,
    Epilogue,
    Problem,
    Steps,
    even,
    round_up,
)
from gpuconv.backends.cuda.program import At, Launch, LimitTooSmall, Program, kernel_launch, planned
from gpuconv.config import config
from gpuconv.geometry import Window

# As in the kernels: a block's tiles and channels, and channels read at a time, twice in shared memory.
TILES, KERNELS, SLICE = 32, 64, 4
SIZES = {"TILES": TILES, "KERNELS": KERNELS, "SLICE": SLICE}
SHARED = 2 * 16 * SLICE * (TILES + KERNELS) * np.dtype(np.float32).itemsize


def takes(problem: Problem, which: str) -> bool:
    """Tell whether it can compute this: y and dx with 3x3 kernels and stride 1, in float32 that stays so.

    And within the limit that the user has set for the workspace, if any.
    """
    window = problem.window
    return (
        which != "weight_grad"
        and problem.dtype == np.float32
        and problem.precision == "ieee"
        and window.kernel == (3, 3)
        and window.stride == window.dilation == (1, 1)
        and _block_bytes(problem.cg if which == "forward" else problem.og)
        <= (config.workspace_limit or sys.maxsize)
    )


def _block_bytes(read: int) -> int:
    """Return the workspace of one block of channels' weights, for so many that are read."""
    return 16 * round_up(max(1, read), SLICE) * KERNELS * np.dtype(np.float32).itemsize


@planned
def plan_forward(problem: Problem, x: Laid, alignment: int, epilogue: Epilogue, limit: int) -> Program:
    """Return the program for x (LEFT), w (RIGHT, however aligned), b (BIAS) and y.

    Raises
    ------
    LimitTooSmall
        Where the workspace can't hold the weights of one block of channels.
    """
    p, strides = problem, problem.weight_strides(backward=False)
    return _plan(p, p.window, x, p.cg, p.og, {**strides, "corner": 0}, epilogue, limit)


@planned
def plan_input_grad(problem: Problem, dy: Laid, alignment: int, epilogue: Epilogue, limit: int) -> Program:
    """Return the program for dy (LEFT), w (RIGHT, however aligned), b (BIAS) and dx.

    Raises
    ------
    LimitTooSmall
        Where the workspace can't hold the weights of one block of channels.
    """
    p, window, strides = problem, problem.window, problem.weight_strides(backward=True)
    back = replace(
        window,
        in_size=window.out_size,
        out_size=window.in_size,
        before=tuple(2 - before for before in window.before),
        after=tuple(2 - after for after in window.after),
    )
    turned = {**strides, "tap": -strides["tap"], "corner": (window.taps - 1) * strides["tap"]}
    return _plan(p, back, dy, p.og, p.cg, turned, epilogue, limit)


def _plan(
    p: Problem,
    window: Window,
    source: Laid,
    read: int,
    written: int,
    strides: dict[str, int],
    epilogue: Epilogue,
    limit: int,
) -> Program:
    """Return the launches for so many channels of a group, read and written, and these strides of w."""
    blocks, slices = -(-written // KERNELS), max(1, -(-read // SLICE))
    if (block_bytes := _block_bytes(read)) > limit:
        raise LimitTooSmall(block_bytes)
    numbers = block_bytes // p.itemsize
    total = window.groups * blocks
    together = even(total, limit // block_bytes)
    grid = tuple(-(-size // 2) for size in window.out_size)
    tiles = p.images * prod(grid)
    # Nothing is read in the padding, but where its places would lie is worked out; and so with channels.
    padded = tuple(
        size + abs(before) + abs(after) + 4
        for size, before, after in zip(window.in_size, window.before, window.after, strict=True)
    )
    wide = needs_wide(
        source.extent(p.images, window.groups * read + SLICE, padded),
        p.images * window.groups * written * prod(window.out_size),
        together * numbers,
        total * KERNELS * slices * SLICE * window.taps,
        tiles * together,
    )
    inside = written if p.channels_last else window.out_size[-1]
    kernel = specialise(
        "winograd",
        window,
        p.dtype,
        vector=1 + (inside % 2 == 0),
        wide=wide,
        CHANNELS_LAST=int(p.channels_last),
        **epilogue.defines(),
        **SIZES,
    )
    transform = specialise("winograd_weights", window, p.dtype, vector=1, wide=wide, **SIZES)
    shared: dict[str, Any] = {
        "channels": read,
        "kernels": written,
        "blocks": divisor(blocks, wide),
        **strides,
    }
    steps: Steps = []
    for first in range(0, total, together):
        count = min(together, total - first)
        steps.append(
            kernel_launch(
                transform,
                count * numbers // 16,
                (At(RIGHT), At(WORK)),
                first=first,
                slices=divisor(slices, wide),
                **shared,
            )
        )
        struct = kernel.arguments(
            window=window_struct(window),
            source=source.struct(p.images, window.groups * read, window.in_size),
            tiles=tiles,
            rows=divisor(grid[0], wide),
            columns=divisor(grid[1], wide),
            first=first,
            together=divisor(count, wide),
            slices=slices,
            all=window.groups * written,
            **shared,
        )
        pointers = (At(LEFT), At(RIGHT), At(BIAS if epilogue.bias else RIGHT), At(WORK), At(RESULT))
        steps.append(Launch(kernel, count * -(-tiles // TILES), pointers, struct, SHARED))
    return Program(tuple(steps), together * numbers * p.itemsize)
