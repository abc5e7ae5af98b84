"""The Deep Learning Specialization, "Convolution model: step by step": its functions, channels last.

``from gpuconv.compat.coursera import conv_forward, conv_backward, pool_forward, pool_backward`` in place of
one's own changes nothing else: images (m, n_H, n_W, n_C), kernels (f, f, n_C_prev, n_C), a bias
(1, 1, 1, n_C), `hparameters`, gradients that are sums. The arrays are worked on as they lie. CuPy arrays do,
too.

=========================  ===================================  =============================================
What                       The assignment, and many solutions   Here
=========================  ===================================  =============================================
pad = 0 in conv_backward   ``[pad:-pad]`` is empty: an error    works
stride in conv_backward,   some solutions leave it out, which   counts
pool_backward              is right for stride 1 alone
equal maxima               all of them get the whole gradient,  the first in row-major order gets it, so that
                           so gradients grow                    the sum stays; create_mask_from_window marks
                                                                the first
mode of pool_backward      may differ from pool_forward's       the same: nothing but (A_prev, hparameters) is
                                                                kept, the maxima are looked for again
f in the kernels           square                               n_H and n_W may have kernels of two sizes
dtypes                     float64, whatever comes in           NumPy's promotion: float32 stays float32.
                                                                Integers alone are a TypeError in
                                                                conv_forward (A_prev.astype(float)) and in
                                                                average pooling
bias                       broadcast, whatever its shape        (1, 1, 1, n_C), or a ValueError
=========================  ===================================  =============================================
"""

from typing import Any

import numpy as np

from gpuconv.backends.dispatch import array_module, backend_of, check_rank, check_shape
from gpuconv.compat.terms import errors_say, numbers, unpacked
from gpuconv.conv import conv2d, conv2d_backward
from gpuconv.geometry import integer
from gpuconv.geometry import shape as sizes_of
from gpuconv.pool import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward

__all__ = [
    "conv_backward",
    "conv_forward",
    "conv_single_step",
    "create_mask_from_window",
    "distribute_value",
    "pool_backward",
    "pool_forward",
    "zero_pad",
]

Array = Any
Cache = tuple[Any, ...]

_of_convolution = errors_say(x="A_prev", w="W", y="Z", dy="dZ")
_of_step = errors_say(x="a_slice_prev", w="W")
_of_pooling = errors_say(x="A_prev", x_shape="A_prev's shape", y="A", dy="dA", kernel_size="window")


@_of_convolution
def conv_forward(A_prev: Array, W: Array, b: Array, hparameters: dict[str, int]) -> tuple[Array, Cache]:
    """Convolve images: `gpuconv.conv2d`, channels last.

    Parameters
    ----------
    A_prev : array [m, n_H_prev, n_W_prev, n_C_prev]
    W : array [f, f, n_C_prev, n_C]
    b : array [1, 1, 1, n_C]
    hparameters : {"stride": int, "pad": int}

    Returns
    -------
    Z : array [m, n_H, n_W, n_C]
        ``n_H = (n_H_prev - f + 2*pad) // stride + 1``; of the dtype that NumPy promotes the three to.
    cache : (A_prev, W, b, hparameters)
        For `conv_backward`.

    Raises
    ------
    TypeError, ValueError
        For what isn't an array or an integer, a key that is missing, and shapes that don't fit.

    Examples
    --------
    >>> import numpy as np
    >>> A_prev, W, b = np.ones((1, 4, 4, 3)), np.ones((2, 2, 3, 5)), np.zeros((1, 1, 1, 5))
    >>> Z, cache = conv_forward(A_prev, W, b, {"stride": 2, "pad": 1})
    >>> Z[0, :, :, 0]
    array([[ 3.,  6.,  3.],
           [ 6., 12.,  6.],
           [ 3.,  6.,  3.]])
    >>> dA_prev, dW, db = conv_backward(np.ones_like(Z), cache)
    >>> db
    array([[[[9., 9., 9., 9., 9.]]]])
    """
    op = "conv_forward"
    stride, pad = numbers(op, "hparameters", hparameters, stride=1, pad=0)
    backend_of(op, A_prev=A_prev, W=W, b=b)
    check_rank(op, "W", W, "[f, f, n_C_prev, n_C]")
    check_shape(op, "b", b.shape, (1, 1, 1, W.shape[3]), f"for W of shape {W.shape}")
    Z = conv2d(A_prev, W, b.reshape(W.shape[3]), stride=stride, padding=pad, channels_last=True)
    return Z, (A_prev, W, b, hparameters)


@_of_convolution
def conv_backward(dZ: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Return the gradients of `conv_forward`.

    Parameters
    ----------
    dZ : array [m, n_H, n_W, n_C]
        Gradient of the loss by Z.
    cache : (A_prev, W, b, hparameters)
        What `conv_forward` returned with Z.

    Returns
    -------
    dA_prev, dW, db : array
        Shaped like A_prev, W and b; sums over the batch.

    Raises
    ------
    TypeError, ValueError
        Where cache is no such tuple, or dZ isn't shaped like Z.
    """
    op = "conv_backward"
    A_prev, W, b, hparameters = unpacked(op, cache, "conv_forward", 4)
    stride, pad = numbers(op, "hparameters", hparameters, stride=1, pad=0)
    grads: Cache = conv2d_backward(dZ, A_prev, W, stride=stride, padding=pad, channels_last=True)
    dA_prev, dW, db = grads
    return dA_prev, dW, db.reshape(b.shape)


@_of_pooling
def pool_forward(A_prev: Array, hparameters: dict[str, int], mode: str = "max") -> tuple[Array, Cache]:
    """Take the maximum or the mean of every window: `gpuconv.max_pool2d`, `gpuconv.avg_pool2d`.

    Parameters
    ----------
    A_prev : array [m, n_H_prev, n_W_prev, n_C]
    hparameters : {"f": int, "stride": int}
        The window's side, and its step.
    mode : "max" or "average"

    Returns
    -------
    A : array [m, n_H, n_W, n_C]
        Of the dtype of A_prev.
    cache : (A_prev, hparameters)
        For `pool_backward`.

    Raises
    ------
    TypeError, ValueError
        For what isn't an array or an integer, a key that is missing, another mode, or a window larger than
        A_prev.

    Examples
    --------
    >>> import numpy as np
    >>> A_prev = np.array([[1.0, 7.0, 0.0, 0.0], [7.0, 4.0, 0.0, 9.0]]).reshape(1, 2, 4, 1)
    >>> A, cache = pool_forward(A_prev, {"f": 2, "stride": 2})
    >>> A.ravel()
    array([7., 9.])
    >>> pool_backward(np.ones_like(A), cache)[0, :, :, 0]
    array([[0., 1., 0., 0.],
           [0., 0., 0., 1.]])
    """
    f, stride = _window("pool_forward", hparameters, mode)
    if mode == "max":
        A = max_pool2d(A_prev, f, stride, channels_last=True, return_argmax=False)
    else:
        A = avg_pool2d(A_prev, f, stride, channels_last=True)
    return A, (A_prev, hparameters)


@_of_pooling
def pool_backward(dA: Array, cache: Cache, mode: str = "max") -> Array:
    """Return the gradient of `pool_forward`: at each window's first maximum, or spread evenly over it.

    Parameters
    ----------
    dA : array [m, n_H, n_W, n_C]
        Gradient of the loss by A.
    cache : (A_prev, hparameters)
        What `pool_forward` returned with A.
    mode : "max" or "average"

    Returns
    -------
    dA_prev : array, shaped like A_prev
        Of the dtype of dA.

    Raises
    ------
    TypeError, ValueError
        Where cache is no such tuple, dA isn't shaped like A, or for another mode.
    """
    op = "pool_backward"
    A_prev, hparameters = unpacked(op, cache, "pool_forward", 2)
    f, stride = _window(op, hparameters, mode)
    if mode == "average":
        return avg_pool2d_backward(dA, A_prev.shape, f, stride, channels_last=True)
    _, argmax = max_pool2d(A_prev, f, stride, channels_last=True)
    return max_pool2d_backward(dA, argmax, A_prev.shape, f, stride, channels_last=True)


def zero_pad(X: Array, pad: int) -> Array:
    """Put zeros around the images of a batch.

    Parameters
    ----------
    X : array [m, n_H, n_W, n_C]
    pad : int
        Places on each side of n_H and n_W.

    Returns
    -------
    X_pad : array [m, n_H + 2*pad, n_W + 2*pad, n_C]

    Raises
    ------
    TypeError, ValueError
        Where X is no array with four axes, or pad no integer of at least 0.

    Examples
    --------
    >>> import numpy as np
    >>> zero_pad(np.ones((1, 1, 2, 1)), 1)[0, :, :, 0]
    array([[0., 0., 0., 0.],
           [0., 1., 1., 0.],
           [0., 0., 0., 0.]])
    """
    op = "zero_pad"
    backend_of(op, X=X)
    check_rank(op, "X", X, "[m, n_H, n_W, n_C]")
    pad = integer(op, "pad", pad, 0)
    return array_module(X).pad(X, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="constant")


@_of_step
def conv_single_step(a_slice_prev: Array, W: Array, b: Array) -> Array:
    """Apply one kernel to one slice of its own size: ``sum(a_slice_prev * W) + b``.

    Parameters
    ----------
    a_slice_prev, W : array [f, f, n_C_prev]
    b : array [1, 1, 1]

    Returns
    -------
    Z : number, or a CuPy array without axes

    Raises
    ------
    TypeError, ValueError
        For what isn't an array, and shapes that don't fit.

    Examples
    --------
    >>> import numpy as np
    >>> conv_single_step(np.ones((2, 2, 3)), np.full((2, 2, 3), 0.5), np.ones((1, 1, 1)))
    np.float64(7.0)
    """
    op = "conv_single_step"
    backend_of(op, a_slice_prev=a_slice_prev, W=W, b=b)
    check_rank(op, "W", W, "[f, f, n_C_prev]")
    check_shape(op, "a_slice_prev", a_slice_prev.shape, W.shape, "as W's")
    check_shape(op, "b", b.shape, (1, 1, 1), "for one kernel")
    Z = conv2d(a_slice_prev[None], W[:, :, :, None], b.reshape(1), channels_last=True)
    return Z[0, 0, 0, 0]


def create_mask_from_window(x: Array) -> Array:
    """Mark the maximum of a window, of several equal ones the first in row-major order.

    Parameters
    ----------
    x : array
        Of any shape.

    Returns
    -------
    mask : bool array, shaped like x

    Raises
    ------
    TypeError
        Where x is no array.

    Examples
    --------
    >>> import numpy as np
    >>> create_mask_from_window(np.array([[1, 3], [3, 2]]))
    array([[False,  True],
           [False, False]])
    """
    backend_of("create_mask_from_window", x=x)
    return (array_module(x).arange(x.size) == x.argmax()).reshape(x.shape)


def distribute_value(dz: Any, shape: tuple[int, int]) -> Array:
    """Spread a gradient evenly over a window.

    Parameters
    ----------
    dz : number, or an array without axes
    shape : (int, int)
        The window's.

    Returns
    -------
    a : array [n_H, n_W]
        ``dz / (n_H * n_W)`` everywhere.

    Raises
    ------
    TypeError, ValueError
        Where dz is no number, or shape isn't two integers of at least 1.

    Examples
    --------
    >>> distribute_value(2, (2, 2))
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    op = "distribute_value"
    n_H, n_W = (integer(op, f"shape[{i}]", n, 1) for i, n in enumerate(sizes_of(op, "shape", shape, 2)))
    if isinstance(dz, int | float | np.number):
        xp: Any = np
    else:
        backend_of(op, dz=dz)
        check_shape(op, "dz", dz.shape, (), "as one window's gradient")
        xp = array_module(dz)
    return xp.ones((n_H, n_W)) * (dz / (n_H * n_W))


def _window(op: str, hparameters: dict[str, int], mode: str) -> tuple[int, ...]:
    if mode not in ("max", "average"):
        raise ValueError(f'{op}: mode must be "max" or "average", not {mode!r}')
    return numbers(op, "hparameters", hparameters, f=1, stride=1)
