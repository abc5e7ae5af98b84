"""Chainer: its convolutions, poolings and columns as functions of arrays, for code that is leaving it.

``import gpuconv.compat.chainer as F`` in place of `chainer.functions` (and of `chainer.utils.conv`) keeps the
calls: the names, the order and the defaults of the arguments are Chainer 7's. Arrays go in and come out, of
NumPy or CuPy; there is no `Variable` and no graph. With y = F.convolution_2d(x, W, b, stride, pad), Chainer's
own backward passes are again functions here:

    gx = F.deconvolution_2d(gy, W, None, stride, pad, outsize=x.shape[2:])
    gW = gpuconv.conv2d_weight_grad(gy, x, W.shape[2:], stride=stride, padding=pad)
    gb = gy.sum(axis=(0, 2, 3))

and of y, indexes = F.max_pooling_2d(x, ksize, return_indices=True) it is

    gx = F.upsampling_2d(gy, indexes, ksize, outsize=x.shape[2:])

`cover_all` asks for windows up to the last place of x, padding included. Chainer gets it from stride - 1 more
places of padding after the image, and so does this module. PyTorch's ceil mode drops a last window that would
begin in that padding; here, as in Chainer, a convolution gives its bias there, and a pooling is refused.

=========================  ===================================  =============================================
What                       Chainer                              Here
=========================  ===================================  =============================================
a window with nothing but  max: -inf; average: 0, or NaN for    a ValueError that says which
padding (a large pad, or   pad_value=None; unpooling drops
cover_all and a stride     its value
beyond ksize)
NaN in max pooling         wins on the CPU; loses in Chainer's  wins
                           own kernel
equal maxima               the first in row-major order         the same
indexes                    int64 on the CPU, int32 on the GPU   int64, and int32 of CuPy arrays
an index that upsampling   dropped                              a ValueError for NumPy's, dropped for CuPy's
would put in the padding
im2col, `*_cpu`, `*_gpu`   each for its own arrays              all for both; pval is im2col_cpu's alone
dtype of a convolution     x's, also where W is wider           NumPy's promotion; x or W may be integers
more than 2^31 elements    int32 indexes overflow on the GPU    fine
errors                     InvalidType, AssertionError          TypeError, ValueError
=========================  ===================================  =============================================
"""

from typing import Any

import numpy as np

from gpuconv import columns
from gpuconv.backends.dispatch import array_module, backend_of, check_rank
from gpuconv.compat.terms import errors_say
from gpuconv.conv import conv2d
from gpuconv.conv1d import conv1d
from gpuconv.conv3d import conv3d
from gpuconv.conv_transpose import conv_transpose1d, conv_transpose2d, conv_transpose3d
from gpuconv.geometry import Ints, flag, integer, per_axis, spatial_axes
from gpuconv.pool import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
from gpuconv.pool1d import avg_pool1d, max_pool1d
from gpuconv.pool3d import avg_pool3d, max_pool3d

__all__ = [
    "average_pooling_2d",
    "average_pooling_nd",
    "col2im",
    "col2im_cpu",
    "col2im_gpu",
    "convolution_2d",
    "convolution_nd",
    "deconvolution_2d",
    "deconvolution_nd",
    "get_conv_outsize",
    "get_deconv_outsize",
    "im2col",
    "im2col_cpu",
    "im2col_gpu",
    "max_pooling_2d",
    "max_pooling_nd",
    "unpooling_2d",
    "upsampling_2d",
]

Array = Any

_CONV = {1: conv1d, 2: conv2d, 3: conv3d}
_DECONV = {1: conv_transpose1d, 2: conv_transpose2d, 3: conv_transpose3d}
_MAX = {1: max_pool1d, 2: max_pool2d, 3: max_pool3d}
_AVERAGE = {1: avg_pool1d, 2: avg_pool2d, 3: avg_pool3d}

_in_its_terms = errors_say(w="W", kernel_size="ksize", dilation="dilate")
_of_unpooling = errors_say(dy="x", argmax="indexes", x_shape="y of shape", kernel_size="ksize")
_of_columns = errors_say(x="img")


@_in_its_terms
def convolution_2d(
    x: Array,
    W: Array,
    b: Array | None = None,
    stride: Ints = 1,
    pad: Ints = 0,
    cover_all: bool = False,
    *,
    dilate: Ints = 1,
    groups: int = 1,
) -> Array:
    """Convolve images: `gpuconv.conv2d`.

    Parameters
    ----------
    x : array [N, C_in, H, W]
    W : array [C_out, C_in/groups, kh, kw]
    b : array [C_out], optional
    stride, pad, dilate : int or (int, int)
    cover_all : bool
        Count a last, partial window too, so that every place of x is read.
    groups : int

    Returns
    -------
    y : array [N, C_out, OH, OW]
        ``OH = get_conv_outsize(H, kh, stride, pad, cover_all, dilate)``.

    Raises
    ------
    TypeError, ValueError
        For what isn't an array or an integer, and for shapes that don't fit.

    Examples
    --------
    >>> import numpy as np
    >>> x, W = np.arange(4.0).reshape(1, 1, 1, 4), np.ones((1, 1, 1, 3))
    >>> convolution_2d(x, W, stride=2)
    array([[[[3.]]]])
    >>> convolution_2d(x, W, stride=2, cover_all=True)
    array([[[[3., 5.]]]])
    """
    return _convolve("convolution_2d", 2, x, W, b, stride, pad, cover_all, dilate, groups)


@_in_its_terms
def convolution_nd(
    x: Array,
    W: Array,
    b: Array | None = None,
    stride: Ints = 1,
    pad: Ints = 0,
    cover_all: bool = False,
    dilate: Ints = 1,
    groups: int = 1,
) -> Array:
    """Convolve over one to three spatial axes; as many as x has beside its first two.

    Parameters
    ----------
    x, W, b, stride, pad, cover_all, dilate, groups
        As in `convolution_2d`.

    Returns
    -------
    y : array [N, C_out, ...]

    Examples
    --------
    >>> import numpy as np
    >>> convolution_nd(np.ones((1, 2, 5)), np.ones((1, 2, 3)), stride=2)
    array([[[6., 6.]]])
    """
    op = "convolution_nd"
    return _convolve(op, _axes(op, x), x, W, b, stride, pad, cover_all, dilate, groups)


@_in_its_terms
def deconvolution_2d(
    x: Array,
    W: Array,
    b: Array | None = None,
    stride: Ints = 1,
    pad: Ints = 0,
    outsize: tuple[int, int] | None = None,
    *,
    dilate: Ints = 1,
    groups: int = 1,
) -> Array:
    """Spread every place of x over a window: `gpuconv.conv_transpose2d`, the adjoint of `convolution_2d`.

    Parameters
    ----------
    x : array [N, C_in, H, W]
    W : array [C_in, C_out/groups, kh, kw]
    b : array [C_out], optional
    stride, pad, dilate : int or (int, int)
    outsize : (int, int), optional
        Sizes of y, of which up to 2*stride - 1 give the same sizes of x, cover_all or not;
        `get_deconv_outsize` where not given.
    groups : int

    Returns
    -------
    y : array [N, C_out, OH, OW]

    Raises
    ------
    TypeError, ValueError
        As `convolution_2d`; and for an outsize whose convolution hasn't x's size.

    Examples
    --------
    >>> import numpy as np
    >>> x, W = np.array([[[[1.0, 2.0]]]]), np.array([[[[1.0, 10.0, 100.0]]]])
    >>> deconvolution_2d(x, W, stride=(1, 2))
    array([[[[  1.,  10., 102.,  20., 200.]]]])
    >>> deconvolution_2d(x, W, stride=(1, 2), outsize=(1, 4))
    array([[[[  1.,  10., 102.,  20.]]]])
    """
    return _deconvolve("deconvolution_2d", 2, x, W, b, stride, pad, outsize, dilate, groups)


@_in_its_terms
def deconvolution_nd(
    x: Array,
    W: Array,
    b: Array | None = None,
    stride: Ints = 1,
    pad: Ints = 0,
    outsize: tuple[int, ...] | None = None,
    dilate: Ints = 1,
    groups: int = 1,
) -> Array:
    """Spread every place of x over a window of one to three spatial axes.

    Parameters
    ----------
    x, W, b, stride, pad, outsize, dilate, groups
        As in `deconvolution_2d`.

    Returns
    -------
    y : array [N, C_out, ...]

    Examples
    --------
    >>> import numpy as np
    >>> deconvolution_nd(np.ones((1, 1, 2)), np.ones((1, 1, 3)), stride=2)
    array([[[1., 1., 2., 1., 1.]]])
    """
    op = "deconvolution_nd"
    return _deconvolve(op, _axes(op, x), x, W, b, stride, pad, outsize, dilate, groups)


@_in_its_terms
def max_pooling_2d(
    x: Array,
    ksize: Ints,
    stride: Ints | None = None,
    pad: Ints = 0,
    cover_all: bool = True,
    return_indices: bool = False,
) -> Any:
    """Take the maximum of every window: `gpuconv.max_pool2d`.

    Parameters
    ----------
    x : array [N, C, H, W]
    ksize : int or (int, int)
    stride : int or (int, int), optional
        ksize where not given.
    pad : int or (int, int)
        Places around x, which are never the maximum.
    cover_all : bool
        Count a last, partial window too, so that every place of x is read: True unless told.
    return_indices : bool
        Whether to return indexes as well.

    Returns
    -------
    y : array [N, C, OH, OW]
        ``OH = get_conv_outsize(H, kh, stride, pad, cover_all)``; of x's dtype.
    indexes : array [N, C, OH, OW], if asked for
        Offset ``i*kw + j`` of the first maximum in its window: int64, int32 for CuPy arrays.

    Raises
    ------
    TypeError, ValueError
        For what isn't an array or an integer, a window larger than x, or with nothing but padding.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(5.0).reshape(1, 1, 1, 5)
    >>> max_pooling_2d(x, (1, 2))
    array([[[[1., 3., 4.]]]])
    >>> y, indexes = max_pooling_2d(x, (1, 2), cover_all=False, return_indices=True)
    >>> y, indexes
    (array([[[[1., 3.]]]]), array([[[[1, 1]]]]))
    """
    return _max_pool("max_pooling_2d", 2, x, ksize, stride, pad, cover_all, return_indices)


@_in_its_terms
def max_pooling_nd(
    x: Array,
    ksize: Ints,
    stride: Ints | None = None,
    pad: Ints = 0,
    cover_all: bool = True,
    return_indices: bool = False,
) -> Any:
    """Take the maximum of every window over one to three spatial axes.

    Parameters
    ----------
    x, ksize, stride, pad, cover_all, return_indices
        As in `max_pooling_2d`.

    Returns
    -------
    y : array [N, C, ...]
    indexes : array [N, C, ...], if asked for

    Examples
    --------
    >>> import numpy as np
    >>> max_pooling_nd(np.arange(5.0).reshape(1, 1, 5), 2)
    array([[[1., 3., 4.]]])
    """
    op = "max_pooling_nd"
    return _max_pool(op, _axes(op, x), x, ksize, stride, pad, cover_all, return_indices)


@_in_its_terms
def average_pooling_2d(x: Array, ksize: Ints, stride: Ints | None = None, pad: Ints = 0) -> Array:
    """Take the mean of every window, the padding's zeros included: `gpuconv.avg_pool2d`.

    Parameters
    ----------
    x : array [N, C, H, W]
    ksize : int or (int, int)
    stride : int or (int, int), optional
        ksize where not given.
    pad : int or (int, int)

    Returns
    -------
    y : array [N, C, OH, OW]
        Of x's dtype.

    Raises
    ------
    TypeError, ValueError
        As `max_pooling_2d`.

    Examples
    --------
    >>> import numpy as np
    >>> average_pooling_2d(np.arange(4.0).reshape(1, 1, 1, 4), (1, 2), pad=(0, 1))
    array([[[[0. , 1.5, 1.5]]]])
    """
    return _average("average_pooling_2d", 2, x, ksize, stride, pad, 0)


@_in_its_terms
def average_pooling_nd(
    x: Array, ksize: Ints, stride: Ints | None = None, pad: Ints = 0, pad_value: int | None = 0
) -> Array:
    """Take the mean of every window over one to three spatial axes.

    Parameters
    ----------
    x, ksize, stride, pad
        As in `average_pooling_2d`.
    pad_value : 0 or None
        None leaves the padding out of the mean.

    Returns
    -------
    y : array [N, C, ...]

    Examples
    --------
    >>> import numpy as np
    >>> average_pooling_nd(np.arange(4.0).reshape(1, 1, 4), 2, pad=1, pad_value=None)
    array([[[0. , 1.5, 3. ]]])
    """
    op = "average_pooling_nd"
    return _average(op, _axes(op, x), x, ksize, stride, pad, pad_value)


@_of_unpooling
def unpooling_2d(
    x: Array,
    ksize: Ints,
    stride: Ints | None = None,
    pad: Ints = 0,
    outsize: tuple[int, int] | None = None,
    cover_all: bool = True,
) -> Array:
    """Put each value at every place of its window; where windows overlap, they add up.

    It is the adjoint of a pooling that sums, so ``unpooling_2d(gy, ...) / (kh*kw)`` is the gradient of
    `average_pooling_2d` (with cover_all=False).

    Parameters
    ----------
    x : array [N, C, OH, OW]
        Floats.
    ksize, stride, pad, cover_all
        As in `max_pooling_2d`.
    outsize : (int, int), optional
        Sizes of the result: those of an image whose pooling has x's; `get_deconv_outsize` where not given.

    Returns
    -------
    y : array [N, C, H, W]
        Of x's dtype.

    Raises
    ------
    TypeError, ValueError
        As `max_pooling_2d`; and for an outsize whose pooling hasn't x's sizes.

    Examples
    --------
    >>> import numpy as np
    >>> unpooling_2d(np.array([[[[1.0, 2.0]]]]), (1, 2), cover_all=False)
    array([[[[1., 1., 2., 2.]]]])
    """
    op = "unpooling_2d"
    shape, kernel, window = _unpool(op, x, ksize, stride, pad, outsize, cover_all)
    return avg_pool2d_backward(x, shape, kernel, divisor_override=1, **window)


@_of_unpooling
def upsampling_2d(
    x: Array,
    indexes: Array,
    ksize: Ints,
    stride: Ints | None = None,
    pad: Ints = 0,
    outsize: tuple[int, int] | None = None,
    cover_all: bool = True,
) -> Array:
    """Put each value at the place its window's maximum came from; where windows name one place, they add up.

    With the same arguments, and x's sizes as outsize, it is the gradient of `max_pooling_2d`.

    Parameters
    ----------
    x : array [N, C, OH, OW]
    indexes : array [N, C, OH, OW]
        What `max_pooling_2d` returned.
    ksize, stride, pad, outsize, cover_all
        As in `unpooling_2d`.

    Returns
    -------
    y : array [N, C, H, W]
        Of x's dtype.

    Raises
    ------
    TypeError, ValueError
        As `unpooling_2d`; and where indexes isn't shaped like x, or NumPy ones name no place of a window.

    Examples
    --------
    >>> import numpy as np
    >>> y, indexes = max_pooling_2d(np.array([[[[1.0, 7.0, 5.0, 0.0]]]]), (1, 2), return_indices=True)
    >>> upsampling_2d(y, indexes, (1, 2), outsize=(1, 4))
    array([[[[0., 7., 5., 0.]]]])
    """
    op = "upsampling_2d"
    backend_of(op, x=x, indexes=indexes)
    shape, kernel, window = _unpool(op, x, ksize, stride, pad, outsize, cover_all)
    return max_pool2d_backward(x, indexes, shape, kernel, **window)


def get_conv_outsize(size: int, k: int, s: int, p: int, cover_all: bool = False, d: int = 1) -> int:
    """Return the number of windows along an axis.

    Parameters
    ----------
    size, k, s, p, d : int
        Of the image, the kernel, the stride, the padding on each side, the dilation.
    cover_all : bool
        Whether a last, partial window counts.

    Examples
    --------
    >>> get_conv_outsize(6, 3, 2, 0), get_conv_outsize(6, 3, 2, 0, cover_all=True)
    (2, 3)
    """
    return (size + 2 * p - _span(k, d) + (s - 1 if cover_all else 0)) // s + 1


def get_deconv_outsize(size: int, k: int, s: int, p: int, cover_all: bool = False, d: int = 1) -> int:
    """Return the smallest size along an axis whose convolution has this many windows.

    Parameters
    ----------
    size, k, s, p, cover_all, d
        As in `get_conv_outsize`.

    Examples
    --------
    >>> get_deconv_outsize(3, 3, 2, 0), get_deconv_outsize(3, 3, 2, 0, cover_all=True)
    (7, 6)
    """
    return s * (size - 1) + _span(k, d) - 2 * p - (s - 1 if cover_all else 0)


@_of_columns
def im2col_cpu(
    img: Array,
    kh: int,
    kw: int,
    sy: int,
    sx: int,
    ph: int,
    pw: int,
    pval: float = 0,
    cover_all: bool = False,
    dy: int = 1,
    dx: int = 1,
    out_h: int | None = None,
    out_w: int | None = None,
) -> Array:
    """Lay out what each place of a convolution reads: `gpuconv.im2col`, with an axis for each index.

    Parameters
    ----------
    img : array [N, C, H, W]
        Any numeric dtype; of NumPy or CuPy.
    kh, kw, sy, sx, ph, pw, dy, dx : int
        Kernel, stride, padding and dilation along H and W.
    pval : number
        Value of the padding.
    cover_all : bool
        Whether last, partial windows count.
    out_h, out_w : int, optional
        Numbers of windows: those with cover_all, those without, or between.

    Returns
    -------
    col : array [N, C, kh, kw, out_h, out_w]
        Of the dtype of img.

    Raises
    ------
    TypeError, ValueError
        As `gpuconv.im2col`.

    Examples
    --------
    >>> import numpy as np
    >>> im2col_cpu(np.arange(5).reshape(1, 1, 1, 5), 1, 3, 1, 2, 0, 0).squeeze()
    array([[0, 2],
           [1, 3],
           [2, 4]])
    """
    return _im2col("im2col_cpu", img, kh, kw, sy, sx, ph, pw, pval, cover_all, dy, dx, out_h, out_w)


@_of_columns
def im2col_gpu(
    img: Array,
    kh: int,
    kw: int,
    sy: int,
    sx: int,
    ph: int,
    pw: int,
    cover_all: bool = False,
    dy: int = 1,
    dx: int = 1,
    out_h: int | None = None,
    out_w: int | None = None,
) -> Array:
    """Return `im2col_cpu` with zeros as padding: this function has no pval. Also `im2col`.

    Parameters
    ----------
    img, kh, kw, sy, sx, ph, pw, cover_all, dy, dx, out_h, out_w
        As in `im2col_cpu`.

    Returns
    -------
    col : array [N, C, kh, kw, out_h, out_w]
    """
    return _im2col("im2col_gpu", img, kh, kw, sy, sx, ph, pw, 0, cover_all, dy, dx, out_h, out_w)


im2col = im2col_gpu


def col2im_cpu(
    col: Array, sy: int, sx: int, ph: int, pw: int, h: int, w: int, dy: int = 1, dx: int = 1
) -> Array:
    """Add every entry to the place that `im2col` copied it from. Also `col2im_gpu` and `col2im`.

    Parameters
    ----------
    col : array [N, C, kh, kw, out_h, out_w]
    sy, sx, ph, pw, dy, dx : int
        Stride, padding and dilation along H and W.
    h, w : int
        Sizes of the image.

    Returns
    -------
    img : array [N, C, h, w]
        Of the dtype of col.

    Raises
    ------
    TypeError, ValueError
        As `gpuconv.col2im`; and for numbers of windows that `im2col_cpu` doesn't give, with cover_all or
        without.

    Examples
    --------
    >>> import numpy as np
    >>> col2im_cpu(np.ones((1, 1, 1, 3, 1, 2)), 1, 2, 0, 0, 1, 5)
    array([[[[1., 1., 2., 1., 1.]]]])
    """
    op = "col2im_cpu"
    backend_of(op, col=col)
    check_rank(op, "col", col, "[N, C, kh, kw, out_h, out_w]")
    n, c, kh, kw, out_h, out_w = col.shape
    steps = _named(op, 1, sy=sy, sx=sx), _named(op, 0, ph=ph, pw=pw), _named(op, 1, dy=dy, dx=dx)
    sizes = _named(op, 1, h=h, w=w)
    _, window = _window(op, sizes, (kh, kw), *steps, False, (out_h, out_w))
    flat = col.reshape(n, c * kh * kw, out_h * out_w)
    return columns.col2im(flat, (n, c, *sizes), (kh, kw), **window)


col2im_gpu = col2im = col2im_cpu


# From Chainer's numbers to those of the public functions; `op` is the name the caller knows.


def _convolve(
    op: str,
    axes: int,
    x: Array,
    W: Array,
    b: Array | None,
    stride: Ints,
    pad: Ints,
    cover_all: bool,
    dilate: Ints,
    groups: int,
) -> Array:
    _check_axes(op, axes, x=x, W=W)
    _, window = _window(op, x.shape[2:], W.shape[2:], stride, pad, dilate, cover_all)
    return _CONV[axes](x, W, b, groups=groups, **window)


def _deconvolve(
    op: str,
    axes: int,
    x: Array,
    W: Array,
    b: Array | None,
    stride: Ints,
    pad: Ints,
    outsize: Any,
    dilate: Ints,
    groups: int,
) -> Array:
    _check_axes(op, axes, x=x, W=W)
    strides, pads, dilations = _steps(op, axes, stride, pad, dilate)
    along = tuple(zip(x.shape[2:], W.shape[2:], strides, pads, dilations, strict=True))
    usual = tuple(get_deconv_outsize(n, k, s, p, d=d) for n, k, s, p, d in along)
    padding, output_padding = [], []
    for axis, out in enumerate(_outsize(op, axes, outsize, usual)):
        s, p, extra = strides[axis], pads[axis], out - usual[axis]
        if abs(extra) >= s:
            raise ValueError(
                f"{op}: outsize is {out} along spatial axis {axis}, but for the {along[axis][0]} places "
                f"of x it must be from {usual[axis] - s + 1} to {usual[axis] + s - 1}"
            )
        padding.append((p, p + max(-extra, 0)))
        output_padding.append(max(extra, 0))
    options: dict[str, Any] = {"stride": strides, "padding": padding, "dilation": dilations}
    return _DECONV[axes](x, W, b, output_padding=output_padding, groups=groups, **options)


def _max_pool(
    op: str,
    axes: int,
    x: Array,
    ksize: Ints,
    stride: Ints | None,
    pad: Ints,
    cover_all: bool,
    return_indices: bool,
) -> Any:
    _check_axes(op, axes, x=x)
    kernel, window = _pool_window(op, x.shape[2:], ksize, stride, pad, cover_all)
    if not flag(op, "return_indices", return_indices):
        return _MAX[axes](x, kernel, return_argmax=False, **window)
    y, argmax = _MAX[axes](x, kernel, **window)
    return y, argmax.astype("int64" if array_module(x) is np else "int32")


def _average(
    op: str, axes: int, x: Array, ksize: Ints, stride: Ints | None, pad: Ints, pad_value: int | None
) -> Array:
    if pad_value not in (0, None):
        raise ValueError(f"{op}: pad_value must be 0 or None, not {pad_value!r}")
    _check_axes(op, axes, x=x)
    kernel, window = _pool_window(op, x.shape[2:], ksize, stride, pad, False)
    return _AVERAGE[axes](x, kernel, count_include_pad=pad_value == 0, **window)


def _unpool(
    op: str, x: Array, ksize: Ints, stride: Ints | None, pad: Ints, outsize: Any, cover_all: bool
) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Return the result's shape, the kernel, and the window over the result that has x's places."""
    _check_axes(op, 2, x=x)
    kernel = per_axis(op, "ksize", ksize, 2, 1)
    strides, pads, _ = _steps(op, 2, kernel if stride is None else stride, pad, 1)
    along = zip(x.shape[2:], kernel, strides, pads, strict=True)
    sizes = _outsize(op, 2, outsize, tuple(get_deconv_outsize(*numbers, cover_all) for numbers in along))
    _, window = _pool_window(op, sizes, kernel, strides, pads, cover_all)
    return (*x.shape[:2], *sizes), kernel, window


def _im2col(
    op: str,
    img: Array,
    kh: int,
    kw: int,
    sy: int,
    sx: int,
    ph: int,
    pw: int,
    pval: float,
    cover_all: bool,
    dy: int,
    dx: int,
    out_h: int | None,
    out_w: int | None,
) -> Array:
    backend_of(op, img=img)
    check_rank(op, "img", img, "[N, C, H, W]")
    n, c, h, w = img.shape
    kernel = _named(op, 1, kh=kh, kw=kw)
    steps = _named(op, 1, sy=sy, sx=sx), _named(op, 0, ph=ph, pw=pw), _named(op, 1, dy=dy, dx=dx)
    asked = tuple(
        None if out is None else integer(op, name, out, 1)
        for name, out in (("out_h", out_h), ("out_w", out_w))
    )
    outs, window = _window(op, (h, w), kernel, *steps, cover_all, asked)
    if pval != 0:
        (top, bottom), (left, right) = window["padding"]
        padded = array_module(img).full((n, c, h + top + bottom, w + left + right), pval, img.dtype)
        padded[:, :, top : top + h, left : left + w] = img
        img, window["padding"] = padded, 0
    return columns.im2col(img, kernel, **window).reshape(n, c, *kernel, *outs)


def _window(
    op: str,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: Ints,
    pad: Ints,
    dilate: Ints,
    cover_all: bool,
    outs: tuple[int | None, ...] = (None, None, None),
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return how many windows Chainer counts, or `outs` asks for, and a window that has as many.

    The padding after the image ends where the last window does.
    """
    flag(op, "cover_all", cover_all)
    strides, pads, dilations = _steps(op, len(sizes), stride, pad, dilate)
    counts, padding = [], []
    for axis, (n, k, s, p, d) in enumerate(zip(sizes, kernel, strides, pads, dilations, strict=True)):
        whole, covering = (get_conv_outsize(n, k, s, p, cover, d) for cover in (False, True))
        given = outs[axis]
        out = (covering if cover_all else whole) if given is None else given
        if out < 1:
            raise ValueError(
                f"{op}: a kernel of {k} with dilation {d} spans {_span(k, d)} places along spatial axis "
                f"{axis}, more than the {n} of the image plus {p} + {p} of padding"
            )
        if not whole <= out <= covering:
            raise ValueError(
                f"{op}: {out} windows along spatial axis {axis}, but of its {n} places there are {whole}, or "
                f"{covering} with cover_all"
            )
        counts.append(out)
        padding.append((p, max(0, (out - 1) * s + _span(k, d) - n - p)))
    return tuple(counts), {"stride": strides, "padding": padding, "dilation": dilations}


def _pool_window(
    op: str, sizes: tuple[int, ...], ksize: Ints, stride: Ints | None, pad: Ints, cover_all: bool
) -> tuple[tuple[int, ...], dict[str, Any]]:
    kernel = per_axis(op, "ksize", ksize, len(sizes), 1)
    _, window = _window(op, sizes, kernel, kernel if stride is None else stride, pad, 1, cover_all)
    return kernel, window


def _steps(op: str, axes: int, stride: Ints, pad: Ints, dilate: Ints) -> tuple[tuple[int, ...], ...]:
    strides, pads = per_axis(op, "stride", stride, axes, 1), per_axis(op, "pad", pad, axes, 0)
    return strides, pads, per_axis(op, "dilate", dilate, axes, 1)


def _outsize(op: str, axes: int, outsize: Any, usual: tuple[int, ...]) -> tuple[int, ...]:
    sizes = usual if outsize is None else per_axis(op, "outsize", outsize, axes, 1)
    if min(sizes) < 1:
        raise ValueError(f"{op}: pad leaves the sizes {sizes}, which must be at least 1")
    return sizes


def _axes(op: str, x: Array) -> int:
    backend_of(op, x=x)
    return spatial_axes(op, "x", x.shape)


def _check_axes(op: str, axes: int, **arrays: Array) -> None:
    backend_of(op, **arrays)
    for name, a in arrays.items():
        if a.ndim != axes + 2:
            raise ValueError(
                f"{op}: {name} must have {axes + 2} axes, {axes} of them spatial, not {a.ndim} "
                f"(shape {a.shape})"
            )


def _named(op: str, least: int, **values: int) -> tuple[int, ...]:
    return tuple(integer(op, name, value, least) for name, value in values.items())


def _span(k: int, d: int) -> int:
    return (k - 1) * d + 1
