"""Deep Learning from Scratch: `Convolution`, `Pooling`, `im2col` and `col2im` of the book's `common`.

``from gpuconv.compat.dlfs import Convolution, Pooling`` in place of `common.layers` (and `im2col, col2im` in
place of `common.util`) changes nothing else: NCHW images, kernels (FN, C, FH, FW), a bias (FN,), gradients
that are sums. The layer holds the caller's own W and b, so the optimiser's ``params[key] -= ...``, the
numeric gradient's edits in place and `load_params`' ``layer.W = ...`` are all seen. CuPy arrays do, too.

=========================  ===================================  =============================================
What                       The book                             Here
=========================  ===================================  =============================================
.W .b .stride .pad .x .dW  attributes                           the same; dW and db are new arrays each time
.db
.col .col_W                arrays kept from forward to          computed when read: nothing keeps the columns,
                           backward                             which are FH*FW times as large as x
.arg_max                   int64, in the order N, OH, OW, C     the same, computed from a mask of one byte a
                                                                window when read
backward after W was       dx by the W that forward saw         the same
assigned anew
x edited in place between  dW by the x that forward saw, of     dW by the x that is there then
forward and backward       which the columns are a copy
backward without forward   AttributeError or TypeError          RuntimeError that says so
Pooling with pad > 0       ValueError (the output's size        works; padding is never the maximum (in the
                           leaves pad out)                      book's columns it is a zero like others)
equal maxima               the first in row-major order         the same
dtypes                     float64, whatever comes in           NumPy's promotion: float32 stays float32,
                                                                im2col keeps the dtype. Integers alone are a
                                                                TypeError in Convolution (x.astype(float))
=========================  ===================================  =============================================

`Pooling` steps by 2 where not told otherwise, as in the book's repository today; once it was 1.
"""

from typing import Any

from gpuconv import columns
from gpuconv.backends.dispatch import backend_of, check_rank, check_shape
from gpuconv.compat.terms import errors_say
from gpuconv.conv import conv2d, conv2d_backward
from gpuconv.geometry import integer, shape, sliding_window
from gpuconv.pool import max_pool2d, max_pool2d_backward

__all__ = ["Convolution", "Pooling", "col2im", "im2col"]

Array = Any

_of_convolution = errors_say(w="W", dy="dout", y="out")
_of_pooling = errors_say(dy="dout", y="out", kernel_size="window")
_of_columns = errors_say(x="input_data", x_shape="input_shape", kernel_size="filter")


class Convolution:
    """A convolution that holds the caller's weights and bias, as `gpuconv.conv2d` computes it.

    Parameters
    ----------
    W : array [FN, C, FH, FW]
        Kernels; the array itself is held, not a copy.
    b : array [FN]
        Bias; held as well.
    stride, pad : int
        Step of the window, and zeros on each side of the image.

    Attributes
    ----------
    W, b, stride, pad
        As given; what is assigned anew counts from the next `forward` on.
    x : array or None
        What `forward` was given.
    dW, db : array or None
        Gradients, which `backward` leaves: sums over the batch.

    Examples
    --------
    >>> import numpy as np
    >>> W, b = np.ones((4, 3, 3, 3)), np.zeros(4)
    >>> layer = Convolution(W, b, stride=1, pad=1)
    >>> out = layer.forward(np.ones((2, 3, 8, 8)))
    >>> dx = layer.backward(np.ones_like(out))
    >>> out.shape, dx.shape, layer.dW.shape, layer.db
    ((2, 4, 8, 8), (2, 3, 8, 8), (4, 3, 3, 3), array([128., 128., 128., 128.]))
    >>> W -= 1  # as an optimiser does
    >>> layer.forward(np.ones((2, 3, 8, 8))).max()
    np.float64(0.0)
    """

    def __init__(self, W: Array, b: Array, stride: int = 1, pad: int = 0) -> None:
        self.W = W
        self.b = b
        self.stride = stride
        self.pad = pad
        self.x: Array | None = None
        self.dW: Array | None = None
        self.db: Array | None = None
        self._seen: Array | None = None

    @_of_convolution
    def forward(self, x: Array) -> Array:
        """Return the convolution of x [N, C, H, W] with W, plus b.

        Raises
        ------
        TypeError, ValueError
            For what isn't an array or an integer, and for shapes that don't fit.
        """
        out = conv2d(x, self.W, self.b, **self._numbers("Convolution.forward"))
        self.x, self._seen = x, self.W
        return out

    @_of_convolution
    def backward(self, dout: Array) -> Array:
        """Leave the gradients in dW and db, and return dx, all three for the last `forward`.

        Raises
        ------
        RuntimeError
            Where there was no `forward` yet.
        TypeError, ValueError
            Where dout isn't an array shaped like out.
        """
        op = "Convolution.backward"
        if self.x is None:
            raise _no_forward(op)
        dx, self.dW, self.db = conv2d_backward(dout, self.x, self._seen, **self._numbers(op))
        return dx

    @property
    def col(self) -> Array | None:
        """The columns of the last `forward`'s x, computed now; None before."""
        if self._seen is None:
            return None
        fh, fw = self._seen.shape[2:]
        return im2col(self.x, fh, fw, self.stride, self.pad)

    @property
    def col_W(self) -> Array | None:
        """The kernels as `forward` saw them, one a column; None before."""
        return None if self._seen is None else self._seen.reshape(self._seen.shape[0], -1).T

    def _numbers(self, op: str) -> dict[str, Any]:
        return {"stride": integer(op, "stride", self.stride, 1), "padding": integer(op, "pad", self.pad, 0)}


class Pooling:
    """Max pooling, as `gpuconv.max_pool2d` computes it: the first of equal maxima counts.

    Parameters
    ----------
    pool_h, pool_w : int
        The window.
    stride : int
        Its step.
    pad : int
        Places around the image, which are never the maximum.

    Attributes
    ----------
    pool_h, pool_w, stride, pad
        As given.
    x : array or None
        What `forward` was given.

    Examples
    --------
    >>> import numpy as np
    >>> layer = Pooling(2, 2, stride=2)
    >>> layer.forward(np.array([[[[1.0, 7.0, 0.0, 0.0], [7.0, 4.0, 0.0, 9.0]]]]))
    array([[[[7., 9.]]]])
    >>> layer.backward(np.ones((1, 1, 1, 2)))
    array([[[[0., 1., 0., 0.],
             [0., 0., 0., 1.]]]])
    """

    def __init__(self, pool_h: int, pool_w: int, stride: int = 2, pad: int = 0) -> None:
        self.pool_h = pool_h
        self.pool_w = pool_w
        self.stride = stride
        self.pad = pad
        self.x: Array | None = None
        self._mask: Array | None = None

    @_of_pooling
    def forward(self, x: Array) -> Array:
        """Return the maximum of every window of x [N, C, H, W].

        Raises
        ------
        TypeError, ValueError
            For what isn't an array or an integer, for a window larger than x, or with nothing but padding.
        """
        out, mask = max_pool2d(x, **self._numbers("Pooling.forward"))
        self.x, self._mask = x, mask
        return out

    @_of_pooling
    def backward(self, dout: Array) -> Array:
        """Return dx for the last `forward`: each gradient at its window's maximum.

        Raises
        ------
        RuntimeError
            Where there was no `forward` yet.
        TypeError, ValueError
            Where dout isn't an array shaped like out.
        """
        op = "Pooling.backward"
        if self.x is None:
            raise _no_forward(op)
        return max_pool2d_backward(dout, self._mask, self.x.shape, **self._numbers(op))

    @property
    def arg_max(self) -> Array | None:
        """Place of each maximum in its window, int64, in the order N, OH, OW, C; None before `forward`."""
        return None if self._mask is None else self._mask.transpose(0, 2, 3, 1).reshape(-1).astype("int64")

    def _numbers(self, op: str) -> dict[str, Any]:
        return {
            "kernel_size": (integer(op, "pool_h", self.pool_h, 1), integer(op, "pool_w", self.pool_w, 1)),
            "stride": integer(op, "stride", self.stride, 1),
            "padding": integer(op, "pad", self.pad, 0),
        }


@_of_columns
def im2col(input_data: Array, filter_h: int, filter_w: int, stride: int = 1, pad: int = 0) -> Array:
    """Lay out what each place of a convolution reads as one row: `gpuconv.im2col`, turned.

    Parameters
    ----------
    input_data : array [N, C, H, W]
        Any numeric dtype.
    filter_h, filter_w, stride, pad : int

    Returns
    -------
    col : array [N*OH*OW, C*filter_h*filter_w]
        Of the dtype of input_data.

    Raises
    ------
    TypeError, ValueError
        As `gpuconv.im2col`.

    Examples
    --------
    >>> import numpy as np
    >>> im2col(np.arange(6).reshape(1, 1, 2, 3), 2, 2)
    array([[0, 1, 3, 4],
           [1, 2, 4, 5]])
    """
    kernel, pad = _filter("im2col", filter_h, filter_w, pad)
    backend_of("im2col", x=input_data)
    check_rank("im2col", "x", input_data, "[N, C, H, W]")
    col = columns.im2col(input_data, kernel, stride=stride, padding=pad)
    n, rows, places = col.shape
    return col.transpose(0, 2, 1).reshape(n * places, rows)


@_of_columns
def col2im(
    col: Array, input_shape: tuple[int, ...], filter_h: int, filter_w: int, stride: int = 1, pad: int = 0
) -> Array:
    """Add every entry to the place that `im2col` copied it from: its adjoint, not its inverse.

    A place that k windows read gets the sum of k entries, because it had k ways to move the loss.

    Parameters
    ----------
    col : array [N*OH*OW, C*filter_h*filter_w]
    input_shape : 4 ints
        (N, C, H, W).
    filter_h, filter_w, stride, pad : int

    Returns
    -------
    x : array [N, C, H, W]
        Of the dtype of col.

    Raises
    ------
    TypeError, ValueError
        As `gpuconv.col2im`; and where col isn't shaped as `im2col` shapes it.

    Examples
    --------
    >>> import numpy as np
    >>> col2im(im2col(np.ones((1, 1, 3, 3)), 2, 2), (1, 1, 3, 3), 2, 2)[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    op = "col2im"
    kernel, pad = _filter(op, filter_h, filter_w, pad)
    n, c, *sizes = shape(op, "x_shape", input_shape, 4)
    window = sliding_window(op, tuple(sizes), kernel, stride, pad, kernel_name="filter")
    rows = c * window.taps
    backend_of(op, col=col)
    check_shape(op, "col", col.shape, (n * window.places, rows), f"for x_shape {(n, c, *sizes)}")
    col = col.reshape(n, window.places, rows).transpose(0, 2, 1)
    return columns.col2im(col, (n, c, *sizes), kernel, stride=stride, padding=pad)


def _filter(op: str, height: int, width: int, pad: int) -> tuple[tuple[int, int], int]:
    kernel = (integer(op, "filter_h", height, 1), integer(op, "filter_w", width, 1))
    return kernel, integer(op, "pad", pad, 0)


def _no_forward(op: str) -> RuntimeError:
    return RuntimeError(f"{op}: call forward first; its input is needed for the gradient")
