"""Convolution and its gradients: the public functions. Each checks, describes the window, and dispatches.

For output place o, tap j and input place i = o * stride - before + j * dilation (see `gpuconv.geometry`),
and with the channels c of o's group,

    y[n, o_c, o] = b[o_c] + sum over c, j of  w[o_c, c, j] * x[n, c, i]

which is what neural networks call convolution: the kernel is not flipped.
"""

from collections.abc import Callable, Collection
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from gpuconv import geometry
from gpuconv.backends.dispatch import (
    backend_of,
    check_rank,
    check_shape,
    float_result,
    given,
    inexact_result,
    real_dtype,
    result,
    several,
)
from gpuconv.entry import public
from gpuconv.geometry import Ints, Padding, Window, array_shape

Array = Any  # numpy.ndarray or cupy.ndarray


class ConvGrads(NamedTuple):
    """Gradients of a convolution; None for what was not asked for."""

    dx: Array | None
    dw: Array | None
    db: Array | None


Outs = tuple[Array | None, ...] | None


@public
def conv2d(
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
    """Convolve a batch of images with a bank of kernels.

    ``y[n, f, p, q] = b[f] + sum_{c, i, j} w[f, c, i, j] * x[n, c, p*s + i*d - before, q*s + j*d - before]``,
    over the channels c of f's group [1]_. The kernel isn't flipped unless told; float16 is summed in float32.

    Parameters
    ----------
    x : array [N, C_in, H, W]
        Images; any strides, never written to. ``channels_last``: [N, H, W, C_in].
    w : array [C_out, C_in/groups, kh, kw]
        Kernels. ``channels_last``: [kh, kw, C_in/groups, C_out].
    b : array [C_out], optional
        Bias.
    stride : int or (int, int)
        Step of the window, in places of x.
    padding : int, (int, int), ((before, after), (before, after)), or "valid", "same", "same_lower"
        Zeros around x. "same" makes the output ceil(size / stride) and puts an odd one after,
        "same_lower" before.
    dilation : int or (int, int)
        Distance between a kernel's taps.
    groups : int
        Channels are cut into this many groups that don't mix; with groups = C_in each is filtered alone.
    channels_last : bool
        The arrays' layout; it is worked on as it lies.
    flip : bool
        Turn the kernels round along their spatial axes: the convolution of mathematics and signal processing,
        where tap j reads ``x[... - j]``. Networks leave it out, as they would learn turned kernels.
    activation : "relu", optional
        What y goes through: ``max(y, 0)``, where it lies, for real numbers; NaN passes.
    out : array, optional
        Where to write y: an array of its shape and dtype that shares no memory with the others. Any strides;
        in order, nothing is copied.

    Returns
    -------
    y : array [N, C_out, OH, OW] ([N, OH, OW, C_out])
        Of the dtype that NumPy promotes x, w and b to: float16 to float64, complex64 or complex128.
        ``OH = (H + before + after - ((kh-1)*dilation + 1)) // stride + 1``.

    Raises
    ------
    TypeError
        For an argument that is not an array or not an integer, for any other dtype, or for complex numbers
        with an activation.
    ValueError
        For shapes that don't fit each other, a kernel larger than the padded image, another activation, or
        an unsuitable ``out``.

    References
    ----------
    .. [1] K. Chellapilla, S. Puri, P. Simard, "High Performance Convolutional Neural Networks for Document
       Processing", 2006: convolution as a matrix product.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    >>> w = np.ones((1, 1, 3, 3), np.float32)
    >>> gpuconv.conv2d(x, w)
    array([[[[45., 54.],
             [81., 90.]]]], dtype=float32)
    >>> gpuconv.conv2d(x, w, stride=2, padding="same").shape
    (1, 1, 2, 2)
    >>> gpuconv.conv2d(x, w, np.float32([-50]), activation="relu")[0, 0]
    array([[ 0.,  4.],
           [31., 40.]], dtype=float32)
    """
    options = (stride, padding, dilation, groups, channels_last, flip, activation, out)
    return convolve("conv2d", 2, x, w, b, *options)


@public
def conv2d_backward(
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
    """Return the gradients of `conv2d` by its three inputs.

    They are sums over the batch: where a loss is a mean, its own gradient ``dy`` carries the 1/N. Of complex
    arrays they are the adjoints (conjugated where they must be, as PyTorch has it), and of a real one among
    complex ones the real part: what descends.

    Parameters
    ----------
    dy : array [N, C_out, OH, OW]
        Gradient of the loss by y. ``channels_last``: [N, OH, OW, C_out].
    x, w, stride, padding, dilation, groups, channels_last, flip
        As given to `conv2d`.
    needs : tuple of "x", "w", "b"
        Which gradients to compute; a first layer needs no dx.
    activation : "relu", optional
        As given to `conv2d`: where y <= 0, dy counts for 0.
    y : array [N, C_out, OH, OW], optional
        What `conv2d` returned; with an activation, and only then.
    out : (array, array, array), optional
        Where to write dx, dw and db, as in `conv2d`; None in place of one makes a new array.

    Returns
    -------
    ConvGrads
        Named tuple (dx, dw, db), shaped like x, w and b; None for what was not asked for.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`; where dy's shape is not that of y; and for an activation without y, or y without one.

    See Also
    --------
    conv2d_input_grad, conv2d_weight_grad, conv2d_bias_grad : one gradient each, and its formula.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.ones((1, 1, 3, 3)), np.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> dx, dw, db = gpuconv.conv2d_backward(np.ones((1, 1, 2, 2)), x, w)
    >>> dx[0, 0]
    array([[ 1.,  3.,  2.],
           [ 4., 10.,  6.],
           [ 3.,  7.,  4.]])
    >>> dw[0, 0], db
    (array([[4., 4.],
           [4., 4.]]), array([4.]))
    >>> y = np.array([[[[0.0, 2.0], [0.0, 1.0]]]])  # the rectifier let two pass
    >>> gpuconv.conv2d_backward(np.ones((1, 1, 2, 2)), x, w, activation="relu", y=y).db
    array([2.])
    """
    options = (stride, padding, dilation, groups, channels_last, needs, flip, activation, y, out)
    return gradients("conv2d_backward", 2, dy, x, w, *options)


@public
def conv2d_input_grad(
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
    """Return the gradient of `conv2d` by x: the convolution's adjoint, applied to dy.

    ``dx[n, c, i] = sum of w[f, c, j] * dy[n, f, o]`` over all f, o, j with ``i = o*s + j*d - before``;
    as matrices, ``dx = col2im(W^T dY)``, which at stride 1 is the convolution of the padded dy with the
    kernels turned by 180 degrees. Complex kernels are conjugated: ``<conv2d(x, w), dy> = <x, dx>``.

    Parameters
    ----------
    dy : array [N, C_out, OH, OW]
        Gradient of the loss by y. ``channels_last``: [N, OH, OW, C_out].
    w, stride, padding, dilation, groups, channels_last, flip
        As given to `conv2d`.
    x_shape : 4 ints
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
        As `conv2d`; and where dy's shape is not that of y.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, w = np.ones((1, 1, 1, 2)), np.array([[[[1.0, 10.0]]]])
    >>> gpuconv.conv2d_input_grad(dy, w, (1, 1, 1, 3))
    array([[[[ 1., 11., 10.]]]])
    """
    op = "conv2d_input_grad"
    return input_grad(op, 2, dy, w, x_shape, stride, padding, dilation, groups, channels_last, flip, out)


@public
def conv2d_weight_grad(
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
    """Return the gradient of `conv2d` by w.

    ``dw[f, c, j] = sum over n, o of dy[n, f, o] * x[n, c, o*s + j*d - before]``: the correlation of x with
    dy, not rotated, and summed over the batch; as matrices ``dW = dY im2col(x)^T``. A complex x is
    conjugated.

    Parameters
    ----------
    dy : array [N, C_out, OH, OW]
        Gradient of the loss by y. ``channels_last``: [N, OH, OW, C_out].
    x, stride, padding, dilation, groups, channels_last, flip
        As given to `conv2d`.
    kernel_size : int or (int, int)
        (kh, kw): with a stride, several kernel sizes give the same dy.
    out : array, optional
        Where to write dw, as in `conv2d`.

    Returns
    -------
    dw : array [C_out, C_in/groups, kh, kw] ([kh, kw, C_in/groups, C_out])
        Of the dtype that dy and x promote to.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`; and where dy's shape is not that of y.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x = np.arange(4.0).reshape(1, 1, 1, 4)
    >>> gpuconv.conv2d_weight_grad(np.ones((1, 1, 1, 3)), x, (1, 2))
    array([[[[3., 6.]]]])
    """
    op = "conv2d_weight_grad"
    return weight_grad(op, 2, dy, x, kernel_size, stride, padding, dilation, groups, channels_last, flip, out)


@public
def conv2d_bias_grad(dy: Array, *, channels_last: bool = False, out: Array | None = None) -> Array:
    """Return the gradient of `conv2d` by b: ``db[f] = sum over n, p, q of dy[n, f, p, q]``.

    Parameters
    ----------
    dy : array [N, C_out, OH, OW]
        Gradient of the loss by y. ``channels_last``: [N, OH, OW, C_out].
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
        Where dy is not an array of floats with four axes.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.conv2d_bias_grad(np.ones((2, 3, 4, 4)))
    array([32., 32., 32.])
    """
    return bias_grad("conv2d_bias_grad", 2, dy, channels_last, out)


# What the public functions of every rank do: `axes` is the number of spatial axes, `op` the public name.


def convolve(
    op: str,
    axes: int,
    x: Array,
    w: Array,
    b: Array | None,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    channels_last: bool,
    flip: bool,
    activation: str | None,
    out: Array | None,
) -> Array:
    """Check, describe the window, and convolve."""
    backend = backend_of(op, x=x, w=w, **given(b=b))
    check_activation(op, activation, x=x, w=w, **given(b=b))
    window = _check(op, axes, x, w, stride, padding, dilation, groups, channels_last)
    c_out = _c_out(w, channels_last)
    if b is not None:
        check_shape(op, "b", b.shape, (c_out,), f"w has {c_out} output channels (shape {w.shape}), so")
    kernels = flipped(op, w, axes, channels_last, flip)
    dtype = inexact_result(op, x=x, w=w, **given(b=b))
    shape = array_shape(x.shape[0], c_out, window.out_size, channels_last)
    y = result(op, backend, out, shape, dtype, x=x, w=w, b=b)
    backend.convolution.forward(x, kernels, b, y, window, channels_last, activation)
    return y


def gradients(
    op: str,
    axes: int,
    dy: Array,
    x: Array,
    w: Array,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    channels_last: bool,
    needs: Collection[str],
    flip: bool,
    activation: str | None,
    y: Array | None,
    out: Outs,
) -> ConvGrads:
    """Check, describe the window, and compute what `needs` names."""
    backend = backend_of(op, dy=dy, x=x, w=w, **given(y=y))
    check_activation(op, activation, dy=dy, x=x, w=w, **given(y=y))
    window = _check(op, axes, x, w, stride, padding, dilation, groups, channels_last)
    c_out = _c_out(w, channels_last)
    _check_dy(op, dy, x.shape[0], c_out, window, channels_last)
    _check_y(op, activation, y, dy)
    kernels = flipped(op, w, axes, channels_last, flip)
    ops = backend.convolution

    def through() -> Array:
        return dy

    if activation is not None:  # computed for the first gradient that is needed, if any is
        through = cache(lambda: backend.activations.relu_input_grad(dy, y))

    def by_w(dw: Array) -> None:
        turned = flipped(op, dw, axes, channels_last, flip)
        ops.weight_grad(through(), conjugate(x), turned, window, channels_last)

    return collect(
        *(op, backend, needs, out, dy, x, w, c_out),
        lambda dx: ops.input_grad(through(), conjugate(kernels), None, dx, window, channels_last),
        by_w,
        lambda db: ops.bias_grad(through(), db, channels_last),
        y=y,
    )


def collect(
    op: str,
    backend: ModuleType,
    needs: Collection[str],
    out: Outs,
    dy: Array,
    x: Array,
    w: Array,
    c_out: int,
    *compute: Callable[[Array], None],
    y: Array | None = None,
) -> ConvGrads:
    """Let functions write the gradients by x, w and b that `needs` names to new arrays, or to the user's.

    They may read y besides. A real array's gradient is real: where the others are complex, the real part of
    what is computed.
    """
    named = isinstance(needs, Collection) and not isinstance(needs, str)
    if not named or not all(n in ("x", "w", "b") for n in needs):
        raise ValueError(f'{op}: needs must be a tuple of "x", "w" and "b", not {needs!r}')
    factors: tuple[dict[str, Array], ...] = ({"dy": dy, "w": w}, {"dy": dy, "x": x}, {"dy": dy})
    by = [inexact_result(op, **f) if name in needs else None for name, f in zip("xwb", factors, strict=True)]
    like = (x, w, dy)
    shapes = (x.shape, w.shape, (c_out,))
    outs = several(op, out, "dx", "dw", "db")
    grads: list[Array | None] = [None] * 3
    for i, exact in enumerate(by):
        if exact is None:
            continue
        dtype = exact if like[i].dtype.kind == "c" else real_dtype(exact)
        if outs[i] is None:
            grads[i] = backend.arrays.empty(shapes[i], dtype, dy)
        else:
            inputs = {"dy": dy, "x": x, "w": w, "y": y, **{f"out[{j}]": outs[j] for j in range(i)}}
            grads[i] = result(op, backend, outs[i], shapes[i], dtype, name=f"out[{i}]", **inputs)
    for grad, exact, write in zip(grads, by, compute, strict=True):
        if grad is None:
            continue
        if grad.dtype == exact:
            write(grad)
        else:
            whole = backend.arrays.empty(grad.shape, exact, grad)
            write(whole)
            grad[...] = whole.real
    return ConvGrads(*grads)


def check_activation(op: str, activation: Any, **arrays: Array) -> None:
    """Check what follows a convolution of these arrays: nothing, or the rectifier of real ones."""
    if activation is None:
        return
    if not isinstance(activation, str) or activation != "relu":
        raise ValueError(f'{op}: activation must be "relu" or None, not {activation!r}')
    for name, x in arrays.items():
        if x.dtype.kind == "c":
            raise TypeError(
                f"{op}: {name} is {x.dtype.name}, but complex numbers have no order, and so no "
                f"activation={activation!r}; use None"
            )


def conjugate(x: Array) -> Array:
    """Return x itself where it is real."""
    return x.conj() if x.dtype.kind == "c" else x


def flipped(op: str, w: Array, axes: int, channels_last: bool, flip: bool) -> Array:
    """Return weights, or their gradient, turned round along every spatial axis if `flip` says so; a view."""
    if not geometry.flag(op, "flip", flip):
        return w
    turned = (slice(None, None, -1),) * axes
    return w[turned] if channels_last else w[:, :, *turned]


def input_grad(
    op: str,
    axes: int,
    dy: Array,
    w: Array,
    x_shape: tuple[int, ...],
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    channels_last: bool,
    flip: bool,
    out: Array | None,
) -> Array:
    """Check, describe the window over x, and compute dx."""
    backend = backend_of(op, dy=dy, w=w)
    x_shape = geometry.shape(op, "x_shape", x_shape, axes + 2)
    window = _describe(op, axes, x_shape, w, stride, padding, dilation, groups, channels_last)
    _check_dy(op, dy, x_shape[0], _c_out(w, channels_last), window, channels_last)
    kernels = flipped(op, w, axes, channels_last, flip)
    dx = result(op, backend, out, x_shape, inexact_result(op, dy=dy, w=w), dy=dy, w=w)
    backend.convolution.input_grad(dy, conjugate(kernels), None, dx, window, channels_last)
    return dx


def weight_grad(
    op: str,
    axes: int,
    dy: Array,
    x: Array,
    kernel_size: Ints,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    channels_last: bool,
    flip: bool,
    out: Array | None,
) -> Array:
    """Check, describe the window over x, and compute dw."""
    backend = backend_of(op, dy=dy, x=x)
    _check_layout(op, axes, "x", x, channels_last)
    check_rank(op, "dy", dy, geometry.image_layout(axes, channels_last))
    groups = geometry.integer(op, "groups", groups, 1)
    c_in, c_out = _channels(x, channels_last), _channels(dy, channels_last)
    _check_groups(op, "dy", c_out, groups)
    _check_groups(op, "x", c_in, groups)
    sizes = geometry.spatial_sizes(x.shape, channels_last)
    window = geometry.sliding_window(op, sizes, kernel_size, stride, padding, dilation, groups=groups)
    _check_dy(op, dy, x.shape[0], c_out, window, channels_last)
    cg = c_in // groups
    shape = (*window.kernel, cg, c_out) if channels_last else (c_out, cg, *window.kernel)
    dw = result(op, backend, out, shape, inexact_result(op, dy=dy, x=x), dy=dy, x=x)
    turned = flipped(op, dw, axes, channels_last, flip)
    backend.convolution.weight_grad(dy, conjugate(x), turned, window, channels_last)
    return dw


def bias_grad(op: str, axes: int, dy: Array, channels_last: bool, out: Array | None) -> Array:
    """Check, and compute db."""
    backend = backend_of(op, dy=dy)
    _check_layout(op, axes, "dy", dy, channels_last)
    dtype = inexact_result(op, dy=dy)
    db = result(op, backend, out, (_channels(dy, channels_last),), dtype, dy=dy)
    backend.convolution.bias_grad(dy, db, channels_last)
    return db


def _check(
    op: str,
    axes: int,
    x: Array,
    w: Array,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    channels_last: bool,
) -> Window:
    """Check x and w against each other and the numbers, and describe the window."""
    _check_layout(op, axes, "x", x, channels_last)
    return _describe(op, axes, x.shape, w, stride, padding, dilation, groups, channels_last)


def _describe(
    op: str,
    axes: int,
    x_shape: tuple[int, ...],
    w: Array,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    channels_last: bool,
) -> Window:
    geometry.flag(op, "channels_last", channels_last)
    groups = geometry.integer(op, "groups", groups, 1)
    check_rank(op, "w", w, _kernel_layout(axes, channels_last))
    c_in, cg, c_out = (
        x_shape[-1 if channels_last else 1],
        w.shape[-2 if channels_last else 1],
        _c_out(w, channels_last),
    )
    _check_groups(op, "w", c_out, groups, "output channels")
    if cg < 1 or cg * groups != c_in:
        raise ValueError(
            f"{op}: w has {cg} input channels per group (shape {w.shape}), "
            f"but x has {c_in} channels and groups={groups}"
        )
    kernel = w.shape[:axes] if channels_last else w.shape[2:]
    sizes = geometry.spatial_sizes(x_shape, channels_last)
    return geometry.sliding_window(
        op, sizes, kernel, stride, padding, dilation, groups=groups, kernel_name="the kernel of w"
    )


def _check_layout(op: str, axes: int, name: str, x: Array, channels_last: bool) -> None:
    geometry.flag(op, "channels_last", channels_last)
    check_rank(op, name, x, geometry.image_layout(axes, channels_last))


def _check_groups(op: str, name: str, channels: int, groups: int, what: str = "channels") -> None:
    if channels < 1 or channels % groups:
        raise ValueError(f"{op}: {name} has {channels} {what}, which don't divide into groups={groups}")


def _check_dy(op: str, dy: Array, n: int, c_out: int, window: Window, channels_last: bool) -> None:
    check_rank(op, "dy", dy, geometry.image_layout(window.axes, channels_last))
    must = array_shape(n, c_out, window.out_size, channels_last)
    check_shape(op, "dy", dy.shape, must, "as the gradient of y")


def _check_y(op: str, activation: str | None, y: Array | None, dy: Array) -> None:
    """Check that what an activation returned is there with it, shaped like its gradient, and not else."""
    if activation is None:
        if y is not None:
            raise ValueError(f"{op}: y is for an activation, but activation is None; leave y out")
        return
    if y is None:
        raise ValueError(f"{op}: activation={activation!r} needs y, which the forward pass returned")
    check_shape(op, "y", y.shape, dy.shape, "as dy is its gradient")
    float_result(op, y=y)


@cache
def _kernel_layout(axes: int, channels_last: bool) -> str:
    listed = "k" if axes == 1 else ", ".join(("kd", "kh", "kw")[-axes:])
    return f"[{listed}, C_in/groups, C_out]" if channels_last else f"[C_out, C_in/groups, {listed}]"


def _channels(x: Array, channels_last: bool) -> int:
    return int(x.shape[-1 if channels_last else 1])


def _c_out(w: Array, channels_last: bool) -> int:
    return int(w.shape[-1 if channels_last else 0])
