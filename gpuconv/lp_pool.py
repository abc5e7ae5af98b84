"""Lp pooling: the norm of every window. The public functions."""

from math import inf
from numbers import Real
from typing import Any

from gpuconv.backends.dispatch import backend_of, check_inexact, check_shape, real_dtype, result
from gpuconv.entry import public
from gpuconv.geometry import Ints, Padding
from gpuconv.pool import Options, describe, y_shape

Array = Any

# What float32 still holds, and its reciprocal too.
LARGEST = 1e37


@public
def lp_pool2d(
    x: Array,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    channels_last: bool = False,
    out: Array | None = None,
) -> Array:
    """Take the p-norm of every window.

    ``y[n, c, p, q] = (sum over i, j of |x[n, c, p*s + i*d - before, q*s + j*d - before]| ** norm)
    ** (1/norm)``: for 1 the sum of magnitudes, for 2 the Euclidean norm, for large ones close to the
    maximum [1]_. It is ONNX's LpPool. PyTorch's takes no magnitudes, so that for odd exponents it differs for
    negative numbers, and in ceil mode it scales a window cut short by the edge up to a whole one.

    Parameters
    ----------
    x : array [N, C, H, W]
        Floats (float16 is summed in float32) or complex. ``channels_last``: [N, H, W, C].
    norm_type : float
        The exponent, from 1 on. ``|x| ** norm_type`` must be a number of the dtype that is summed in: what is
        too large gives infinity, what is too small counts as 0.
    kernel_size, stride, padding, dilation, ceil_mode, channels_last
        As in `max_pool2d`; padding adds nothing.
    out : array, optional
        Where to write y, as in `conv2d`.

    Returns
    -------
    y : array [N, C, OH, OW]
        Of x's dtype, or of that of its parts if it is complex.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`; and where norm_type is no number of 1 or more.

    References
    ----------
    .. [1] P. Sermanet, S. Chintala, Y. LeCun, "Convolutional neural networks applied to house numbers digit
       classification", 2012.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.lp_pool2d(np.array([[[[3.0, -4.0, 0.0, 1.0]]]]), 2, (1, 2))
    array([[[[5., 1.]]]])
    """
    op = "lp_pool2d"
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    backend = backend_of(op, x=x)
    check_inexact(op, "x", x)
    norm = check_norm(op, norm_type)
    window = describe(op, 2, x.shape, "x", options)
    y = result(op, backend, out, y_shape(x.shape, window, channels_last), real_dtype(x.dtype), x=x)
    backend.pooling.lp_pool(x, y, window, channels_last, norm)
    return y


@public
def lp_pool2d_backward(
    dy: Array,
    x: Array,
    y: Array,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    channels_last: bool = False,
    out: Array | None = None,
) -> Array:
    """Return the gradient of `lp_pool2d` by x.

    ``dx[i] = x[i] / |x[i]| * (sum of dy[o] * (|x[i]| / y[o]) ** (norm-1))`` over the windows o that read
    place i; 0 where x is, and nothing of windows whose norm is 0, where there is no slope.

    Parameters
    ----------
    dy : array [N, C, OH, OW]
        Gradient of the loss by y.
    x : array [N, C, H, W]
        What `lp_pool2d` was given.
    y : array [N, C, OH, OW]
        What it returned.
    norm_type, kernel_size, stride, padding, dilation, ceil_mode, channels_last
        As given to `lp_pool2d`.
    out : array, optional
        Where to write dx, as in `conv2d`.

    Returns
    -------
    dx : array, shaped like x
        Of x's dtype.

    Raises
    ------
    TypeError, ValueError
        As `lp_pool2d`; and where dy or y is not shaped like y, or not of its dtype.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x = np.array([[[[3.0, -4.0, 0.0, 1.0]]]])
    >>> y = gpuconv.lp_pool2d(x, 2, (1, 2))
    >>> gpuconv.lp_pool2d_backward(np.array([[[[5.0, 7.0]]]]), x, y, 2, (1, 2))
    array([[[[ 3., -4.,  0.,  7.]]]])
    """
    op = "lp_pool2d_backward"
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    backend = backend_of(op, dy=dy, x=x, y=y)
    check_inexact(op, "x", x)
    norm = check_norm(op, norm_type)
    window = describe(op, 2, x.shape, "x", options)
    must, real = y_shape(x.shape, window, channels_last), real_dtype(x.dtype)
    for name, array in (("dy", dy), ("y", y)):
        check_shape(op, name, array.shape, must, f"for x of shape {x.shape}")
        if array.dtype != real:
            raise TypeError(
                f"{op}: {name} has dtype {array.dtype.name}, but for x of {x.dtype.name} it must be "
                f"{real.name}"
            )
    dx = result(op, backend, out, x.shape, x.dtype, dy=dy, x=x, y=y)
    backend.pooling.lp_pool_backward(dy, x, y, dx, window, channels_last, norm)
    return dx


def check_norm(op: str, value: Any) -> float:
    """Return the exponent of a norm as a float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{op}: norm_type must be a number, not {value!r}")
    try:
        norm = float(value)
    except OverflowError:  # an int beyond all floats
        norm = inf
    if not 1 <= norm <= LARGEST:
        raise ValueError(f"{op}: norm_type must be a number from 1 to {LARGEST:.0g}, not {value!r}")
    return norm
