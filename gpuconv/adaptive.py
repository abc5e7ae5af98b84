"""Adaptive pooling: windows that share out the image evenly among a wanted number of outputs."""

from typing import Any

import numpy as np

from gpuconv import geometry
from gpuconv.backends.dispatch import (
    backend_of,
    check_inexact,
    check_kind,
    check_rank,
    check_shape,
    result,
)
from gpuconv.entry import public
from gpuconv.geometry import array_shape
from gpuconv.pool import maxima

Array = Any
OutputSize = int | tuple[int | None, ...] | None


@public
def adaptive_avg_pool2d(
    x: Array, output_size: OutputSize, *, channels_last: bool = False, out: Array | None = None
) -> Array:
    """Take the mean of each of so many windows, whatever the image's size.

    Along each axis output p is the mean of the places ``floor(p*size / out) <= i < ceil((p+1)*size / out)``:
    PyTorch's rule. Windows share places where out doesn't divide the size.

    Parameters
    ----------
    x : array [N, C, H, W]
        Floats (float16 is summed in float32) or complex, any strides. ``channels_last``: [N, H, W, C].
    output_size : int or (int, int)
        The result's size (OH, OW); None in its place keeps an axis as it is. It may exceed x's.
    channels_last : bool
        The arrays' layout.
    out : array, optional
        Where to write y, as in `conv2d`.

    Returns
    -------
    y : array [N, C, OH, OW]
        Of x's dtype.

    Raises
    ------
    TypeError, ValueError
        For wrong kinds, and for sizes less than 1.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.adaptive_avg_pool2d(np.array([[[[1.0, 2.0, 3.0, 4.0, 5.0]]]]), (1, 2))
    array([[[[2., 4.]]]])
    """
    op = "adaptive_avg_pool2d"
    backend = backend_of(op, x=x)
    check_inexact(op, "x", x)
    y = result(op, backend, out, _y_shape(op, x, output_size, channels_last), x.dtype, x=x)
    backend.adaptive.avg_pool(x, y, channels_last)
    return y


@public
def adaptive_avg_pool2d_backward(
    dy: Array, x_shape: tuple[int, ...], *, channels_last: bool = False, out: Array | None = None
) -> Array:
    """Spread each gradient evenly over its window; where windows share places, they add up.

    Parameters
    ----------
    dy : array [N, C, OH, OW]
        Gradient of the loss by y. ``channels_last``: [N, OH, OW, C].
    x_shape : 4 ints
        Shape of x.
    channels_last : bool
        As given to `adaptive_avg_pool2d`.
    out : array, optional
        Where to write dx, as in `conv2d`.

    Returns
    -------
    dx : array of shape x_shape
        Of dy's dtype.

    Raises
    ------
    TypeError, ValueError
        As `adaptive_avg_pool2d`; and where dy has other images or channels than x.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.adaptive_avg_pool2d_backward(np.array([[[[3.0, 6.0]]]]), (1, 1, 1, 5))
    array([[[[1., 1., 3., 2., 2.]]]])
    """
    op = "adaptive_avg_pool2d_backward"
    backend = backend_of(op, dy=dy)
    check_inexact(op, "dy", dy)
    dx = result(op, backend, out, _x_shape(op, dy, x_shape, channels_last), dy.dtype, dy=dy)
    backend.adaptive.avg_pool_backward(dy, dx, channels_last)
    return dx


@public
def adaptive_max_pool2d(
    x: Array,
    output_size: OutputSize,
    *,
    channels_last: bool = False,
    return_argmax: bool = True,
    out: Any = None,
) -> Any:
    """Take the maximum of each of so many windows, whatever the image's size, and remember where it was.

    The windows are those of `adaptive_avg_pool2d`. Of equal maxima the first in row-major order counts; NaN
    is greater than any number.

    Parameters
    ----------
    x : array [N, C, H, W]
        Integers or floats, any strides. ``channels_last``: [N, H, W, C].
    output_size, channels_last
        As in `adaptive_avg_pool2d`.
    return_argmax : bool
        Whether to return what `adaptive_max_pool2d_backward` needs.
    out : array or (array, array), optional
        Where to write y, or y and argmax (None in place of one makes a new array), as in `conv2d`.

    Returns
    -------
    y : array [N, C, OH, OW]
        Of x's dtype.
    argmax : int64 array [N, C, OH, OW]
        Flat index ``i*W + j`` of the maximum in its plane, PyTorch's "indices": windows vary, so an offset in
        the window, as `max_pool2d` gives it, would say less. Left out where ``return_argmax`` is False: then
        y alone is returned.

    Raises
    ------
    TypeError, ValueError
        As `adaptive_avg_pool2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.adaptive_max_pool2d(np.array([[[[1, 2, 9, 4, 5]]]]), (1, 2))
    (array([[[[9, 9]]]]), array([[[[2, 2]]]]))
    """
    op = "adaptive_max_pool2d"
    backend = backend_of(op, x=x)
    check_kind(op, "x", x, "iuf")
    shape = _y_shape(op, x, output_size, channels_last)
    y, argmax = maxima(op, backend, x, shape, np.dtype(np.int64), return_argmax, out)
    backend.adaptive.max_pool(x, y, argmax, channels_last)
    return y if argmax is None else (y, argmax)


@public
def adaptive_max_pool2d_backward(
    dy: Array,
    argmax: Array,
    x_shape: tuple[int, ...],
    *,
    channels_last: bool = False,
    out: Array | None = None,
) -> Array:
    """Send each gradient to the place its window's maximum came from; those of several windows add up.

    Parameters
    ----------
    dy : array [N, C, OH, OW]
        Gradient of the loss by y. ``channels_last``: [N, OH, OW, C].
    argmax : array [N, C, OH, OW]
        What `adaptive_max_pool2d` returned.
    x_shape : 4 ints
        Shape of x.
    channels_last : bool
        As given to `adaptive_max_pool2d`.
    out : array, optional
        Where to write dx, as in `conv2d`.

    Returns
    -------
    dx : array of shape x_shape
        Of dy's dtype.

    Raises
    ------
    TypeError, ValueError
        As `adaptive_max_pool2d`; where dy has other images or channels than x; where argmax is not shaped
        like dy; and where a NumPy argmax names no place of its window. On a GPU such a gradient is left out:
        looking for it would make the GPU wait.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, argmax = np.array([[[[3.0, 6.0]]]]), np.array([[[[2, 2]]]])
    >>> gpuconv.adaptive_max_pool2d_backward(dy, argmax, (1, 1, 1, 5))
    array([[[[0., 0., 9., 0., 0.]]]])
    """
    op = "adaptive_max_pool2d_backward"
    backend = backend_of(op, dy=dy, argmax=argmax)
    check_kind(op, "dy", dy, "iuf")
    check_kind(op, "argmax", argmax, "iu")
    x_shape = _x_shape(op, dy, x_shape, channels_last)
    check_shape(op, "argmax", argmax.shape, dy.shape, f"for dy of shape {dy.shape}")
    dx = result(op, backend, out, x_shape, dy.dtype, dy=dy, argmax=argmax)
    backend.adaptive.max_pool_backward(dy, argmax, dx, channels_last, op)
    return dx


def _in_size(op: str, name: str, x: Array, channels_last: bool) -> tuple[int, ...]:
    """Check that x is an image with places, and return its spatial sizes."""
    geometry.flag(op, "channels_last", channels_last)
    check_rank(op, name, x, geometry.image_layout(2, channels_last))
    sizes = geometry.spatial_sizes(x.shape, channels_last)
    geometry.check_places(op, name, sizes)
    return sizes


def _y_shape(op: str, x: Array, output_size: Any, channels_last: bool) -> tuple[int, ...]:
    """Check x and the wanted size, and return the result's shape."""
    out_size = output_sizes(op, output_size, _in_size(op, "x", x, channels_last))
    return array_shape(x.shape[0], x.shape[-1 if channels_last else 1], out_size, channels_last)


def output_sizes(op: str, value: Any, in_size: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many outputs there are along each axis; None for as many as there are places."""
    if value is None:
        return in_size
    if isinstance(value, list | tuple) and len(value) == len(in_size):
        value = [n if out is None else out for out, n in zip(value, in_size, strict=True)]
    return geometry.per_axis(op, "output_size", value, len(in_size), 1)


def _x_shape(op: str, dy: Array, x_shape: Any, channels_last: bool) -> tuple[int, ...]:
    """Check dy and x's shape against each other, and return the shape as a tuple."""
    out_size = _in_size(op, "dy", dy, channels_last)
    shape = geometry.shape(op, "x_shape", x_shape, dy.ndim)
    geometry.check_places(op, "x", geometry.spatial_sizes(shape, channels_last))
    must = array_shape(shape[0], shape[-1 if channels_last else 1], out_size, channels_last)
    check_shape(op, "dy", dy.shape, must, f"for x_shape {shape}")
    return shape
