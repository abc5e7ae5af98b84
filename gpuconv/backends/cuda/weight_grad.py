"""The programs of a convolution's weight gradient: dW = sum over chunks of dY X_col^T.

Each product is added to those before it, in float32 for float16 too: then the sums stand in the workspace,
and are rounded once.
"""

from typing import Any, NamedTuple

import numpy as np

from gpuconv.backends.cuda.columns import ColumnStrides, Laid, channel_lanes
from gpuconv.backends.cuda.parts import sum_parts
from gpuconv.backends.cuda.problem import (
    LEFT,
    RESULT,
    RIGHT,
    WORK,
    Chunk,
    Problem,
    Steps,
    channel_pitch,
    copy_places,
    cut,
    even,
    round_up,
    row_pitch,
    unfold,
    whole_rows,
)
from gpuconv.backends.cuda.program import At, LimitTooSmall, Matrix, Program, lanes, planned
from gpuconv.backends.dispatch import accumulator

# A 1x1 kernel's columns are x itself, but one product an image doesn't pay for many images of few places.
FEW_IMAGES, MANY_PLACES = 16, 1024


class Part(NamedTuple):
    """Rows of dW that are summed at once: of groups g0..g1 and, in each, rows r0..r1.

    Rows of the matrix as it lies in memory: output channels, or, channels last, (tap, C) pairs. Their sums
    begin `at`, of a dtype of their own.
    """

    g0: int
    g1: int
    r0: int
    r1: int
    at: At
    dtype: np.dtype[Any]


@planned
def plan_weight_grad(problem: Problem, x: Laid, dy: Laid, limit: int) -> Program:
    """Return the program for dy (LEFT, in row-major order), x (RIGHT) and dw (RESULT)."""
    p, wide = problem, accumulator(problem.dtype)
    terms = _rows_of_places if p.channels_last else _rows_of_channels
    whole = Part(0, p.window.groups, 0, p.rows if p.channels_last else p.og, At(RESULT), p.dtype)
    steps, workspace, products = terms(p, x, whole, 0, limit)
    if wide == p.dtype or products == 1:
        return Program(tuple(steps), workspace)
    try:
        return _sum_apart(p, x, wide, limit // 2, limit)
    except LimitTooSmall as error:  # of the columns, or of sums of one row
        row = (p.c_out if p.channels_last else p.rows) * wide.itemsize
        least = round_up(row, 16) + _least_columns(p)
        if limit < least:
            raise LimitTooSmall(least) from error
        return _sum_apart(p, x, wide, limit - _least_columns(p), limit)


def _least_columns(p: Problem) -> int:
    """Return the bytes of the fewest columns that a chunk may have, and their dy."""
    if p.channels_last:
        return p.rows * p.itemsize
    return lanes(p.itemsize) * (p.rows + p.og) * p.itemsize


def _sum_apart(p: Problem, x: Laid, wide: np.dtype[Any], sums_limit: int, limit: int) -> Program:
    """Return the program whose sums stand in the workspace, in parts of at most `sums_limit` bytes."""
    terms = _rows_of_places if p.channels_last else _rows_of_channels
    steps: Steps = []
    workspace = 0
    for part, first, count in _cut_sums(p, wide, sums_limit // 16 * 16):
        sums = round_up(count * wide.itemsize, 16)
        added, columns, _ = terms(p, x, part, sums, limit - sums)
        steps += added
        steps.append(sum_parts(At(WORK), p.at(RESULT, first), count, 1, p.dtype))
        workspace = max(workspace, sums + columns)
    return Program(tuple(steps), workspace)


def _cut_sums(p: Problem, wide: np.dtype[Any], limit: int) -> list[tuple[Part, int, int]]:
    """Cut dW into parts whose sums fit; with each its first element and how many there are."""
    groups, length = p.window.groups, p.c_out if p.channels_last else p.rows
    rows = p.rows if p.channels_last else p.og
    row_bytes = length * wide.itemsize
    if row_bytes > limit:
        raise LimitTooSmall(row_bytes)
    if p.channels_last:  # a row holds all groups
        per = even(rows, limit // row_bytes)
        return [
            (Part(0, groups, r, min(rows, r + per), At(WORK), wide), r * length, min(per, rows - r) * length)
            for r in range(0, rows, per)
        ]
    if rows * row_bytes <= limit:
        together = even(groups, limit // (rows * row_bytes))
        return [
            (
                Part(g, min(groups, g + together), 0, rows, At(WORK), wide),
                g * rows * length,
                min(together, groups - g) * rows * length,
            )
            for g in range(0, groups, together)
        ]
    per = even(rows, limit // row_bytes)
    return [
        (
            Part(g, g + 1, r, min(rows, r + per), At(WORK), wide),
            (g * rows + r) * length,
            min(per, rows - r) * length,
        )
        for g in range(groups)
        for r in range(0, rows, per)
    ]


def _rows_of_channels(p: Problem, x: Laid, part: Part, base: int, limit: int) -> tuple[Steps, int, int]:
    """Channels first: the products for a part, with columns [G, C, taps, images, places] from `base` on.

    Returns the steps, the bytes of columns, and how many products are added up.
    """
    window, rows, og, places = p.window, p.rows, p.og, p.window.places
    count, step = part.r1 - part.r0, lanes(p.itemsize)
    groups = range(part.g0, part.g1)
    few = p.images <= FEW_IMAGES or places >= MANY_PLACES
    direct = channel_pitch(x, window) if window.is_pointwise and few else None
    if direct is None:
        # Of several images dy is copied, so that its places follow each other as those of the columns do.
        chunks = cut(p.images, groups, places, (rows + count) * p.itemsize, limit, step)
    else:
        chunks = [Chunk(n, n + 1, part.g0, part.g1, 0, places) for n in range(p.images)]
    steps: Steps = []
    seen: dict[int, int] = {}
    for chunk in chunks:
        padded = round_up(chunk.places, step)
        pitch = chunk.images * padded
        columns = chunk.groups * rows * pitch
        if direct is None:
            col = ColumnStrides(image=padded, channel=window.taps * pitch, tap=pitch)
            steps.append(unfold(p, x, RIGHT, chunk, col, At(WORK, base), step))
            b = Matrix(At(WORK, base), pitch, rows * pitch, by_columns=True)
        else:
            offset = chunk.n0 * x.image + part.g0 * p.cg * x.channel
            b = Matrix(p.at(RIGHT, offset), direct, p.cg * direct, by_columns=True)
        first_channel = chunk.g0 * og + part.r0
        if chunk.images == 1:
            summed = chunk.places
            at = (chunk.n0 * p.c_out + first_channel) * places + chunk.o0
            a = Matrix(p.at(LEFT, at), places, og * places)
        else:  # both are padded with zeros, which add nothing
            summed = pitch
            copied = At(WORK, base + columns * p.itemsize)
            width = chunk.groups * count
            steps.append(
                copy_places(
                    p,
                    *(chunk.n0, chunk.images),
                    *(first_channel, width),
                    *((0,) * window.axes, window.out_size),
                    ColumnStrides(image=padded, channel=pitch),
                    copied,
                    step,
                )
            )
            a = Matrix(copied, pitch, count * pitch)
        to = (chunk.g0 - part.g0) * count * rows
        at_sums = At(part.at.slot, part.at.offset + to * part.dtype.itemsize)
        c = Matrix(at_sums, rows, count * rows)
        sizes = (count, summed, rows)
        more = seen.setdefault(chunk.g0, 0) > 0
        seen[chunk.g0] += 1
        steps.append(p.gemm(c, a, b, sizes, chunk.groups, accumulate=more, dtype=part.dtype))
    workspace = 0
    if direct is None:
        workspace = max(chunk.columns(step) for chunk in chunks) * (rows + count) * p.itemsize
    return steps, workspace, max(seen.values())


def _rows_of_places(p: Problem, x: Laid, part: Part, base: int, limit: int) -> tuple[Steps, int, int]:
    """Channels last: the products for a part, with columns [places, G, taps, C] from `base` on."""
    window, rows, og = p.window, p.rows, p.og
    total, groups = p.images * window.places, range(window.groups)
    direct = row_pitch(x, window, p.c_in) if window.is_pointwise else None
    if direct is None:
        chunks = cut(1, groups, total, rows * p.itemsize, limit, 1)
    else:
        chunks = whole_rows(p)
    vector = channel_lanes(p.itemsize, p.cg, x)
    steps: Steps = []
    seen: dict[int, int] = {}
    for chunk in chunks:
        if direct is None:
            col = ColumnStrides(group=rows, tap=p.cg, place=chunk.groups * rows)
            steps.append(unfold(p, x, RIGHT, chunk, col, At(WORK, base), vector))
            at, pitch, step = At(WORK, base + part.r0 * p.itemsize), chunk.groups * rows, rows
        else:
            at, pitch, step = p.at(RIGHT, chunk.o0 * direct + part.r0), direct, p.cg
        a = Matrix(at, pitch, step, by_columns=True)
        b = Matrix(p.at(LEFT, chunk.o0 * p.c_out + chunk.g0 * og), p.c_out, og)
        c = Matrix(At(part.at.slot, part.at.offset + chunk.g0 * og * part.dtype.itemsize), p.c_out, og)
        sizes = (part.r1 - part.r0, chunk.places, og)
        more = seen.setdefault(chunk.g0, 0) > 0
        seen[chunk.g0] += 1
        steps.append(p.gemm(c, a, b, sizes, chunk.groups, accumulate=more, dtype=part.dtype))
    workspace = 0 if direct else max(chunk.columns(1) for chunk in chunks) * rows * p.itemsize
    return steps, workspace, max(seen.values())
