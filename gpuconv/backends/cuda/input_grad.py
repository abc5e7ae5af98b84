"""The programs of a convolution's input gradient: dX = col2im(W^T dY), piece by piece."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import prod
from typing import NamedTuple

from gpuconv.backends.cuda.columns import ColumnStrides, col2im_launch, dense
from gpuconv.backends.cuda.problem import (
    LEFT,
    RESULT,
    RIGHT,
    WORK,
    Chunk,
    Problem,
    Steps,
    batches,
    copy_places,
    even,
    round_up,
)
from gpuconv.backends.cuda.program import At, Launch, LimitTooSmall, Matrix, Program, lanes, planned
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
def plan_input_grad(problem: Problem, limit: int) -> Program:
    """Return the program for dy (LEFT), w (RIGHT) and dx (RESULT)."""
    p, window = problem, problem.window
    if window.is_pointwise:
        return Program(tuple(_pointwise_input_grad(p)))
    pieces = list(_cut_input(p, limit))
    steps = [step for piece in pieces for step in _collect(p, piece)]
    return Program(tuple(steps), max(_piece_bytes(p, piece) for piece in pieces))


def _pointwise_input_grad(p: Problem) -> Steps:
    """With a 1x1 kernel the columns are dX itself."""
    cg, og, places = p.cg, p.og, p.window.places
    if p.channels_last:
        a = Matrix(At(LEFT), p.c_out, og)
        b = Matrix(At(RIGHT), p.c_out, og, by_columns=True)
        c = Matrix(At(RESULT), p.c_in, cg)
        return [p.gemm(c, a, b, (p.images * places, og, cg), p.window.groups)]
    steps: Steps = []
    for n, g, batch, by_image in batches(Chunk(0, p.images, 0, p.window.groups, 0, places)):
        a = Matrix(p.at(RIGHT, g * og * cg), cg, 0 if by_image else og * cg, by_columns=True)
        b = Matrix(
            p.at(LEFT, (n * p.c_out + g * og) * places), places, (p.c_out if by_image else og) * places
        )
        c = Matrix(
            p.at(RESULT, (n * p.c_in + g * cg) * places), places, (p.c_in if by_image else cg) * places
        )
        steps.append(p.gemm(c, a, b, (cg, og, places), batch))
    return steps


def _cut_input(p: Problem, limit: int) -> Iterator[Piece]:
    """Cut dx into pieces within the limit: images, then groups, then channels, then tiles."""
    window, groups, cg = p.window, p.window.groups, p.cg
    images, together, channels, size = 1, groups, cg, list(window.in_size)

    def taken() -> int:
        return _piece_bytes(
            p, Piece(0, images, 0, together, 0, channels, (0,) * len(size), tuple(size)), widest=True
        )

    if taken() <= limit:
        images = even(p.images, limit // taken())
    else:
        together = 1
        if taken() <= limit:
            together = even(groups, limit // taken())
        else:
            channels = min(cg, -(-ENOUGH_ROWS // window.taps))
            while taken() > limit:
                if max(size) == 1:
                    if channels == 1:
                        raise LimitTooSmall(taken())
                    channels //= 2
                    continue
                axis = 0 if size[0] > window.span[0] else size.index(max(size))
                size[axis] = -(-size[axis] // 2)
            if tuple(size) == window.in_size:
                channels = even(cg, limit // (taken() // channels))
    lows = [range(0, n, step) for n, step in zip(window.in_size, size, strict=True)]
    for n in range(0, p.images, images):
        for g in range(0, groups, together):
            for c in range(0, cg, channels):
                for low in product(*lows):
                    high = tuple(
                        min(whole, at + step)
                        for at, step, whole in zip(low, size, window.in_size, strict=True)
                    )
                    yield Piece(
                        *(n, min(p.images, n + images)),
                        *(g, min(groups, g + together)),
                        *(c, min(cg, c + channels)),
                        low,
                        high,
                    )


class Tile(NamedTuple):
    """A tile of dx as a window of its own over a box of outputs, all those that read the tile."""

    window: Window
    first: tuple[int, ...]  # output of each axis
    in_rows: bool  # whether the box is whole rows of dy, so that its places follow each other


def _tile(window: Window, low: tuple[int, ...], high: tuple[int, ...]) -> Tile:
    first, out, before = [], [], []
    for axis, (i0, i1) in enumerate(zip(low, high, strict=True)):
        s, pad, span = window.stride[axis], window.before[axis], window.span[axis]
        o0 = max(0, -(-(i0 + pad - span + 1) // s))
        o1 = max(o0, min(window.out_size[axis], (i1 - 1 + pad) // s + 1))
        first.append(o0)
        out.append(o1 - o0)
        before.append(pad + i0 - o0 * s)
    tile = replace(
        window,
        in_size=tuple(i1 - i0 for i0, i1 in zip(low, high, strict=True)),
        out_size=tuple(out),
        before=tuple(before),
    )
    return Tile(tile, tuple(first), tuple(out[1:]) == window.out_size[1:])


def _piece_bytes(p: Problem, piece: Piece, *, widest: bool = False) -> int:
    """Return the workspace of a piece; `widest`: of any that is as large, wherever its tile lies."""
    if widest:
        window = p.window
        out = tuple(
            min(whole, (i1 - i0 + span - 2) // s + 1)
            for i0, i1, span, s, whole in zip(
                piece.low, piece.high, window.span, window.stride, window.out_size, strict=True
            )
        )
        places, in_rows = prod(out), out[1:] == window.out_size[1:]
    else:
        tile = _tile(p.window, piece.low, piece.high)
        places, in_rows = tile.window.places, tile.in_rows
    rows = piece.groups * piece.channels * p.window.taps
    if not in_rows:
        rows += piece.groups * p.og
    return piece.images * rows * _pitch(p, places) * p.itemsize


def _pitch(p: Problem, places: int) -> int:
    return places if p.channels_last else round_up(places, lanes(p.itemsize))


def _collect(p: Problem, piece: Piece) -> Steps:
    """Return the steps that compute a piece's columns and collect its tile of dx from them."""
    window, first, in_rows = _tile(p.window, piece.low, piece.high)
    places, og, taps = window.places, p.og, window.taps
    pitch = _pitch(p, places)
    rows = piece.channels * taps
    steps: Steps = []
    if places:
        start = first[0] * prod(p.window.out_size[1:])
        if in_rows:
            dy = Matrix(
                p.at(
                    LEFT,
                    (piece.n0 * p.window.places + start) * p.c_out + piece.g0 * og
                    if p.channels_last
                    else (piece.n0 * p.c_out + piece.g0 * og) * p.window.places + start,
                ),
                p.c_out if p.channels_last else p.window.places,
            )
            dy_image, dy_group = p.c_out * p.window.places, og if p.channels_last else og * p.window.places
        else:  # a piece of one image
            packed = p.at(WORK, piece.groups * rows * pitch)
            width, channel = piece.groups * og, piece.g0 * og
            if p.channels_last:
                strides = ColumnStrides(place=width)
                vector = lanes(p.itemsize, width, p.c_out, channel, packed.offset // p.itemsize)
            else:
                strides, vector = ColumnStrides(channel=pitch), lanes(p.itemsize)
            steps.append(
                copy_places(p, piece.n0, 1, channel, width, first, window.out_size, strides, packed, vector)
            )
            dy = Matrix(packed, width if p.channels_last else pitch)
            dy_image, dy_group = 0, og if p.channels_last else og * pitch
        if p.channels_last:
            steps += _columns_last(p, piece, dy, places)
        else:
            chunk = Chunk(piece.n0, piece.n1, piece.g0, piece.g1, 0, places)
            for n, g, batch, by_image in batches(chunk):
                weights = p.at(RIGHT, (piece.g0 + g) * og * p.rows + piece.c0 * taps)
                a = Matrix(weights, p.rows, 0 if by_image else og * p.rows, by_columns=True)
                at = At(dy.at.slot, dy.at.offset + (n * dy_image + g * dy_group) * p.itemsize)
                b = Matrix(at, dy.pitch, dy_image if by_image else dy_group)
                image = piece.groups * rows * pitch
                c = Matrix(
                    p.at(WORK, n * image + g * rows * pitch), pitch, image if by_image else rows * pitch
                )
                steps.append(p.gemm(c, a, b, (rows, og, places), batch))
    steps.append(_col2im(p, piece, window, pitch))
    return steps


def _columns_last(p: Problem, piece: Piece, dy: Matrix, places: int) -> Steps:
    """Return the products for columns [places, G, taps, C]: with all channels one a group, else one a tap."""
    taps, og, total = p.window.taps, p.og, piece.images * places
    if piece.channels == p.cg:
        a = dy._replace(step=og)
        b = Matrix(p.at(RIGHT, piece.g0 * og), p.c_out, og, by_columns=True)
        c = Matrix(At(WORK), piece.groups * p.rows, p.rows)
        return [p.gemm(c, a, b, (total, og, p.rows), piece.groups)]
    b = Matrix(p.at(RIGHT, piece.c0 * p.c_out + piece.g0 * og), p.c_out, p.cg * p.c_out, by_columns=True)
    c = Matrix(At(WORK), taps * piece.channels, piece.channels)
    return [p.gemm(c, dy, b, (total, og, piece.channels), taps)]


def _col2im(p: Problem, piece: Piece, window: Window, pitch: int) -> Launch:
    taps, channels, groups = window.taps, piece.channels, piece.groups
    dx = dense(p.c_in, p.window.in_size, p.channels_last)
    channel = piece.g0 * p.cg + piece.c0
    corner = sum(at * step for at, step in zip(piece.low, dx.place, strict=True))
    offset = piece.n0 * dx.image + channel * dx.channel + corner
    if p.channels_last:
        col = ColumnStrides(
            image=pitch * groups * taps * channels,
            group=taps * channels,
            tap=channels,
            place=groups * taps * channels,
        )
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
        dx,
        p.at(RESULT, offset),
        p.dtype,
        images=piece.images,
        groups=groups,
        channels=channels,
        channels_last=p.channels_last,
        vector=vector,
    )
