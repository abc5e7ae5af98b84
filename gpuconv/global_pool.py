"""Global pooling: the mean or the maximum of each whole plane, over one to three spatial axes.

Each is an adaptive pooling with one output.
"""

from typing import Any

import numpy as np

from gpuconv import geometry
from gpuconv.backends.dispatch import backend_of, check_inexact, check_kind, check_shape, result
from gpuconv.entry import public
from gpuconv.geometry import array_shape
from gpuconv.pool import maxima

Array = Any


@public
def global_avg_pool(
    x: Array, *, channels_last: bool = False, keepdims: bool = True, out: Array | None = None
) -> Array:
    """Take the mean of every plane: ``y[n, c] = mean over i, j of x[n, c, i, j]``.

    Parameters
    ----------
    x : array [N, C, H, W], or with one or three spatial axes
        Floats (float16 is summed in float32) or complex, any strides. ``channels_last``: [N, H, W, C].
    channels_last : bool
        The arrays' layout.
    keepdims : bool
        Whether y keeps the spatial axes, each with one place (as ONNX's GlobalAveragePool), or is [N, C].
    out : array, optional
        Where to write y, as in `conv2d`.

    Returns
    -------
    y : array [N, C, 1, 1], or [N, C]
        Of x's dtype. ``channels_last``: [N, 1, 1, C], or [N, C].

    Raises
    ------
    TypeError, ValueError
        For wrong kinds, another number of axes, and planes of no places.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x = np.arange(8.0).reshape(1, 2, 2, 2)
    >>> gpuconv.global_avg_pool(x, keepdims=False)
    array([[1.5, 5.5]])
    >>> gpuconv.global_avg_pool(x).shape
    (1, 2, 1, 1)
    """
    op = "global_avg_pool"
    backend = backend_of(op, x=x)
    check_inexact(op, "x", x)
    whole, shape = _y_shapes(op, "x", x.shape, channels_last, keepdims)
    y = result(op, backend, out, shape, x.dtype, x=x)
    backend.adaptive.avg_pool(x, y.reshape(whole), channels_last)
    return y


@public
def global_avg_pool_backward(
    dy: Array,
    x_shape: tuple[int, ...],
    *,
    channels_last: bool = False,
    keepdims: bool = True,
    out: Array | None = None,
) -> Array:
    """Spread each gradient evenly over its plane.

    Parameters
    ----------
    dy : array [N, C, 1, 1], or [N, C]
        Gradient of the loss by y, shaped like y.
    x_shape : 4 ints (3 or 5 with another number of spatial axes)
        Shape of x.
    channels_last, keepdims
        As given to `global_avg_pool`.
    out : array, optional
        Where to write dx, as in `conv2d`.

    Returns
    -------
    dx : array of shape x_shape
        Of dy's dtype.

    Raises
    ------
    TypeError, ValueError
        As `global_avg_pool`; and where dy is not shaped like y.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.global_avg_pool_backward(np.array([[4.0, 8.0]]), (1, 2, 2), keepdims=False)
    array([[[2., 2.],
            [4., 4.]]])
    """
    op = "global_avg_pool_backward"
    backend = backend_of(op, dy=dy)
    check_inexact(op, "dy", dy)
    x_shape, whole = _shapes(op, x_shape, channels_last, keepdims, dy=dy)
    dx = result(op, backend, out, x_shape, dy.dtype, dy=dy)
    backend.adaptive.avg_pool_backward(dy.reshape(whole), dx, channels_last)
    return dx


@public
def global_max_pool(
    x: Array,
    *,
    channels_last: bool = False,
    keepdims: bool = True,
    return_argmax: bool = True,
    out: Any = None,
) -> Any:
    """Take the maximum of every plane, and remember where it was.

    ``y[n, c] = max over i, j of x[n, c, i, j]``. Of equal maxima the first in row-major order counts; NaN is
    greater than any number.

    Parameters
    ----------
    x : array [N, C, H, W], or with one or three spatial axes
        Integers or floats, any strides. ``channels_last``: [N, H, W, C].
    channels_last, keepdims
        As in `global_avg_pool`.
    return_argmax : bool
        Whether to return what `global_max_pool_backward` needs.
    out : array or (array, array), optional
        Where to write y, or y and argmax (None in place of one makes a new array), as in `conv2d`.

    Returns
    -------
    y : array [N, C, 1, 1], or [N, C]
        Of x's dtype. ``channels_last``: [N, 1, 1, C], or [N, C].
    argmax : int64 array, shaped like y
        Flat index ``i*W + j`` of the maximum in its plane. Left out where ``return_argmax`` is False: then y
        alone is returned.

    Raises
    ------
    TypeError, ValueError
        As `global_avg_pool`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.global_max_pool(np.array([[[[1, 2], [9, 4]]]]), keepdims=False)
    (array([[9]]), array([[2]]))
    """
    op = "global_max_pool"
    backend = backend_of(op, x=x)
    check_kind(op, "x", x, "iuf")
    whole, shape = _y_shapes(op, "x", x.shape, channels_last, keepdims)
    y, argmax = maxima(op, backend, x, shape, np.dtype(np.int64), return_argmax, out)
    mask = None if argmax is None else argmax.reshape(whole)
    backend.adaptive.max_pool(x, y.reshape(whole), mask, channels_last)
    return y if argmax is None else (y, argmax)


@public
def global_max_pool_backward(
    dy: Array,
    argmax: Array,
    x_shape: tuple[int, ...],
    *,
    channels_last: bool = False,
    keepdims: bool = True,
    out: Array | None = None,
) -> Array:
    """Send each gradient to the place its plane's maximum came from.

    Parameters
    ----------
    dy : array [N, C, 1, 1], or [N, C]
        Gradient of the loss by y, shaped like y.
    argmax : array, shaped like y
        What `global_max_pool` returned.
    x_shape : 4 ints (3 or 5 with another number of spatial axes)
        Shape of x.
    channels_last, keepdims
        As given to `global_max_pool`.
    out : array, optional
        Where to write dx, as in `conv2d`.

    Returns
    -------
    dx : array of shape x_shape
        Of dy's dtype.

    Raises
    ------
    TypeError, ValueError
        As `global_max_pool`; where dy or argmax is not shaped like y; and where a NumPy argmax names no place
        of its plane. On a GPU such a gradient is left out: looking for it would make the GPU wait.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.global_max_pool_backward(np.array([[7.0]]), np.array([[2]]), (1, 1, 2, 2), keepdims=False)
    array([[[[0., 0.],
             [7., 0.]]]])
    """
    op = "global_max_pool_backward"
    backend = backend_of(op, dy=dy, argmax=argmax)
    check_kind(op, "dy", dy, "iuf")
    check_kind(op, "argmax", argmax, "iu")
    x_shape, whole = _shapes(op, x_shape, channels_last, keepdims, dy=dy, argmax=argmax)
    dx = result(op, backend, out, x_shape, dy.dtype, dy=dy, argmax=argmax)
    backend.adaptive.max_pool_backward(dy.reshape(whole), argmax.reshape(whole), dx, channels_last, op)
    return dx


def _y_shapes(
    op: str, name: str, x_shape: tuple[int, ...], channels_last: bool, keepdims: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Check that x has planes with places; return the result's shape with all axes, and as it is wanted."""
    axes = geometry.spatial_axes(op, name, x_shape)
    sizes = geometry.spatial_sizes(x_shape, geometry.flag(op, "channels_last", channels_last))
    geometry.check_places(op, "x", sizes)
    n, c = x_shape[0], x_shape[-1 if channels_last else 1]
    whole = array_shape(n, c, (1,) * axes, channels_last)
    return whole, whole if geometry.flag(op, "keepdims", keepdims) else (n, c)


def _shapes(
    op: str, x_shape: Any, channels_last: bool, keepdims: bool, **like_y: Array
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Check x's shape, and the arrays that must be shaped like y; return x's and y's with all axes."""
    axes = geometry.spatial_axes(op, "x_shape", x_shape)
    x_shape = geometry.shape(op, "x_shape", x_shape, axes + 2)
    whole, must = _y_shapes(op, "x_shape", x_shape, channels_last, keepdims)
    for name, array in like_y.items():
        check_shape(op, name, array.shape, must, f"for x_shape {x_shape}")
    return x_shape, whole
