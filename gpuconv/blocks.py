"""Sliding windows, block by block: what a block of the output reads, which windows reach one of the input.

Along an axis the windows a <= o < b read the places of the input from ``a*stride - before`` on, up to
``(b-1)*stride - before + span``. What of that lies outside the input is padding; so a block has a window of
its own, with padding at the input's border alone:

    input     . . 0 1 2 3 | 4 5 6 7 . .      3 taps, stride 1, padding 2; outputs in blocks of 5
    block 0   . . 0 1 2 3   4                reads 0..4, padding 2 and 0
    block 1             3 | 4 5 6 7 . .      reads 3..7, padding 0 and 2

Every block's window is one that the public functions could have been given: no padding is negative.
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from gpuconv.geometry import Window

Range = tuple[int, int]


class Part(NamedTuple):
    """A block along one axis: its window's places of the input and of the output, and the padding there.

    `kept` are those of the computed places that are the block's; the rest belongs to its neighbours.
    """

    places: Range
    outputs: Range
    before: int
    after: int
    kept: Range


def plain(start: int, stop: int) -> Part:
    """Return a block along an axis without windows: the batch, or a pooling's channels."""
    return Part((start, stop), (start, stop), 0, 0, (0, stop - start))


def reading(window: Window, axis: int, start: int, stop: int) -> Part:
    """Return a block of the output, which is one of those that `cuts_of_output` makes."""
    n, s, span, before, after = _axis(window, axis)
    end = (stop - 1) * s + span - before
    first, last = max(0, start * s - before), max(1, min(end, n))
    padding = before + first - start * s, max(0, min(end, n + after) - last)
    return Part((first, last), (start, stop), *padding, (0, stop - start))


def reached(window: Window, axis: int, start: int, stop: int, whole: bool) -> Part:
    """Return a block of the input, with the windows that reach it, and one before where they leave a gap.

    Where windows must be `whole`, for what depends on their other places too, these are computed besides.
    """
    n, s, span, before, after = _axis(window, axis)
    out = window.out_size[axis]
    a = min(max(0, -((span - 1 - start - before) // s)), (start + before) // s, out - 1)
    b = max(a + 1, min(out, (stop - 1 + before) // s + 1))
    end = (b - 1) * s + span - before
    first, last = (max(0, a * s - before), max(stop, min(end, n))) if whole else (start, stop)
    padding = before + first - a * s, max(0, min(end, n + after) - last)
    return Part((first, last), (a, b), *padding, (start - first, stop - first))


def among_neighbours(window: Window, axis: int, start: int, stop: int) -> Part:
    """Return a block of the output, with all windows that share a place with its own."""
    wide = reached(window, axis, *reading(window, axis, start, stop).places, whole=True)
    first = wide.outputs[0]
    return wide._replace(kept=(start - first, stop - first))


def cuts_of_output(window: Window, axis: int, ends: Iterable[int]) -> list[int]:
    """Return where blocks of the output end whose windows have their middle in blocks of the input."""
    n, s, span, before, _ = _axis(window, axis)
    inner = (end for end in ends if 0 < end < n)
    return with_places(window, axis, (-(((span - 1) // 2 - before - end) // s) for end in inner))


def cuts_of_input(window: Window, axis: int, ends: Iterable[int]) -> list[int]:
    """Return where blocks of the input end: midway between the windows of two blocks of the output."""
    n, s, span, before, _ = _axis(window, axis)
    inner = (end for end in ends if 0 < end < window.out_size[axis])
    return ends_of((end * s - before + (span - s) // 2 for end in inner), n)


def with_places(window: Window, axis: int, ends: Iterable[int]) -> list[int]:
    """Return the ends of those blocks of the output that read a place: windows of padding join others."""
    n, s, span, before, _ = _axis(window, axis)
    first, last = max(0, -((span - 1 - before) // s)), (n - 1 + before) // s
    return ends_of((end for end in ends if first < end <= last), window.out_size[axis])


def ends_of(cuts: Iterable[int], size: int) -> list[int]:
    """Return where blocks end that are cut there, none of them empty (but the only one of nothing)."""
    return [*sorted({cut for cut in cuts if 0 < cut < size}), size]


def between(ends: Iterable[int]) -> Iterable[Range]:
    """Return the blocks that end there."""
    return pairwise((0, *ends))


def window_of(window: Window, parts: Iterable[Part]) -> Window:
    """Return the window of a block with these parts, one for each spatial axis."""
    places, outputs, before, after, _ = zip(*parts, strict=True)
    return replace(window, in_size=_sizes(places), out_size=_sizes(outputs), before=before, after=after)


def _sizes(ranges: Iterable[Range]) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in ranges)


def _axis(window: Window, axis: int) -> tuple[int, int, int, int, int]:
    numbers = (window.in_size, window.stride, window.span, window.before, window.after)
    n, s, span, before, after = (each[axis] for each in numbers)
    return n, s, span, before, after
