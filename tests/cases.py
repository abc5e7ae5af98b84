"""One helper that draws random configurations, for every operation, as arguments of the public functions."""

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from gpuconv.reference import Sliding, Spreading, last, weights_last

# (kernel, stride, dilation). A backend that compiles a kernel for each of these compiles few.
WINDOWS = [
    ((1, 1), (1, 1), (1, 1)),
    ((1, 1), (2, 2), (1, 1)),
    ((2, 2), (2, 2), (1, 1)),
    ((3, 3), (1, 1), (1, 1)),
    ((3, 3), (2, 2), (1, 1)),
    ((3, 3), (1, 1), (2, 2)),
    ((1, 3), (1, 2), (1, 1)),
    ((3, 2), (2, 1), (1, 3)),
    ((2, 3), (3, 3), (2, 1)),
    ((5, 4), (1, 3), (1, 1)),
]


@dataclass(frozen=True)
class Case:
    """A configuration; arrays come from `array`, arguments from `conv` and `pool`."""

    n: int
    c_in: int
    c_out: int
    groups: int
    in_size: tuple
    kernel: tuple
    stride: tuple
    dilation: tuple
    padding: object
    ceil_mode: bool
    count_include_pad: bool
    channels_last: bool
    seed: int

    @property
    def pads(self):
        """The padding as (before, after) pairs, or the word that stands for them."""
        if isinstance(self.padding, str):
            return self.padding
        axes = len(self.kernel)
        each = (self.padding,) * axes if isinstance(self.padding, int) else self.padding
        return tuple((p, p) if isinstance(p, int) else tuple(p) for p in each)

    def sliding(self, *, pool=False):
        """Return the same window for the definitions."""
        return Sliding(
            self.in_size, self.kernel, self.stride, self.dilation, self.pads, pool and self.ceil_mode
        )

    def x_shape(self):
        """Return x's shape in this case's layout."""
        return self._layout(self.c_in, self.in_size)

    def y_shape(self, *, pool=False):
        """Return y's shape in this case's layout."""
        return self._layout(self.c_in if pool else self.c_out, self.sliding(pool=pool).out_size)

    def w_shape(self):
        """Return the weights' shape in this case's layout."""
        channels = (self.c_out, self.c_in // self.groups)
        return (*self.kernel, *channels[::-1]) if self.channels_last else (*channels, *self.kernel)

    def conv(self):
        """Return the options of a convolution."""
        return {**self.columns(), "groups": self.groups}

    def columns(self):
        """Return the options of im2col."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "channels_last": self.channels_last,
        }

    def pool(self):
        """Return the options of a pooling."""
        return {**self.columns(), "ceil_mode": self.ceil_mode}

    def array(self, name, shape, dtype=np.float64, *, whole=False):
        """Return random numbers, the same for a name; `whole`: from -3 to 3, so that sums are exact."""
        return numbers([self.seed, *name.encode()], shape, dtype, whole=whole)

    def _layout(self, channels, sizes):
        return (self.n, *sizes, channels) if self.channels_last else (self.n, channels, *sizes)


@dataclass(frozen=True)
class Transposed(Case):
    """A configuration of a transposed convolution; `in_size` is that of its x."""

    output_padding: tuple

    def sliding(self, *, pool=False):
        """Return the same window for the definitions."""
        assert not pool
        return Spreading(
            self.in_size, self.kernel, self.stride, self.dilation, self.pads, self.output_padding
        )

    def w_shape(self):
        """Return the weights' shape in this case's layout."""
        channels = (self.c_in, self.c_out // self.groups)
        return (*self.kernel, *channels[::-1]) if self.channels_last else (*channels, *self.kernel)

    def conv(self):
        """Return the options of a transposed convolution."""
        return {**super().conv(), "output_padding": self.output_padding}


def draw(rng, *, pool=False, free=False, dilated=True, axes=2):
    """Draw a configuration that the operation accepts.

    `rng` is a `random.Random` (hypothesis has one that it can shrink). `free` draws kernel, stride and
    dilation at will rather than from `WINDOWS`; without `dilated`, taps always lie side by side.
    """
    if free or axes != 2:
        kernel, stride, dilation = (
            tuple(rng.randint(1, most) for _ in range(axes))
            for most in ((4, 3, 3) if axes < 3 else (3, 2, 2))
        )
    else:
        kernel, stride, dilation = rng.choice(WINDOWS)
    dilation = dilation if dilated else (1,) * axes
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    groups = rng.choice([1, 1, 1, 2, 3, 8])  # with 8, several groups share a GEMM
    case = Case(
        n=rng.choice([1, 2, 3, 1, 2, 3, 2, 0]),
        c_in=groups * rng.randint(1, 3),
        c_out=groups * rng.randint(1, 3),
        groups=groups,
        in_size=(),
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        # a pooling's window that begins with more holds nothing but padding
        padding=_draw_padding(rng, [min(3, span - 1) for span in spans] if pool else [3] * axes),
        ceil_mode=bool(rng.randint(0, 1)),
        count_include_pad=bool(rng.randint(0, 1)),
        channels_last=bool(rng.randint(0, 1)),
        seed=rng.randrange(2**32),
    )
    least = [1] * axes
    if case.padding == "valid":
        least = spans
    elif not isinstance(case.padding, str):
        least = [max(1, span - sum(pads)) for span, pads in zip(spans, case.pads, strict=True)]
    most = rng.choice([6, 6, 6, 0] if axes < 3 else [3, 3, 3, 0])  # at times as small as can be
    case = replace(case, in_size=tuple(size + rng.randint(0, most) for size in least))
    if pool and not _each_window_sees_something(case):
        return replace(
            case, padding=0, in_size=tuple(s + rng.randint(0, most) for s in spans), ceil_mode=False
        )
    return case


def draw_transposed(rng, *, free=False, axes=2):
    """Draw a configuration that the transposed convolution accepts; as `draw`."""
    case = draw(rng, free=free, axes=axes)
    extra = tuple(rng.randrange(max(s, d)) for s, d in zip(case.stride, case.dilation, strict=True))
    case = Transposed(**{**case.__dict__, "in_size": (1,) * axes, "output_padding": extra})
    least = [1] * axes
    if not isinstance(case.padding, str):
        missing = [max(0, 1 - size) for size in case.sliding().out_size]  # for one place to be left
        least = [1 - (-m // s) for m, s in zip(missing, case.stride, strict=True)]
    most = 4 if axes < 3 else 2
    return replace(case, in_size=tuple(n + rng.randint(0, most) for n in least))


def draw_adaptive(rng, axes=2, most=9):
    """Draw (N, C), sizes of images and of outputs, fewer and more than places, and a layout."""
    most = rng.choice([most] * 7 + [1])
    in_size = tuple(rng.randint(1, most) for _ in range(axes))
    out_size = tuple(rng.choice([1, rng.randint(1, size), rng.randint(1, 7)]) for size in in_size)
    planes = rng.choice([1, 2, 3, 1, 2, 3, 2, 0]), rng.choice([1, 3, 8])
    return planes, in_size, out_size, bool(rng.randint(0, 1))


def _draw_padding(rng, most):
    form = rng.choice(["number", "per axis", "pairs", "word"])
    if form == "number":
        return rng.randint(0, min(most))
    if form == "per axis":
        return tuple(rng.randint(0, m) for m in most)
    if form == "pairs":
        return tuple((rng.randint(0, m), rng.randint(0, m)) for m in most)
    return rng.choice(["valid", "same", "same_lower"])


def _each_window_sees_something(case):
    sliding = case.sliding(pool=True)
    return len({o for o, _, _ in sliding.reads()}) == prod(sliding.out_size)


def numbers(seed, shape, dtype=np.float64, *, whole=False):
    """Return random numbers of a dtype; `whole`, as integers are: from -3 to 3, without sign from 0."""
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)

    def part():
        return rng.integers(-3, 4, shape) if whole or dtype.kind in "biu" else rng.standard_normal(shape)

    x = part() + 1j * part() if dtype.kind == "c" else part()
    return (abs(x) if dtype.kind == "u" else x).astype(dtype)


def in_layout(case, x):
    """Turn channels-first images into this case's layout."""
    return last(x, case.channels_last)


def weights_in_layout(case, w):
    """Turn channels-first weights into this case's layout."""
    return weights_last(w, case.channels_last)


def lay_out(rng, x):
    """Return an array equal to x that lies in memory in some other way, read-only where that exists."""
    form = rng.choice(
        ["as it is", "Fortran", "every other", "backwards", "part of a larger one", "swapped axes"]
    )
    if form == "Fortran":
        x = x.copy(order="F")
    elif form == "every other":
        x = _into(x, tuple(2 * s for s in x.shape), (slice(None, None, 2),) * x.ndim)
    elif form == "backwards":
        x = _into(x, x.shape, (slice(None, None, -1),) * x.ndim)
    elif form == "part of a larger one":
        x = _into(x, tuple(s + 3 for s in x.shape), tuple(slice(1, s + 1) for s in x.shape))
    elif form == "swapped axes":
        x = x.swapaxes(0, -1).copy().swapaxes(0, -1)
    if isinstance(x, np.ndarray):
        x.setflags(write=False)
    return x


def _into(x, shape, where):
    if isinstance(x, np.ndarray):
        whole = np.zeros(shape, x.dtype).view(type(x))
    else:
        whole = __import__(type(x).__module__.partition(".")[0]).zeros(shape, x.dtype)
    view = whole[where]
    view[...] = x
    return view
