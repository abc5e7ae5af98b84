"""Padding with the image's own values, axis by axis, and its adjoint.

Of an axis of n places, the place i of the padded axis, -before <= i < n + after, holds

    reflect     x[|i|] before, x[2 (n-1) - i] after: mirrored at the outermost place, which isn't repeated
    replicate   x[0] before, x[n-1] after
    circular    x[i mod n]

So each border is the copy of a slice, and the adjoint adds each border's gradient to that slice's.
"""

from collections.abc import Iterator
from typing import Any

from gpuconv.backends.dispatch import accumulator, array_module
from gpuconv.geometry import Window

Array = Any
Pads = tuple[tuple[int, int], ...]  # (before, after) for every axis of an array
Index = tuple[slice, ...]

MODES = ("zeros", "reflect", "replicate", "circular")


def check_mode(op: str, mode: Any) -> str:
    """Return the mode if it is one of `MODES`."""
    if not isinstance(mode, str) or mode not in MODES:
        listed = ", ".join(f'"{m}"' for m in MODES)
        raise ValueError(f"{op}: padding_mode must be one of {listed}, not {mode!r}")
    return mode


def check_borders(op: str, mode: str, window: Window) -> None:
    """Check that no border needs a place twice: PyTorch's limits."""
    if mode == "replicate":
        return
    for axis, (n, *pads) in enumerate(zip(window.in_size, window.before, window.after, strict=True)):
        most = n - 1 if mode == "reflect" else n
        if max(pads) > most:
            raise ValueError(
                f"{op}: padding along spatial axis {axis} is {pads[0]} + {pads[1]}, but with "
                f'padding_mode="{mode}" x\'s {n} places give at most {most} on each side'
            )


def pad(x: Array, pads: Pads, mode: str) -> Array:
    """Return x in the middle of a larger array in row-major order, with borders filled from it."""
    shape = tuple(before + n + after for n, (before, after) in zip(x.shape, pads, strict=True))
    padded = array_module(x).empty_like(x, order="C", shape=shape)
    padded[_middle(shape, pads)] = x
    # Each copy takes the borders of the axes before with it, and so fills the corners.
    for _, border, source in _copies(shape, pads, mode):
        padded[border] = padded[source]
    return padded


def pad_backward(dpadded: Array, pads: Pads, mode: str) -> Array:
    """Return dx: every copy of `pad` turned round, in any order, as axes don't mix.

    float16 is summed in float32.
    """
    d = dpadded.astype(accumulator(dpadded.dtype))
    for axis, border, source in _copies(d.shape, pads, mode):
        # Replicated, all of a border came from one place.
        d[source] += d[border].sum(axis=axis, keepdims=True) if mode == "replicate" else d[border]
    return d[_middle(d.shape, pads)].astype(dpadded.dtype, order="C")


def _middle(shape: tuple[int, ...], pads: Pads) -> tuple[slice, ...]:
    return tuple(slice(before, size - after) for size, (before, after) in zip(shape, pads, strict=True))


def _copies(shape: tuple[int, ...], pads: Pads, mode: str) -> Iterator[tuple[int, Index, Index]]:
    """Yield, for each border of an array of the padded shape, its axis, itself, and what fills it."""
    for axis, (size, (before, after)) in enumerate(zip(shape, pads, strict=True)):
        end = size - after
        if mode == "reflect":  # no slice ends before place 0, which Python would count from the end
            lower = slice(0, before), slice(2 * before, before, -1)
            upper = slice(size - 1, end - 1, -1), slice(end - 1 - after, end - 1)
        elif mode == "replicate":
            lower = slice(0, before), slice(before, before + 1)
            upper = slice(end, size), slice(end - 1, end)
        else:
            lower = slice(0, before), slice(end - before, end)
            upper = slice(end, size), slice(before, before + after)
        for count, (border, source) in ((before, lower), (after, upper)):
            if count:
                others = (slice(None),) * axis
                yield axis, (*others, border), (*others, source)
