"""Transposed convolution over one to three spatial axes, and its gradients.

It is the adjoint of convolution by construction: the same `Window`, read from its output back to its input,
and the same three primitives of the backends with their roles exchanged. With y = conv(x, w),

    conv_transpose(x, w)  is  conv's input gradient,  at dy = x,
    its dx                is  conv,                   of dy,
    its dw                is  conv's weight gradient, at dy = x, x = dy.

With complex arrays conv_transpose itself conjugates nothing, and its gradients conjugate w and x.
"""

from collections.abc import Collection
from typing import Any

from gpuconv import geometry
from gpuconv.backends.dispatch import backend_of, check_rank, check_shape, given, inexact_result, result
from gpuconv.conv import ConvGrads, Outs, collect, conjugate, flipped
from gpuconv.entry import public
from gpuconv.geometry import Ints, Padding, Window, array_shape

Array = Any


@public
def conv_transpose2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    channels_last: bool = False,
    flip: bool = False,
    out: Array | None = None,
) -> Array:
    """Spread every place of x over a window of the result: the transpose of `conv2d` with the same w [1]_.

    ``y[n, f, i] = b[f] + sum of w[c, f, j] * x[n, c, o]`` over all c of f's group, o, j with
    ``i = o*s + j*d - before``. It is also known as deconvolution, or fractionally strided convolution.

    Parameters
    ----------
    x : array [N, C_in, H, W]
        Images; any strides. ``channels_last``: [N, H, W, C_in].
    w : array [C_in, C_out/groups, kh, kw]
        Kernels: those of the convolution from y to x. ``channels_last``: [kh, kw, C_out/groups, C_in].
    b : array [C_out], optional
        Bias.
    stride : int or (int, int)
        Step of the windows in y: it enlarges.
    padding : int, (int, int), ((before, after), (before, after)), or "valid", "same", "same_lower"
        Places that are left out at the result's ends. "same" makes the result size * stride.
    output_padding : int or (int, int)
        Places beyond the last window's end, less than stride or dilation: several sizes of y give one of x.
    dilation, groups, channels_last
        As in `conv2d`.
    flip : bool
        Turn the kernels round along their spatial axes, as in `conv2d`: the transpose of the flipped one.
    out : array, optional
        Where to write y, as in `conv2d`.

    Returns
    -------
    y : array [N, C_out, OH, OW] ([N, OH, OW, C_out])
        Of the dtype that NumPy promotes x, w and b to: float16 to float64, complex64 or complex128.
        ``OH = (H-1)*stride - before - after + dilation*(kh-1) + output_padding + 1``.

    Raises
    ------
    TypeError
        For an argument that is not an array or not an integer, or for any other dtype.
    ValueError
        For shapes that don't fit each other, an output_padding too large, or a padding that leaves nothing.

    References
    ----------
    .. [1] V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", 2016.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.array([[[[1.0, 2.0]]]]), np.array([[[[1.0, 10.0, 100.0]]]])
    >>> gpuconv.conv_transpose2d(x, w, stride=(1, 2))
    array([[[[  1.,  10., 102.,  20., 200.]]]])
    """
    options = (stride, padding, output_padding, dilation, groups, channels_last)
    return _transpose("conv_transpose2d", 2, x, w, b, flip, out, *options)


@public
def conv_transpose2d_backward(
    dy: Array,
    x: Array,
    w: Array,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    channels_last: bool = False,
    needs: Collection[str] = ("x", "w", "b"),
    flip: bool = False,
    out: Outs = None,
) -> ConvGrads:
    """Return the gradients of `conv_transpose2d` by its three inputs, summed over the batch.

    ``dx = conv2d(dy, w)``, ``dw = conv2d_weight_grad(x, dy)``, and db sums dy; complex w and x are
    conjugated, as in `conv2d_backward`.

    Parameters
    ----------
    dy : array [N, C_out, OH, OW]
        Gradient of the loss by y. ``channels_last``: [N, OH, OW, C_out].
    x, w, stride, padding, output_padding, dilation, groups, channels_last, flip
        As given to `conv_transpose2d`.
    needs : tuple of "x", "w", "b"
        Which gradients to compute.
    out : (array, array, array), optional
        Where to write dx, dw and db, as in `conv2d`; None in place of one makes a new array.

    Returns
    -------
    ConvGrads
        Named tuple (dx, dw, db), shaped like x, w and b; None for what was not asked for.

    Raises
    ------
    TypeError, ValueError
        As `conv_transpose2d`; and where dy's shape is not that of y.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.array([[[[1.0, 2.0]]]]), np.array([[[[1.0, 10.0, 100.0]]]])
    >>> dx, dw, db = gpuconv.conv_transpose2d_backward(np.ones((1, 1, 1, 5)), x, w, stride=(1, 2))
    >>> dx, dw, db
    (array([[[[111., 111.]]]]), array([[[[3., 3., 3.]]]]), array([5.]))
    """
    options = (stride, padding, output_padding, dilation, groups, channels_last)
    return _gradients("conv_transpose2d_backward", 2, dy, x, w, needs, flip, out, *options)


@public
def conv_transpose1d(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    channels_last: bool = False,
    flip: bool = False,
    out: Array | None = None,
) -> Array:
    """Spread every place of a signal over a window of the result; as `conv_transpose2d`.

    Parameters
    ----------
    x : array [N, C_in, L]
        Signals. ``channels_last``: [N, L, C_in].
    w : array [C_in, C_out/groups, k]
        Kernels. ``channels_last``: [k, C_out/groups, C_in].
    b : array [C_out], optional
        Bias.
    stride, padding, output_padding, dilation, groups, channels_last, flip
        As in `conv_transpose2d`, with one spatial axis.
    out : array, optional
        Where to write y, as in `conv2d`.

    Returns
    -------
    y : array [N, C_out, OL] ([N, OL, C_out])
        Of the dtype that NumPy promotes x, w and b to.

    Raises
    ------
    TypeError, ValueError
        As `conv_transpose2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.conv_transpose1d(np.array([[[1.0, 2.0]]]), np.array([[[1.0, 10.0, 100.0]]]), stride=2)
    array([[[  1.,  10., 102.,  20., 200.]]])
    """
    options = (stride, padding, output_padding, dilation, groups, channels_last)
    return _transpose("conv_transpose1d", 1, x, w, b, flip, out, *options)


@public
def conv_transpose1d_backward(
    dy: Array,
    x: Array,
    w: Array,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    channels_last: bool = False,
    needs: Collection[str] = ("x", "w", "b"),
    flip: bool = False,
    out: Outs = None,
) -> ConvGrads:
    """Return the gradients of `conv_transpose1d`; as `conv_transpose2d_backward`.

    Parameters
    ----------
    dy : array [N, C_out, OL]
        Gradient of the loss by y. ``channels_last``: [N, OL, C_out].
    x, w, stride, padding, output_padding, dilation, groups, channels_last, flip
        As given to `conv_transpose1d`.
    needs : tuple of "x", "w", "b"
        Which gradients to compute.
    out : (array, array, array), optional
        Where to write dx, dw and db, as in `conv2d`; None in place of one makes a new array.

    Returns
    -------
    ConvGrads
        Named tuple (dx, dw, db), shaped like x, w and b; None for what was not asked for.

    Raises
    ------
    TypeError, ValueError
        As `conv_transpose2d_backward`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.array([[[1.0, 2.0]]]), np.array([[[1.0, 10.0]]])
    >>> gpuconv.conv_transpose1d_backward(np.ones((1, 1, 4)), x, w, stride=2)
    ConvGrads(dx=array([[[11., 11.]]]), dw=array([[[3., 3.]]]), db=array([4.]))
    """
    options = (stride, padding, output_padding, dilation, groups, channels_last)
    return _gradients("conv_transpose1d_backward", 1, dy, x, w, needs, flip, out, *options)


@public
def conv_transpose3d(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    channels_last: bool = False,
    flip: bool = False,
    out: Array | None = None,
) -> Array:
    """Spread every place of a volume over a window of the result; as `conv_transpose2d`.

    Parameters
    ----------
    x : array [N, C_in, D, H, W]
        Volumes. ``channels_last``: [N, D, H, W, C_in].
    w : array [C_in, C_out/groups, kd, kh, kw]
        Kernels. ``channels_last``: [kd, kh, kw, C_out/groups, C_in].
    b : array [C_out], optional
        Bias.
    stride, padding, output_padding, dilation, groups, channels_last, flip
        As in `conv_transpose2d`, with three spatial axes.
    out : array, optional
        Where to write y, as in `conv2d`.

    Returns
    -------
    y : array [N, C_out, OD, OH, OW] ([N, OD, OH, OW, C_out])
        Of the dtype that NumPy promotes x, w and b to.

    Raises
    ------
    TypeError, ValueError
        As `conv_transpose2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.ones((1, 1, 2, 2, 2)), np.ones((1, 1, 2, 2, 2))
    >>> gpuconv.conv_transpose3d(x, w)[0, 0, 1]
    array([[2., 4., 2.],
           [4., 8., 4.],
           [2., 4., 2.]])
    """
    options = (stride, padding, output_padding, dilation, groups, channels_last)
    return _transpose("conv_transpose3d", 3, x, w, b, flip, out, *options)


@public
def conv_transpose3d_backward(
    dy: Array,
    x: Array,
    w: Array,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    channels_last: bool = False,
    needs: Collection[str] = ("x", "w", "b"),
    flip: bool = False,
    out: Outs = None,
) -> ConvGrads:
    """Return the gradients of `conv_transpose3d`; as `conv_transpose2d_backward`.

    Parameters
    ----------
    dy : array [N, C_out, OD, OH, OW]
        Gradient of the loss by y. ``channels_last``: [N, OD, OH, OW, C_out].
    x, w, stride, padding, output_padding, dilation, groups, channels_last, flip
        As given to `conv_transpose3d`.
    needs : tuple of "x", "w", "b"
        Which gradients to compute.
    out : (array, array, array), optional
        Where to write dx, dw and db, as in `conv2d`; None in place of one makes a new array.

    Returns
    -------
    ConvGrads
        Named tuple (dx, dw, db), shaped like x, w and b; None for what was not asked for.

    Raises
    ------
    TypeError, ValueError
        As `conv_transpose2d_backward`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.ones((1, 1, 2, 2, 2)), np.ones((1, 1, 2, 2, 2))
    >>> dx, dw, db = gpuconv.conv_transpose3d_backward(np.ones((1, 1, 3, 3, 3)), x, w)
    >>> dx.ravel(), dw.ravel(), db
    (array([8., 8., 8., 8., 8., 8., 8., 8.]), array([8., 8., 8., 8., 8., 8., 8., 8.]), array([27.]))
    """
    options = (stride, padding, output_padding, dilation, groups, channels_last)
    return _gradients("conv_transpose3d_backward", 3, dy, x, w, needs, flip, out, *options)


def _transpose(
    op: str, axes: int, x: Array, w: Array, b: Array | None, flip: bool, out: Array | None, *options: Any
) -> Array:
    backend = backend_of(op, x=x, w=w, **given(b=b))
    window, c_out, channels_last = _describe(op, axes, x, w, *options)
    if b is not None:
        check_shape(op, "b", b.shape, (c_out,), f"w gives {c_out} output channels (shape {w.shape}), so")
    kernels = flipped(op, w, axes, channels_last, flip)
    dtype = inexact_result(op, x=x, w=w, **given(b=b))
    shape = array_shape(x.shape[0], c_out, window.in_size, channels_last)
    y = result(op, backend, out, shape, dtype, x=x, w=w, b=b)
    backend.convolution.input_grad(x, kernels, b, y, window, channels_last)
    return y


def _gradients(
    op: str,
    axes: int,
    dy: Array,
    x: Array,
    w: Array,
    needs: Collection[str],
    flip: bool,
    out: Outs,
    *options: Any,
) -> ConvGrads:
    backend = backend_of(op, dy=dy, x=x, w=w)
    window, c_out, channels_last = _describe(op, axes, x, w, *options)
    must = array_shape(x.shape[0], c_out, window.in_size, channels_last)
    check_shape(op, "dy", dy.shape, must, "as the gradient of y")
    kernels = flipped(op, w, axes, channels_last, flip)
    ops = backend.convolution

    def by_w(dw: Array) -> None:
        turned = flipped(op, dw, axes, channels_last, flip)
        ops.weight_grad(conjugate(x), dy, turned, window, channels_last)

    return collect(
        *(op, backend, needs, out, dy, x, w, c_out),
        lambda dx: ops.forward(dy, conjugate(kernels), None, dx, window, channels_last, None),
        by_w,
        lambda db: ops.bias_grad(dy, db, channels_last),
    )


def _describe(
    op: str,
    axes: int,
    x: Array,
    w: Array,
    stride: Ints,
    padding: Padding,
    output_padding: Ints,
    dilation: Ints,
    groups: int,
    channels_last: bool,
) -> tuple[Window, int, bool]:
    """Check x, w and the numbers; return the window, the output channels and the layout."""
    channels_last = geometry.flag(op, "channels_last", channels_last)
    groups = geometry.integer(op, "groups", groups, 1)
    kernel = ", ".join(("k",) if axes == 1 else ("kd", "kh", "kw")[-axes:])
    check_rank(op, "x", x, geometry.image_layout(axes, channels_last))
    layout = f"[{kernel}, C_out/groups, C_in]" if channels_last else f"[C_in, C_out/groups, {kernel}]"
    check_rank(op, "w", w, layout)
    c_in = x.shape[-1 if channels_last else 1]
    c_w, og = (w.shape[-1], w.shape[-2]) if channels_last else w.shape[:2]
    if c_w != c_in:
        raise ValueError(
            f"{op}: w is for {c_w} input channels (shape {w.shape}), but x has {c_in} (shape {x.shape})"
        )
    if c_in < 1 or c_in % groups:
        raise ValueError(f"{op}: x has {c_in} channels, which don't divide into groups={groups}")
    if og < 1:
        raise ValueError(f"{op}: w gives no output channels (shape {w.shape})")
    window = geometry.transposed_window(
        op,
        geometry.spatial_sizes(x.shape, channels_last),
        _kernel(op, w.shape[:axes] if channels_last else w.shape[2:]),
        stride,
        padding,
        output_padding,
        dilation,
        groups,
    )
    return window, og * groups, channels_last


def _kernel(op: str, kernel: tuple[int, ...]) -> tuple[int, ...]:
    return geometry.per_axis(op, "the kernel of w", kernel, len(kernel), 1)
