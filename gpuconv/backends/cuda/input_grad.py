"""The programs of a convolution's input gradient: dX = col2im(W^T dY), piece by piece.

The columns are sums not yet rounded: float32 where dx is float16.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import prod
from typing import NamedTuple

from gpuconv.backends.cuda import bias
from gpuconv.backends.cuda.columns import ColumnStrides, Laid, col2im_launch, dense
from gpuconv.backends.cuda.problem import (
    BIAS,
    LEFT,
    MOST_ROWS,
    RESULT,
    RIGHT,
    WORK,
    Chunk,
    Epilogue,
    Problem,
    Steps,
    batches,
    copy_places,
    even,
    round_up,
    whole_rows,
)
from gpuconv.backends.cuda.program import At, Launch, LimitTooSmall, Matrix, Program, lanes, planned
from gpuconv.backends.dispatch import accumulator
from gpuconv.geometry import Window


class Piece(NamedTuple):
    """Columns that are in the workspace at once: all that some channels of a tile of dx collect from."""

    n0: int
    n1: int
    g0: int
    g1: int
    c0: int
    c1: int
    low: tuple[int, ...]
    high: tuple[int, ...]

    @property
    def images(self) -> int:
        """How many images."""
        return self.n1 - self.n0

    @property
    def groups(self) -> int:
        """How many groups."""
        return self.g1 - self.g0

    @property
    def channels(self) -> int:
        """How many input channels of a group."""
        return self.c1 - self.c0


# A product of fewer rows is slow; rather than that, tiles of dx are cut, whose windows overlap.
ENOUGH_ROWS = 64


@planned
def plan_input_grad(problem: Problem, dy: Laid, alignment: int, epilogue: Epilogue, limit: int) -> Program:
    """Return the program for dy (LEFT, in row-major order), w (RIGHT), b (BIAS) and dx."""
    if problem.window.is_pointwise:
        return Program(tuple(_pointwise_input_grad(problem, epilogue.bias)))
    images, groups, channels, size = _piece_sizes(problem, limit)
    steps = [
        step
        for piece in _pieces(problem, images, groups, channels, size)
        for step in _collect(problem, piece, dy.alignment, epilogue.bias)
    ]
    return Program(tuple(steps), _piece_bytes(problem, images, groups, channels, size))


def _pointwise_input_grad(p: Problem, accumulate: bool) -> Steps:
    """With a 1x1 kernel the columns are dX itself; added to what it holds where `accumulate` (the bias)."""
    cg, og, places = p.cg, p.og, p.window.places
    steps: Steps = []
    if accumulate:
        steps.append(bias.fill(p.images, p.c_in, p.window.in_size, p.dtype, p.channels_last))
    if p.channels_last:
        for chunk in whole_rows(p):
            a = Matrix(p.at(LEFT, chunk.o0 * p.c_out), p.c_out, og)
            b = Matrix(At(RIGHT), p.c_out, og, by_columns=True)
            c = Matrix(p.at(RESULT, chunk.o0 * p.c_in), p.c_in, cg)
            steps.append(p.gemm(c, a, b, (chunk.places, og, cg), chunk.groups, accumulate=accumulate))
        return steps
    for n, g, batch, by_image in batches(Chunk(0, p.images, 0, p.window.groups, 0, places)):
        a = Matrix(p.at(RIGHT, g * og * cg), cg, 0 if by_image else og * cg, by_columns=True)
        b = Matrix(
            p.at(LEFT, (n * p.c_out + g * og) * places), places, (p.c_out if by_image else og) * places
        )
        c = Matrix(
            p.at(RESULT, (n * p.c_in + g * cg) * places), places, (p.c_in if by_image else cg) * places
        )
        steps.append(p.gemm(c, a, b, (cg, og, places), batch, accumulate=accumulate))
    return steps


Sizes = tuple[int, ...]


def _piece_sizes(p: Problem, limit: int) -> tuple[int, int, int, Sizes]:
    """Return how many images, groups, channels and places of dx a piece may have to stay within the limit.

    Images are split first, then groups, then channels; tiles only where a product would get too few rows.
    """
    window, groups, cg = p.window, p.window.groups, p.cg
    whole = window.in_size
    if (image := _piece_bytes(p, 1, groups, cg, whole)) <= limit:
        most = max(1, MOST_ROWS // window.places)
        return even(p.images, min(limit // image, most)), groups, cg, whole
    if (group := _piece_bytes(p, 1, 1, cg, whole)) <= limit:
        return 1, even(groups, limit // group), cg, whole
    channels = min(cg, -(-ENOUGH_ROWS // window.taps))
    if (part := _piece_bytes(p, 1, 1, channels, whole)) <= limit:
        return 1, 1, even(cg, channels * (limit // part)), whole
    size = list(whole)
    while (taken := _piece_bytes(p, 1, 1, channels, tuple(size))) > limit:
        if max(size) > 1:  # whole rows at first, as long as windows don't overlap too much
            axis = 0 if size[0] > window.span[0] else size.index(max(size))
            size[axis] = -(-size[axis] // 2)
        elif channels > 1:
            channels //= 2
        else:
            raise LimitTooSmall(taken)
    return 1, 1, channels, tuple(size)


def _pieces(p: Problem, images: int, groups: int, channels: int, size: Sizes) -> Iterator[Piece]:
    window = p.window
    lows = [range(0, n, step) for n, step in zip(window.in_size, size, strict=True)]
    for n in range(0, p.images, images):
        for g in range(0, window.groups, groups):
            for c in range(0, p.cg, channels):
                for low in product(*lows):
                    ends = zip(low, size, window.in_size, strict=True)
                    high = tuple(min(whole, at + step) for at, step, whole in ends)
                    yield Piece(
                        *(n, min(p.images, n + images)),
                        *(g, min(window.groups, g + groups)),
                        *(c, min(p.cg, c + channels)),
                        *(low, high),
                    )


def _piece_bytes(p: Problem, images: int, groups: int, channels: int, size: Sizes) -> int:
    """Return the most workspace that a piece with tiles of this size takes, wherever the tile lies."""
    window = p.window
    out = tuple(
        all_of_it if places == whole else min(all_of_it, (places + span - 2) // s + 1)
        for places, whole, all_of_it, span, s in zip(
            size, window.in_size, window.out_size, window.span, window.stride, strict=True
        )
    )
    places = _pitch(p, prod(out))
    taken = images * groups * channels * window.taps * places * accumulator(p.dtype).itemsize
    if size[1:] != window.in_size[1:]:  # the tile's box of dy is copied
        taken = round_up(taken, 16) + groups * p.og * places * p.itemsize
    return taken


class Tile(NamedTuple):
    """A tile of dx as a window of its own over a box of outputs, all those that read the tile."""

    window: Window
    first: Sizes  # output of each axis
    in_rows: bool  # whether the box is whole rows of dy, so that its places follow each other


def _tile(window: Window, low: Sizes, high: Sizes) -> Tile:
    first, out, before, whole = [], [], [], []
    for axis, (i0, i1) in enumerate(zip(low, high, strict=True)):
        s, pad, span = window.stride[axis], window.before[axis], window.span[axis]
        whole.append((i0, i1) == (0, window.in_size[axis]))
        o0, o1 = 0, window.out_size[axis]
        if not whole[-1]:
            o0 = max(0, -(-(i0 + pad - span + 1) // s))
            o1 = max(o0, min(o1, (i1 - 1 + pad) // s + 1))
        first.append(o0)
        out.append(o1 - o0)
        before.append(pad + i0 - o0 * s)
    tile = replace(
        window,
        in_size=tuple(i1 - i0 for i0, i1 in zip(low, high, strict=True)),
        out_size=tuple(out),
        before=tuple(before),
    )
    return Tile(tile, tuple(first), all(whole[1:]))


def _pitch(p: Problem, places: int) -> int:
    return places if p.channels_last else round_up(places, lanes(p.itemsize))


class Gradient(NamedTuple):
    """The matrices of a piece's dy, one an image and group: how far apart they lie, in elements."""

    first: Matrix
    image: int
    group: int


def _collect(p: Problem, piece: Piece, alignment: int, with_bias: bool) -> Steps:
    """Return the steps that compute a piece's columns and collect its tile of dx from them."""
    tile = _tile(p.window, piece.low, piece.high)
    places = tile.window.places
    if not places:  # no window reads the tile: collecting writes zeros, or the bias
        return [_col2im(p, piece, tile.window, with_bias)]
    steps: Steps = []
    if tile.in_rows:
        dy = dense(p.c_out, p.window.out_size, p.channels_last)
        channel = piece.g0 * p.og * dy.channel
        start = piece.n0 * dy.image + channel + tile.first[0] * dy.place[0]
        pitch = p.c_out if p.channels_last else p.window.places
        gradient = Gradient(Matrix(p.at(LEFT, start), pitch), dy.image, p.og * dy.channel)
    else:
        copy, gradient = _copy(p, piece, tile, alignment)
        steps.append(copy)
    products = _rows_of_places if p.channels_last else _rows_of_channels
    return [*steps, *products(p, piece, gradient, places), _col2im(p, piece, tile.window, with_bias)]


def _copy(p: Problem, piece: Piece, tile: Tile, alignment: int) -> tuple[Launch, Gradient]:
    """Return the copy of a tile's box of dy to the workspace, behind the columns, and where it lies there."""
    places = tile.window.places
    pitch = _pitch(p, places)
    columns = piece.groups * piece.channels * tile.window.taps * pitch * accumulator(p.dtype).itemsize
    to = At(WORK, round_up(columns, 16))
    width, channel = piece.groups * p.og, piece.g0 * p.og
    if p.channels_last:
        strides = ColumnStrides(place=width)
        vector = lanes(p.itemsize, width, p.c_out, channel, alignment)
        gradient = Gradient(Matrix(to, width), 0, p.og)
    else:
        strides, vector = ColumnStrides(channel=pitch), lanes(p.itemsize)
        gradient = Gradient(Matrix(to, pitch), 0, p.og * pitch)
    return copy_places(
        p, piece.n0, 1, channel, width, tile.first, tile.window.out_size, strides, to, vector
    ), gradient


def _rows_of_channels(p: Problem, piece: Piece, dy: Gradient, places: int) -> Steps:
    """Channels first: W^T dY as columns [images, G, C, taps, places]."""
    og, taps, wide = p.og, p.window.taps, accumulator(p.dtype)
    rows, pitch = piece.channels * taps, _pitch(p, places)
    image = piece.groups * rows * pitch
    steps: Steps = []
    for n, g, batch, by_image in batches(Chunk(piece.n0, piece.n1, piece.g0, piece.g1, 0, places)):
        weights = p.at(RIGHT, (piece.g0 + g) * og * p.rows + piece.c0 * taps)
        a = Matrix(weights, p.rows, 0 if by_image else og * p.rows, by_columns=True)
        slot, offset = dy.first.at
        b_at = At(slot, offset + (n * dy.image + g * dy.group) * p.itemsize)
        b = Matrix(b_at, dy.first.pitch, dy.image if by_image else dy.group)
        c_at = At(WORK, (n * image + g * rows * pitch) * wide.itemsize)
        c = Matrix(c_at, pitch, image if by_image else rows * pitch)
        steps.append(p.gemm(c, a, b, (rows, og, places), batch, dtype=wide))
    return steps


def _rows_of_places(p: Problem, piece: Piece, dy: Gradient, places: int) -> Steps:
    """Channels last: dY W^T as columns [images, places, G, taps, C], batched over groups or over taps."""
    taps, og, wide, total = p.window.taps, p.og, accumulator(p.dtype), piece.images * places
    if piece.channels == p.cg:
        a = dy.first._replace(step=dy.group)
        b = Matrix(p.at(RIGHT, piece.g0 * og), p.c_out, og, by_columns=True)
        c = Matrix(At(WORK), piece.groups * p.rows, p.rows)
        return [p.gemm(c, a, b, (total, og, p.rows), piece.groups, dtype=wide)]
    weights = p.at(RIGHT, piece.c0 * p.c_out + piece.g0 * og)
    b = Matrix(weights, p.c_out, p.cg * p.c_out, by_columns=True)
    c = Matrix(At(WORK), taps * piece.channels, piece.channels)
    return [p.gemm(c, dy.first, b, (total, og, piece.channels), taps, dtype=wide)]


def _col2im(p: Problem, piece: Piece, window: Window, with_bias: bool) -> Launch:
    taps, channels, groups, pitch = window.taps, piece.channels, piece.groups, _pitch(p, window.places)
    dx = dense(p.c_in, p.window.in_size, p.channels_last)
    channel = piece.g0 * p.cg + piece.c0
    corner = sum(at * step for at, step in zip(piece.low, dx.place, strict=True))
    offset = piece.n0 * dx.image + channel * dx.channel + corner
    if p.channels_last:
        row = groups * taps * channels
        col = ColumnStrides(image=pitch * row, group=taps * channels, tap=channels, place=row)
        vector = lanes(p.itemsize, channels, p.c_in, offset)
    else:
        col = ColumnStrides(image=groups * channels * taps * pitch, channel=taps * pitch, tap=pitch)
        # Places of a tile follow each other where it is whole rows of dx.
        whole_rows = window.in_size[1:] == p.window.in_size[1:]
        vector = lanes(p.itemsize, prod(window.in_size), dx.channel, offset) if whole_rows else 1
    return col2im_launch(
        window,
        col,
        At(WORK) if window.places else At(RESULT),
        p.at(BIAS, channel) if with_bias else None,
        dx,
        p.at(RESULT, offset),
        (accumulator(p.dtype), p.dtype),
        images=piece.images,
        groups=groups,
        channels=channels,
        channels_last=p.channels_last,
        vector=vector,
    )
