"""What is measured: the shared shapes, the rows in order of priority, the least work that each must do."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1]

ITEM_BYTES = {"float16": 2, "float32": 4, "float64": 8}


def window_places(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return the windows along one axis."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@dataclass(frozen=True)
class ConvShape:
    """A line of conv_shapes.csv."""

    name: str
    group: str
    n: int
    c_in: int
    h: int
    w: int
    c_out: int
    kh: int
    kw: int
    stride: int
    padding: int
    dilation: int
    groups: int

    @cached_property
    def out(self) -> tuple[int, int]:
        """Height and width of y."""
        window = (self.stride, self.padding, self.dilation)
        return window_places(self.h, self.kh, *window), window_places(self.w, self.kw, *window)

    @property
    def kind(self) -> str:
        """How the channels are connected."""
        return "dense" if self.groups == 1 else "depthwise" if self.groups == self.c_in else "grouped"

    def x_shape(self, channels_last: bool) -> tuple[int, ...]:
        """Shape of x."""
        return _laid_out(self.n, self.c_in, self.h, self.w, channels_last)

    def w_shape(self, channels_last: bool) -> tuple[int, ...]:
        """Shape of w."""
        inner = self.c_in // self.groups
        return (
            (self.kh, self.kw, inner, self.c_out) if channels_last else (self.c_out, inner, self.kh, self.kw)
        )

    def y_shape(self, channels_last: bool) -> tuple[int, ...]:
        """Shape of y."""
        return _laid_out(self.n, self.c_out, *self.out, channels_last)

    @property
    def flops(self) -> int:
        """Floating-point operations of each of the three passes, a multiply-add counted as two."""
        return 2 * prod(self.y_shape(False)) * (self.c_in // self.groups) * self.kh * self.kw

    def least_bytes(self, op: str, dtype: str) -> int:
        """Bytes that the operation must move: inputs, as far as windows read them, and result, once each."""
        x, w, y = prod(self.x_shape(False)), prod(self.w_shape(False)), prod(self.y_shape(False))
        if op != "conv2d_input_grad":  # it writes all of dx; the others needn't read between strided windows
            x = (
                self.n
                * self.c_in
                * _read(self.h, self.out[0], self.kh, self)
                * _read(self.w, self.out[1], self.kw, self)
            )
        return ITEM_BYTES[dtype] * (x + w + y)


def _laid_out(n: int, c: int, h: int, w: int, channels_last: bool) -> tuple[int, ...]:
    return (n, h, w, c) if channels_last else (n, c, h, w)


def _read(size: int, out: int, kernel: int, shape: ConvShape) -> int:
    """Return how many of an axis's places some window reads, padding aside: never more than are read."""
    if shape.stride >= kernel:
        return min(size, out * kernel)
    return min(size, (out - 1) * shape.stride + shape.dilation * (kernel - 1) + 1)


@dataclass(frozen=True)
class PoolShape:
    """A line of pool_shapes.csv."""

    name: str
    n: int
    c: int
    h: int
    w: int
    kernel: int
    stride: int
    padding: int

    @cached_property
    def out(self) -> tuple[int, int]:
        """Height and width of y."""
        window = (self.kernel, self.stride, self.padding, 1)
        return window_places(self.h, *window), window_places(self.w, *window)

    def x_shape(self, channels_last: bool) -> tuple[int, ...]:
        """Shape of x."""
        return _laid_out(self.n, self.c, self.h, self.w, channels_last)

    def y_shape(self, channels_last: bool) -> tuple[int, ...]:
        """Shape of y."""
        return _laid_out(self.n, self.c, *self.out, channels_last)

    flops = 0  # beside the bytes, comparing and adding don't count

    def y_sizes(self, op: str) -> tuple[int, int]:
        """Height and width of what an operation on x gives."""
        if op.startswith("adaptive"):
            return ADAPTED
        if op.startswith("global"):
            return 1, 1
        if op.startswith("upsample"):
            return SCALE * self.h, SCALE * self.w
        return self.out

    def least_bytes(self, op: str, dtype: str) -> int:
        """Bytes that the operation must move: x, y, the places of maxima; for norms x or y again."""
        x, y = prod(self.x_shape(False)), self.n * self.c * prod(self.y_sizes(op))
        place = 0
        if "max" in op:  # one byte while windows have 255 places
            place = 8 if op.startswith(("adaptive", "global")) else 1 if self.kernel**2 <= 255 else 4
        again = x + y if op == "lp_pool2d_backward" else 0
        return ITEM_BYTES[dtype] * (x + y + again) + place * y


Shape = ConvShape | PoolShape

# What adaptive pooling gives, and how far upsampling enlarges.
ADAPTED, SCALE = (7, 7), 2

CONV_PASSES = {"conv2d": "forward", "conv2d_input_grad": "input_grad", "conv2d_weight_grad": "weight_grad"}
POOL_PASSES = ("max_pool2d", "max_pool2d_backward", "avg_pool2d", "avg_pool2d_backward")
# Operations that are timed on one shape each, behind all others.
ON_ONE_SHAPE = {
    "conv_transpose2d": "rn50_c3_3x3s2",
    "max_unpool2d": "vgg_pool1_2x2s2",
    "max_unpool2d_backward": "vgg_pool1_2x2s2",
    "lp_pool2d": "rn50_maxpool_3x3s2p1",
    "lp_pool2d_backward": "rn50_maxpool_3x3s2p1",
    "adaptive_avg_pool2d": "rn50_maxpool_3x3s2p1",
    "adaptive_avg_pool2d_backward": "rn50_maxpool_3x3s2p1",
    "adaptive_max_pool2d": "rn50_maxpool_3x3s2p1",
    "adaptive_max_pool2d_backward": "rn50_maxpool_3x3s2p1",
    "global_avg_pool": "gap_7x7",
    "global_avg_pool_backward": "gap_7x7",
    "global_max_pool": "gap_7x7",
    "global_max_pool_backward": "gap_7x7",
    "upsample": "googlenet_3x3s1p1",
    "upsample_backward": "googlenet_3x3s1p1",
}
# Every public operation on one shape, the untimed ones too.
CONV_OPS = (*CONV_PASSES, "conv2d_bias_grad", "conv_transpose2d", "im2col", "col2im")
POOL_OPS = (
    *POOL_PASSES,
    "max_pool2d value only",
    *(op for op in ON_ONE_SHAPE if not op.startswith("conv")),
)


@dataclass(frozen=True)
class Row:
    """One operation on one shape, to be timed."""

    op: str
    shape: Shape
    dtype: str
    precision: str
    channels_last: bool

    @property
    def kind(self) -> str:
        """What kind of operation it is, to average over."""
        if self.op in ON_ONE_SHAPE:
            return "other"
        if isinstance(self.shape, ConvShape):
            return self.shape.kind
        return "max pool" if self.op.startswith("max") else "avg pool"

    @property
    def key(self) -> dict[str, str]:
        """What tells this row from the others in the results."""
        conv = isinstance(self.shape, ConvShape)
        return {
            "op": self.op,
            "pass": CONV_PASSES.get(self.op, "backward" if self.op.endswith("backward") else "forward"),
            "name": self.shape.name,
            "dtype": self.dtype,
            "precision": self.precision,
            "layout": "channels_last" if self.channels_last else "channels_first",
            "algorithm": "gemm" if conv else "kernel",
        }


# dtype, precision, whether pooling differs from a row above (it multiplies nothing).
NUMBERS = (("float32", "ieee", True), ("float16", "fp16", True), ("float32", "tf32", False))


def rows() -> Iterator[Row]:
    """Yield what is to be timed, what matters most first."""
    for channels_last in (False, True):
        for dtype, precision, pools in NUMBERS:
            for conv in conv_shapes():
                for op in CONV_PASSES:
                    yield Row(op, conv, dtype, precision, channels_last)
            for pool in pool_shapes() if pools else ():
                for op in POOL_PASSES:
                    yield Row(op, pool, dtype, precision, channels_last)
    for channels_last in (False, True):
        for op, name in ON_ONE_SHAPE.items():
            yield Row(op, shared(name)[0], "float32", "ieee", channels_last)


def conv_shapes() -> list[ConvShape]:
    """Return the lines of conv_shapes.csv."""
    return [ConvShape(**line) for line in _lines("conv_shapes.csv")]


def pool_shapes() -> list[PoolShape]:
    """Return the lines of pool_shapes.csv."""
    return [PoolShape(**line) for line in _lines("pool_shapes.csv")]


def _lines(file: str) -> Iterator[dict[str, Any]]:
    with open(FOLDER / file, newline="") as lines:
        for line in csv.DictReader(lines):
            yield {key: int(value) if value.isdigit() else value for key, value in line.items()}


# Small shapes that between them meet tails, strides, padding, dilation, groups and single taps; few, for each
# has kernels of its own to compile.
SMALL_CONVS = (
    ConvShape("small 3x3", "small", 3, 8, 13, 11, 8, 3, 3, 1, 1, 1, 1),
    ConvShape("small 3x3 stride 2, 2 groups", "small", 2, 6, 12, 15, 4, 3, 3, 2, 1, 1, 2),
    ConvShape("small depthwise 3x3 dilation 2", "small", 2, 16, 9, 16, 16, 3, 3, 1, 2, 2, 16),
    ConvShape("small 1x1", "small", 2, 16, 7, 7, 24, 1, 1, 1, 0, 1, 1),
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

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "channels first"
        return f"{self.op}, {self.shape.name}, {self.dtype}, {layout}"


def small_cases() -> Iterator[Case]:
    """Yield every operation on the small shapes; float64 on the first of each kind only."""
    for dtype in ("float32", "float16", "float64"):
        most = 1 if dtype == "float64" else None
        yield from cases((*SMALL_CONVS[:most], *SMALL_POOLS[:most]), dtype)


def cases(shapes: Iterable[Shape], dtype: str) -> Iterator[Case]:
    """Yield every operation on these shapes, in both layouts."""
    for shape in shapes:
        for channels_last in (False, True):
            for op in CONV_OPS if isinstance(shape, ConvShape) else POOL_OPS:
                yield Case(op, shape, dtype, channels_last)


def shared(*names: str) -> list[Shape]:
    """Return those of the shared shapes, in this order."""
    known: dict[str, Shape] = {shape.name: shape for shape in (*conv_shapes(), *pool_shapes())}
    return [known[name] for name in names]
