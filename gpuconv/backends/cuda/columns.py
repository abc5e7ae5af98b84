"""im2col and col2im: how their kernels are launched, for columns in any order, and the two as operations."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backends.cuda import runtime as runtimes
from gpuconv.backends.cuda.kernels import C_TYPES, divisor, needs_wide, specialise
from gpuconv.backends.cuda.program import At, Launch, Program, kernel_launch, lanes, planned, run
from gpuconv.geometry import Window

Array = Any


class Laid(NamedTuple):
    """How an array of images lies in memory, in elements: strides, and what its address is a multiple of."""

    image: int
    channel: int
    place: tuple[int, ...]
    alignment: int

    def struct(self, images: int, channels: int, sizes: tuple[int, ...]) -> dict[str, Any]:
        """Return the kernels' struct Strides; an axis of length 1 steps nowhere, however far it would."""
        image, channel, *place = _used((self.image, self.channel, *self.place), (images, channels, *sizes))
        return {"image": image, "channel": channel, "place": three(place, 0)}

    def extent(self, images: int, channels: int, sizes: tuple[int, ...]) -> int:
        """Return one more than the largest offset, either way."""
        return _extent((self.image, self.channel, *self.place), (images, channels, *sizes))


def laid(x: Array, address: int, channels_last: bool) -> Laid:
    """Describe an array [N, C, *places], or [N, *places, C], at this address."""
    image, *rest = steps(x)
    channel = rest.pop(-1 if channels_last else 0)
    return Laid(image, channel, tuple(rest), aligned(x, address))


def aligned(x: Array, address: int) -> int:
    """Return how many elements an array's address is a multiple of: a power of two, of up to 16 bytes."""
    return min(16, address & -address) // x.itemsize if address else 16


def steps(x: Array) -> list[int]:
    """Return an array's strides in elements; axes of length 1, which may have any, are in order."""
    strides: list[int] = []
    inside = 1
    for size, step in zip(reversed(x.shape), reversed(x.strides), strict=True):
        strides.insert(0, inside if size == 1 else step // x.itemsize)
        inside = strides[0] * size
    return strides


def dense(channels: int, sizes: tuple[int, ...], channels_last: bool) -> Laid:
    """Describe a new array of images: results are aligned and in row-major order."""
    inner = channels if channels_last else 1
    place = tuple(inner * prod(sizes[axis + 1 :]) for axis in range(len(sizes)))
    return Laid(channels * prod(sizes), 1 if channels_last else prod(sizes), place, 16)


class ColumnStrides(NamedTuple):
    """Where an entry of the columns lies, in elements: of image n, group g, channel c, tap j, place o."""

    image: int = 0
    group: int = 0
    channel: int = 1
    tap: int = 0
    place: int = 1

    def fields(self, *sizes: int) -> dict[str, int]:
        """Return the fields of the kernels' structs, for sizes in this order."""
        return dict(zip(self._fields, _used(self, sizes), strict=True))

    def extent(self, *sizes: int) -> int:
        """Return one more than the largest offset, either way, for sizes in the order of the fields."""
        return _extent(self, sizes)


def _used(strides: Sequence[int], sizes: Sequence[int]) -> list[int]:
    return [stride if size > 1 else 0 for stride, size in zip(strides, sizes, strict=True)]


def _extent(strides: Sequence[int], sizes: Sequence[int]) -> int:
    return 1 + sum(abs(stride) * (size - 1) for stride, size in zip(strides, sizes, strict=True))


def three(numbers: Sequence[int], fill: int) -> list[int] | tuple[int, ...]:
    """Return one number for each of the kernels' three axes; with fewer spatial axes the first are unused."""
    return (*(fill,) * (3 - len(numbers)), *numbers)


def window_struct(window: Window) -> dict[str, Any]:
    """Return the kernels' struct of this name.

    Raises
    ------
    ValueError
        Where an axis, with its padding and a window more, has 2^31 places or more.
    """
    for axis, size in enumerate(window.in_size):
        reach = size + window.before[axis] + window.after[axis] + window.span[axis] + window.stride[axis]
        if reach >= 2**31:
            raise ValueError(
                f"spatial axis {axis} has {size} places, with padding and window {reach}; "
                "on a GPU it must have fewer than 2^31"
            )
    return {
        "in": three(window.in_size, 1),
        "out": three(window.out_size, 1),
        "before": three(window.before, 0),
    }


def inner_divisors(sizes: tuple[int, ...], wide: bool) -> list[dict[str, int]]:
    """Return the divisors that unravel a flat place of a plane with these sizes."""
    return [divisor(size, wide) for size in three(sizes, 1)[1:]]


def order_struct(
    channels: int, sizes: tuple[int, ...], vector: int, channels_last: bool, wide: bool
) -> dict[str, Any]:
    """Return the kernels' struct Order: how they count the vectors of an array of these sizes."""
    places = prod(sizes)
    side_by_side, outer = (channels, places) if channels_last else (places, channels)
    return {
        "vectors": divisor(side_by_side // vector, wide),
        "outer": divisor(outer, wide),
        "inner": inner_divisors(sizes, wide),
    }


# Columns are only moved, so their kernel takes them as unsigned integers of the same size.
WORDS = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64", 16: "complex128"}


def im2col_launch(
    window: Window,
    x: Laid,
    x_at: At,
    col: ColumnStrides,
    col_at: At,
    itemsize: int,
    *,
    images: int,
    groups: int,
    channels: int,
    first: int,
    places: int,
    channels_last: bool,
    vector: int,
) -> Launch:
    """Return the launch that writes the columns of `channels` channels of each of `groups` groups.

    Channels first, of the output places first <= o < first + places of each image, in rows that are padded to
    whole vectors; channels last, of so many places from the first on, images one after another.
    """
    taps, size = window.taps, window.places
    if channels_last:
        vectors = channels // vector
        items = places * groups * taps * vectors
        reach = (first + places - 1) // size + 1
        shape = (1, groups, channels, taps, places)
        seen, between = size * reach, groups
    else:
        vectors = -(-places // vector)
        items = images * groups * channels * vectors
        reach = images
        shape = (images, 1, groups * channels, taps, vectors * vector)
        seen, between = size + vector, groups * channels
    read = (reach, groups * channels, window.in_size)
    wide = needs_wide(items, x.extent(*read), col.extent(*shape), seen)
    kernel = specialise(
        "im2col", window, WORDS[itemsize], vector=vector, wide=wide, CHANNELS_LAST=int(channels_last)
    )
    return kernel_launch(
        kernel,
        items,
        (x_at, col_at),
        window=window_struct(window),
        x=x.struct(*read),
        first=first,
        **col.fields(*shape),
        places=places if not channels_last else 0,
        vectors=divisor(vectors, wide),
        channels=divisor(between, wide),
        plane=divisor(size, wide),
        inner=inner_divisors(window.out_size, wide),
    )


def col2im_launch(
    window: Window,
    col: ColumnStrides,
    col_at: At,
    b_at: At | None,
    x: Laid,
    x_at: At,
    dtypes: tuple[np.dtype[Any], np.dtype[Any]],
    *,
    images: int,
    groups: int,
    channels: int,
    channels_last: bool,
    vector: int,
) -> Launch:
    """Return the launch that collects x, or a tile of it, from the columns of its windows, plus b.

    `dtypes` are those of the columns and of x.
    """
    places = prod(window.in_size)
    written = (images, groups * channels, window.in_size)
    apart = (groups, channels) if channels_last else (1, groups * channels)
    shape = (images, *apart, window.taps, max(1, window.places))
    wide = needs_wide(images * groups * channels * places, x.extent(*written), col.extent(*shape))
    vectors = (channels if channels_last else places) // vector
    between = groups if channels_last else groups * channels
    kernel = specialise(
        "col2im",
        window,
        dtypes[1],
        vector=vector,
        wide=wide,
        CHANNELS_LAST=int(channels_last),
        COL=C_TYPES[dtypes[0].name],
        WITH_BIAS=int(b_at is not None),
    )
    return kernel_launch(
        kernel,
        images * between * vectors * (places if channels_last else 1),
        (col_at, b_at or col_at, x_at),
        window=window_struct(window),
        x=x.struct(*written),
        **col.fields(*shape),
        vectors=divisor(vectors, wide),
        channels=divisor(between, wide),
        plane=divisor(places, wide),
        inner=inner_divisors(window.in_size, wide),
    )


def channel_lanes(itemsize: int, channels: int, *arrays: Laid) -> int:
    """Return the vector width over so many channels of a place; in each array they must lie side by side."""
    if any(x.channel != 1 for x in arrays):
        return 1
    multiples = [n for x in arrays for n in (x.image, *x.place, x.alignment)]
    return lanes(itemsize, channels, *multiples)


def order_lanes(
    itemsize: int, channels: int, sizes: tuple[int, ...], channels_last: bool, *read: Laid
) -> int:
    """Return the vector width over a new array in order; a place's channels are read so, too."""
    return channel_lanes(itemsize, channels, *read) if channels_last else lanes(itemsize, prod(sizes))


def places_lanes(itemsize: int, sizes: tuple[int, ...], x: Laid) -> int:
    """Return the vector width over the places of a plane, which must lie in order."""
    if x.place != dense(1, sizes, False).place:
        return 1
    return lanes(itemsize, prod(sizes), x.image, x.channel, x.alignment)


COL, IM = 0, 1  # slots


@runtimes.on_device("col")
def im2col(x: Array, col: Array, window: Window, channels_last: bool) -> None:
    """Write each output place's window as a column: [N, C*taps, places], or [N, places, taps*C]."""
    runtime = runtimes.of(x)
    if col.size:
        n, c = x.shape[0], x.shape[-1 if channels_last else 1]
        source = laid(x, runtime.address(x), channels_last)
        run(runtime, _im2col(window, n, c, source, x.itemsize, channels_last), _addresses(runtime, col, x))


@planned
def _im2col(window: Window, n: int, c: int, x: Laid, itemsize: int, channels_last: bool) -> Program:
    taps, places = window.taps, window.places
    if channels_last:
        strides = ColumnStrides(tap=c, place=taps * c)
        vector, first_to_last = channel_lanes(itemsize, c, x), n * places
    else:
        strides = ColumnStrides(image=c * taps * places, channel=taps * places, tap=places)
        vector, first_to_last = lanes(itemsize, places), places
    launch = im2col_launch(
        window,
        x,
        At(IM),
        strides,
        At(COL),
        itemsize,
        images=n,
        groups=1,
        channels=c,
        first=0,
        places=first_to_last,
        channels_last=channels_last,
        vector=vector,
    )
    return Program((launch,))


@runtimes.on_device("x")
def col2im(col: Array, x: Array, window: Window, channels_last: bool) -> None:
    """Write the adjoint of im2col: every place of x gets the sum of its copies in the columns."""
    runtime = runtimes.of(col)
    if x.size:
        address = runtime.address(col)
        program = _col2im(window, x.shape, tuple(steps(col)), aligned(col, address), col.dtype, channels_last)
        run(runtime, program, _addresses(runtime, col, x))


@planned
def _col2im(
    window: Window,
    x_shape: tuple[int, ...],
    strides: tuple[int, ...],
    alignment: int,
    dtype: np.dtype[Any],
    channels_last: bool,
) -> Program:
    n, c = x_shape[0], x_shape[-1 if channels_last else 1]
    image, first, second = strides
    if channels_last:
        col = ColumnStrides(image=image, channel=second, tap=c * second, place=first)
        source = Laid(image, second, (first, c * second), alignment)
        vector = channel_lanes(dtype.itemsize, c, source)
    else:
        col = ColumnStrides(image=image, channel=window.taps * first, tap=first, place=second)
        vector = lanes(dtype.itemsize, prod(window.in_size))
    launch = col2im_launch(
        window,
        col,
        At(COL),
        None,
        dense(c, window.in_size, channels_last),
        At(IM),
        (dtype, dtype),
        images=n,
        groups=1,
        channels=c,
        channels_last=channels_last,
        vector=vector,
    )
    return Program((launch,))


def _addresses(runtime: runtimes.Runtime, col: Array, x: Array) -> list[int]:
    return [runtime.address(col), runtime.address(x)]
