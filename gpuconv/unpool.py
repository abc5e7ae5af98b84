"""Max unpooling: a max pooling's values back to the places they came from. The public functions."""

from typing import Any

from gpuconv import geometry
from gpuconv.backends.dispatch import backend_of, check_kind, check_shape, result
from gpuconv.entry import public
from gpuconv.geometry import Ints, Padding
from gpuconv.pool import Options, describe, y_shape

Array = Any


@public
def max_unpool2d(
    x: Array,
    argmax: Array,
    x_shape: tuple[int, ...],
    kernel_size: Ints,
    stride: Ints | None = None,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    channels_last: bool = False,
    out: Array | None = None,
) -> Array:
    """Put each value at the place its window's maximum came from, zeros elsewhere.

    ``y[n, c, p*s + i*d - before, q*s + j*d - before] = x[n, c, p, q]`` for the mask's ``i*kw + j`` at (p, q).
    Values are written, not added: where overlapping windows name one place, the last window in row-major
    order wins, as in PyTorch on the CPU. `max_pool2d_backward` is the function that adds.

    Parameters
    ----------
    x : array [N, C, OH, OW]
        Integers or floats, shaped like a max pooling's result. ``channels_last``: [N, OH, OW, C].
    argmax : array [N, C, OH, OW]
        The mask that `max_pool2d` returned.
    x_shape : 4 ints
        Shape of what `max_pool2d` was given, and of the result here.
    kernel_size, stride, padding, dilation, ceil_mode, channels_last
        As given to `max_pool2d`.
    out : array, optional
        Where to write y, as in `conv2d`.

    Returns
    -------
    y : array of shape x_shape
        Of x's dtype.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`; where x or argmax is not shaped like the pooling's result; and where a NumPy argmax
        names no place of its window. On a GPU such a value is left out: looking for it would make the GPU
        wait.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> y, argmax = gpuconv.max_pool2d(np.array([[[[1.0, 2.0, 0.0, 0.0], [3.0, 4.0, 0.0, 9.0]]]]), 2)
    >>> gpuconv.max_unpool2d(y, argmax, (1, 1, 2, 4), 2)
    array([[[[0., 0., 0., 0.],
             [0., 4., 0., 9.]]]])
    """
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    return _max_unpool("max_unpool2d", 2, x, argmax, x_shape, options, out)


@public
def max_unpool2d_backward(
    dy: Array,
    argmax: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    channels_last: bool = False,
    out: Array | None = None,
) -> Array:
    """Give each value the gradient of the place it was written to.

    A value that a later window's overwrote left no trace in y, so its gradient is 0. (PyTorch gives it that
    of the value that stands there, which is not the slope.)

    Parameters
    ----------
    dy : array [N, C, H, W]
        Gradient of the loss by y. ``channels_last``: [N, H, W, C].
    argmax : array [N, C, OH, OW]
        As given to `max_unpool2d`.
    kernel_size, stride, padding, dilation, ceil_mode, channels_last
        As given to `max_unpool2d`.
    out : array, optional
        Where to write dx, as in `conv2d`.

    Returns
    -------
    dx : array [N, C, OH, OW]
        Of dy's dtype.

    Raises
    ------
    TypeError, ValueError
        As `max_unpool2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, argmax = np.arange(8.0).reshape(1, 1, 2, 4), np.array([[[[3, 0]]]], np.uint8)
    >>> gpuconv.max_unpool2d_backward(dy, argmax, 2)
    array([[[[5., 2.]]]])
    """
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    return _max_unpool_backward("max_unpool2d_backward", 2, dy, argmax, options, out)


@public
def max_unpool1d(
    x: Array,
    argmax: Array,
    x_shape: tuple[int, ...],
    kernel_size: Ints,
    stride: Ints | None = None,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    channels_last: bool = False,
    out: Array | None = None,
) -> Array:
    """Put each value at the place its window's maximum came from, zeros elsewhere; as `max_unpool2d`.

    Parameters
    ----------
    x : array [N, C, OL]
        Integers or floats, shaped like a max pooling's result.
    argmax : array [N, C, OL]
        The mask that `max_pool1d` returned.
    x_shape : 3 ints
        Shape of what `max_pool1d` was given, and of the result here.
    kernel_size, stride, padding, dilation, ceil_mode, channels_last
        As given to `max_pool1d`.
    out : array, optional
        Where to write y, as in `conv2d`.

    Returns
    -------
    y : array of shape x_shape
        Of x's dtype.

    Raises
    ------
    TypeError, ValueError
        As `max_unpool2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, argmax = np.array([[[7.0, 8.0]]]), np.array([[[1, 0]]], np.uint8)
    >>> gpuconv.max_unpool1d(x, argmax, (1, 1, 4), 2)
    array([[[0., 7., 8., 0.]]])
    """
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    return _max_unpool("max_unpool1d", 1, x, argmax, x_shape, options, out)


@public
def max_unpool1d_backward(
    dy: Array,
    argmax: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    channels_last: bool = False,
    out: Array | None = None,
) -> Array:
    """Give each value the gradient of the place it was written to; as `max_unpool2d_backward`.

    Parameters
    ----------
    dy : array [N, C, L]
        Gradient of the loss by y.
    argmax : array [N, C, OL]
        As given to `max_unpool1d`.
    kernel_size, stride, padding, dilation, ceil_mode, channels_last
        As given to `max_unpool1d`.
    out : array, optional
        Where to write dx, as in `conv2d`.

    Returns
    -------
    dx : array [N, C, OL]
        Of dy's dtype.

    Raises
    ------
    TypeError, ValueError
        As `max_unpool2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, argmax = np.array([[[1.0, 2.0, 3.0, 4.0]]]), np.array([[[1, 0]]], np.uint8)
    >>> gpuconv.max_unpool1d_backward(dy, argmax, 2)
    array([[[2., 3.]]])
    """
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    return _max_unpool_backward("max_unpool1d_backward", 1, dy, argmax, options, out)


@public
def max_unpool3d(
    x: Array,
    argmax: Array,
    x_shape: tuple[int, ...],
    kernel_size: Ints,
    stride: Ints | None = None,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    channels_last: bool = False,
    out: Array | None = None,
) -> Array:
    """Put each value at the place its window's maximum came from, zeros elsewhere; as `max_unpool2d`.

    Parameters
    ----------
    x : array [N, C, OD, OH, OW]
        Integers or floats, shaped like a max pooling's result.
    argmax : array [N, C, OD, OH, OW]
        The mask that `max_pool3d` returned.
    x_shape : 5 ints
        Shape of what `max_pool3d` was given, and of the result here.
    kernel_size, stride, padding, dilation, ceil_mode, channels_last
        As given to `max_pool3d`.
    out : array, optional
        Where to write y, as in `conv2d`.

    Returns
    -------
    y : array of shape x_shape
        Of x's dtype.

    Raises
    ------
    TypeError, ValueError
        As `max_unpool2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, argmax = np.full((1, 1, 1, 1, 1), 7.0), np.full((1, 1, 1, 1, 1), 5, np.uint8)
    >>> gpuconv.max_unpool3d(x, argmax, (1, 1, 2, 2, 2), 2)
    array([[[[[0., 0.],
              [0., 0.]],
    <BLANKLINE>
             [[0., 7.],
              [0., 0.]]]]])
    """
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    return _max_unpool("max_unpool3d", 3, x, argmax, x_shape, options, out)


@public
def max_unpool3d_backward(
    dy: Array,
    argmax: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    channels_last: bool = False,
    out: Array | None = None,
) -> Array:
    """Give each value the gradient of the place it was written to; as `max_unpool2d_backward`.

    Parameters
    ----------
    dy : array [N, C, D, H, W]
        Gradient of the loss by y.
    argmax : array [N, C, OD, OH, OW]
        As given to `max_unpool3d`.
    kernel_size, stride, padding, dilation, ceil_mode, channels_last
        As given to `max_unpool3d`.
    out : array, optional
        Where to write dx, as in `conv2d`.

    Returns
    -------
    dx : array [N, C, OD, OH, OW]
        Of dy's dtype.

    Raises
    ------
    TypeError, ValueError
        As `max_unpool2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, argmax = np.arange(8.0).reshape(1, 1, 2, 2, 2), np.full((1, 1, 1, 1, 1), 5, np.uint8)
    >>> gpuconv.max_unpool3d_backward(dy, argmax, 2).item()
    5.0
    """
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    return _max_unpool_backward("max_unpool3d_backward", 3, dy, argmax, options, out)


def _max_unpool(
    op: str, axes: int, x: Array, argmax: Array, x_shape: tuple[int, ...], options: Options, out: Array | None
) -> Array:
    backend = backend_of(op, x=x, argmax=argmax)
    check_kind(op, "x", x, "iuf")
    check_kind(op, "argmax", argmax, "iu")
    x_shape = geometry.shape(op, "x_shape", x_shape, axes + 2)
    window = describe(op, axes, x_shape, "x_shape", options)
    must = y_shape(x_shape, window, options.channels_last)
    check_shape(op, "x", x.shape, must, f"for x_shape {x_shape}")
    check_shape(op, "argmax", argmax.shape, must, f"for x_shape {x_shape}")
    y = result(op, backend, out, x_shape, x.dtype, x=x, argmax=argmax)
    backend.pooling.max_unpool(x, argmax, y, window, options.channels_last)
    return y


def _max_unpool_backward(
    op: str, axes: int, dy: Array, argmax: Array, options: Options, out: Array | None
) -> Array:
    backend = backend_of(op, dy=dy, argmax=argmax)
    check_kind(op, "dy", dy, "iuf")
    check_kind(op, "argmax", argmax, "iu")
    window = describe(op, axes, dy.shape, "dy", options)
    must = y_shape(dy.shape, window, options.channels_last)
    check_shape(op, "argmax", argmax.shape, must, f"for dy of shape {dy.shape}")
    dx = result(op, backend, out, must, dy.dtype, dy=dy, argmax=argmax)
    backend.pooling.max_unpool_backward(dy, argmax, dx, window, options.channels_last)
    return dx
