"""What the programs of a convolution share: its sizes, its chunks of columns, what lies as a matrix."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backends.cuda.columns import ColumnStrides, Laid, dense, im2col_launch
from gpuconv.backends.cuda.program import At, Gemm, Launch, LimitTooSmall, Matrix
from gpuconv.geometry import Window

Steps = list[Launch | Gemm]

# Slots: an operation reads two arrays and perhaps a bias, writes one, and has a workspace.
LEFT, RIGHT, BIAS, RESULT, WORK = range(5)


class Problem(NamedTuple):
    """Everything that a convolution's programs depend on but the strides of x and the workspace's limit."""

    window: Window
    images: int
    c_in: int
    c_out: int
    dtype: np.dtype[Any]
    channels_last: bool
    precision: str

    @property
    def cg(self) -> int:
        """Input channels of a group."""
        return self.c_in // self.window.groups

    @property
    def og(self) -> int:
        """Output channels of a group."""
        return self.c_out // self.window.groups

    @property
    def rows(self) -> int:
        """Entries of a group's column."""
        return self.cg * self.window.taps

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(self.dtype.itemsize)

    def weight_strides(self, *, backward: bool) -> dict[str, int]:
        """Return w's strides as kernels have them: by group, channel that is read, that is written, and tap.

        Forward input channels are read, `backward` output channels.
        """
        if self.channels_last:
            read, written, tap, group = self.c_out, 1, self.cg * self.c_out, self.og
        else:
            read, written, tap, group = self.window.taps, self.rows, 1, self.og * self.rows
        if backward:
            read, written = written, read
        return {"group": group, "in": read, "out": written, "tap": tap}

    def at(self, slot: int, elements: int) -> At:
        """Return the address so many elements into an array."""
        return At(slot, elements * self.itemsize)

    def gemm(
        self,
        c: Matrix,
        a: Matrix,
        b: Matrix,
        sizes: tuple[int, int, int],
        batch: int,
        *,
        accumulate: bool = False,
        dtype: np.dtype[Any] | None = None,
    ) -> Gemm:
        """Return the step C = A B (or C += A B); `dtype` is C's where it is another."""
        return Gemm(c, a, b, sizes, batch, (self.dtype, dtype or self.dtype), accumulate, self.precision)


class Epilogue(NamedTuple):
    """What is done to sums before they are written: b is added, then what is negative made 0."""

    bias: bool
    relu: bool = False

    def defines(self) -> dict[str, int]:
        """Return the constants of cuda/epilogue.cuh."""
        return {"WITH_BIAS": int(self.bias), "RELU": int(self.relu)}


AS_IT_IS = Epilogue(False)


class Chunk(NamedTuple):
    """Columns that are in the workspace at once: of images n0..n1, groups g0..g1, places o0..o1."""

    n0: int
    n1: int
    g0: int
    g1: int
    o0: int
    o1: int

    @property
    def images(self) -> int:
        """How many images."""
        return self.n1 - self.n0

    @property
    def groups(self) -> int:
        """How many groups."""
        return self.g1 - self.g0

    @property
    def places(self) -> int:
        """How many places of each image."""
        return self.o1 - self.o0

    def columns(self, step: int) -> int:
        """How many columns of one group, where an image's are padded to a multiple of `step`."""
        return self.images * self.groups * round_up(self.places, step)


# cuBLAS counts rows in 32 bits; its batches had to stay below 65,536 on some GPUs (PyTorch's issue 46001).
MOST_ROWS = 1 << 30
MOST_BATCH = 1 << 15

# Where not all groups of so many columns fit, fewer groups are taken at once: a product of fewer is slow.
ENOUGH_COLUMNS = 256


def cut(images: int, groups: range, places: int, column_bytes: int, limit: int, step: int) -> list[Chunk]:
    """Cut a convolution into chunks of columns within the limit: images first, then groups, then places.

    `column_bytes` is the size of one group's column. Places are cut at multiples of `step`, and those of an
    image padded to one.
    """
    padded = round_up(places, step)
    image = len(groups) * padded * column_bytes
    if image <= limit and (images > 1 or padded <= MOST_ROWS):
        per = even(images, max(1, min(limit // image, MOST_ROWS // padded)))
        return [
            Chunk(n, min(images, n + per), groups.start, groups.stop, 0, places)
            for n in range(0, images, per)
        ]
    enough = min(padded, round_up(ENOUGH_COLUMNS, step))
    together = even(len(groups), max(1, limit // (enough * column_bytes)))
    most = min(limit // (together * column_bytes), max(step, MOST_ROWS)) // step * step
    if most == 0:
        raise LimitTooSmall(step * column_bytes)
    per = round_up(even(places, most), step)
    return [
        Chunk(n, n + 1, g, min(groups.stop, g + together), o, min(places, o + per))
        for g in range(groups.start, groups.stop, together)
        for n in range(images)
        for o in range(0, places, per)
    ]


def whole_rows(problem: Problem) -> list[Chunk]:
    """Return the chunks of a channels-last product that needs no columns: all rows, as cuBLAS can count."""
    total = problem.images * problem.window.places
    return [
        Chunk(0, 1, 0, problem.window.groups, m, min(total, m + MOST_ROWS))
        for m in range(0, total, MOST_ROWS)
    ]


def even(total: int, most: int) -> int:
    """Return the size of equal parts of at most `most`: 14 as 7 + 7, not as 12 + 2."""
    return -(-total // -(-total // min(most, total)))


def round_up(number: int, multiple: int) -> int:
    """Return the next multiple."""
    return -(-number // multiple) * multiple


def batches(chunk: Chunk) -> Iterator[tuple[int, int, int, bool]]:
    """Yield (first image, first group, batch, by_image) of batched products, over images or over groups.

    An image and a group each have their stride, and a batch has one: so it takes as many calls as there are
    images, or groups, whichever are fewer.
    """
    by_image = chunk.groups <= chunk.images
    batched, single = (chunk.images, chunk.groups) if by_image else (chunk.groups, chunk.images)
    for other in range(single):
        for first in range(0, batched, MOST_BATCH):
            n, g = (first, other) if by_image else (other, first)
            yield n, g, min(MOST_BATCH, batched - first), by_image


def channel_pitch(x: Laid, window: Window) -> int | None:
    """Return how far apart channels lie, where an image is a matrix [C, places]; else None."""
    in_order = dense(1, window.in_size, False).place
    fits = window.places <= x.channel < 2**31 and x.image >= 0
    return x.channel if x.place == in_order and fits else None


def row_pitch(x: Laid, window: Window, channels: int) -> int | None:
    """Return how far apart places lie, where all images are one matrix [places, C]; else None."""
    pitch = x.place[-1]
    in_order = tuple(pitch * step for step in (window.places, *dense(1, window.in_size, False).place))
    fits = channels <= pitch < 2**31
    return pitch if x.channel == 1 and (x.image, *x.place) == in_order and fits else None


def unfold(
    problem: Problem, x: Laid, slot: int, chunk: Chunk, col: ColumnStrides, to: At, vector: int
) -> Launch:
    """Return the im2col of a chunk's images, groups and places."""
    skipped, first = chunk.n0, chunk.o0
    if problem.channels_last:  # places run on over the images: count from the chunk's first image
        skipped, first = divmod(chunk.o0, problem.window.places)
    offset = skipped * x.image + chunk.g0 * problem.cg * x.channel
    return im2col_launch(
        problem.window,
        x,
        problem.at(slot, offset),
        col,
        to,
        problem.itemsize,
        images=chunk.images,
        groups=chunk.groups,
        channels=problem.cg,
        first=first,
        places=chunk.places,
        channels_last=problem.channels_last,
        vector=vector,
    )


def copy_places(
    problem: Problem,
    image: int,
    images: int,
    channel: int,
    channels: int,
    first: tuple[int, ...],
    size: tuple[int, ...],
    col: ColumnStrides,
    to: At,
    vector: int,
) -> Launch:
    """Return the copy of a box of dy's places to the workspace: the im2col of a 1x1 kernel."""
    ones = (1,) * len(size)
    out_size = problem.window.out_size
    box = Window(
        in_size=out_size,
        kernel=ones,
        stride=ones,
        dilation=ones,
        before=tuple(-o for o in first),
        after=(0,) * len(size),
        out_size=size,
    )
    dy = dense(problem.c_out, out_size, problem.channels_last)
    return im2col_launch(
        box,
        dy,
        problem.at(LEFT, image * dy.image + channel * dy.channel),
        col,
        to,
        problem.itemsize,
        images=images,
        groups=1,
        channels=channels,
        first=0,
        places=box.places,
        channels_last=problem.channels_last,
        vector=vector,
    )
