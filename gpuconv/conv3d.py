"""Convolution over volumes and its gradients: `gpuconv.conv2d`'s family over three spatial axes."""

from collections.abc import Collection

from gpuconv.conv import Array, ConvGrads, Outs, bias_grad, convolve, gradients, input_grad, weight_grad
from gpuconv.entry import public
from gpuconv.geometry import Ints, Padding


@public
def conv3d(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    channels_last: bool = False,
    flip: bool = False,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """Convolve a batch of volumes with a bank of kernels.

    ``y[n, f, o] = b[f] + sum_{c, j} w[f, c, j] * x[n, c, o*s + j*d - before]``, with o and j over three axes
    and over the channels c of f's group. The kernel isn't flipped unless asked; float16 is summed in float32.

    Parameters
    ----------
    x : array [N, C_in, D, H, W]
        Volumes; any strides, never written to. ``channels_last``: [N, D, H, W, C_in].
    w : array [C_out, C_in/groups, kd, kh, kw]
        Kernels. ``channels_last``: [kd, kh, kw, C_in/groups, C_out].
    b : array [C_out], optional
        Bias.
    stride, padding, dilation, groups, channels_last, flip
        As in `conv2d`, with three spatial axes: an int or one per axis.
    activation : "relu", optional
        What y goes through, as in `conv2d`.
    out : array, optional
        Where to write y, as in `conv2d`.

    Returns
    -------
    y : array [N, C_out, OD, OH, OW] ([N, OD, OH, OW, C_out])
        Of the dtype that NumPy promotes x, w and b to: float16 to float64, complex64 or complex128.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.ones((1, 1, 4, 4, 4)), np.ones((1, 1, 3, 3, 3))
    >>> gpuconv.conv3d(x, w)[0, 0, 0]
    array([[27., 27.],
           [27., 27.]])
    >>> gpuconv.conv3d(x, w, stride=2, padding="same").shape
    (1, 1, 2, 2, 2)
    """
    options = (stride, padding, dilation, groups, channels_last, flip, activation, out)
    return convolve("conv3d", 3, x, w, b, *options)


@public
def conv3d_backward(
    dy: Array,
    x: Array,
    w: Array,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    channels_last: bool = False,
    needs: Collection[str] = ("x", "w", "b"),
    flip: bool = False,
    activation: str | None = None,
    y: Array | None = None,
    out: Outs = None,
) -> ConvGrads:
    """Return the gradients of `conv3d` by its three inputs, summed over the batch.

    Parameters
    ----------
    dy : array [N, C_out, OD, OH, OW]
        Gradient of the loss by y. ``channels_last``: [N, OD, OH, OW, C_out].
    x, w, stride, padding, dilation, groups, channels_last, flip
        As given to `conv3d`.
    needs : tuple of "x", "w", "b"
        Which gradients to compute.
    activation : "relu", optional
        As given to `conv3d`.
    y : array [N, C_out, OD, OH, OW], optional
        What `conv3d` returned; with an activation, and only then.
    out : (array, array, array), optional
        Where to write dx, dw and db, as in `conv2d`; None in place of one makes a new array.

    Returns
    -------
    ConvGrads
        Named tuple (dx, dw, db), shaped like x, w and b; None for what was not asked for.

    Raises
    ------
    TypeError, ValueError
        As `conv2d_backward`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.ones((1, 1, 3, 3, 3)), np.ones((1, 1, 2, 2, 2))
    >>> dx, dw, db = gpuconv.conv3d_backward(np.ones((1, 1, 2, 2, 2)), x, w)
    >>> dx[0, 0, 1]
    array([[2., 4., 2.],
           [4., 8., 4.],
           [2., 4., 2.]])
    >>> dw.ravel(), db
    (array([8., 8., 8., 8., 8., 8., 8., 8.]), array([8.]))
    """
    options = (stride, padding, dilation, groups, channels_last, needs, flip, activation, y, out)
    return gradients("conv3d_backward", 3, dy, x, w, *options)


@public
def conv3d_input_grad(
    dy: Array,
    w: Array,
    x_shape: tuple[int, ...],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    channels_last: bool = False,
    flip: bool = False,
    out: Array | None = None,
) -> Array:
    """Return the gradient of `conv3d` by x, for an x of shape `x_shape`; as `conv2d_input_grad`.

    Parameters
    ----------
    dy : array [N, C_out, OD, OH, OW]
        Gradient of the loss by y. ``channels_last``: [N, OD, OH, OW, C_out].
    w, stride, padding, dilation, groups, channels_last, flip
        As given to `conv3d`.
    x_shape : 5 ints
        Shape of x: with a stride, several sizes of x give the same dy.
    out : array, optional
        Where to write dx, as in `conv2d`.

    Returns
    -------
    dx : array of shape x_shape
        Of the dtype that dy and w promote to.

    Raises
    ------
    TypeError, ValueError
        As `conv2d_input_grad`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, w = np.ones((1, 1, 1, 1, 2)), np.array([1.0, 10.0]).reshape(1, 1, 1, 1, 2)
    >>> gpuconv.conv3d_input_grad(dy, w, (1, 1, 1, 1, 3)).ravel()
    array([ 1., 11., 10.])
    """
    op = "conv3d_input_grad"
    return input_grad(op, 3, dy, w, x_shape, stride, padding, dilation, groups, channels_last, flip, out)


@public
def conv3d_weight_grad(
    dy: Array,
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    channels_last: bool = False,
    flip: bool = False,
    out: Array | None = None,
) -> Array:
    """Return the gradient of `conv3d` by w, for kernels of `kernel_size`; as `conv2d_weight_grad`.

    Parameters
    ----------
    dy : array [N, C_out, OD, OH, OW]
        Gradient of the loss by y. ``channels_last``: [N, OD, OH, OW, C_out].
    x, stride, padding, dilation, groups, channels_last, flip
        As given to `conv3d`.
    kernel_size : int or (int, int, int)
        (kd, kh, kw): with a stride, several kernel sizes give the same dy.
    out : array, optional
        Where to write dw, as in `conv2d`.

    Returns
    -------
    dw : array [C_out, C_in/groups, kd, kh, kw] ([kd, kh, kw, C_in/groups, C_out])
        Of the dtype that dy and x promote to.

    Raises
    ------
    TypeError, ValueError
        As `conv2d_weight_grad`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x = np.arange(4.0).reshape(1, 1, 1, 1, 4)
    >>> gpuconv.conv3d_weight_grad(np.ones((1, 1, 1, 1, 3)), x, (1, 1, 2)).ravel()
    array([3., 6.])
    """
    op = "conv3d_weight_grad"
    return weight_grad(op, 3, dy, x, kernel_size, stride, padding, dilation, groups, channels_last, flip, out)


@public
def conv3d_bias_grad(dy: Array, *, channels_last: bool = False, out: Array | None = None) -> Array:
    """Return the gradient of `conv3d` by b: dy summed over images and places.

    Parameters
    ----------
    dy : array [N, C_out, OD, OH, OW]
        Gradient of the loss by y. ``channels_last``: [N, OD, OH, OW, C_out].
    channels_last : bool
        The layout of dy.
    out : array, optional
        Where to write db, as in `conv2d`.

    Returns
    -------
    db : array [C_out]
        Of dy's dtype; float16 is summed in float32.

    Raises
    ------
    TypeError, ValueError
        As `conv2d_bias_grad`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.conv3d_bias_grad(np.ones((2, 3, 2, 2, 2)))
    array([16., 16., 16.])
    """
    return bias_grad("conv3d_bias_grad", 3, dy, channels_last, out)
