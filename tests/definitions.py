"""The definitions, as slow loops: what every fast path is checked against.

Written from the formulas alone, with nothing from the package. Arrays are NumPy's, channels first
([N, C, *spatial], w [C_out, C_in/groups, *kernel]), with any number of spatial axes; `first` and `last` turn
other layouts into this one and back. Along each axis, output place o reads with tap j the input place

    i = o * stride - before + j * dilation,

or padding, where i lies outside the input.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, prod

import numpy as np


@dataclass(frozen=True)
class Sliding:
    """One integer per spatial axis each; `padding` is a word or a (before, after) pair per axis."""

    in_size: tuple
    kernel: tuple
    stride: tuple
    dilation: tuple
    padding: object
    ceil_mode: bool = False

    @property
    def pads(self):
        """(before, after) per axis."""
        if not isinstance(self.padding, str):
            return tuple(self.padding)
        return tuple(
            _pad_of(self.padding, n, k, s, d)
            for n, k, s, d in zip(self.in_size, self.kernel, self.stride, self.dilation, strict=True)
        )

    @property
    def out_size(self):
        """Windows per axis, counted one by one."""
        return tuple(
            _count(n, k, s, d, pads, self.ceil_mode)
            for n, k, s, d, pads in zip(
                self.in_size, self.kernel, self.stride, self.dilation, self.pads, strict=True
            )
        )

    def reads(self):
        """Yield (o, j, i) for every output place o and every tap j that reads an input place i."""
        for o in np.ndindex(*self.out_size):
            for j in np.ndindex(*self.kernel):
                i = self.place(o, j)
                if all(0 <= at < n for at, n in zip(i, self.in_size, strict=True)):
                    yield o, j, i

    def place(self, o, j):
        """Return the place that tap j of output place o reads; outside of the input is padding."""
        return tuple(
            at * s - before + tap * d
            for at, tap, s, d, (before, _) in zip(o, j, self.stride, self.dilation, self.pads, strict=True)
        )


@dataclass(frozen=True)
class Spreading:
    """The transposed convolution's window: input place i writes with tap j the output place

        o = i * stride - before + j * dilation,

    or nothing, where o lies outside the output. One integer per spatial axis each; `padding` is a word or a
    (before, after) pair per axis, of places that are left out.
    """

    in_size: tuple
    kernel: tuple
    stride: tuple
    dilation: tuple
    padding: object
    output_padding: tuple

    @property
    def whole(self):
        """Places per axis before any is left out."""
        return tuple(
            (n - 1) * s + (k - 1) * d + 1 + more
            for n, k, s, d, more in zip(
                self.in_size, self.kernel, self.stride, self.dilation, self.output_padding, strict=True
            )
        )

    @property
    def pads(self):
        """(before, after) per axis."""
        if not isinstance(self.padding, str):
            return tuple(self.padding)
        totals = (max(0, have - out) for have, out in zip(self.whole, self.out_size, strict=True))
        return tuple(_halves(self.padding, total) for total in totals)

    @property
    def out_size(self):
        """Places per axis; "same" asks for just stride times as many as there were."""
        if self.padding == "valid":
            return self.whole
        if isinstance(self.padding, str):
            return tuple(n * s for n, s in zip(self.in_size, self.stride, strict=True))
        return tuple(have - sum(pads) for have, pads in zip(self.whole, self.padding, strict=True))

    def writes(self):
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


def _pad_of(word, n, k, s, d):
    out = -(-n // s)
    return _halves(word, max(0, (out - 1) * s + (k - 1) * d + 1 - n))


def _halves(word, total):
    if word == "valid":
        return 0, 0
    smaller, larger = total // 2, total - total // 2
    return (smaller, larger) if word == "same" else (larger, smaller)


def _count(n, k, s, d, pads, ceil_mode):
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


def _groups(channels_in_group, channels_out_group, groups):
    for g in range(groups):
        yield (
            slice(g * channels_in_group, (g + 1) * channels_in_group),
            slice(g * channels_out_group, (g + 1) * channels_out_group),
        )


def conv(x, w, b, sliding, groups):
    """y[n, f, o] = b[f] + sum over c, j of w[f, c, j] * x[n, c, i]."""
    y = np.zeros((x.shape[0], w.shape[0], *sliding.out_size), np.result_type(x, w))
    for o, j, i in sliding.reads():
        for ins, outs in _groups(w.shape[1], w.shape[0] // groups, groups):
            y[:, outs, *o] += x[:, ins, *i] @ w[outs, :, *j].T
    if b is not None:
        y = y + b.reshape(-1, *(1,) * len(sliding.kernel))
    return y


def conv_input_grad(dy, w, sliding, groups):
    """dx[n, c, i] = sum over f and all (o, j) that read i of w[f, c, j] * dy[n, f, o]."""
    dx = np.zeros((dy.shape[0], w.shape[1] * groups, *sliding.in_size), np.result_type(dy, w))
    for o, j, i in sliding.reads():
        for ins, outs in _groups(w.shape[1], w.shape[0] // groups, groups):
            dx[:, ins, *i] += dy[:, outs, *o] @ w[outs, :, *j]
    return dx


def conv_weight_grad(dy, x, sliding, groups):
    """dw[f, c, j] = sum over n, o of dy[n, f, o] * x[n, c, i]."""
    cg, og = x.shape[1] // groups, dy.shape[1] // groups
    dw = np.zeros((dy.shape[1], cg, *sliding.kernel), np.result_type(dy, x))
    for o, j, i in sliding.reads():
        for ins, outs in _groups(cg, og, groups):
            dw[outs, :, *j] += dy[:, outs, *o].T @ x[:, ins, *i]
    return dw


def conv_bias_grad(dy):
    """db[f] = sum over n, o of dy[n, f, o]."""
    return np.array([dy[:, f].sum() for f in range(dy.shape[1])])


def conv_transpose(x, w, b, spreading, groups):
    """y[n, f, o] = b[f] + sum over c and all (i, j) that write o of w[c, f, j] * x[n, c, i]."""
    y = np.zeros((x.shape[0], w.shape[1] * groups, *spreading.out_size), np.result_type(x, w))
    for i, j, o in spreading.writes():
        for ins, outs in _groups(w.shape[0] // groups, w.shape[1], groups):
            y[:, outs, *o] += x[:, ins, *i] @ w[ins, :, *j]
    if b is not None:
        y = y + b.reshape(-1, *(1,) * len(spreading.kernel))
    return y


def conv_transpose_input_grad(dy, w, spreading, groups):
    """dx[n, c, i] = sum over f, j of w[c, f, j] * dy[n, f, o]."""
    dx = np.zeros((dy.shape[0], w.shape[0], *spreading.in_size), np.result_type(dy, w))
    for i, j, o in spreading.writes():
        for ins, outs in _groups(w.shape[0] // groups, w.shape[1], groups):
            dx[:, ins, *i] += dy[:, outs, *o] @ w[ins, :, *j].T
    return dx


def conv_transpose_weight_grad(dy, x, spreading, groups):
    """dw[c, f, j] = sum over n, i of x[n, c, i] * dy[n, f, o]."""
    cg, og = x.shape[1] // groups, dy.shape[1] // groups
    dw = np.zeros((x.shape[1], og, *spreading.kernel), np.result_type(dy, x))
    for i, j, o in spreading.writes():
        for ins, outs in _groups(cg, og, groups):
            dw[ins, :, *j] += x[:, ins, *i].T @ dy[:, outs, *o]
    return dw


def im2col(x, sliding):
    """col[n, (c, j), o] = x[n, c, i], zero in the padding."""
    col = np.zeros((*x.shape[:2], *sliding.kernel, *sliding.out_size), x.dtype)
    for o, j, i in sliding.reads():
        col[:, :, *j, *o] = x[:, :, *i]
    return col.reshape(x.shape[0], x.shape[1] * prod(sliding.kernel), prod(sliding.out_size))


def col2im(col, channels, sliding):
    """x[n, c, i] = sum over all (o, j) that read i of col[n, (c, j), o]."""
    x = np.zeros((col.shape[0], channels, *sliding.in_size), col.dtype)
    full = col.reshape(col.shape[0], channels, *sliding.kernel, *sliding.out_size)
    for o, j, i in sliding.reads():
        x[:, :, *i] += full[:, :, *j, *o]
    return x


def columns_last(col, channels):
    """[N, (C, taps), places] as [N, places, (taps, C)], the columns of channels-last images."""
    n, rows, places = col.shape
    taps = rows // channels
    return col.reshape(n, channels, taps, places).transpose(0, 3, 2, 1).reshape(n, places, rows)


def max_pool(x, sliding):
    """Return y and the number of the tap that holds it: the first of the largest, NaN above all numbers."""
    shape = (*x.shape[:2], *sliding.out_size)
    y, argmax, found = np.zeros(shape, x.dtype), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for o, j, i in sliding.reads():  # taps come in row-major order
        value, best = x[:, :, *i], y[:, :, *o]
        wins = ~found[:, :, *o] | (value > best) | ((value != value) & (best == best))
        y[:, :, *o] = np.where(wins, value, best)
        argmax[:, :, *o] = np.where(wins, np.ravel_multi_index(j, sliding.kernel), argmax[:, :, *o])
        found[:, :, *o] = True
    assert found.all(), "a window holds nothing but padding"
    return y, argmax


def max_pool_backward(dy, argmax, sliding):
    """dx[n, c, i] = sum of dy[n, c, o] over the windows o whose maximum lies at i."""
    dx = np.zeros((*dy.shape[:2], *sliding.in_size), dy.dtype)
    for n, c, *o in np.ndindex(*dy.shape):
        j = np.unravel_index(argmax[n, c, *o], sliding.kernel)
        dx[n, c, *sliding.place(o, j)] += dy[n, c, *o]
    return dx


def max_unpool(x, argmax, sliding):
    """y[n, c, i] = x[n, c, o], written in the order of the windows o, at the place i that argmax names."""
    y = np.zeros((*x.shape[:2], *sliding.in_size), x.dtype)
    for n, c, *o in np.ndindex(*x.shape):
        y[n, c, *sliding.place(o, np.unravel_index(argmax[n, c, *o], sliding.kernel))] = x[n, c, *o]
    return y


def max_unpool_backward(dy, argmax, sliding):
    """dx[n, c, o] = dy[n, c, i], if what was written last at i was x[n, c, o]; else 0."""
    numbered = np.arange(1, argmax.size + 1).reshape(argmax.shape)
    writer = max_unpool(numbered, argmax, sliding)
    dx = np.zeros(argmax.shape, dy.dtype)
    for n, c, *o in np.ndindex(*argmax.shape):
        place = sliding.place(o, np.unravel_index(argmax[n, c, *o], sliding.kernel))
        if writer[n, c, *place] == numbered[n, c, *o]:
            dx[n, c, *o] = dy[n, c, *place]
    return dx


def shares(in_size, out_size):
    """Yield (o, slices) for the windows of adaptive pooling: what o's share of each axis touches."""
    for o in np.ndindex(*out_size):
        yield (
            o,
            tuple(
                slice(floor(Fraction(at * size, out)), ceil(Fraction((at + 1) * size, out)))
                for at, size, out in zip(o, in_size, out_size, strict=True)
            ),
        )


def adaptive_avg_pool(x, out_size):
    """y[n, c, o] = mean of x[n, c, i] over o's places i."""
    y = np.zeros((*x.shape[:2], *out_size), x.dtype)
    for n, c in np.ndindex(*x.shape[:2]):
        for o, places in shares(x.shape[2:], out_size):
            y[n, c, *o] = x[n, c, *places].mean()
    return y


def adaptive_avg_pool_backward(dy, in_size):
    """dx[n, c, i] = sum over the windows o that have i of dy[n, c, o] / (number of their places)."""
    dx = np.zeros((*dy.shape[:2], *in_size), dy.dtype)
    for n, c in np.ndindex(*dy.shape[:2]):
        for o, places in shares(in_size, dy.shape[2:]):
            dx[n, c, *places] += dy[n, c, *o] / dx[n, c, *places].size
    return dx


def adaptive_max_pool(x, out_size):
    """Return y, and where it is first, flat in the plane; NaN is above all numbers."""
    shape = (*x.shape[:2], *out_size)
    y, argmax, found = np.zeros(shape, x.dtype), np.zeros(shape, np.int64), np.zeros(shape, bool)
    in_size = x.shape[2:]
    for o, places in shares(in_size, out_size):
        for i in np.ndindex(*in_size):  # in row-major order
            if not all(part.start <= at < part.stop for at, part in zip(i, places, strict=True)):
                continue
            value, best = x[:, :, *i], y[:, :, *o]
            wins = ~found[:, :, *o] | (value > best) | ((value != value) & (best == best))
            y[:, :, *o] = np.where(wins, value, best)
            argmax[:, :, *o] = np.where(wins, np.ravel_multi_index(i, in_size), argmax[:, :, *o])
            found[:, :, *o] = True
    return y, argmax


def adaptive_max_pool_backward(dy, argmax, in_size):
    """dx[n, c, i] = sum of dy[n, c, o] over the windows o whose maximum lies at i."""
    dx = np.zeros((*dy.shape[:2], *in_size), dy.dtype)
    for n, c, *o in np.ndindex(*dy.shape):
        dx[n, c, *np.unravel_index(argmax[n, c, *o], in_size)] += dy[n, c, *o]
    return dx


def flat_indices(argmax, sliding):
    """Return, for each window, the maximum's index into the flattened spatial axes of x."""
    indices = np.zeros(argmax.shape, np.int64)
    for n, c, *o in np.ndindex(*argmax.shape):
        place = sliding.place(o, np.unravel_index(argmax[n, c, *o], sliding.kernel))
        indices[n, c, *o] = np.ravel_multi_index(place, sliding.in_size)
    return indices


def divisors(sliding, count_include_pad):
    """Count each window's places inside the padded input, or inside the input."""
    counts = np.zeros(sliding.out_size)
    for o in np.ndindex(*sliding.out_size):
        for j in np.ndindex(*sliding.kernel):
            counts[o] += all(
                (-before <= i < n + after) if count_include_pad else (0 <= i < n)
                for i, n, (before, after) in zip(
                    sliding.place(o, j), sliding.in_size, sliding.pads, strict=True
                )
            )
    return counts


def avg_pool(x, sliding, count_include_pad):
    """y[n, c, o] = (sum over j of x[n, c, i]) / divisor[o]."""
    y = np.zeros((*x.shape[:2], *sliding.out_size), x.dtype)
    for o, _, i in sliding.reads():
        y[:, :, *o] += x[:, :, *i]
    return y / divisors(sliding, count_include_pad)


def avg_pool_backward(dy, sliding, count_include_pad):
    """dx[n, c, i] = sum of dy[n, c, o] / divisor[o] over the windows o that read i."""
    dx = np.zeros((*dy.shape[:2], *sliding.in_size), dy.dtype)
    share = dy / divisors(sliding, count_include_pad)
    for o, _, i in sliding.reads():
        dx[:, :, *i] += share[:, :, *o]
    return dx


def lp_pool(x, sliding, norm):
    """y[n, c, o] = (sum over j of |x[n, c, i]| ** norm) ** (1 / norm)."""
    sums = np.zeros((*x.shape[:2], *sliding.out_size), x.real.dtype)
    for o, _, i in sliding.reads():
        sums[:, :, *o] += abs(x[:, :, *i]) ** norm
    return sums ** (1 / norm)


def lp_pool_backward(dy, x, y, sliding, norm):
    """dx[n, c, i] = sum over the o that read i of dy[o] * x[i] / |x[i]| * (|x[i]| / y[o]) ** (norm - 1).

    A place of zero has no terms, nor has a window of zeros alone.
    """
    dx = np.zeros((*dy.shape[:2], *sliding.in_size), x.dtype)
    for n, c in np.ndindex(*dy.shape[:2]):
        for o, _, i in sliding.reads():
            value, size = x[n, c, *i], abs(x[n, c, *i])
            if size != 0 and y[n, c, *o] != 0:
                dx[n, c, *i] += dy[n, c, *o] * value / size * (size / y[n, c, *o]) ** (norm - 1)
    return dx


def upsample(x, scale):
    """y[n, c, i * scale + j] = x[n, c, i] for every 0 <= j < scale."""
    for axis, times in enumerate(scale, start=2):
        x = np.repeat(x, times, axis)
    return x


def upsample_backward(dy, scale):
    """dx[n, c, i] = sum over 0 <= j < scale of dy[n, c, i * scale + j]."""
    dx = np.zeros((*dy.shape[:2], *(n // s for n, s in zip(dy.shape[2:], scale, strict=True))), dy.dtype)
    for place in np.ndindex(*dy.shape[2:]):
        dx[:, :, *(at // s for at, s in zip(place, scale, strict=True))] += dy[:, :, *place]
    return dx


def first(x, channels_last):
    """[N, *spatial, C] as [N, C, *spatial], where it isn't already."""
    return np.moveaxis(x, -1, 1) if channels_last else x


def last(x, channels_last):
    """[N, C, *spatial] as [N, *spatial, C], where that is wanted."""
    return np.moveaxis(x, 1, -1) if channels_last else x


def weights_first(w, channels_last):
    """[*kernel, C_in/groups, C_out] as [C_out, C_in/groups, *kernel], where it isn't already."""
    return np.moveaxis(w, (-1, -2), (0, 1)) if channels_last else w


def weights_last(w, channels_last):
    """[C_out, C_in/groups, *kernel] as [*kernel, C_in/groups, C_out], where that is wanted."""
    return np.moveaxis(w, (0, 1), (-1, -2)) if channels_last else w
