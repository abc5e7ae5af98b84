"""Winograd's F(2x2, 3x3) by kernels of our own: forward, and the input gradient, which is one with turned weights.

cuda/winograd_weights.cu makes 16 matrices of the weights, in the workspace; cuda/winograd.cu does the rest. Where
the limit doesn't let it hold those of all channels, some blocks of channels follow others.
"""

from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

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
    """Tell whether these kernels take it: 3x3 with stride 1 in float32, where Winograd's algorithm is asked for.

    Which way is faster waits for a measurement.
    """
    window = problem.window
    return (
        config.algorithm == "winograd"
        and which in ("forward", "input_grad")
        and problem.dtype == np.float32
        and problem.precision == "ieee"
        and window.kernel == (3, 3)
        and window.stride == window.dilation == (1, 1)
    )


class _Weights(NamedTuple):
    """Strides of w, by group, read channel, written channel and tap; and where its first tap lies."""

    group: int
    read: int
    written: int
    tap: int
    corner: int = 0

    def fields(self) -> dict[str, int]:
        """Return the kernels' fields."""
        return {
            "group": self.group,
            "in": self.read,
            "out": self.written,
            "tap": self.tap,
            "corner": self.corner,
        }


@planned
def plan_forward(problem: Problem, x: Laid, alignment: int, epilogue: Epilogue, limit: int) -> Program:
    """Return the program for x (LEFT), w (RIGHT), b (BIAS) and y; w's alignment doesn't matter.

    Raises
    ------
    LimitTooSmall
        Where the workspace can't hold the weights of one block of channels.
    """
    p = problem
    if p.channels_last:
        weights = _Weights(p.og, p.c_out, 1, p.cg * p.c_out)
    else:
        weights = _Weights(p.og * p.rows, p.window.taps, p.rows, 1)
    return _plan(p, p.window, x, (p.cg, p.og), weights, epilogue, limit)


@planned
def plan_input_grad(problem: Problem, dy: Laid, alignment: int, epilogue: Epilogue, limit: int) -> Program:
    """Return the program for dy (LEFT), w (RIGHT), b (BIAS) and dx; w's alignment doesn't matter.

    Raises
    ------
    LimitTooSmall
        Where the workspace can't hold the weights of one block of channels.
    """
    p, window = problem, problem.window
    if p.channels_last:
        weights = _Weights(p.og, 1, p.c_out, p.cg * p.c_out)
    else:
        weights = _Weights(p.og * p.rows, p.rows, window.taps, 1)
    weights = weights._replace(tap=-weights.tap, corner=(window.taps - 1) * weights.tap)
    back = replace(
        window,
        in_size=window.out_size,
        out_size=window.in_size,
        before=tuple(2 - before for before in window.before),
        after=tuple(2 - after for after in window.after),
    )
    return _plan(p, back, dy, (p.og, p.cg), weights, epilogue, limit)


def _plan(
    p: Problem,
    window: Window,
    source: Laid,
    channels: tuple[int, int],
    weights: _Weights,
    epilogue: Epilogue,
    limit: int,
) -> Program:
    """Return the launches for a group's channels that are read and written, and weights that lie so."""
    read, written = channels
    blocks, slices = -(-written // KERNELS), max(1, -(-read // SLICE))
    numbers = 16 * slices * SLICE * KERNELS  # of a block's U
    if numbers * p.itemsize > limit:
        raise LimitTooSmall(numbers * p.itemsize)
    total = window.groups * blocks
    together = even(total, limit // (numbers * p.itemsize))
    grid = tuple(-(-size // 2) for size in window.out_size)
    tiles = p.images * prod(grid)
    # Offsets are of tiles with their padding: nothing is read there, but they are worked out.
    padded = tuple(
        size + 2 * abs(before) + 4 for size, before in zip(window.in_size, window.before, strict=True)
    )
    wide = needs_wide(
        source.extent(p.images, window.groups * read, padded),
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
        WITH_BIAS=int(epilogue.bias),
        RELU=int(epilogue.relu),
        **SIZES,
    )
    transform = specialise("winograd_weights", window, p.dtype, vector=1, wide=wide, **SIZES)
    shared: dict[str, Any] = {
        "channels": read,
        "kernels": written,
        "blocks": divisor(blocks, wide),
        **weights.fields(),
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
