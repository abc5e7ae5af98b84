"""What is checked for being right: every operation on small shapes, and named ones of the shared shapes."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import gpuconv
from gpuconv.measure.shapes import (
    CONV_OPS,
    CONV_PASSES,
    POOL_OPS,
    ConvShape,
    PoolShape,
    Row,
    Shape,
    candidates,
)

# Small shapes that between them meet tails, strides, padding, dilation, groups and single taps; few, for each
# has kernels of its own to compile.
SMALL_CONVS = (
    ConvShape("small 3x3", 3, 8, 13, 11, 8, 3, 3, 1, 1, 1, 1),
    ConvShape("small 3x3 stride 2, 2 groups", 2, 6, 12, 15, 4, 3, 3, 2, 1, 1, 2),
    ConvShape("small depthwise 3x3 dilation 2", 2, 16, 9, 16, 16, 3, 3, 1, 2, 2, 16),
    ConvShape("small depthwise 5x5 stride 2, 2 kernels a channel", 2, 8, 13, 16, 16, 5, 5, 2, 2, 1, 8),
    ConvShape("small 1x1", 2, 16, 7, 7, 24, 1, 1, 1, 0, 1, 1),
)
SMALL_POOLS = (
    PoolShape("small 3x3 stride 2", 2, 5, 13, 16, 3, 2, 1),
    PoolShape("small 2x2", 2, 8, 12, 16, 2, 2, 0),
)


@dataclass(frozen=True)
class Case:
    """One operation on one shape, to be checked."""

    op: str
    shape: Shape
    dtype: str
    channels_last: bool
    algorithm: str = "auto"
    precision: str = "ieee"

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "channels first"
        asked = "" if self.algorithm == "auto" else f", {self.algorithm} {self.precision}"
        return f"{self.op}, {self.shape.name}, {self.dtype}, {layout}{asked}"

    def settings(self) -> AbstractContextManager[None]:
        """Return the context that it is computed in."""
        return gpuconv.config(algorithm=self.algorithm, fp32_precision=self.precision)


def small_cases() -> Iterator[Case]:
    """Yield every operation on the small shapes; float64 on the first of each kind only."""
    for dtype in ("float32", "float16", "float64"):
        most = 1 if dtype == "float64" else None
        yield from cases((*SMALL_CONVS[:most], *SMALL_POOLS[:most]), dtype)
    yield from asked_cases()


# What the planner takes on none of these by itself, of which dtype, and how float32 is multiplied.
ASKED = (
    ("direct", "float32", "ieee"),
    ("implicit", "float32", "ieee"),
    ("implicit", "float32", "tf32"),
    ("implicit", "float32", "3xtf32"),
    ("implicit", "float16", "ieee"),
    ("winograd", "float32", "ieee"),
)


# So few places, and so many channels, that implicit products sum in parts.
IN_PARTS = ConvShape("small 3x3, 64 channels", 1, 64, 7, 7, 64, 3, 3, 1, 1, 1, 1)


def asked_cases() -> Iterator[Case]:
    """Yield what algorithms compute that have to be asked for, on some small shapes."""
    for algorithm, dtype, precision in ASKED:
        for shape in (*SMALL_CONVS[:2], IN_PARTS):
            for channels_last in (False, True):
                for op in CONV_PASSES:
                    row = Row(op, shape, dtype, precision, channels_last)
                    if algorithm in candidates(row)[1:]:
                        yield Case(op, shape, dtype, channels_last, algorithm, precision)


def cases(shapes: Iterable[Shape], dtype: str) -> Iterator[Case]:
    """Yield every operation on these shapes, in both layouts."""
    for shape in shapes:
        for channels_last in (False, True):
            for op in CONV_OPS if isinstance(shape, ConvShape) else POOL_OPS:
                yield Case(op, shape, dtype, channels_last)
