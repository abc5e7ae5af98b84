"""How planes are cut into tiles, for kernels whose threads compute one each in registers (cuda/tile.cuh).

Worked out here: how large a tile may be, what it reads, how much one access moves, how tiles are counted.
"""

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backends.cuda.columns import Laid, channel_lanes, three, window_struct
from gpuconv.backends.cuda.kernels import UNROLLED, UNROLLED_TAPS, Kernel, divisor, specialise
from gpuconv.backends.cuda.program import lanes
from gpuconv.backends.dispatch import accumulator
from gpuconv.geometry import Window

# Larger steps share little between neighbouring places; what wider windows read doesn't fit the registers.
MOST_STRIDE, MOST_SPAN = 4, 64


def fits(window: Window, dtype: np.dtype[Any]) -> bool:
    """Tell whether tiles of this window, of numbers of this type, fit the registers."""
    return (
        dtype.kind == "f"
        and max(window.stride) <= MOST_STRIDE
        and max(window.span) <= MOST_SPAN
        and window.taps * accumulator(dtype).itemsize <= UNROLLED_TAPS * 4
    )


class Reading(NamedTuple):
    """How a result is computed from a source: y from x, or, backward, dx from dy.

    `window.in_size` is the source's, `out_size` the result's, and `before` how far before a tile of the
    result its reading begins, as cuda/tile.cuh counts; `channels` are a group's, of source and result.
    """

    window: Window
    channels: tuple[int, int]
    backward: bool
    phase: tuple[int, ...]

    def columns(self, places: int) -> int:
        """Return how many places of a row so many neighbours read, as READ in cuda/tile.cuh."""
        k, s, d = self.window.kernel[-1], self.window.stride[-1], self.window.dilation[-1]
        if not self.backward:
            return (places - 1) * s + (k - 1) * d + 1
        return max(0, (k - 1) * d - self.phase[-1]) // s + (self.phase[-1] + places - 1) // s + 1

    def step(self, axis: int) -> int:
        """Return of what a tile's places along an axis are a multiple, so that all tiles have one phase."""
        return self.window.stride[axis] if self.backward else 1


def forward(window: Window, read: int = 1, written: int = 1) -> Reading:
    """Return how y is computed, from so many channels of a group, in so many."""
    return Reading(window, (read, written), False, (0,) * window.axes)


def backward(window: Window, read: int = 1, written: int = 1) -> Reading:
    """Return how dx is computed, from so many channels of a group, in so many."""
    phase = tuple(b % s for b, s in zip(window.before, window.stride, strict=True))
    each = zip(window.span, phase, window.before, window.stride, strict=True)
    before = [max(0, span - 1 - r) // s - b // s for span, r, b, s in each]
    if window.axes == 3:  # a tile has one slice, and the kernel asks of each tap whether it reads one
        before[0] = window.before[0]
    turned = replace(window, in_size=window.out_size, out_size=window.in_size, before=tuple(before))
    return Reading(turned, (read, written), True, phase)


class Numbers(NamedTuple):
    """The type of an operation's numbers, and their layout."""

    dtype: np.dtype[Any]
    channels_last: bool

    @property
    def itemsize(self) -> int:
        """Bytes of a number in memory."""
        return self.dtype.itemsize

    @property
    def words(self) -> float:
        """Registers that a number takes. A double has an aligned pair; some are lost between pairs."""
        return 1.0 if accumulator(self.dtype).itemsize == 4 else 2.5


# Channels last, channels of a thread at most. With float16's 8 in 16 bytes, half as many places would fit the
# registers, for more instructions a result (docs/gpu.md).
MOST_LANES = 4


def channels_at_once(numbers: Numbers, reading: Reading, source: Laid, channels: int) -> int:
    """Channels last: return how many of the result's channels a thread may take."""
    read, written = reading.channels
    together = read * written == 1  # then the source's are vectors, too
    itemsize = numbers.itemsize
    vector = channel_lanes(itemsize, channels, source) if together else lanes(itemsize, channels)
    vector = min(vector, MOST_LANES)
    while vector % written and written % vector:  # whole groups, or a part of one
        vector //= 2
    return vector


def places_at_once(numbers: Numbers, reading: Reading, source: Laid, sizes: tuple[int, ...]) -> int:
    """Channels first: return how many places of a row one access may move, of a source and of the result."""
    if source.place[-1] != 1:
        return 1
    columns, s = _columns(numbers, reading), reading.window.stride[-1]
    apart = columns // s if reading.backward else columns * s  # where neighbouring tiles begin to read
    multiples = (sizes[-1], reading.window.out_size[-1], columns, apart)
    return lanes(
        numbers.itemsize, *multiples, source.image, source.channel, *source.place[:-1], source.alignment
    )


class Registers(NamedTuple):
    """How many 32-bit values a thread may keep, beside addresses and what the compiler reads ahead.

    It has 255 registers; 128 where two blocks are resident on a multiprocessor, 80 where three are. The
    limits are those up to which none is spilled on sm_75 to sm_120 (profiling/compile_report.py).
    """

    beside: Callable[[Window, int], int]  # of each channel, beside the tile and what is read of a row
    most: int
    resident: tuple[int, ...]  # up to so many, one more block is resident
    each: int = 1  # of each place of the tile
    read: int = 1  # of each place of a row that is read
    done: bool = False  # whether rows of the tile are written as soon as they are done, and not kept


# What the loop over the channels of a group, or over the slices of taps, takes besides.
LOOP = 48

# Places of a tile at most, along the last two axes. Channels first, a row's 8 are one access of float16 or
# two of float32; channels last, each place is an access of its own.
FIRST, LAST = (4, 8), (4, 4)
# A plane is cut into at least so many tiles from top to bottom, or small ones would occupy few threads.
LEAST_TILES = 7


class Tile(NamedTuple):
    """A thread's places along the last two axes, elements of an access, blocks resident at once."""

    rows: int
    columns: int
    vector: int
    resident: int


def tile(numbers: Numbers, reading: Reading, vector: int, registers: Registers) -> Tile:
    """Return the largest tile that fits the registers."""
    window, columns = reading.window, _columns(numbers, reading)
    rows = step = 1
    if window.axes > 1:
        step, most = reading.step(-2), (LAST if numbers.channels_last else FIRST)[0]
        rows = max(1, min(most, window.out_size[-2] // LEAST_TILES) // step) * step

    def kept() -> float:
        live = rows
        if registers.done and window.axes < 3:
            live = min(rows, -(-window.span[-2] // window.stride[-2]) if window.axes > 1 else 1)
        of_channel = registers.each * live * columns + registers.read * reading.columns(columns)
        of_channel += registers.beside(window, rows // step)
        return numbers.words * of_channel * (vector if numbers.channels_last else 1)

    while rows > step and kept() > registers.most:
        rows = max(1, rows // 2 // step) * step
    while numbers.channels_last and vector > 1 and kept() > registers.most:
        vector //= 2
    in_use = kept() + LOOP * (reading.channels[0] > 1 or window.axes > 2)
    return Tile(rows, columns, vector, 1 + sum(in_use <= most for most in registers.resident))


def _columns(numbers: Numbers, reading: Reading) -> int:
    """Return a tile's places along the last axis."""
    step, most = reading.step(-1), (LAST if numbers.channels_last else FIRST)[1]
    if reading.window.out_size[-1] <= most // 2:
        most //= 2
    return max(1, most // step) * step


def count(window: Window, tile: Tile) -> tuple[int, ...]:
    """Return how many tiles there are along each of three axes; along the first they are slices."""
    sizes = three(window.out_size, 1)
    return tuple(-(-n // step) for n, step in zip(sizes, (1, tile.rows, tile.columns), strict=True))


def fields(reading: Reading, tile: Tile, channels: int, numbers: Numbers, wide: bool) -> dict[str, Any]:
    """Return the fields `window`, `channels` and `tiles` of a kernel's struct."""
    vectors = channels // tile.vector if numbers.channels_last else channels
    return {
        "window": window_struct(reading.window),
        "channels": divisor(vectors, wide),
        "tiles": tiles_struct(count(reading.window, tile), wide),
    }


def items(reading: Reading, tile: Tile, images: int, channels: int, numbers: Numbers) -> int:
    """Return how many tiles there are in all."""
    vectors = channels // tile.vector if numbers.channels_last else channels
    return images * vectors * prod(count(reading.window, tile))


def tiles_struct(counts: tuple[int, ...], wide: bool) -> dict[str, Any]:
    """Return the kernels' struct Tiles."""
    divisors = (divisor(n, wide) for n in counts)
    return dict(zip(("slices", "rows", "columns"), divisors, strict=True))


def kernel(name: str, numbers: Numbers, reading: Reading, tile: Tile, wide: bool, **more: Any) -> Kernel:
    """Return a kernel for these tiles; `more` are constants of its own."""
    _, *phases = three(reading.phase, 0)
    return specialise(
        name,
        reading.window,
        numbers.dtype,
        vector=tile.vector,
        wide=wide,
        CHANNELS_LAST=int(numbers.channels_last),
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        RESIDENT=tile.resident,
        UNROLL_ROWS=1 if tile.rows == 1 else UNROLLED,
        IN=reading.channels[0],
        OUT=reading.channels[1],
        LEAD=0 if numbers.channels_last else -reading.window.before[-1] % tile.vector,
        BACKWARD=int(reading.backward),
        PHASE1=phases[0],
        PHASE2=phases[1],
        **more,
    )
