"""Convolution over signals and its gradients: `gpuconv.conv2d`'s family over one spatial axis."""

from collections.abc import Collection

from gpuconv.conv import Array, ConvGrads, Outs, bias_grad, convolve, gradients, input_grad, weight_grad
from gpuconv.entry import public
from gpuconv.geometry import Ints, Padding


@public
def conv1d(
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
    """Convolve a batch of signals with a bank of kernels.

    ``y[n, f, p] = b[f] + sum_{c, j} w[f, c, j] * x[n, c, p*s + j*d - before]``,
    over the channels c of f's group. The kernel isn't flipped unless asked; float16 is summed in float32.

    Parameters
    ----------
    x : array [N, C_in, L]
        Signals; any strides, never written to. ``channels_last``: [N, L, C_in].
    w : array [C_out, C_in/groups, k]
        Kernels. ``channels_last``: [k, C_in/groups, C_out].
    b : array [C_out], optional
        Bias.
    stride, padding, dilation, groups, channels_last, flip
        As in `conv2d`, with one spatial axis: padding also ``((before, after),)``.
    activation : "relu", optional
        What y goes through, as in `conv2d`.
    out : array, optional
        Where to write y, as in `conv2d`.

    Returns
    -------
    y : array [N, C_out, OL] ([N, OL, C_out])
        Of the dtype that NumPy promotes x, w and b to: float16 to float64, complex64 or complex128.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x = np.array([1.0, 2.0, 4.0, 8.0]).reshape(1, 1, 4)
    >>> gpuconv.conv1d(x, np.array([[[-1.0, 1.0]]]))
    array([[[1., 2., 4.]]])
    """
    options = (stride, padding, dilation, groups, channels_last, flip, activation, out)
    return convolve("conv1d", 1, x, w, b, *options)


@public
def conv1d_backward(
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
    """Return the gradients of `conv1d` by its three inputs, summed over the batch.

    Parameters
    ----------
    dy : array [N, C_out, OL]
        Gradient of the loss by y. ``channels_last``: [N, OL, C_out].
    x, w, stride, padding, dilation, groups, channels_last, flip
        As given to `conv1d`.
    needs : tuple of "x", "w", "b"
        Which gradients to compute.
    activation : "relu", optional
        As given to `conv1d`.
    y : array [N, C_out, OL], optional
        What `conv1d` returned; with an activation, and only then.
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
    >>> x, w = np.array([[[1.0, 2.0, 4.0]]]), np.array([[[1.0, 10.0]]])
    >>> gpuconv.conv1d_backward(np.ones((1, 1, 2)), x, w)
    ConvGrads(dx=array([[[ 1., 11., 10.]]]), dw=array([[[3., 6.]]]), db=array([2.]))
    """
    options = (stride, padding, dilation, groups, channels_last, needs, flip, activation, y, out)
    return gradients("conv1d_backward", 1, dy, x, w, *options)


@public
def conv1d_input_grad(
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
    """Return the gradient of `conv1d` by x, for an x of shape `x_shape`; as `conv2d_input_grad`.

    Parameters
    ----------
    dy : array [N, C_out, OL]
        Gradient of the loss by y. ``channels_last``: [N, OL, C_out].
    w, stride, padding, dilation, groups, channels_last, flip
        As given to `conv1d`.
    x_shape : 3 ints
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
    >>> gpuconv.conv1d_input_grad(np.ones((1, 1, 2)), np.array([[[1.0, 10.0]]]), (1, 1, 3))
    array([[[ 1., 11., 10.]]])
    """
    op = "conv1d_input_grad"
    return input_grad(op, 1, dy, w, x_shape, stride, padding, dilation, groups, channels_last, flip, out)


@public
def conv1d_weight_grad(
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
    """Return the gradient of `conv1d` by w, for kernels of `kernel_size`; as `conv2d_weight_grad`.

    Parameters
    ----------
    dy : array [N, C_out, OL]
        Gradient of the loss by y. ``channels_last``: [N, OL, C_out].
    x, stride, padding, dilation, groups, channels_last, flip
        As given to `conv1d`.
    kernel_size : int or (int,)
        k: with a stride, several kernel sizes give the same dy.
    out : array, optional
        Where to write dw, as in `conv2d`.

    Returns
    -------
    dw : array [C_out, C_in/groups, k] ([k, C_in/groups, C_out])
        Of the dtype that dy and x promote to.

    Raises
    ------
    TypeError, ValueError
        As `conv2d_weight_grad`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.conv1d_weight_grad(np.ones((1, 1, 3)), np.arange(4.0).reshape(1, 1, 4), 2)
    array([[[3., 6.]]])
    """
    op = "conv1d_weight_grad"
    return weight_grad(op, 1, dy, x, kernel_size, stride, padding, dilation, groups, channels_last, flip, out)


@public
def conv1d_bias_grad(dy: Array, *, channels_last: bool = False, out: Array | None = None) -> Array:
    """Return the gradient of `conv1d` by b: dy summed over images and places.

    Parameters
    ----------
    dy : array [N, C_out, OL]
        Gradient of the loss by y. ``channels_last``: [N, OL, C_out].
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
    >>> gpuconv.conv1d_bias_grad(np.ones((2, 3, 4)))
    array([8., 8., 8.])
    """
    return bias_grad("conv1d_bias_grad", 1, dy, channels_last, out)
