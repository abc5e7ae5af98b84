"""Max and average pooling and their gradients: the public functions. Each checks, describes, dispatches."""

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpuconv import geometry
from gpuconv.backends.dispatch import backend_of, check_inexact, check_kind, check_shape, result, several
from gpuconv.entry import public
from gpuconv.geometry import Ints, Padding, Window, array_shape

Array = Any


@public
def max_pool2d(
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
    """Take the maximum of every window, and remember where it was.

    ``y[n, c, p, q] = max over i, j of x[n, c, p*s + i*d - before, q*s + j*d - before]``. Of equal maxima the
    first in row-major order counts; NaN is greater than any number; padding never wins.

    Parameters
    ----------
    x : array [N, C, H, W]
        Integers or floats, any strides. ``channels_last``: [N, H, W, C].
    kernel_size : int or (int, int)
        The window (kh, kw).
    stride : int or (int, int), optional
        Step of the window; kernel_size where not given, so that windows tile the image.
    padding, dilation
        As in `conv2d`. Every window must hold at least one place of x.
    ceil_mode : bool
        Count a last, partial window too, if it starts inside x or the padding before it (as PyTorch and
        ONNX).
    channels_last : bool
        The arrays' layout.
    return_argmax : bool
        Whether to return the mask that `max_pool2d_backward` needs.
    out : array or (array, array), optional
        Where to write y, or y and argmax (None in place of one makes a new array), as in `conv2d`.

    Returns
    -------
    y : array [N, C, OH, OW]
        Of x's dtype.
    argmax : array [N, C, OH, OW]
        Offset ``i*kw + j`` of the maximum in its window: uint8 for windows of up to 255 places, else int32.
        Left out where ``return_argmax`` is False: then y alone is returned.

    Raises
    ------
    TypeError, ValueError
        For wrong kinds or impossible sizes, and where a window holds nothing but padding.

    See Also
    --------
    argmax_to_indices : the same positions as PyTorch gives them.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x = np.array([[1, 2, 0, 0], [3, 4, 0, 9]]).reshape(1, 1, 2, 4)
    >>> y, argmax = gpuconv.max_pool2d(x, 2)
    >>> y
    array([[[[4, 9]]]])
    >>> argmax
    array([[[[3, 3]]]], dtype=uint8)
    """
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    return max_pool("max_pool2d", 2, x, options, return_argmax, out)


@public
def max_pool2d_backward(
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
    """Send each gradient to the place its window's maximum came from; where windows overlap, they add up.

    Parameters
    ----------
    dy : array [N, C, OH, OW]
        Gradient of the loss by y.
    argmax : array [N, C, OH, OW]
        The mask that `max_pool2d` returned.
    x_shape : 4 ints
        Shape of x.
    kernel_size, stride, padding, dilation, ceil_mode, channels_last
        As given to `max_pool2d`.
    out : array, optional
        Where to write dx, as in `conv2d`.

    Returns
    -------
    dx : array of shape x_shape
        Of dy's dtype.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`; where dy or argmax is not shaped like y; and where a NumPy argmax names no place of
        its window. On a GPU such an offset counts for nothing: looking for it would make the GPU wait.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, argmax = np.array([[[[5.0, 7.0]]]]), np.array([[[[3, 0]]]], np.uint8)
    >>> gpuconv.max_pool2d_backward(dy, argmax, (1, 1, 2, 4), 2)
    array([[[[0., 0., 7., 0.],
             [0., 5., 0., 0.]]]])
    """
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    return max_pool_backward("max_pool2d_backward", 2, dy, argmax, x_shape, options, out)


@public
def argmax_to_indices(
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
    """Turn a max pooling's mask into flat indices into the H*W plane, which PyTorch returns.

    ``index = (p*s + i*d - before) * W + (q*s + j*d - before)`` for the mask's ``i*kw + j`` at (p, q). ONNX's
    MaxPool counts on through channels and images: its Indices are ``(n*C + c)*H*W + index``.

    Parameters
    ----------
    argmax : array [N, C, OH, OW]
        The mask that `max_pool2d` returned; or that of `max_pool1d` or `max_pool3d`, by x_shape's length.
    x_shape : 4 ints (3 or 5 for the others)
        Shape of x.
    kernel_size, stride, padding, dilation, ceil_mode, channels_last
        As given to `max_pool2d`.
    out : array, optional
        Where to write indices, as in `conv2d`.

    Returns
    -------
    indices : int64 array, shaped like argmax

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`; where argmax is not shaped like y; and where a NumPy argmax names no place of its
        window. On a GPU the index is -1 there: looking for it would make the GPU wait.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> argmax = np.array([[[[3, 0]]]], np.uint8)
    >>> gpuconv.argmax_to_indices(argmax, (1, 1, 2, 4), 2)
    array([[[[5, 2]]]])
    """
    op = "argmax_to_indices"
    backend = backend_of(op, argmax=argmax)
    check_kind(op, "argmax", argmax, "iu")
    axes = geometry.spatial_axes(op, "x_shape", x_shape)
    x_shape = geometry.shape(op, "x_shape", x_shape, axes + 2)
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    window = describe(op, axes, x_shape, "x_shape", options)
    must = y_shape(x_shape, window, channels_last)
    check_shape(op, "argmax", argmax.shape, must, f"for x_shape {x_shape}")
    indices = result(op, backend, out, must, np.dtype(np.int64), argmax=argmax)
    backend.pooling.argmax_to_indices(argmax, indices, window, channels_last)
    return indices


@public
def avg_pool2d(
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
    """Take the mean of every window.

    ``y[n, c, p, q] = (sum over i, j of x[n, c, p*s + i*d - before, q*s + j*d - before]) / divisor``, where
    the divisor counts the window's places inside the padded image, or inside x.

    Parameters
    ----------
    x : array [N, C, H, W]
        Floats (float16 is summed in float32) or complex. ``channels_last``: [N, H, W, C].
    kernel_size, stride, padding, dilation, ceil_mode, channels_last
        As in `max_pool2d`.
    count_include_pad : bool
        Whether padding counts in the divisor; True as in PyTorch.
    divisor_override : int, optional
        Divide every sum by this number instead; 1 makes sums.
    out : array, optional
        Where to write y, as in `conv2d`.

    Returns
    -------
    y : array [N, C, OH, OW]
        Of x's dtype.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x = np.arange(8.0).reshape(1, 1, 2, 4)
    >>> gpuconv.avg_pool2d(x, 2)
    array([[[[2.5, 4.5]]]])
    """
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    counts = (count_include_pad, divisor_override)
    return avg_pool("avg_pool2d", 2, x, options, *counts, out)


@public
def avg_pool2d_backward(
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
    """Spread each gradient evenly over its window; where windows overlap, they add up.

    Parameters
    ----------
    dy : array [N, C, OH, OW]
        Gradient of the loss by y.
    x_shape : 4 ints
        Shape of x.
    kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, channels_last, divisor_override
        As given to `avg_pool2d`.
    out : array, optional
        Where to write dx, as in `conv2d`.

    Returns
    -------
    dx : array of shape x_shape
        Of dy's dtype.

    Raises
    ------
    TypeError, ValueError
        As `avg_pool2d`; and where dy is not shaped like y.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.avg_pool2d_backward(np.array([[[[4.0, 8.0]]]]), (1, 1, 2, 4), 2)
    array([[[[1., 1., 2., 2.],
             [1., 1., 2., 2.]]]])
    """
    options = Options(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
    return avg_pool_backward(
        "avg_pool2d_backward", 2, dy, x_shape, options, count_include_pad, divisor_override, out
    )


# What the public functions of every rank do: `axes` is the number of spatial axes, `op` the public name.


class Options(NamedTuple):
    """A pooling window as the user gave it."""

    kernel_size: Ints
    stride: Ints | None
    padding: Padding
    dilation: Ints
    ceil_mode: bool
    channels_last: bool


def max_pool(op: str, axes: int, x: Array, options: Options, return_argmax: bool, out: Any) -> Any:
    """Check, describe the window, and take the maxima."""
    backend = backend_of(op, x=x)
    check_kind(op, "x", x, "iuf")
    window = describe(op, axes, x.shape, "x", options)
    shape = y_shape(x.shape, window, options.channels_last)
    y, argmax = maxima(op, backend, x, shape, window.mask, return_argmax, out)
    backend.pooling.max_pool(x, y, argmax, window, options.channels_last)
    return y if argmax is None else (y, argmax)


def maxima(
    op: str, backend: ModuleType, x: Array, shape: tuple[int, ...], mask: Any, return_argmax: bool, out: Any
) -> tuple[Array, Array | None]:
    """Return arrays for a max pooling's result and, where it is wanted, its mask."""
    if not geometry.flag(op, "return_argmax", return_argmax):
        return result(op, backend, out, shape, x.dtype, x=x), None
    outs = several(op, out, "y", "argmax")
    y = result(op, backend, outs[0], shape, x.dtype, name="out[0]", x=x)
    written = {} if outs[1] is None else {"out[0]": y}
    return y, result(op, backend, outs[1], shape, mask, name="out[1]", x=x, **written)


def max_pool_backward(
    op: str,
    axes: int,
    dy: Array,
    argmax: Array,
    x_shape: tuple[int, ...],
    options: Options,
    out: Array | None,
) -> Array:
    """Check, describe the window, and send dy where argmax says."""
    backend = backend_of(op, dy=dy, argmax=argmax)
    check_kind(op, "dy", dy, "iuf")
    check_kind(op, "argmax", argmax, "iu")
    x_shape = geometry.shape(op, "x_shape", x_shape, axes + 2)
    window = describe(op, axes, x_shape, "x_shape", options)
    must = y_shape(x_shape, window, options.channels_last)
    check_shape(op, "dy", dy.shape, must, f"for x_shape {x_shape}")
    check_shape(op, "argmax", argmax.shape, must, f"for x_shape {x_shape}")
    dx = result(op, backend, out, x_shape, dy.dtype, dy=dy, argmax=argmax)
    backend.pooling.max_pool_backward(dy, argmax, dx, window, options.channels_last)
    return dx


def avg_pool(
    op: str,
    axes: int,
    x: Array,
    options: Options,
    count_include_pad: bool,
    divisor_override: int | None,
    out: Array | None,
) -> Array:
    """Check, describe the window, and take the means."""
    backend = backend_of(op, x=x)
    check_inexact(op, "x", x)
    window = describe(op, axes, x.shape, "x", options)
    divisor = _divisor(op, count_include_pad, divisor_override)
    y = result(op, backend, out, y_shape(x.shape, window, options.channels_last), x.dtype, x=x)
    backend.pooling.avg_pool(x, y, window, options.channels_last, *divisor)
    return y


def avg_pool_backward(
    op: str,
    axes: int,
    dy: Array,
    x_shape: tuple[int, ...],
    options: Options,
    count_include_pad: bool,
    divisor_override: int | None,
    out: Array | None,
) -> Array:
    """Check, describe the window, and spread dy."""
    backend = backend_of(op, dy=dy)
    check_inexact(op, "dy", dy)
    x_shape = geometry.shape(op, "x_shape", x_shape, axes + 2)
    window = describe(op, axes, x_shape, "x_shape", options)
    divisor = _divisor(op, count_include_pad, divisor_override)
    must = y_shape(x_shape, window, options.channels_last)
    check_shape(op, "dy", dy.shape, must, f"for x_shape {x_shape}")
    dx = result(op, backend, out, x_shape, dy.dtype, dy=dy)
    backend.pooling.avg_pool_backward(dy, dx, window, options.channels_last, *divisor)
    return dx


def _divisor(op: str, count_include_pad: bool, divisor_override: int | None) -> tuple[bool, int | None]:
    counted = geometry.flag(op, "count_include_pad", count_include_pad)
    if divisor_override is None:
        return counted, None
    return counted, geometry.integer(op, "divisor_override", divisor_override, 1)


def describe(op: str, axes: int, shape: tuple[int, ...], name: str, options: Options) -> Window:
    """Check x's shape and the options, and return the window."""
    kernel_size, stride, padding, dilation, ceil_mode, channels_last = options
    geometry.flag(op, "channels_last", channels_last)
    if len(shape) != axes + 2:
        layout = geometry.image_layout(axes, channels_last)
        raise ValueError(f"{op}: {name} must have {axes + 2} axes {layout}, not {len(shape)} (shape {shape})")
    return geometry.sliding_window(
        op,
        geometry.spatial_sizes(shape, channels_last),
        kernel_size,
        kernel_size if stride is None else stride,
        padding,
        dilation,
        ceil_mode=ceil_mode,
        needs_valid=True,
    )


def y_shape(x_shape: tuple[int, ...], window: Window, channels_last: bool) -> tuple[int, ...]:
    """Return the shape of what a pooling of x gives."""
    return array_shape(x_shape[0], x_shape[-1 if channels_last else 1], window.out_size, channels_last)
