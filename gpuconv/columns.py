"""im2col and col2im: the columns of a convolution's matrix product, and their adjoint."""

from typing import Any

from gpuconv import geometry
from gpuconv.backends.dispatch import backend_of, check_kind, check_shape, result
from gpuconv.entry import public
from gpuconv.geometry import Ints, Padding, Window

Array = Any


@public
def im2col(
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    channels_last: bool = False,
    out: Array | None = None,
) -> Array:
    """Lay out what each place of a convolution's output reads as one column.

    Row (c, i, j) of column (p, q) of image n is ``x[n, c, p*s + i*d - before, q*s + j*d - before]``, zero in
    the padding; so ``w.reshape(C_out, -1) @ im2col(x)`` is `conv2d` [1]_.

    Parameters
    ----------
    x : array [N, C, H, W] (or with one or three spatial axes)
        Any numeric dtype, any strides. ``channels_last``: [N, H, W, C].
    kernel_size : int or one per spatial axis
        (kh, kw).
    stride, padding, dilation
        As in `conv2d`.
    channels_last : bool
        The layout of x, and of the columns.
    out : array, optional
        Where to write col, as in `conv2d`.

    Returns
    -------
    col : array [N, C*kh*kw, OH*OW]
        Of x's dtype. ``channels_last``: [N, OH*OW, kh*kw*C].

    Raises
    ------
    TypeError, ValueError
        For wrong kinds or impossible sizes, as `conv2d`.

    References
    ----------
    .. [1] K. Chellapilla, S. Puri, P. Simard, "High Performance Convolutional Neural Networks for Document
       Processing", 2006.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x = np.arange(9).reshape(1, 1, 3, 3)
    >>> gpuconv.im2col(x, 2)[0]
    array([[0, 1, 3, 4],
           [1, 2, 4, 5],
           [3, 4, 6, 7],
           [4, 5, 7, 8]])
    """
    op = "im2col"
    backend = backend_of(op, x=x)
    geometry.flag(op, "channels_last", channels_last)
    check_kind(op, "x", x, "biufc")
    window = _window(op, x.shape, "x", kernel_size, stride, padding, dilation, channels_last)
    col = result(op, backend, out, _col_shape(x.shape, window, channels_last), x.dtype, x=x)
    backend.columns.im2col(x, col, window, channels_last)
    return col


@public
def col2im(
    col: Array,
    x_shape: tuple[int, ...],
    kernel_size: Ints,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    channels_last: bool = False,
    out: Array | None = None,
) -> Array:
    """Add every column entry to the place of x that `im2col` copied it from: its adjoint, not its inverse.

    ``sum(col * im2col(x)) == sum(col2im(col) * x)`` for every x; a place that k windows read gets k terms.

    Parameters
    ----------
    col : array [N, C*kh*kw, OH*OW]
        Integers, floats or complex. ``channels_last``: [N, OH*OW, kh*kw*C].
    x_shape : 4 ints (or 3 or 5)
        Shape of x.
    kernel_size, stride, padding, dilation, channels_last
        As given to `im2col`.
    out : array, optional
        Where to write x, as in `conv2d`.

    Returns
    -------
    x : array of shape x_shape
        Of col's dtype; float16 is summed in float32.

    Raises
    ------
    TypeError, ValueError
        For wrong kinds or impossible sizes, and where col is not shaped like ``im2col(x)``.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.col2im(np.ones((1, 4, 4)), (1, 1, 3, 3), 2)[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    op = "col2im"
    backend = backend_of(op, col=col)
    geometry.flag(op, "channels_last", channels_last)
    check_kind(op, "col", col, "iufc")
    x_shape = geometry.shape(op, "x_shape", x_shape, geometry.spatial_axes(op, "x_shape", x_shape) + 2)
    window = _window(op, x_shape, "x_shape", kernel_size, stride, padding, dilation, channels_last)
    must = _col_shape(x_shape, window, channels_last)
    check_shape(op, "col", col.shape, must, f"for x_shape {x_shape} and kernel_size {window.kernel}")
    x = result(op, backend, out, x_shape, col.dtype, col=col)
    backend.columns.col2im(col, x, window, channels_last)
    return x


def _col_shape(x_shape: tuple[int, ...], window: Window, channels_last: bool) -> tuple[int, ...]:
    rows = x_shape[-1 if channels_last else 1] * window.taps
    return (x_shape[0], window.places, rows) if channels_last else (x_shape[0], rows, window.places)


def _window(
    op: str,
    shape: tuple[int, ...],
    name: str,
    kernel_size: Ints,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    channels_last: bool,
) -> Window:
    geometry.spatial_axes(op, name, shape)
    sizes = geometry.spatial_sizes(shape, channels_last)
    return geometry.sliding_window(op, sizes, kernel_size, stride, padding, dilation)
