"""CS231n, assignment 2: the names of `layers.py`, `fast_layers.py`, `layer_utils.py` and `im2col.py`.

``from gpuconv.compat.cs231n import *`` in place of `cs231n.fast_layers`, or of one's own `conv_forward_naive`
and friends, changes nothing else: NCHW images, kernels (F, C, HH, WW), a bias (F,), `conv_param` and
`pool_param`, gradients that are sums. There is nothing to compile. CuPy arrays do, too.

=========================  ===================================  =============================================
What                       The assignment                       Here
=========================  ===================================  =============================================
The four names of a        loops, im2col, strides and Cython,   one function; any name's cache fits any
convolution                each with its own cache              name's backward. Pooling: naive and im2col
                                                                are one, reshape and fast their own
cache of a convolution     (x, w, b, conv_param), and x_cols    (x, w, b, conv_param): no columns are kept
                           in the fast ones
cache of a max pooling     (x, pool_param); fast: ("reshape",   (x, pool_param, argmax); fast: ("reshape",
                           (x, x_reshaped, out)) or             (x, x_reshaped, out)) or ("im2col",
                           ("im2col", ...)                      (x, pool_param, argmax))
sizes that the stride      an AssertionError in im2col, also    what doesn't fill a window isn't read, under
doesn't divide             for pooling                          every name
x edited in place between  fast: dw is by the columns of the x  dw is by the x that is there then, as under
forward and backward       that forward saw                     naive
equal maxima               reshape (and fast, where windows     the same; naive is first in row-major order,
                           tile): share the gradient equally;   which is what argmax gives there
                           im2col: the first
NaN in a window            reshape divides by the number of     the maximum; the gradient goes to it under
                           maxima, of which it finds none:      naive and im2col, nowhere under reshape
                           all its places get NaN
dtypes                     naive: float64, whatever comes in;   NumPy's promotion: float32 stays float32, and
                           fast: NumPy's promotion              gradients are dout's with x's or w's. A
                                                                convolution of integers alone is a TypeError
                                                                (x.astype(float))
padding in im2col_indices  `padding=1` where not given          the same
=========================  ===================================  =============================================

`conv_bn_relu_*` isn't here: its middle is the student's own batch normalisation.
"""

from typing import Any

import numpy as np

from gpuconv.backends.dispatch import array_module, backend_of, check_rank, check_shape
from gpuconv.columns import col2im, im2col
from gpuconv.compat.terms import errors_say, numbers, unpacked
from gpuconv.conv import conv2d, conv2d_backward
from gpuconv.geometry import integer, shape, sliding_window
from gpuconv.pool import max_pool2d, max_pool2d_backward

__all__ = [
    "col2im_indices",
    "conv_backward_fast",
    "conv_backward_im2col",
    "conv_backward_naive",
    "conv_backward_strides",
    "conv_forward_fast",
    "conv_forward_im2col",
    "conv_forward_naive",
    "conv_forward_strides",
    "conv_relu_backward",
    "conv_relu_forward",
    "conv_relu_pool_backward",
    "conv_relu_pool_forward",
    "im2col_indices",
    "max_pool_backward_fast",
    "max_pool_backward_im2col",
    "max_pool_backward_naive",
    "max_pool_backward_reshape",
    "max_pool_forward_fast",
    "max_pool_forward_im2col",
    "max_pool_forward_naive",
    "max_pool_forward_reshape",
]

Array = Any
Cache = tuple[Any, ...]

_in_its_terms = errors_say(y="out", dy="dout", kernel_size="window")
_columns = errors_say(kernel_size="field")


@_in_its_terms
def conv_forward_fast(x: Array, w: Array, b: Array, conv_param: dict[str, int]) -> tuple[Array, Cache]:
    """Convolve images: `gpuconv.conv2d`. Also `conv_forward_naive`, `_im2col` and `_strides`.

    Parameters
    ----------
    x : array [N, C, H, W]
    w : array [F, C, HH, WW]
    b : array [F]
    conv_param : {"stride": int, "pad": int}
        Step of the window, and zeros on each side of the image.

    Returns
    -------
    out : array [N, F, 1 + (H + 2*pad - HH) // stride, 1 + (W + 2*pad - WW) // stride]
        Of the dtype that NumPy promotes x, w and b to.
    cache : (x, w, b, conv_param)
        For `conv_backward_fast`.

    Raises
    ------
    TypeError, ValueError
        For what isn't an array or an integer, a key that is missing, and shapes that don't fit.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b = np.ones((1, 3, 5, 5)), np.ones((4, 3, 3, 3)), np.zeros(4)
    >>> out, cache = conv_forward_fast(x, w, b, {"stride": 2, "pad": 1})
    >>> out[0, 0]
    array([[12., 18., 12.],
           [18., 27., 18.],
           [12., 18., 12.]])
    >>> dx, dw, db = conv_backward_fast(np.ones_like(out), cache)
    >>> db
    array([9., 9., 9., 9.])
    """
    stride, pad = _conv_numbers("conv_forward_fast", conv_param)
    return conv2d(x, w, b, stride=stride, padding=pad), (x, w, b, conv_param)


@_in_its_terms
def conv_backward_fast(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Return the gradients of a convolution. Also `conv_backward_naive`, `_im2col` and `_strides`.

    Parameters
    ----------
    dout : array [N, F, H', W']
        Gradient of the loss by out.
    cache : tuple
        What the forward function returned with out; a longer one that begins so will do.

    Returns
    -------
    dx, dw, db : array
        Shaped like x, w and b; sums over the batch.

    Raises
    ------
    TypeError, ValueError
        Where cache is no such tuple, or dout isn't shaped like out.
    """
    op = "conv_backward_fast"
    x, w, _, conv_param = unpacked(op, cache, "conv_forward_fast", 4)
    stride, pad = _conv_numbers(op, conv_param)
    dx, dw, db = conv2d_backward(dout, x, w, stride=stride, padding=pad)
    return dx, dw, db


conv_forward_naive = conv_forward_im2col = conv_forward_strides = conv_forward_fast
conv_backward_naive = conv_backward_im2col = conv_backward_strides = conv_backward_fast


@_in_its_terms
def max_pool_forward_naive(x: Array, pool_param: dict[str, int]) -> tuple[Array, Cache]:
    """Take the maximum of every window: `gpuconv.max_pool2d`. Also `max_pool_forward_im2col`.

    Parameters
    ----------
    x : array [N, C, H, W]
    pool_param : {"pool_height": int, "pool_width": int, "stride": int}

    Returns
    -------
    out : array [N, C, 1 + (H - pool_height) // stride, 1 + (W - pool_width) // stride]
        Of x's dtype.
    cache : (x, pool_param, argmax)
        For `max_pool_backward_naive`.

    Raises
    ------
    TypeError, ValueError
        For what isn't an array or an integer, a key that is missing, and a window larger than x.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[[[1.0, 7.0, 0.0, 0.0], [7.0, 4.0, 0.0, 9.0]]]])
    >>> out, cache = max_pool_forward_naive(x, {"pool_height": 2, "pool_width": 2, "stride": 2})
    >>> out
    array([[[[7., 9.]]]])
    >>> max_pool_backward_naive(np.ones_like(out), cache)
    array([[[[0., 1., 0., 0.],
             [0., 0., 0., 1.]]]])
    """
    height, width, stride = _pool_numbers("max_pool_forward_naive", pool_param)
    out, argmax = max_pool2d(x, (height, width), stride)
    return out, (x, pool_param, argmax)


@_in_its_terms
def max_pool_backward_naive(dout: Array, cache: Cache) -> Array:
    """Send each gradient to its window's first maximum. Also `max_pool_backward_im2col`.

    Parameters
    ----------
    dout : array [N, C, H', W']
        Gradient of the loss by out.
    cache : tuple
        What `max_pool_forward_naive` returned with out.

    Returns
    -------
    dx : array [N, C, H, W]
        Of dout's dtype.

    Raises
    ------
    TypeError, ValueError
        Where cache is no such tuple, or dout isn't shaped like out.
    """
    op = "max_pool_backward_naive"
    x, pool_param, argmax = unpacked(op, cache, "max_pool_forward_naive", 3)
    height, width, stride = _pool_numbers(op, pool_param)
    return max_pool2d_backward(dout, argmax, x.shape, (height, width), stride)


max_pool_forward_im2col = max_pool_forward_naive
max_pool_backward_im2col = max_pool_backward_naive


@_in_its_terms
def max_pool_forward_reshape(x: Array, pool_param: dict[str, int]) -> tuple[Array, Cache]:
    """Take the maximum of every window, where square windows tile the image.

    Parameters
    ----------
    x, pool_param
        As in `max_pool_forward_naive`; pool_height, pool_width and stride are one number, which divides H
        and W.

    Returns
    -------
    out : array [N, C, H / stride, W / stride]
    cache : (x, x_reshaped, out)
        x_reshaped is x as [N, C, H', stride, W', stride].

    Raises
    ------
    TypeError, ValueError
        As `max_pool_forward_naive`; and for windows that don't tile x.
    """
    op = "max_pool_forward_reshape"
    numbers_given = _pool_numbers(op, pool_param)
    backend_of(op, x=x)
    check_rank(op, "x", x, "[N, C, H, W]")
    if not _tiles(x, *numbers_given):
        raise ValueError(
            f"{op}: pool_height, pool_width and stride must be equal and divide H and W, but they are "
            f"{numbers_given}, and x has shape {x.shape}; max_pool_forward_fast takes any"
        )
    k = numbers_given[0]
    out = max_pool2d(x, k, return_argmax=False)
    n, c, h, w = x.shape
    return out, (x, x.reshape(n, c, h // k, k, w // k, k), out)


@_in_its_terms
def max_pool_backward_reshape(dout: Array, cache: Cache) -> Array:
    """Share each gradient equally among its window's maxima, as the assignment does in this case.

    Parameters
    ----------
    dout : array [N, C, H', W']
        Gradient of the loss by out.
    cache : tuple
        What `max_pool_forward_reshape` returned with out.

    Returns
    -------
    dx : array [N, C, H, W]
        Of dout's dtype.

    Raises
    ------
    TypeError, ValueError
        Where cache is no such tuple, or dout isn't shaped like out.

    Examples
    --------
    >>> import numpy as np
    >>> pool_param = {"pool_height": 2, "pool_width": 2, "stride": 2}
    >>> out, cache = max_pool_forward_reshape(np.array([[[[7.0, 7.0], [0.0, 4.0]]]]), pool_param)
    >>> max_pool_backward_reshape(np.ones_like(out), cache)
    array([[[[0.5, 0.5],
             [0. , 0. ]]]])
    """
    op = "max_pool_backward_reshape"
    x, x_reshaped, out = unpacked(op, cache, "max_pool_forward_reshape", 3)
    backend_of(op, dout=dout, x=x, x_reshaped=x_reshaped, out=out)
    check_shape(op, "dout", dout.shape, out.shape, "as the gradient of out")
    is_maximum = x_reshaped == out[:, :, :, None, :, None]
    # float16 counts no further than 2048
    among = is_maximum.sum(axis=(3, 5), keepdims=True, dtype=np.promote_types(dout.dtype, np.float32))
    shares = dout[:, :, :, None, :, None] / array_module(x).maximum(among, 1)  # none of them equals a NaN
    shares = shares.astype(np.result_type(dout.dtype, np.float16), copy=False)
    return (is_maximum * shares).reshape(x.shape)


def max_pool_forward_fast(x: Array, pool_param: dict[str, int]) -> tuple[Array, Cache]:
    """Take the maximum of every window, with the ties of "reshape" where windows tile x, else of "im2col".

    Parameters
    ----------
    x, pool_param
        As in `max_pool_forward_naive`.

    Returns
    -------
    out : array [N, C, H', W']
    cache : ("reshape" or "im2col", cache of that function)

    Raises
    ------
    TypeError, ValueError
        As `max_pool_forward_naive`.
    """
    if getattr(x, "ndim", 0) == 4 and _tiles(x, *_pool_numbers("max_pool_forward_fast", pool_param)):
        out, cache = max_pool_forward_reshape(x, pool_param)
        return out, ("reshape", cache)
    out, cache = max_pool_forward_im2col(x, pool_param)
    return out, ("im2col", cache)


def max_pool_backward_fast(dout: Array, cache: Cache) -> Array:
    """Return the gradient of `max_pool_forward_fast`, by the function that its cache names.

    Parameters
    ----------
    dout : array [N, C, H', W']
        Gradient of the loss by out.
    cache : tuple
        What `max_pool_forward_fast` returned with out.

    Returns
    -------
    dx : array [N, C, H, W]
        Of dout's dtype.

    Raises
    ------
    TypeError, ValueError
        Where cache is no such tuple, or dout isn't shaped like out.
    """
    op = "max_pool_backward_fast"
    method, its_cache = unpacked(op, cache, "max_pool_forward_fast", 2)
    if not isinstance(method, str) or method not in ("reshape", "im2col"):
        raise TypeError(
            f'{op}: cache must begin with "reshape" or "im2col", as max_pool_forward_fast made it'
        )
    backward = max_pool_backward_reshape if method == "reshape" else max_pool_backward_im2col
    return backward(dout, its_cache)


def conv_relu_forward(x: Array, w: Array, b: Array, conv_param: dict[str, int]) -> tuple[Array, Cache]:
    """Convolve, and set what is negative to zero.

    Parameters
    ----------
    x, w, b, conv_param
        As in `conv_forward_fast`.

    Returns
    -------
    out : array [N, F, H', W']
    cache : (conv_cache, relu_cache)
        The convolution's cache and its result.
    """
    a, conv_cache = conv_forward_fast(x, w, b, conv_param)
    return array_module(a).maximum(a, 0), (conv_cache, a)


def conv_relu_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Return the gradients dx, dw and db of `conv_relu_forward`.

    Parameters
    ----------
    dout : array [N, F, H', W']
        Gradient of the loss by out.
    cache : tuple
        What `conv_relu_forward` returned with out.
    """
    op = "conv_relu_backward"
    conv_cache, a = unpacked(op, cache, "conv_relu_forward", 2)
    backend_of(op, dout=dout, a=a)
    check_shape(op, "dout", dout.shape, a.shape, "as the gradient of out")
    return conv_backward_fast(dout * (a > 0), conv_cache)


def conv_relu_pool_forward(
    x: Array, w: Array, b: Array, conv_param: dict[str, int], pool_param: dict[str, int]
) -> tuple[Array, Cache]:
    """Convolve, set what is negative to zero, and take the maximum of every window.

    Parameters
    ----------
    x, w, b, conv_param
        As in `conv_forward_fast`.
    pool_param
        As in `max_pool_forward_fast`.

    Returns
    -------
    out : array [N, F, H', W']
    cache : (conv_cache, relu_cache, pool_cache)

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b = np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4)
    >>> pool_param = {"pool_height": 2, "pool_width": 2, "stride": 2}
    >>> out, cache = conv_relu_pool_forward(x, w, b, {"stride": 1, "pad": 1}, pool_param)
    >>> dx, dw, db = conv_relu_pool_backward(np.ones_like(out), cache)
    >>> out.shape, dw.shape
    ((2, 4, 4, 4), (4, 3, 3, 3))
    """
    s, (conv_cache, a) = conv_relu_forward(x, w, b, conv_param)
    out, pool_cache = max_pool_forward_fast(s, pool_param)
    return out, (conv_cache, a, pool_cache)


def conv_relu_pool_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Return the gradients dx, dw and db of `conv_relu_pool_forward`.

    Parameters
    ----------
    dout : array [N, F, H', W']
        Gradient of the loss by out.
    cache : tuple
        What `conv_relu_pool_forward` returned with out.
    """
    conv_cache, a, pool_cache = unpacked("conv_relu_pool_backward", cache, "conv_relu_pool_forward", 3)
    return conv_relu_backward(max_pool_backward_fast(dout, pool_cache), (conv_cache, a))


@_columns
def im2col_indices(x: Array, field_height: int, field_width: int, padding: int = 1, stride: int = 1) -> Array:
    """Lay out what each place of a convolution reads as one column: `gpuconv.im2col`, images side by side.

    Parameters
    ----------
    x : array [N, C, H, W]
        Any numeric dtype.
    field_height, field_width, padding, stride : int

    Returns
    -------
    cols : array [C*field_height*field_width, H'*W'*N]
        Column ``(p*W' + q)*N + n`` is what place (p, q) of image n reads. Of x's dtype.

    Raises
    ------
    TypeError, ValueError
        As `gpuconv.im2col`.

    Examples
    --------
    >>> import numpy as np
    >>> im2col_indices(np.arange(8).reshape(2, 1, 2, 2), 1, 2, padding=0)
    array([[0, 4, 2, 6],
           [1, 5, 3, 7]])
    """
    op = "im2col_indices"
    kernel, padding = _field(op, field_height, field_width, padding)
    backend_of(op, x=x)
    check_rank(op, "x", x, "[N, C, H, W]")
    cols = im2col(x, kernel, stride=stride, padding=padding)
    return cols.transpose(1, 2, 0).reshape(cols.shape[1], cols.shape[0] * cols.shape[2])


@_columns
def col2im_indices(
    cols: Array,
    x_shape: tuple[int, ...],
    field_height: int = 3,
    field_width: int = 3,
    padding: int = 1,
    stride: int = 1,
) -> Array:
    """Add every column entry to the place `im2col_indices` copied it from: `gpuconv.col2im`.

    Parameters
    ----------
    cols : array [C*field_height*field_width, H'*W'*N]
    x_shape : 4 ints
        (N, C, H, W).
    field_height, field_width, padding, stride : int

    Returns
    -------
    x : array [N, C, H, W]
        Of the dtype of cols.

    Raises
    ------
    TypeError, ValueError
        As `gpuconv.col2im`; and where cols isn't shaped as `im2col_indices` shapes it.

    Examples
    --------
    >>> import numpy as np
    >>> x_shape = (2, 1, 3, 3)
    >>> cols = im2col_indices(np.ones(x_shape), 2, 2, padding=0)
    >>> col2im_indices(cols, x_shape, 2, 2, padding=0)[1, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    op = "col2im_indices"
    kernel, padding = _field(op, field_height, field_width, padding)
    n, c, *sizes = shape(op, "x_shape", x_shape, 4)
    window = sliding_window(op, tuple(sizes), kernel, stride, padding, kernel_name="field")
    rows = c * window.taps
    backend_of(op, cols=cols)
    check_shape(op, "cols", cols.shape, (rows, window.places * n), f"for x_shape {(n, c, *sizes)}")
    col = cols.reshape(rows, window.places, n).transpose(2, 0, 1)
    return col2im(col, (n, c, *sizes), kernel, stride=stride, padding=padding)


def _conv_numbers(op: str, conv_param: dict[str, int]) -> tuple[int, ...]:
    return numbers(op, "conv_param", conv_param, stride=1, pad=0)


def _pool_numbers(op: str, pool_param: dict[str, int]) -> tuple[int, ...]:
    return numbers(op, "pool_param", pool_param, pool_height=1, pool_width=1, stride=1)


def _tiles(x: Array, height: int, width: int, stride: int) -> bool:
    """Tell whether square windows cover x without gap or overlap."""
    h, w = x.shape[2:]
    return height == width == stride and h % height == 0 == w % width


def _field(op: str, height: int, width: int, padding: int) -> tuple[tuple[int, int], int]:
    kernel = (integer(op, "field_height", height, 1), integer(op, "field_width", width, 1))
    return kernel, integer(op, "padding", padding, 0)
