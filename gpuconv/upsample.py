"""Nearest upsampling: every place a block of copies, over one to three spatial axes. The public functions.

It is the transpose of a pooling that sums blocks, and runs on that one's code.
"""

from typing import Any

from gpuconv import geometry
from gpuconv.backends.dispatch import backend_of, check_inexact, result
from gpuconv.entry import public
from gpuconv.geometry import Ints, Window, array_shape

Array = Any


@public
def upsample(x: Array, scale_factor: Ints, *, channels_last: bool = False, out: Array | None = None) -> Array:
    """Repeat every place along each spatial axis: nearest-neighbour enlargement by whole factors.

    ``y[n, c, p, q] = x[n, c, p // sh, q // sw]``, but for -0.0, which becomes 0.0.

    Parameters
    ----------
    x : array [N, C, H, W], or with one or three spatial axes
        Floats or complex, any strides. ``channels_last``: [N, H, W, C].
    scale_factor : int or one per spatial axis
        How many times each place stands along each axis.
    channels_last : bool
        The arrays' layout.
    out : array, optional
        Where to write y, as in `conv2d`.

    Returns
    -------
    y : array [N, C, H*sh, W*sw]
        Of x's dtype.

    Raises
    ------
    TypeError, ValueError
        For wrong kinds, another number of axes, and factors less than 1.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.upsample(np.array([[[[1.0, 2.0]]]]), 2)
    array([[[[1., 1., 2., 2.],
             [1., 1., 2., 2.]]]])
    """
    op = "upsample"
    backend = backend_of(op, x=x)
    check_inexact(op, "x", x)
    sizes, scale = _scale(op, "x", x, scale_factor, channels_last)
    large = tuple(size * times for size, times in zip(sizes, scale, strict=True))
    shape = array_shape(x.shape[0], x.shape[-1 if channels_last else 1], large, channels_last)
    y = result(op, backend, out, shape, x.dtype, x=x)
    backend.pooling.avg_pool_backward(x, y, _blocks(op, large, scale), channels_last, True, 1)
    return y


@public
def upsample_backward(
    dy: Array, scale_factor: Ints, *, channels_last: bool = False, out: Array | None = None
) -> Array:
    """Return the gradient of `upsample` by x: the sum of every block of copies.

    Parameters
    ----------
    dy : array [N, C, H*sh, W*sw]
        Gradient of the loss by y.
    scale_factor, channels_last
        As given to `upsample`.
    out : array, optional
        Where to write dx, as in `conv2d`.

    Returns
    -------
    dx : array [N, C, H, W]
        Of dy's dtype; float16 is summed in float32.

    Raises
    ------
    TypeError, ValueError
        As `upsample`; and where dy's sizes are no multiples of the factors.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.upsample_backward(np.arange(8.0).reshape(1, 1, 2, 4), 2)
    array([[[[10., 18.]]]])
    """
    op = "upsample_backward"
    backend = backend_of(op, dy=dy)
    check_inexact(op, "dy", dy)
    sizes, scale = _scale(op, "dy", dy, scale_factor, channels_last)
    if any(size % times for size, times in zip(sizes, scale, strict=True)):
        raise ValueError(
            f"{op}: dy has spatial sizes {sizes}, which are no multiples of scale_factor {scale}"
        )
    small = tuple(size // times for size, times in zip(sizes, scale, strict=True))
    shape = array_shape(dy.shape[0], dy.shape[-1 if channels_last else 1], small, channels_last)
    dx = result(op, backend, out, shape, dy.dtype, dy=dy)
    backend.pooling.avg_pool(dy, dx, _blocks(op, sizes, scale), channels_last, True, 1)
    return dx


def _scale(
    op: str, name: str, x: Array, scale_factor: Ints, channels_last: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Check the arguments; return x's spatial sizes and the factors."""
    axes = geometry.spatial_axes(op, name, x.shape)
    sizes = geometry.spatial_sizes(x.shape, geometry.flag(op, "channels_last", channels_last))
    geometry.check_places(op, name, sizes)
    return sizes, geometry.per_axis(op, "scale_factor", scale_factor, axes, 1)


def _blocks(op: str, sizes: tuple[int, ...], scale: tuple[int, ...]) -> Window:
    return geometry.sliding_window(op, sizes, scale, scale, kernel_name="scale_factor")
