"""The definitions, as short, slow loops: the formula and its loop side by side.

They are there to be read, and to check fast code against, as the library's own tests do. They come from the
formulas alone, with nothing from the rest of the package. Arrays are NumPy's, channels first
(x [N, C, *spatial], w [C_out, C_in/groups, *kernel]), with any number of spatial axes; `first`, `last`,
`weights_first` and `weights_last` turn the other layout into this one and back. Arguments are not checked.

n is an image, c a channel of x, f one of y; i, j and o are places of the input, the kernel and the output, an
integer per spatial axis. Along each axis, output place o reads with tap j the input place

    i = o * stride - before + j * dilation,

or padding, where i lies outside the input. All loops go over such triples (o, j, i), which `Sliding.reads`
lists; `Spreading.writes` lists those of transposed convolution. Sums over channels are matrix products.

Sums have the precision of the arrays: of integers and, in arrays of objects, of fractions they are exact.

Examples
--------
A convolution beside its fast twin:

>>> import numpy as np, gpuconv
>>> from gpuconv import reference
>>> x, w = np.arange(25.0).reshape(1, 1, 5, 5), np.ones((1, 1, 3, 3))
>>> window = reference.Sliding((5, 5), kernel=3, stride=2, padding=1)
>>> reference.conv(x, w, None, window)
array([[[[ 12.,  27.,  24.],
         [ 63., 108.,  81.],
         [ 72., 117.,  84.]]]])
>>> gpuconv.conv2d(x, w, stride=2, padding=1)
array([[[[ 12.,  27.,  24.],
         [ 63., 108.,  81.],
         [ 72., 117.,  84.]]]])
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, floor, prod
from typing import Any

import numpy as np

Array = Any  # NumPy's
Place = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]

__all__ = [
    "Sliding",
    "Spreading",
    "adaptive_avg_pool",
    "adaptive_avg_pool_backward",
    "adaptive_max_pool",
    "adaptive_max_pool_backward",
    "avg_pool",
    "avg_pool_backward",
    "col2im",
    "columns_last",
    "conv",
    "conv_bias_grad",
    "conv_input_grad",
    "conv_transpose",
    "conv_transpose_input_grad",
    "conv_transpose_weight_grad",
    "conv_weight_grad",
    "divisors",
    "first",
    "flat_indices",
    "im2col",
    "last",
    "lp_pool",
    "lp_pool_backward",
    "max_pool",
    "max_pool_backward",
    "max_unpool",
    "max_unpool_backward",
    "shares",
    "upsample",
    "upsample_backward",
    "weights_first",
    "weights_last",
]


@dataclass(frozen=True)
class Sliding:
    """A window that slides over an input: which places it reads.

    Parameters
    ----------
    in_size : tuple of int
        Places per spatial axis.
    kernel, stride, dilation : int or one per axis
        The window's taps, the step from window to window, the step from tap to tap.
    padding : int, one per axis, a (before, after) pair per axis, "valid", "same" or "same_lower"
        Places that are added on the two sides. "same" makes `ceil(in_size / stride)` windows, an odd place
        after; "same_lower" puts it before.
    ceil_mode : bool, default False
        Whether a last window counts that sticks out by less than a step, if it starts in the input or the
        padding before it.

    Examples
    --------
    >>> window = Sliding((5,), kernel=2, stride=3, padding=((1, 0),))
    >>> window.out_size
    (2,)
    >>> list(window.reads())                            # (o, j, i); tap 0 of window 0 reads padding
    [((0,), (1,), (0,)), ((1,), (0,), (2,)), ((1,), (1,), (3,))]
    """

    in_size: Any
    kernel: Any
    stride: Any = 1
    dilation: Any = 1
    padding: Any = 0
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        _one_per_axis(self, "kernel", "stride", "dilation", "padding")

    @cached_property
    def pads(self) -> Pads:
        """(before, after) per axis."""
        if not isinstance(self.padding, str):
            return _pairs(self.padding)
        return tuple(
            _pad_of(self.padding, n, k, s, d)
            for n, k, s, d in zip(self.in_size, self.kernel, self.stride, self.dilation, strict=True)
        )

    @property
    def out_size(self) -> Place:
        """Windows per axis, counted one by one."""
        return tuple(
            _count(n, k, s, d, pads, self.ceil_mode)
            for n, k, s, d, pads in zip(
                self.in_size, self.kernel, self.stride, self.dilation, self.pads, strict=True
            )
        )

    def reads(self) -> Iterator[tuple[Place, Place, Place]]:
        """Yield (o, j, i) for every output place o and every tap j that reads an input place i."""
        for o in np.ndindex(*self.out_size):
            for j in np.ndindex(*self.kernel):
                i = self.place(o, j)
                if all(0 <= at < n for at, n in zip(i, self.in_size, strict=True)):
                    yield o, j, i

    def place(self, o: Any, j: Any) -> Place:
        """Return the place that tap j of output place o reads; outside of the input is padding."""
        return tuple(
            at * s - before + tap * d
            for at, tap, s, d, (before, _) in zip(o, j, self.stride, self.dilation, self.pads, strict=True)
        )


@dataclass(frozen=True)
class Spreading:
    """The transposed convolution's window: which places of the output an input place writes.

    It is `Sliding` read backwards: input place i writes with tap j the output place
    ``o = i * stride - before + j * dilation``, or nothing, where o lies outside the output.

    Parameters
    ----------
    in_size : tuple of int
        Places per spatial axis.
    kernel, stride, dilation : int or one per axis
        As in `Sliding`.
    padding : as in `Sliding`
        Places that are left out on the two sides. "same" leaves stride times as many as there were.
    output_padding : int or one per axis
        Places that are added after the last.

    Examples
    --------
    >>> Spreading((3,), kernel=2, stride=2).out_size
    (6,)
    >>> list(Spreading((2,), kernel=2, stride=2, padding=1).writes())       # (i, j, o)
    [((0,), (1,), (0,)), ((1,), (0,), (1,))]
    """

    in_size: Any
    kernel: Any
    stride: Any = 1
    dilation: Any = 1
    padding: Any = 0
    output_padding: Any = 0

    def __post_init__(self) -> None:
        _one_per_axis(self, "kernel", "stride", "dilation", "padding", "output_padding")

    @property
    def whole(self) -> Place:
        """Places per axis before any is left out."""
        return tuple(
            (n - 1) * s + (k - 1) * d + 1 + more
            for n, k, s, d, more in zip(
                self.in_size, self.kernel, self.stride, self.dilation, self.output_padding, strict=True
            )
        )

    @cached_property
    def pads(self) -> Pads:
        """(before, after) per axis."""
        if not isinstance(self.padding, str):
            return _pairs(self.padding)
        totals = (max(0, have - out) for have, out in zip(self.whole, self.out_size, strict=True))
        return tuple(_halves(self.padding, total) for total in totals)

    @property
    def out_size(self) -> Place:
        """Places per axis; "same" asks for just stride times as many as there were."""
        if self.padding == "valid":
            return self.whole
        if isinstance(self.padding, str):
            return tuple(n * s for n, s in zip(self.in_size, self.stride, strict=True))
        return tuple(have - sum(pads) for have, pads in zip(self.whole, self.pads, strict=True))

    def writes(self) -> Iterator[tuple[Place, Place, Place]]:
        """Yield (i, j, o) for every input place i and every tap j that writes an output place o."""
        out_size, along = self.out_size, tuple(zip(self.stride, self.dilation, self.pads, strict=True))
        for i in np.ndindex(*self.in_size):
            for j in np.ndindex(*self.kernel):
                o = tuple(
                    at * s - before + tap * d
                    for at, tap, (s, d, (before, _)) in zip(i, j, along, strict=True)
                )
                if all(0 <= at < n for at, n in zip(o, out_size, strict=True)):
                    yield i, j, o


def _one_per_axis(window: Any, *names: str) -> None:
    for name in names:
        if isinstance(value := getattr(window, name), int):
            object.__setattr__(window, name, (value,) * len(window.in_size))  # it is frozen from here on


def _pairs(padding: Any) -> Pads:
    return tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)


def _pad_of(word: str, n: int, k: int, s: int, d: int) -> tuple[int, int]:
    out = -(-n // s)
    return _halves(word, max(0, (out - 1) * s + (k - 1) * d + 1 - n))


def _halves(word: str, total: int) -> tuple[int, int]:
    if word == "valid":
        return 0, 0
    smaller, larger = total // 2, total - total // 2
    return (smaller, larger) if word == "same" else (larger, smaller)


def _count(n: int, k: int, s: int, d: int, pads: tuple[int, int], ceil_mode: bool) -> int:
    before, after = pads
    end = n + before + after  # windows that fit end here, counted from the first place of padding
    out = 0
    while out * s + (k - 1) * d < end:
        out += 1
    if ceil_mode:
        if 0 < out * s + (k - 1) * d + 1 - end < s:  # one more, which sticks out by less than a step
            out += 1
        while (out - 1) * s >= n + before:  # none starts beyond the input
            out -= 1
    return out


def _groups(channels_in_group: int, channels_out_group: int, groups: int) -> Iterator[tuple[slice, slice]]:
    for g in range(groups):
        yield (
            slice(g * channels_in_group, (g + 1) * channels_in_group),
            slice(g * channels_out_group, (g + 1) * channels_out_group),
        )


def conv(x: Array, w: Array, b: Array | None, sliding: Sliding, groups: int = 1) -> Array:
    """Convolve: ``y[n, f, o] = b[f] + sum over c, j of w[f, c, j] * x[n, c, i]``.

    As everywhere in the library, the kernel is not flipped; a true convolution is that with w reversed along
    its spatial axes.

    Parameters
    ----------
    x : array [N, C, *in_size]
        The images.
    w : array [C_out, C/groups, *kernel]
        The weights. f sees the channels of its own group only.
    b : array [C_out] or None
        The bias.
    sliding : Sliding
        The window.
    groups : int, default 1
        In how many parts, apart from each other, the channels are cut.

    Returns
    -------
    y : array [N, C_out, *out_size]
        Of the arrays' common dtype, in which it is summed.

    Examples
    --------
    >>> conv(np.array([[[1, 2, 3, 4]]]), np.array([[[1, -1]]]), np.array([10]), Sliding((4,), 2))
    array([[[9, 9, 9]]])
    """
    y: Array = np.zeros((x.shape[0], w.shape[0], *sliding.out_size), np.result_type(x, w))
    for o, j, i in sliding.reads():
        for ins, outs in _groups(w.shape[1], w.shape[0] // groups, groups):
            y[:, outs, *o] += x[:, ins, *i] @ w[outs, :, *j].T
    if b is not None:
        y = y + b.reshape(-1, *(1,) * len(sliding.kernel))
    return y


def conv_input_grad(dy: Array, w: Array, sliding: Sliding, groups: int = 1) -> Array:
    """Return a convolution's gradient by x: every product of the forward sum, sent back where it came from.

    ``dx[n, c, i] = sum over f and all (o, j) that read i of w[f, c, j] * dy[n, f, o]``. Complex numbers are
    not conjugated here: that is the caller's affair.

    Parameters
    ----------
    dy : array [N, C_out, *out_size]
        The loss's gradient by y.
    w, sliding, groups
        As given to `conv`.

    Returns
    -------
    dx : array [N, C, *in_size]
        The loss's gradient by x.

    Examples
    --------
    >>> conv_input_grad(np.array([[[1, 1, 1]]]), np.array([[[5, -2]]]), Sliding((4,), 2))
    array([[[ 5,  3,  3, -2]]])
    """
    dx: Array = np.zeros((dy.shape[0], w.shape[1] * groups, *sliding.in_size), np.result_type(dy, w))
    for o, j, i in sliding.reads():
        for ins, outs in _groups(w.shape[1], w.shape[0] // groups, groups):
            dx[:, ins, *i] += dy[:, outs, *o] @ w[outs, :, *j]
    return dx


def conv_weight_grad(dy: Array, x: Array, sliding: Sliding, groups: int = 1) -> Array:
    """Return a convolution's gradient by w: ``dw[f, c, j] = sum over n, o of dy[n, f, o] * x[n, c, i]``.

    Parameters
    ----------
    dy : array [N, C_out, *out_size]
        The loss's gradient by y.
    x, sliding, groups
        As given to `conv`.

    Returns
    -------
    dw : array [C_out, C/groups, *kernel]
        The loss's gradient by w, a sum over images and places.

    Examples
    --------
    >>> conv_weight_grad(np.array([[[1, 0, 10]]]), np.array([[[1, 2, 3, 4]]]), Sliding((4,), 2))
    array([[[31, 42]]])
    """
    cg, og = x.shape[1] // groups, dy.shape[1] // groups
    dw: Array = np.zeros((dy.shape[1], cg, *sliding.kernel), np.result_type(dy, x))
    for o, j, i in sliding.reads():
        for ins, outs in _groups(cg, og, groups):
            dw[outs, :, *j] += dy[:, outs, *o].T @ x[:, ins, *i]
    return dw


def conv_bias_grad(dy: Array) -> Array:
    """Return a convolution's gradient by b: ``db[f] = sum over n, o of dy[n, f, o]``.

    Parameters
    ----------
    dy : array [N, C_out, *out_size]
        The loss's gradient by y.

    Returns
    -------
    db : array [C_out]
        The loss's gradient by b.

    Examples
    --------
    >>> conv_bias_grad(np.array([[[1, 2], [3, 4]]]))
    array([3, 7])
    """
    return np.array([dy[:, f].sum() for f in range(dy.shape[1])])


def conv_transpose(x: Array, w: Array, b: Array | None, spreading: Spreading, groups: int = 1) -> Array:
    """Convolve transposed: send every place out along the kernel, and sum where they meet.

    ``y[n, f, o] = b[f] + sum over c and all (i, j) that write o of w[c, f, j] * x[n, c, i]``. It is what
    `conv_input_grad` does, with a bias.

    Parameters
    ----------
    x : array [N, C, *in_size]
        The images.
    w : array [C, C_out/groups, *kernel]
        The weights.
    b : array [C_out] or None
        The bias.
    spreading : Spreading
        The window.
    groups : int, default 1
        As in `conv`.

    Returns
    -------
    y : array [N, C_out, *out_size]
        Of the arrays' common dtype.

    Examples
    --------
    >>> conv_transpose(np.array([[[1, 10]]]), np.array([[[1, 2, 3]]]), None, Spreading((2,), 3, stride=2))
    array([[[ 1,  2, 13, 20, 30]]])
    """
    y: Array = np.zeros((x.shape[0], w.shape[1] * groups, *spreading.out_size), np.result_type(x, w))
    for i, j, o in spreading.writes():
        for ins, outs in _groups(w.shape[0] // groups, w.shape[1], groups):
            y[:, outs, *o] += x[:, ins, *i] @ w[ins, :, *j]
    if b is not None:
        y = y + b.reshape(-1, *(1,) * len(spreading.kernel))
    return y


def conv_transpose_input_grad(dy: Array, w: Array, spreading: Spreading, groups: int = 1) -> Array:
    """Return a transposed convolution's gradient by x, a convolution.

    ``dx[n, c, i] = sum over f, j of w[c, f, j] * dy[n, f, o]``.

    Parameters
    ----------
    dy : array [N, C_out, *out_size]
        The loss's gradient by y.
    w, spreading, groups
        As given to `conv_transpose`.

    Returns
    -------
    dx : array [N, C, *in_size]
        The loss's gradient by x.

    Examples
    --------
    >>> window = Spreading((2,), 3, stride=2)
    >>> conv_transpose_input_grad(np.array([[[1, 0, 0, 0, 1]]]), np.array([[[1, 2, 3]]]), window)
    array([[[1, 3]]])
    """
    dx: Array = np.zeros((dy.shape[0], w.shape[0], *spreading.in_size), np.result_type(dy, w))
    for i, j, o in spreading.writes():
        for ins, outs in _groups(w.shape[0] // groups, w.shape[1], groups):
            dx[:, ins, *i] += dy[:, outs, *o] @ w[ins, :, *j].T
    return dx


def conv_transpose_weight_grad(dy: Array, x: Array, spreading: Spreading, groups: int = 1) -> Array:
    """Return a transposed convolution's gradient by w.

    ``dw[c, f, j] = sum over n, i of x[n, c, i] * dy[n, f, o]``.

    Parameters
    ----------
    dy : array [N, C_out, *out_size]
        The loss's gradient by y.
    x, spreading, groups
        As given to `conv_transpose`.

    Returns
    -------
    dw : array [C, C_out/groups, *kernel]
        The loss's gradient by w.

    Examples
    --------
    >>> window = Spreading((2,), 3, stride=2)
    >>> conv_transpose_weight_grad(np.array([[[1, 0, 0, 0, 1]]]), np.array([[[1, 10]]]), window)
    array([[[ 1,  0, 10]]])
    """
    cg, og = x.shape[1] // groups, dy.shape[1] // groups
    dw: Array = np.zeros((x.shape[1], og, *spreading.kernel), np.result_type(dy, x))
    for i, j, o in spreading.writes():
        for ins, outs in _groups(cg, og, groups):
            dw[ins, :, *j] += x[:, ins, *i].T @ dy[:, outs, *o]
    return dw


def im2col(x: Array, sliding: Sliding) -> Array:
    """Write every window as a column: ``col[n, (c, j), o] = x[n, c, i]``, zero in the padding.

    Convolution is then one matrix product an image, ``w.reshape(C_out, -1) @ col[n]``.

    Parameters
    ----------
    x : array [N, C, *in_size]
        The images.
    sliding : Sliding
        The window.

    Returns
    -------
    col : array [N, C * taps, windows]
        Of x's dtype; taps and windows are counted in row-major order.

    Examples
    --------
    >>> im2col(np.array([[[1, 2, 3, 4]]]), Sliding((4,), 2))
    array([[[1, 2, 3],
            [2, 3, 4]]])
    """
    col: Array = np.zeros((*x.shape[:2], *sliding.kernel, *sliding.out_size), x.dtype)
    for o, j, i in sliding.reads():
        col[:, :, *j, *o] = x[:, :, *i]
    return col.reshape(x.shape[0], x.shape[1] * prod(sliding.kernel), prod(sliding.out_size))


def col2im(col: Array, channels: int, sliding: Sliding) -> Array:
    """Add the columns' entries to the places they were read from: the adjoint of `im2col`, not its inverse.

    ``x[n, c, i] = sum over all (o, j) that read i of col[n, (c, j), o]``.

    Parameters
    ----------
    col : array [N, C * taps, windows]
        Columns.
    channels : int
        C.
    sliding : Sliding
        The window.

    Returns
    -------
    x : array [N, C, *in_size]
        Of col's dtype.

    Examples
    --------
    >>> window = Sliding((4,), 2)
    >>> col2im(im2col(np.array([[[1, 2, 3, 4]]]), window), 1, window)       # two windows read 2, and 3
    array([[[1, 4, 6, 4]]])
    """
    x: Array = np.zeros((col.shape[0], channels, *sliding.in_size), col.dtype)
    full = col.reshape(col.shape[0], channels, *sliding.kernel, *sliding.out_size)
    for o, j, i in sliding.reads():
        x[:, :, *i] += full[:, :, *j, *o]
    return x


def columns_last(col: Array, channels: int) -> Array:
    """Turn [N, (C, taps), places] into [N, places, (taps, C)], the columns of channels-last images.

    Examples
    --------
    >>> columns_last(np.array([[[1], [2], [30], [40]]]), channels=2)
    array([[[ 1, 30,  2, 40]]])
    """
    n, rows, places = col.shape
    taps = rows // channels
    return col.reshape(n, channels, taps, places).transpose(0, 3, 2, 1).reshape(n, places, rows)


def max_pool(x: Array, sliding: Sliding) -> tuple[Array, Array]:
    """Return every window's maximum, and which tap holds it.

    ``y[n, c, o] = max over j of x[n, c, i]``; padding never wins. Of equal maxima the first counts, in
    row-major order, and NaN is above all numbers.

    Parameters
    ----------
    x : array [N, C, *in_size]
        The images, without complex numbers.
    sliding : Sliding
        The window; each must have a place of x.

    Returns
    -------
    y, argmax : arrays [N, C, *out_size]
        Maxima, and their taps' numbers in the window.

    Examples
    --------
    >>> y, argmax = max_pool(np.array([[[1, 7, 7, 2]]]), Sliding((4,), 2))
    >>> y, argmax
    (array([[[7, 7, 7]]]), array([[[1, 0, 0]]]))
    """
    shape = (*x.shape[:2], *sliding.out_size)
    y, argmax = np.zeros(shape, x.dtype), np.full(shape, -1)  # -1: nothing found yet
    for o, j, i in sliding.reads():  # taps come in row-major order
        _keep_larger(y, argmax, o, x[:, :, *i], np.ravel_multi_index(j, sliding.kernel))
    assert (argmax >= 0).all(), "a window holds nothing but padding"
    return y, argmax


def _keep_larger(y: Array, argmax: Array, o: Place, value: Array, number: Any) -> None:
    """Put a value and its number into y[o] and argmax[o] where it is larger than all before, or the first."""
    best, holder = y[:, :, *o], argmax[:, :, *o]
    wins = (holder < 0) | (value > best) | ((value != value) & (best == best))
    y[:, :, *o], argmax[:, :, *o] = np.where(wins, value, best), np.where(wins, number, holder)


def max_pool_backward(dy: Array, argmax: Array, sliding: Sliding) -> Array:
    """Return a max pooling's gradient by x.

    ``dx[n, c, i] = sum of dy[n, c, o]`` over the windows o whose maximum lies at i.

    Parameters
    ----------
    dy, argmax : arrays [N, C, *out_size]
        The loss's gradient by y, and what `max_pool` returned.
    sliding : Sliding
        As given to `max_pool`.

    Returns
    -------
    dx : array [N, C, *in_size]
        The loss's gradient by x.

    Examples
    --------
    >>> max_pool_backward(np.array([[[1, 10, 100]]]), np.array([[[1, 0, 0]]]), Sliding((4,), 2))
    array([[[  0,  11, 100,   0]]])
    """
    dx: Array = np.zeros((*dy.shape[:2], *sliding.in_size), dy.dtype)
    for n, c, *o in np.ndindex(*dy.shape):
        dx[n, c, *_maximum(argmax, n, c, o, sliding)] += dy[n, c, *o]
    return dx


def max_unpool(x: Array, argmax: Array, sliding: Sliding) -> Array:
    """Put values where a max pooling found its maxima.

    ``y[n, c, i] = x[n, c, o]``, i being the place that argmax names. Places without a maximum are 0; of
    windows that name the same place the last in row-major order counts.

    Parameters
    ----------
    x, argmax : arrays [N, C, *out_size]
        Values, and what `max_pool` returned.
    sliding : Sliding
        As given to `max_pool`.

    Returns
    -------
    y : array [N, C, *in_size]
        Of x's dtype.

    Examples
    --------
    >>> max_unpool(np.array([[[1, 10, 100]]]), np.array([[[1, 0, 0]]]), Sliding((4,), 2))
    array([[[  0,  10, 100,   0]]])
    """
    y: Array = np.zeros((*x.shape[:2], *sliding.in_size), x.dtype)
    for n, c, *o in np.ndindex(*x.shape):
        y[n, c, *_maximum(argmax, n, c, o, sliding)] = x[n, c, *o]
    return y


def max_unpool_backward(dy: Array, argmax: Array, sliding: Sliding) -> Array:
    """Return an unpooling's gradient by x.

    ``dx[n, c, o] = dy[n, c, i]`` if what was written last at i was x[n, c, o]; else 0.

    Parameters
    ----------
    dy : array [N, C, *in_size]
        The loss's gradient by y.
    argmax, sliding
        As given to `max_unpool`.

    Returns
    -------
    dx : array [N, C, *out_size]
        The loss's gradient by x.

    Examples
    --------
    >>> max_unpool_backward(np.array([[[1, 2, 3, 4]]]), np.array([[[1, 0, 0]]]), Sliding((4,), 2))
    array([[[0, 2, 3]]])
    """
    numbered = np.arange(1, argmax.size + 1).reshape(argmax.shape)
    writer = max_unpool(numbered, argmax, sliding)
    dx: Array = np.zeros(argmax.shape, dy.dtype)
    for n, c, *o in np.ndindex(*argmax.shape):
        i = _maximum(argmax, n, c, o, sliding)
        if writer[n, c, *i] == numbered[n, c, *o]:
            dx[n, c, *o] = dy[n, c, *i]
    return dx


def flat_indices(argmax: Array, sliding: Sliding) -> Array:
    """Return, for each window, the maximum's index into the flattened spatial axes of x.

    Examples
    --------
    >>> flat_indices(np.array([[[1, 0, 0]]]), Sliding((4,), 2))
    array([[[1, 1, 2]]])
    """
    indices: Array = np.zeros(argmax.shape, np.int64)
    for n, c, *o in np.ndindex(*argmax.shape):
        indices[n, c, *o] = np.ravel_multi_index(_maximum(argmax, n, c, o, sliding), sliding.in_size)
    return indices


def _maximum(argmax: Array, n: int, c: int, o: Any, sliding: Sliding) -> Place:
    """Return the place of x that argmax names for window o."""
    return sliding.place(o, np.unravel_index(argmax[n, c, *o], sliding.kernel))


def divisors(sliding: Sliding, count_include_pad: bool) -> Array:
    """Count each window's places inside the padded input, or inside the input.

    Examples
    --------
    >>> divisors(Sliding((3,), 2, padding=1), True), divisors(Sliding((3,), 2, padding=1), False)
    (array([2, 2, 2, 2]), array([1, 2, 2, 1]))
    """
    counts: Array = np.zeros(sliding.out_size, np.int64)
    for o in np.ndindex(*sliding.out_size):
        for j in np.ndindex(*sliding.kernel):
            counts[o] += all(
                (-before <= i < n + after) if count_include_pad else (0 <= i < n)
                for i, n, (before, after) in zip(
                    sliding.place(o, j), sliding.in_size, sliding.pads, strict=True
                )
            )
    return counts


def avg_pool(x: Array, sliding: Sliding, count_include_pad: bool = True) -> Array:
    """Return every window's mean: ``y[n, c, o] = (sum over j of x[n, c, i]) / divisor[o]``.

    Parameters
    ----------
    x : array [N, C, *in_size]
        The images.
    sliding : Sliding
        The window.
    count_include_pad : bool, default True
        Whether padding counts in the divisor; see `divisors`.

    Returns
    -------
    y : array [N, C, *out_size]
        The means; floats are float64, as the divisors are whole numbers of 64 bits.

    Examples
    --------
    >>> avg_pool(np.array([[[2, 4, 6]]]), Sliding((3,), 2, padding=1), count_include_pad=False)
    array([[[2., 3., 5., 6.]]])
    """
    y: Array = np.zeros((*x.shape[:2], *sliding.out_size), x.dtype)
    for o, _, i in sliding.reads():
        y[:, :, *o] += x[:, :, *i]
    return np.asarray(y / divisors(sliding, count_include_pad))


def avg_pool_backward(dy: Array, sliding: Sliding, count_include_pad: bool = True) -> Array:
    """Return an average pooling's gradient by x.

    ``dx[n, c, i] = sum of dy[n, c, o] / divisor[o]`` over the windows o that read i.

    Parameters
    ----------
    dy : array [N, C, *out_size]
        The loss's gradient by y, floats.
    sliding, count_include_pad
        As given to `avg_pool`.

    Returns
    -------
    dx : array [N, C, *in_size]
        The loss's gradient by x, of dy's dtype.

    Examples
    --------
    >>> avg_pool_backward(np.array([[[2.0, 4.0, 6.0]]]), Sliding((4,), 2))
    array([[[1., 3., 5., 3.]]])
    """
    dx: Array = np.zeros((*dy.shape[:2], *sliding.in_size), dy.dtype)
    share = dy / divisors(sliding, count_include_pad)
    for o, _, i in sliding.reads():
        dx[:, :, *i] += share[:, :, *o]
    return dx


def lp_pool(x: Array, norm: float, sliding: Sliding) -> Array:
    """Return every window's norm: ``y[n, c, o] = (sum over j of |x[n, c, i]| ** norm) ** (1/norm)``.

    Parameters
    ----------
    x : array [N, C, *in_size]
        The images.
    norm : float
        The exponent, 1 or more.
    sliding : Sliding
        The window; padding adds nothing.

    Returns
    -------
    y : array [N, C, *out_size]
        The norms, float64.

    Examples
    --------
    >>> lp_pool(np.array([[[3.0, -4.0, 0.0, 1.0]]]), 2, Sliding((4,), 2, stride=2))
    array([[[5., 1.]]])
    """
    total: Array = np.zeros((*x.shape[:2], *sliding.out_size))
    for o, _, i in sliding.reads():
        total[:, :, *o] += np.abs(x[:, :, *i]) ** norm
    return np.asarray(total ** (1 / norm))


def lp_pool_backward(dy: Array, x: Array, norm: float, sliding: Sliding) -> Array:
    """Return an Lp pooling's gradient by x.

    ``dx[n, c, i] = x[n, c, i] * |x[n, c, i]| ** (norm-2) * sum of dy[n, c, o] * y[n, c, o] ** (1-norm)`` over
    the windows o that read i; 0 where x is, as there is no slope, or one of 0.

    Parameters
    ----------
    dy : array [N, C, *out_size]
        The loss's gradient by y.
    x, norm, sliding
        As given to `lp_pool`.

    Returns
    -------
    dx : array [N, C, *in_size]
        The loss's gradient by x.

    Examples
    --------
    >>> x = np.array([[[3.0, -4.0, 0.0, 1.0]]])
    >>> lp_pool_backward(np.array([[[5.0, 7.0]]]), x, 2, Sliding((4,), 2, stride=2))
    array([[[ 3., -4.,  0.,  7.]]])
    """
    y = lp_pool(x, norm, sliding)
    dx: Array = np.zeros(x.shape, np.result_type(dy, x, np.float64))
    for o, _, i in sliding.reads():
        for n, c in np.ndindex(*x.shape[:2]):
            value = x[n, c, *i]
            if value != 0:
                dx[n, c, *i] += (
                    dy[n, c, *o] * value * np.abs(value) ** (norm - 2.0) * y[n, c, *o] ** (1.0 - norm)
                )
    return dx


def shares(in_size: Place, out_size: Place) -> Iterator[tuple[Place, tuple[slice, ...]]]:
    """Yield (o, slices) for the windows of adaptive pooling: what o's share of each axis touches.

    Cut n places into m equal shares; window o has the places that share o touches,
    ``floor(o * n / m) <= i < ceil((o+1) * n / m)``.

    Examples
    --------
    >>> [(part.start, part.stop) for _, (part,) in shares((5,), (3,))]
    [(0, 2), (1, 4), (3, 5)]
    """
    for o in np.ndindex(*out_size):
        yield (
            o,
            tuple(
                slice(floor(Fraction(at * size, out)), ceil(Fraction((at + 1) * size, out)))
                for at, size, out in zip(o, in_size, out_size, strict=True)
            ),
        )


def adaptive_avg_pool(x: Array, out_size: Place) -> Array:
    """Return the mean of each of a given number of windows.

    ``y[n, c, o] = mean of x[n, c, i]`` over o's places i.

    Parameters
    ----------
    x : array [N, C, *in_size]
        The images, floats.
    out_size : tuple of int
        Windows per axis, which `shares` cuts; one an axis is global pooling.

    Returns
    -------
    y : array [N, C, *out_size]
        Of x's dtype.

    Examples
    --------
    >>> adaptive_avg_pool(np.array([[[1.0, 3.0, 5.0, 7.0, 9.0]]]), (3,))
    array([[[2., 5., 8.]]])
    >>> adaptive_avg_pool(np.array([[[1.0, 3.0, 5.0, 7.0, 9.0]]]), (1,))
    array([[[5.]]])
    """
    y: Array = np.zeros((*x.shape[:2], *out_size), x.dtype)
    for n, c in np.ndindex(*x.shape[:2]):
        for o, places in shares(x.shape[2:], out_size):
            y[n, c, *o] = x[n, c, *places].mean()
    return y


def adaptive_avg_pool_backward(dy: Array, in_size: Place) -> Array:
    """Return an adaptive average pooling's gradient by x.

    ``dx[n, c, i] = sum over the windows o that have i of dy[n, c, o] / (number of their places)``.

    Parameters
    ----------
    dy : array [N, C, *out_size]
        The loss's gradient by y, floats.
    in_size : tuple of int
        Places of x per axis.

    Returns
    -------
    dx : array [N, C, *in_size]
        Of dy's dtype.

    Examples
    --------
    >>> adaptive_avg_pool_backward(np.array([[[2.0, 3.0, 4.0]]]), (5,))
    array([[[1., 2., 1., 3., 2.]]])
    """
    dx: Array = np.zeros((*dy.shape[:2], *in_size), dy.dtype)
    for n, c in np.ndindex(*dy.shape[:2]):
        for o, places in shares(in_size, dy.shape[2:]):
            dx[n, c, *places] += dy[n, c, *o] / dx[n, c, *places].size
    return dx


def adaptive_max_pool(x: Array, out_size: Place) -> tuple[Array, Array]:
    """Return the maximum of each of a given number of windows, and where it is first.

    ``y[n, c, o] = max of x[n, c, i]`` over o's places i; ties and NaN as in `max_pool`.

    Parameters
    ----------
    x : array [N, C, *in_size]
        The images, without complex numbers.
    out_size : tuple of int
        Windows per axis, which `shares` cuts; one an axis is global pooling.

    Returns
    -------
    y, argmax : arrays [N, C, *out_size]
        Maxima, and their places in the flattened spatial axes of x.

    Examples
    --------
    >>> adaptive_max_pool(np.array([[[1, 9, 3, 4, 5]]]), (3,))
    (array([[[9, 9, 5]]]), array([[[1, 1, 4]]]))
    """
    shape = (*x.shape[:2], *out_size)
    y, argmax = np.zeros(shape, x.dtype), np.full(shape, -1)  # -1: nothing found yet
    in_size = x.shape[2:]
    for o, places in shares(in_size, out_size):
        for i in np.ndindex(*in_size):  # in row-major order
            if not all(part.start <= at < part.stop for at, part in zip(i, places, strict=True)):
                continue
            _keep_larger(y, argmax, o, x[:, :, *i], np.ravel_multi_index(i, in_size))
    return y, argmax


def adaptive_max_pool_backward(dy: Array, argmax: Array, in_size: Place) -> Array:
    """Return an adaptive max pooling's gradient by x.

    ``dx[n, c, i] = sum of dy[n, c, o]`` over the windows o whose maximum lies at i.

    Parameters
    ----------
    dy, argmax : arrays [N, C, *out_size]
        The loss's gradient by y, and what `adaptive_max_pool` returned.
    in_size : tuple of int
        Places of x per axis.

    Returns
    -------
    dx : array [N, C, *in_size]
        Of dy's dtype.

    Examples
    --------
    >>> adaptive_max_pool_backward(np.array([[[1, 10, 100]]]), np.array([[[1, 1, 4]]]), (5,))
    array([[[  0,  11,   0,   0, 100]]])
    """
    dx: Array = np.zeros((*dy.shape[:2], *in_size), dy.dtype)
    for n, c, *o in np.ndindex(*dy.shape):
        dx[n, c, *np.unravel_index(argmax[n, c, *o], in_size)] += dy[n, c, *o]
    return dx


def upsample(x: Array, scale: Place) -> Array:
    """Repeat every place: ``y[n, c, o] = x[n, c, o // scale]``.

    Parameters
    ----------
    x : array [N, C, *in_size]
        The images.
    scale : tuple of int
        How often each place stands along each axis.

    Returns
    -------
    y : array [N, C, *(in_size * scale)]
        Of x's dtype.

    Examples
    --------
    >>> upsample(np.array([[[1, 2]]]), (3,))
    array([[[1, 1, 1, 2, 2, 2]]])
    """
    large = tuple(n * times for n, times in zip(x.shape[2:], scale, strict=True))
    y: Array = np.zeros((*x.shape[:2], *large), x.dtype)
    for o in np.ndindex(*large):
        y[:, :, *o] = x[:, :, *(at // times for at, times in zip(o, scale, strict=True))]
    return y


def upsample_backward(dy: Array, scale: Place) -> Array:
    """Return an upsampling's gradient by x.

    ``dx[n, c, i] = sum of dy[n, c, o]`` over the copies, the o with ``o // scale == i``.

    Parameters
    ----------
    dy : array [N, C, *(in_size * scale)]
        The loss's gradient by y.
    scale : tuple of int
        As given to `upsample`.

    Returns
    -------
    dx : array [N, C, *in_size]
        Of dy's dtype.

    Examples
    --------
    >>> upsample_backward(np.array([[[1, 2, 3, 10, 20, 30]]]), (3,))
    array([[[ 6, 60]]])
    """
    small = tuple(n // times for n, times in zip(dy.shape[2:], scale, strict=True))
    dx: Array = np.zeros((*dy.shape[:2], *small), dy.dtype)
    for o in np.ndindex(*dy.shape[2:]):
        dx[:, :, *(at // times for at, times in zip(o, scale, strict=True))] += dy[:, :, *o]
    return dx


def first(x: Array, channels_last: bool = True) -> Array:
    """View [N, *spatial, C] as [N, C, *spatial], where it isn't already."""
    return np.moveaxis(x, -1, 1) if channels_last else x


def last(x: Array, channels_last: bool = True) -> Array:
    """View [N, C, *spatial] as [N, *spatial, C], where that is wanted."""
    return np.moveaxis(x, 1, -1) if channels_last else x


def weights_first(w: Array, channels_last: bool = True) -> Array:
    """View [*kernel, C_in/groups, C_out] as [C_out, C_in/groups, *kernel], where it isn't already."""
    return np.moveaxis(w, (-1, -2), (0, 1)) if channels_last else w


def weights_last(w: Array, channels_last: bool = True) -> Array:
    """View [C_out, C_in/groups, *kernel] as [*kernel, C_in/groups, C_out], where that is wanted."""
    return np.moveaxis(w, (0, 1), (-1, -2)) if channels_last else w
