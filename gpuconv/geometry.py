"""Sliding windows as pure integers: where each output place of a convolution or pooling looks.

Along one axis an input of `in_size` places, with `before` and `after` places of padding around it, is
read by windows of `kernel` taps that lie `dilation` apart. Output place `o` reads, with tap `j`, the input
place

    i = o * stride - before + j * dilation,        0 <= j < kernel,

and whatever falls outside 0 <= i < in_size is padding. Everything else here follows from that line.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from math import gcd, prod
from typing import Any, NamedTuple

Ints = int | Sequence[int]
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]

PADDING_WORDS = ("valid", "same", "same_lower")


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window over one to three spatial axes; hashable, so that it can be a cache's key.

    Each field but `groups` holds one integer per spatial axis.
    """

    in_size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    out_size: tuple[int, ...]
    groups: int = 1

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def taps(self) -> int:
        """Places in the kernel."""
        return prod(self.kernel)

    @property
    def places(self) -> int:
        """Places in the output."""
        return prod(self.out_size)

    @property
    def span(self) -> tuple[int, ...]:
        """Input places from the first tap to the last, both included."""
        return tuple(_span(k, d) for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def read(self) -> tuple[int, ...]:
        """Input places along each axis that some window reads; a stride beyond the kernel skips some."""
        return tuple(self._read(axis) for axis in range(self.axes))

    def _read(self, axis: int) -> int:
        # Tap j reads the places s*m + r with r = (j*d - before) mod s, for as many m as there are outputs,
        # from (j*d - before) // s on. Of each r, the m of all its taps together count, each once.
        s, out = self.stride[axis], self.out_size[axis]
        firsts: dict[int, list[int]] = {}
        for j in range(self.kernel[axis]):
            m, r = divmod(j * self.dilation[axis] - self.before[axis], s)
            firsts.setdefault(r, []).append(m)
        places = 0
        for r, ms in firsts.items():
            end, stop = 0, -(-(self.in_size[axis] - r) // s)
            for m in ms:  # in order
                places += max(0, min(stop, m + out) - max(end, m))
                end = max(end, m + out)
        return places

    @property
    def mask(self) -> str:
        """Name of the dtype of a max pooling's mask."""
        return mask_of(self.taps)

    @property
    def is_pointwise(self) -> bool:
        """True where each output place reads just the input place with the same index."""
        ones = (1,) * self.axes
        return self.kernel == ones == self.stride and self.in_size == self.out_size and not any(self.before)

    def adjoint(self) -> "tuple[Phase, ...]":
        """Return the stride-1 windows over dy that give the input gradient.

        At stride 1 there is one: ``dx = conv(pad(dy), rot180(w))``. With a stride s, the places of dx that
        have the same index modulo s are read by the same taps; each such phase is a convolution of its own.
        """
        return _adjoint(self)

    def _phases(self, axis: int) -> list[tuple[slice, slice, int, int, int, int, int]]:
        # Place i = s*m + a of dx meets tap j at output o = m + (a + before - j*d) / s, where that is whole:
        # for every step-th tap from j0 on. Read backwards, these taps are a window over dy.
        n, k, s = self.in_size[axis], self.kernel[axis], self.stride[axis]
        d, p, out = self.dilation[axis], self.before[axis], self.out_size[axis]
        step, dilation = s // gcd(s, d), d // gcd(s, d)
        phases = []
        for a in range(min(s, n)):
            size = len(range(a, n, s))
            j0 = next((j for j in range(min(step, k)) if (a + p - j * d) % s == 0), k)
            kernel = len(range(j0, k, step))
            shift = (a + p - j0 * d) // s
            before = (kernel - 1) * dilation - shift
            phases.append(
                (slice(a, n, s), slice(j0, k, step), kernel, dilation, before, size + shift - out, size)
            )
        return phases


def mask_of(taps: int) -> str:
    """Return the name of the smallest dtype that holds the offset of a place among so many, and one more."""
    return "uint8" if taps <= 255 else "int32"


class Phase(NamedTuple):
    """Places of dx that the same taps of the kernel reach, and the window over dy that gives them.

    The window's kernel is these taps turned round; where an axis has none, dx is zero in these places. Its
    padding may be negative: then that much of dy's edge is not read.
    """

    places: tuple[slice, ...]
    taps: tuple[slice, ...]
    window: Window


@lru_cache(maxsize=4096)
def _adjoint(over: Window) -> tuple[Phase, ...]:
    phases = []
    for chosen in product(*(over._phases(axis) for axis in range(over.axes))):
        places, taps, kernel, dilation, before, after, size = zip(*chosen, strict=True)
        window = Window(
            in_size=over.out_size,
            kernel=kernel,
            stride=(1,) * over.axes,
            dilation=dilation,
            before=before,
            after=after,
            out_size=size,
            groups=over.groups,
        )
        phases.append(Phase(places, taps, window))
    return tuple(phases)


# Steps and offsets beyond this can't be meant, and their products would no longer fit an array's strides.
MAXIMUM = 2**31 - 1


def integer(op: str, name: str, value: Any, minimum: int) -> int:
    """Return `value` as an int; it may be anything `operator.index` takes, but not a bool."""
    if type(value) is int and minimum <= value <= MAXIMUM:
        return value
    try:
        if isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool":
            raise TypeError
        number = operator.index(value)
    except TypeError:
        hint = f"; tuple({name}) will do" if len(getattr(value, "shape", ())) > 0 else ""
        raise TypeError(f"{op}: {name} must be an integer, not {_describe(value)}{hint}") from None
    if number < minimum:
        raise ValueError(f"{op}: {name} must be at least {minimum}, not {number}")
    if number > MAXIMUM:
        raise ValueError(f"{op}: {name} must be at most {MAXIMUM}, not {number}")
    return number


def per_axis(op: str, name: str, value: Any, axes: int, minimum: int) -> tuple[int, ...]:
    """Return an int, or a sequence of one int per axis, as a tuple of one int per axis."""
    if not _is_sequence(value):
        return (integer(op, name, value, minimum),) * axes
    if len(value) != axes:
        raise ValueError(
            f"{op}: {name} must be an integer or {axes} of them, one per spatial axis, not {value!r}"
        )
    return tuple(integer(op, f"{name}[{i}]", v, minimum) for i, v in enumerate(value))


def shape(op: str, name: str, value: Any, ndim: int) -> tuple[int, ...]:
    """Return a full array shape, given as a list or tuple of `ndim` integers, as a tuple."""
    if not _is_sequence(value) or len(value) != ndim:
        raise ValueError(f"{op}: {name} must be the {ndim} sizes of an array's shape, not {value!r}")
    return tuple(integer(op, f"{name}[{i}]", v, 0) for i, v in enumerate(value))


def array_shape(n: int, c: int, sizes: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    """Return the shape of an array of images."""
    return (n, *sizes, c) if channels_last else (n, c, *sizes)


@cache
def image_layout(axes: int, channels_last: bool) -> str:
    """Return how messages name the axes of an array of images."""
    sizes = ", ".join(("L",) if axes == 1 else ("D", "H", "W")[-axes:])
    return f"[N, {sizes}, C]" if channels_last else f"[N, C, {sizes}]"


def spatial_sizes(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    """Return the spatial sizes in the shape of an array of images."""
    return tuple(shape[1:-1] if channels_last else shape[2:])


def spatial_axes(op: str, name: str, value: Any) -> int:
    """Return the number of spatial axes of an array of this full shape: one to three, beside N and C."""
    axes = len(value) - 2 if _is_sequence(value) else 0
    if not 1 <= axes <= 3:
        raise ValueError(
            f"{op}: {name} must have 3, 4 or 5 axes (N, C and one to three spatial ones), not {value!r}"
        )
    return axes


def check_places(op: str, name: str, sizes: tuple[int, ...]) -> None:
    """Check that images of these spatial sizes have places."""
    for axis, size in enumerate(sizes):
        if size < 1:
            raise ValueError(f"{op}: {name} has no places along spatial axis {axis} (spatial shape {sizes})")


def sliding_window(
    op: str,
    in_size: tuple[int, ...],
    kernel: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    *,
    groups: int = 1,
    ceil_mode: bool = False,
    needs_valid: bool = False,
    kernel_name: str = "kernel_size",
) -> Window:
    """Check the numbers that describe a window, in whatever form a user may give them, and work out the rest.

    Parameters
    ----------
    op
        The public function's name, for the messages.
    in_size
        The input's spatial sizes.
    kernel, stride, dilation
        An integer, or one per axis.
    padding
        An integer, one per axis, a (before, after) pair per axis, or a word of `PADDING_WORDS`.
    groups
        Groups of channels (convolution only).
    ceil_mode
        Count a last, partial window too, if it starts inside the input or the padding before it.
    needs_valid
        Refuse windows that hold nothing but padding (pooling).
    kernel_name
        What the user gave the kernel's size by.

    Raises
    ------
    TypeError, ValueError
        With the operation's and the argument's name, what it was and what it must be.
    """
    axes = len(in_size)
    return _window(
        op,
        in_size,
        per_axis(op, kernel_name, kernel, axes, 1),
        per_axis(op, "stride", stride, axes, 1),
        _padding(op, padding, axes),
        per_axis(op, "dilation", dilation, axes, 1),
        groups,
        flag(op, "ceil_mode", ceil_mode),
        needs_valid,
        kernel_name,
    )


def transposed_window(
    op: str,
    out_size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: int,
) -> Window:
    """Describe the convolution whose adjoint a transposed convolution is: from its result back to its input.

    Parameters
    ----------
    op
        The public function's name, for the messages.
    out_size
        Spatial sizes of what the transposed convolution is given; the window's output.
    kernel
        The kernel's size.
    stride, padding, dilation, groups
        As in `sliding_window`. "same" makes the result out_size * stride.
    output_padding
        Places that the result has beyond the last window's end; an integer, or one per axis.

    Raises
    ------
    TypeError, ValueError
        As `sliding_window`; and where output_padding is not less than stride or dilation.
    """
    axes = len(out_size)
    stride = per_axis(op, "stride", stride, axes, 1)
    dilation = per_axis(op, "dilation", dilation, axes, 1)
    extra = per_axis(op, "output_padding", output_padding, axes, 0)
    pads = _padding(op, padding, axes)
    in_size, before, after = [], [], []
    check_places(op, "x", out_size)
    for axis, (n, k, s, d, more) in enumerate(zip(out_size, kernel, stride, dilation, extra, strict=True)):
        if more >= max(s, d):
            raise ValueError(
                f"{op}: output_padding must be less than stride or dilation, but along spatial axis {axis} "
                f"it is {more}, with stride {s} and dilation {d}"
            )
        whole = (n - 1) * s + _span(k, d) + more
        if isinstance(pads, str):
            lo, hi = _halves(0 if pads == "valid" else max(whole - n * s, 0), pads)
            whole = whole if pads == "valid" else max(whole, n * s)
        else:
            lo, hi = pads[axis]
        size = whole - lo - hi
        if size < 1:
            raise ValueError(
                f"{op}: along spatial axis {axis} padding takes {lo} + {hi} of the result's {whole} places"
            )
        in_size.append(size)
        before.append(lo)
        after.append(hi)
    return Window(
        tuple(in_size), kernel, stride, dilation, tuple(before), tuple(after), tuple(out_size), groups
    )


def flag(op: str, name: str, value: Any) -> bool:
    """Return `value` if it is a bool (Python's or NumPy's): a number here is most likely misplaced."""
    if isinstance(value, bool) or (str(getattr(value, "dtype", "")) == "bool" and value.shape == ()):
        return bool(value)
    raise TypeError(f"{op}: {name} must be True or False, not {_describe(value)}")


Pairs = tuple[tuple[int, int], ...]


def _padding(op: str, value: Any, axes: int) -> str | Pairs:
    if isinstance(value, str):
        if value not in PADDING_WORDS:
            words = ", ".join(f'"{w}"' for w in PADDING_WORDS)
            raise ValueError(f'{op}: padding must be numbers or one of {words}, not "{value}"')
        return value
    if not _is_sequence(value):
        number = integer(op, "padding", value, 0)
        return ((number, number),) * axes
    if len(value) != axes:
        raise ValueError(
            f"{op}: padding must be an integer, {axes} of them, {axes} (before, after) pairs or a word, "
            f"not {value!r}"
        )
    pairs = []
    for i, item in enumerate(value):
        if not _is_sequence(item):
            number = integer(op, f"padding[{i}]", item, 0)
            pairs.append((number, number))
        elif len(item) == 2:
            before, after = (integer(op, f"padding[{i}][{j}]", v, 0) for j, v in enumerate(item))
            pairs.append((before, after))
        else:
            raise ValueError(f"{op}: padding[{i}] must be an integer or a (before, after) pair, not {item!r}")
    return tuple(pairs)


# The key holds only strings and true ints (1.0 and True are refused above), so equal keys mean equal windows.
@lru_cache(maxsize=4096)
def _window(
    op: str,
    in_size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: str | Pairs,
    dilation: tuple[int, ...],
    groups: int,
    ceil_mode: bool,
    needs_valid: bool,
    kernel_name: str,
) -> Window:
    before, after, out_size = [], [], []
    check_places(op, "x", in_size)
    for axis, (n, k, s, d) in enumerate(zip(in_size, kernel, stride, dilation, strict=True)):
        span = _span(k, d)
        if padding == "valid":
            lo = hi = 0
        elif isinstance(padding, str):
            lo, hi = _halves(max((-(-n // s) - 1) * s + span - n, 0), padding)
        else:
            lo, hi = padding[axis]
        room = n + lo + hi - span
        out = (room + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode:  # no window starts beyond the input
            out = min(out, (n + lo - 1) // s + 1)
        if out < 1:
            raise ValueError(
                f"{op}: {kernel_name} {kernel} with dilation {dilation} spans {span} places along spatial "
                f"axis {axis}, more than the {n} of x plus {lo} + {hi} of padding"
            )
        if needs_valid:
            _check_valid(op, axis, n, k, s, d, lo, out)
        before.append(lo)
        after.append(hi)
        out_size.append(out)
    return Window(in_size, kernel, stride, dilation, tuple(before), tuple(after), tuple(out_size), groups)


def _halves(total: int, word: str) -> tuple[int, int]:
    """Return padding before and after; "same_lower" puts an odd place before, "same" after."""
    smaller, larger = total // 2, total - total // 2
    return (larger, smaller) if word == "same_lower" else (smaller, larger)


def _check_valid(op: str, axis: int, n: int, k: int, s: int, d: int, lo: int, out: int) -> None:
    for o in range(out):
        start = o * s - lo
        first = max(0, -(start // d)) if start < 0 else 0  # the first tap with start + tap * d >= 0
        if first >= k or start + first * d >= n:
            raise ValueError(
                f"{op}: window {o} along spatial axis {axis} holds nothing but padding "
                f"(size {n}, kernel_size {k}, stride {s}, dilation {d}, padding before {lo})"
            )


def _span(kernel: int, dilation: int) -> int:
    return (kernel - 1) * dilation + 1


def _is_sequence(value: Any) -> bool:
    kind = type(value)
    if kind is int or kind is tuple:  # nearly always; asking an abstract class takes longer
        return kind is tuple
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _describe(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"
