"""What is measured: the shared shapes, the rows in order of priority, the least work that each must do."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cached_property
from itertools import zip_longest
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.backends.cuda import choice, pooling
from gpuconv.backends.cuda.problem import Problem
from gpuconv.config import PRECISIONS
from gpuconv.geometry import Window, sliding_window

PACKAGE = Path(__file__).resolve().parents[1]

ITEM_BYTES = {"float16": 2, "float32": 4, "float64": 8}


def window_places(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return the windows along one axis."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@dataclass(frozen=True)
class ConvShape:
    """A line of conv_shapes.csv."""

    name: str
    n: int
    c_in: int
    h: int
    w: int
    c_out: int
    kh: int
    kw: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    group: str = ""

    @cached_property
    def out(self) -> tuple[int, int]:
        """Height and width of y."""
        window = (self.stride, self.padding, self.dilation)
        return window_places(self.h, self.kh, *window), window_places(self.w, self.kw, *window)

    def check(self) -> None:
        """Raise ValueError where no such convolution exists."""
        _check_windows(self.out, (self.kh, self.kw))
        if self.c_in % self.groups or self.c_out % self.groups:
            raise ValueError(f"groups={self.groups} must divide c_in={self.c_in} and c_out={self.c_out}")

    @property
    def kind(self) -> str:
        """How the channels are connected."""
        return "dense" if self.groups == 1 else "depthwise" if self.groups == self.c_in else "grouped"

    def window(self) -> Window:
        """Return the sliding window."""
        options = (self.stride, self.padding, self.dilation)
        return sliding_window(self.name, (self.h, self.w), (self.kh, self.kw), *options, groups=self.groups)

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


def _check_windows(out: tuple[int, int], kernel: tuple[int, int]) -> None:
    if min(out) < 1:
        raise ValueError(f"a kernel of {kernel} is larger than the padded image")


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
    stride: int = 1
    padding: int = 0

    @cached_property
    def out(self) -> tuple[int, int]:
        """Height and width of y."""
        window = (self.kernel, self.stride, self.padding, 1)
        return window_places(self.h, *window), window_places(self.w, *window)

    kind = "pool"

    def window(self) -> Window:
        """Return the sliding window."""
        return sliding_window(self.name, (self.h, self.w), self.kernel, self.stride, self.padding)

    def x_shape(self, channels_last: bool) -> tuple[int, ...]:
        """Shape of x."""
        return _laid_out(self.n, self.c, self.h, self.w, channels_last)

    def y_shape(self, channels_last: bool) -> tuple[int, ...]:
        """Shape of y."""
        return _laid_out(self.n, self.c, *self.out, channels_last)

    def check(self) -> None:
        """Raise ValueError where no such pooling exists."""
        _check_windows(self.out, (self.kernel, self.kernel))
        if self.padding >= self.kernel:
            raise ValueError(f"padding={self.padding} must be less than kernel={self.kernel}")

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
    algorithm: str = ""  # asked for, where it isn't left to the planner
    beside: str = ""  # what the planner takes, timed in turns with an algorithm that it doesn't

    @property
    def chosen(self) -> bool:
        """Whether the planner takes this algorithm by itself."""
        return not self.beside

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
            "kind": self.kind,
            "pass": CONV_PASSES.get(self.op, "backward" if self.op.endswith("backward") else "forward"),
            "name": self.shape.name,
            "dtype": self.dtype,
            "precision": self.precision,
            "layout": "channels_last" if self.channels_last else "channels_first",
            "algorithm": self.algorithm or ("gemm" if conv else "kernel"),
        }


# dtype, precision, whether pooling differs from a row above (it multiplies nothing).
Numbers = tuple[str, str, bool]
NUMBERS: tuple[Numbers, ...] = (
    ("float32", "ieee", True),
    ("float16", "fp16", True),
    ("float32", "tf32", False),
)
DOUBLE: Numbers = ("float64", "fp64", True)
TRIPLE: Numbers = ("float32", "3xtf32", False)
LAYOUTS = (False, True)  # channels_last

# Numbers with their layout, in the order of a GPU's rows. Each first in the layout that it is mostly used in.
FLOAT32, FLOAT16, TF32 = NUMBERS
FIRST = ((FLOAT32, False), (FLOAT16, True), (FLOAT32, True), (FLOAT16, False))
AFTERWARDS = ((TF32, True), (TF32, False))
AT_LAST = ((TRIPLE, True), (TRIPLE, False))


def rows() -> Iterator[Row]:
    """Yield what is to be timed of the shared shapes on a GPU, what matters most first.

    A session may end anywhere. First comes what users get: the planner's choice, in float32 and float16. Then
    what it waits for, the other algorithms; TF32 likewise, and "3xtf32"; and last what should confirm it. The
    kinds of shapes take turns. An algorithm that isn't chosen is timed in turns with the one that is: what a
    GPU does at one time and another isn't compared.
    """
    shapes = _kinds_in_turns([*conv_shapes(), *pool_shapes()])
    confirming: list[Row] = []
    for order in (FIRST, AFTERWARDS, AT_LAST):
        every = [row for numbers, last in order for row in rows_of(shapes, [numbers], [last])]
        yield from (replace(row, algorithm=candidates(row)[0]) for row in every)
        for row in every:
            taken, *others = candidates(row)
            compared = [replace(row, algorithm=name, beside=taken) for name in others]
            if waits(row):
                yield from compared
            else:
                confirming += compared
    yield from confirming
    yield from rows_on_one_shape()


def rows_on_one_shape() -> Iterator[Row]:
    """Yield the operations that are timed on one shape each."""
    for channels_last in LAYOUTS:
        for op, name in ON_ONE_SHAPE.items():
            yield Row(op, shared(name)[0], "float32", "ieee", channels_last)


def _kinds_in_turns(shapes: Sequence[Shape]) -> list[Shape]:
    kinds: dict[str, list[Shape]] = {}
    for shape in shapes:
        kinds.setdefault(shape.kind, []).append(shape)
    return [shape for turn in zip_longest(*kinds.values()) for shape in turn if shape is not None]


def candidates(row: Row) -> tuple[str, ...]:
    """Return what can compute a row on a GPU, the planner's choice first.

    Of a convolution in `config.algorithm`'s words, of a pooling in those of the backend's `pooling.by`.
    """
    if isinstance(row.shape, ConvShape):
        return choice.candidates(_problem(row), CONV_PASSES[row.op])
    return pooling.kernels(row.shape.window(), np.dtype(row.dtype))


def waits(row: Row) -> bool:
    """Tell whether the planner waits for a measurement of a row's algorithms: of poolings' it does."""
    return not (isinstance(row.shape, ConvShape) and choice.is_settled(_problem(row), CONV_PASSES[row.op]))


def _problem(row: Row) -> Problem:
    shape = row.shape
    assert isinstance(shape, ConvShape)
    precision = row.precision if row.precision in PRECISIONS else "ieee"
    sizes = (shape.n, shape.c_in, shape.c_out, np.dtype(row.dtype))
    return Problem(shape.window(), *sizes, row.channels_last, precision)


def rows_of(
    shapes: Sequence[Shape], numbers: Iterable[Numbers], layouts: Iterable[bool] = LAYOUTS
) -> Iterator[Row]:
    """Yield every pass over these shapes."""
    numbers = tuple(numbers)
    for channels_last in layouts:
        for dtype, precision, pools in numbers:
            for shape in shapes:
                if isinstance(shape, ConvShape) or pools:
                    for op in CONV_PASSES if isinstance(shape, ConvShape) else POOL_PASSES:
                        yield Row(op, shape, dtype, precision, channels_last)


def conv_shapes() -> list[ConvShape]:
    """Return the lines of conv_shapes.csv."""
    return [shape for shape in read(_folder() / "conv_shapes.csv") if isinstance(shape, ConvShape)]


def pool_shapes() -> list[PoolShape]:
    """Return the lines of pool_shapes.csv."""
    return [shape for shape in read(_folder() / "pool_shapes.csv") if isinstance(shape, PoolShape)]


def _folder() -> Path:
    """Return where the shared lists are: in the installed package, or in the checkout's `profiling/`."""
    inside = PACKAGE / "measure"
    return inside if (inside / "conv_shapes.csv").is_file() else PACKAGE.parent / "profiling"


def read(path: Path) -> list[Shape]:
    """Read a list of shapes, convolutions and poolings.

    Parameters
    ----------
    path
        A `.csv` with a line of titles, which are the fields of `ConvShape` or of `PoolShape`; those that have
        a default may be missing. Or an `.npz` with an array of integers for each layer, under its name: 8 to
        11 numbers (n, c_in, h, w, c_out, kh, kw, stride, padding, dilation, groups) are a convolution, 5 to 7
        (n, c, h, w, kernel, stride, padding) a pooling.

    Raises
    ------
    OSError
        Where it can't be read.
    ValueError
        Where it is neither, or holds no such shape; with the line's number or the array's name.
    """
    found: list[Shape] = []
    for place, values in _npz(path) if path.suffix == ".npz" else _lines(path):
        pooling = "c" in values
        kind: type[ConvShape] | type[PoolShape] = PoolShape if pooling else ConvShape
        known = {field.name: field.default is MISSING for field in fields(kind)}
        if unknown := [name for name in values if name not in known]:
            raise ValueError(
                f"{path}, {place}: there is no {unknown[0]!r}; the fields are {', '.join(known)}"
            )
        if missing := [name for name, needed in known.items() if needed and name not in values]:
            raise ValueError(f"{path}, {place}: {', '.join(missing)} is missing")
        try:
            numbers: dict[str, Any] = {
                n: v if n in ("name", "group") else _number(n, v) for n, v in values.items()
            }
            shape: Shape = kind(**numbers)
            shape.check()
        except ValueError as error:
            raise ValueError(f"{path}, {place}: {error}") from None
        found.append(shape)
    if not found:
        raise ValueError(f"{path}: holds no shapes")
    return found


def _number(name: str, value: Any) -> int:
    try:
        number = int(value)
    except ValueError:
        raise ValueError(f"{name} must be an integer, not {value!r}") from None
    least = 0 if name == "padding" else 1
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number


Lines = Iterator[tuple[str, dict[str, Any]]]


def _lines(path: Path) -> Lines:
    with open(path, newline="", encoding="utf-8") as lines:
        try:
            for number, line in enumerate(csv.DictReader(lines), 2):
                if None in line or None in line.values():
                    raise ValueError(f"{path}, line {number}: has more or fewer fields than the first")
                yield f"line {number}", dict(line)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: is no list of shapes ({error})") from None


CONV_COLUMNS = ("n", "c_in", "h", "w", "c_out", "kh", "kw", "stride", "padding", "dilation", "groups")
POOL_COLUMNS = ("n", "c", "h", "w", "kernel", "stride", "padding")


def _npz(path: Path) -> Lines:
    content = path.read_bytes()
    if content.startswith(np.lib.format.MAGIC_PREFIX):
        raise ValueError(f"{path}: is no .npz of integers (np.save wrote it; np.savez is the one)")
    try:
        # np.load takes what is no archive for a pickle, and would advise to load it as one.
        with np.lib.npyio.NpzFile(io.BytesIO(content), allow_pickle=False) as arrays:
            layers = {name: arrays[name] for name in arrays}
    except Exception as error:  # a damaged archive makes zipfile, zlib and NumPy raise nearly anything
        raise ValueError(f"{path}: is no .npz of integers ({error})") from None
    for name, array in layers.items():
        if array.ndim != 1 or array.dtype.kind not in "iu" or not 5 <= len(array) <= 11:
            raise ValueError(
                f"{path}, {name}: must hold 5 to 11 integers in one axis, not {array.dtype} {array.shape}"
            )
        columns = POOL_COLUMNS if len(array) <= len(POOL_COLUMNS) else CONV_COLUMNS
        yield name, {"name": name, **dict(zip(columns, array.tolist(), strict=False))}


def shared(*names: str) -> list[Shape]:
    """Return those of the shared shapes, in this order."""
    everything: list[Shape] = [*conv_shapes(), *pool_shapes()]
    known = {shape.name: shape for shape in everything}
    return [known[name] for name in names]
