"""Max and average pooling over signals: `gpuconv.max_pool2d`'s family over one spatial axis."""

from typing import Any

from gpuconv.entry import public
from gpuconv.geometry import Ints, Padding
from gpuconv.pool import Array, Options, avg_pool, avg_pool_backward, max_pool, max_pool_backward


@public
def max_pool1d(
    x: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    channels_last: bool = False,
    return_argmax: bool = True,
    out: Any = None,
) -> Any:
    """Take the maximum of every window of signals, and remember where it was; as `max_pool2d`.

    Parameters
    ----------
    x : array [N, C, L]
        Integers or floats, any strides. ``channels_last``: [N, L, C].
    kernel_size, stride, padding, dilation, ceil_mode, channels_last, return_argmax
        As in `max_pool2d`, with one spatial axis.
    out : array or (array, array), optional
        Where to write y, or y and argmax (None in place of one makes a new array), as in `conv2d`.

    Returns
    -------
    y : array [N, C, OL]
        Of x's dtype.
    argmax : array [N, C, OL]
        Offset of the maximum in its window: uint8 for windows of up to 255 places, else int32. Left out
        where ``return_argmax`` is False: then y alone is returned.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> y, argmax = gpuconv.max_pool1d(np.array([[[1, 5, 4, 2]]]), 2)
    >>> y, argmax
    (array([[[5, 4]]]), array([[[1, 0]]], dtype=uint8))
    """
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    return max_pool("max_pool1d", 1, x, options, return_argmax, out)


@public
def max_pool1d_backward(
    dy: Array,
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
    """Send each gradient to the place its window's maximum came from; as `max_pool2d_backward`.

    Parameters
    ----------
    dy : array [N, C, OL]
        Gradient of the loss by y.
    argmax : array [N, C, OL]
        The mask that `max_pool1d` returned.
    x_shape : 3 ints
        Shape of x.
    kernel_size, stride, padding, dilation, ceil_mode, channels_last
        As given to `max_pool1d`.
    out : array, optional
        Where to write dx, as in `conv2d`.

    Returns
    -------
    dx : array of shape x_shape
        Of dy's dtype.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d_backward`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> argmax = np.array([[[1, 0]]], np.uint8)
    >>> gpuconv.max_pool1d_backward(np.array([[[7.0, 8.0]]]), argmax, (1, 1, 4), 2)
    array([[[0., 7., 8., 0.]]])
    """
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    return max_pool_backward("max_pool1d_backward", 1, dy, argmax, x_shape, options, out)


@public
def avg_pool1d(
    x: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    channels_last: bool = False,
    divisor_override: int | None = None,
    out: Array | None = None,
) -> Array:
    """Take the mean of every window of signals; as `avg_pool2d`.

    Parameters
    ----------
    x : array [N, C, L]
        Floats (float16 is summed in float32) or complex. ``channels_last``: [N, L, C].
    kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, channels_last, divisor_override
        As in `avg_pool2d`, with one spatial axis.
    out : array, optional
        Where to write y, as in `conv2d`.

    Returns
    -------
    y : array [N, C, OL]
        Of x's dtype.

    Raises
    ------
    TypeError, ValueError
        As `avg_pool2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.avg_pool1d(np.array([[[1.0, 3.0, 4.0, 8.0]]]), 2)
    array([[[2., 6.]]])
    """
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    counts = (count_include_pad, divisor_override)
    return avg_pool("avg_pool1d", 1, x, options, *counts, out)


@public
def avg_pool1d_backward(
    dy: Array,
    x_shape: tuple[int, ...],
    kernel_size: Ints,
    stride: Ints | None = None,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    channels_last: bool = False,
    divisor_override: int | None = None,
    out: Array | None = None,
) -> Array:
    """Spread each gradient evenly over its window; as `avg_pool2d_backward`.

    Parameters
    ----------
    dy : array [N, C, OL]
        Gradient of the loss by y.
    x_shape : 3 ints
        Shape of x.
    kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, channels_last, divisor_override
        As given to `avg_pool1d`.
    out : array, optional
        Where to write dx, as in `conv2d`.

    Returns
    -------
    dx : array of shape x_shape
        Of dy's dtype.

    Raises
    ------
    TypeError, ValueError
        As `avg_pool2d_backward`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.avg_pool1d_backward(np.array([[[2.0, 4.0]]]), (1, 1, 4), 2)
    array([[[1., 1., 2., 2.]]])
    """
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    return avg_pool_backward(
        "avg_pool1d_backward", 1, dy, x_shape, options, count_include_pad, divisor_override, out
    )
