"""PyTorch models on gpuconv: convolutions and poolings of tensors with gradients of any order, and modules.

The functions have the names and the order of arguments of `torch.nn.functional`, and gpuconv's options behind
them. Tensors are worked on where they lie, through DLPack; on a GPU, in PyTorch's current stream.

Each gradient is made of public functions, as docs/second_derivatives.md has it, and each of these is again an
autograd function: a convolution, its gradients and theirs are two operations that call each other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Any

import gpuconv
from gpuconv.backends.dispatch import check_gpu
from gpuconv.geometry import Ints, Padding

try:
    import torch
    from torch import Tensor, nn
    from torch.autograd import Function
except ImportError as error:
    raise ImportError(
        f"gpuconv.torch needs PyTorch, which can't be imported ({error}); pip install 'gpuconv[torch]'",
        name="torch",
    ) from error

__all__ = [
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "swap",
]

Options = dict[str, Any]

# The functions.


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    channels_last: bool = False,
    flip: bool = False,
) -> Tensor:
    """Convolve, as `torch.nn.functional.conv2d`; the formula stands at `gpuconv.conv2d`.

    Parameters
    ----------
    input : tensor [N, C_in, H, W] or [C_in, H, W]
        The x of `gpuconv.conv2d`, and of messages. ``channels_last``: [N, H, W, C_in] or [H, W, C_in].
    weight : tensor [C_out, C_in/groups, kh, kw]
        The w there. ``channels_last``: [kh, kw, C_in/groups, C_out].
    bias : tensor [C_out], optional
        The b there.
    stride, dilation : int or (int, int)
        As in PyTorch; a sequence of one int holds for every axis.
    padding : int, (int, int), ((before, after), (before, after)), or "valid", "same", "same_lower"
        Zeros around x; pairs and "same_lower" are gpuconv's, and "same" may have a stride.
    groups : int
        As in PyTorch.
    channels_last : bool
        The order of the tensors' axes. (PyTorch's memory format of that name is another thing: a tensor in
        that format has its axes in the usual order, and is taken so.)
    flip : bool
        Turn the kernels round along their spatial axes.

    Returns
    -------
    y : tensor [N, C_out, OH, OW] ([N, OH, OW, C_out])
        Of the dtype that NumPy promotes the tensors to: float16 to float64, complex64 or complex128.

    Raises
    ------
    TypeError, ValueError
        As `gpuconv.conv2d`; bfloat16 is not supported.

    Examples
    --------
    >>> import torch, gpuconv.torch
    >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> w = torch.ones(1, 1, 3, 3, requires_grad=True)
    >>> y = gpuconv.torch.conv2d(x, w, padding=((0, 0), (1, 0)))
    >>> y.detach()
    tensor([[[[27., 45., 54.],
              [51., 81., 90.]]]])
    >>> y.sum().backward()
    >>> w.grad
    tensor([[[[10., 18., 24.],
              [26., 42., 48.],
              [42., 66., 72.]]]])
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _convolve("conv2d", 2, input, weight, bias, channels_last, {**options, "flip": flip})


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    channels_last: bool = False,
    flip: bool = False,
) -> Tensor:
    """Convolve signals [N, C, L] or [C, L]; as `conv2d`, with one spatial axis."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _convolve("conv1d", 1, input, weight, bias, channels_last, {**options, "flip": flip})


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    channels_last: bool = False,
    flip: bool = False,
) -> Tensor:
    """Convolve volumes [N, C, D, H, W] or [C, D, H, W]; as `conv2d`, with three spatial axes."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _convolve("conv3d", 3, input, weight, bias, channels_last, {**options, "flip": flip})


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    channels_last: bool = False,
    flip: bool = False,
) -> Tensor:
    """Convolve transposed, as `torch.nn.functional.conv_transpose2d`; see `gpuconv.conv_transpose2d`.

    Parameters
    ----------
    input : tensor [N, C_in, H, W] or [C_in, H, W]
        The x there. ``channels_last``: [N, H, W, C_in] or [H, W, C_in].
    weight : tensor [C_in, C_out/groups, kh, kw]
        The w there. ``channels_last``: [kh, kw, C_out/groups, C_in].
    bias : tensor [C_out], optional
        The b there.
    stride, dilation, groups, channels_last, flip
        As in `conv2d`; groups stands before dilation here, as in PyTorch.
    padding : int, (int, int), ((before, after), (before, after)), or "valid", "same", "same_lower"
        Places that are left out at the result's ends.
    output_padding : int or (int, int)
        Places beyond the last window's end.

    Returns
    -------
    y : tensor [N, C_out, OH, OW] ([N, OH, OW, C_out])

    Raises
    ------
    TypeError, ValueError
        As `gpuconv.conv_transpose2d`; bfloat16 is not supported.

    Examples
    --------
    >>> import torch, gpuconv.torch
    >>> x, w = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[1.0, 10.0, 100.0]]]])
    >>> gpuconv.torch.conv_transpose2d(x, w, stride=(1, 2))
    tensor([[[[  1.,  10., 102.,  20., 200.]]]])
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "flip": flip}
    options["output_padding"] = output_padding
    return _convolve("conv_transpose2d", 2, input, weight, bias, channels_last, options)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    channels_last: bool = False,
    flip: bool = False,
) -> Tensor:
    """Convolve signals transposed; as `conv_transpose2d`, with one spatial axis."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "flip": flip}
    options["output_padding"] = output_padding
    return _convolve("conv_transpose1d", 1, input, weight, bias, channels_last, options)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    channels_last: bool = False,
    flip: bool = False,
) -> Tensor:
    """Convolve volumes transposed; as `conv_transpose2d`, with three spatial axes."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "flip": flip}
    options["output_padding"] = output_padding
    return _convolve("conv_transpose3d", 3, input, weight, bias, channels_last, options)


def max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    channels_last: bool = False,
) -> Any:
    """Take the maximum of every window, as `torch.nn.functional.max_pool2d`; see `gpuconv.max_pool2d`.

    Parameters
    ----------
    input : tensor [N, C, H, W] or [C, H, W]
        The x there. ``channels_last``: [N, H, W, C] or [H, W, C].
    kernel_size, stride, dilation : int or (int, int)
        As in PyTorch; stride is kernel_size where not given.
    padding : int, (int, int), ((before, after), (before, after)), or "valid", "same", "same_lower"
        May exceed half the kernel, as long as every window has a place of x.
    ceil_mode : bool
        Count a last, partial window too.
    return_indices : bool
        Also return where the maxima were.
    channels_last : bool
        The order of the tensor's axes.

    Returns
    -------
    y : tensor [N, C, OH, OW] ([N, OH, OW, C])
    indices : int64 tensor, shaped like y
        Flat index into the H*W plane; only where ``return_indices``.

    Raises
    ------
    TypeError, ValueError
        As `gpuconv.max_pool2d`; bfloat16 and complex numbers are not supported.

    Examples
    --------
    >>> import torch, gpuconv.torch
    >>> x = torch.tensor([[[1.0, 2.0, 0.0, 0.0], [3.0, 4.0, 0.0, 9.0]]])
    >>> gpuconv.torch.max_pool2d(x, 2, return_indices=True)
    (tensor([[[4., 9.]]]), tensor([[[5, 7]]]))
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    return _max_pool("max_pool2d", 2, input, kernel_size, return_indices, channels_last, options)


def max_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    channels_last: bool = False,
) -> Any:
    """Take the maximum of every window of signals; as `max_pool2d`, with one spatial axis."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    return _max_pool("max_pool1d", 1, input, kernel_size, return_indices, channels_last, options)


def max_pool3d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    channels_last: bool = False,
) -> Any:
    """Take the maximum of every window of volumes; as `max_pool2d`, with three spatial axes."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    return _max_pool("max_pool3d", 3, input, kernel_size, return_indices, channels_last, options)


def avg_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Ints = 1,
    channels_last: bool = False,
) -> Tensor:
    """Take the mean of every window, as `torch.nn.functional.avg_pool2d`; see `gpuconv.avg_pool2d`.

    Parameters
    ----------
    input : tensor [N, C, H, W] or [C, H, W]
        The x there. ``channels_last``: [N, H, W, C] or [H, W, C].
    kernel_size, stride, padding, ceil_mode, channels_last
        As in `max_pool2d`.
    count_include_pad : bool
        Whether padding counts in the divisor.
    divisor_override : int, optional
        Divide every sum by this number instead.
    dilation : int or (int, int)
        gpuconv's; PyTorch's average pooling has none.

    Returns
    -------
    y : tensor [N, C, OH, OW] ([N, OH, OW, C])

    Raises
    ------
    TypeError, ValueError
        As `gpuconv.avg_pool2d`; bfloat16 is not supported.

    Examples
    --------
    >>> import torch, gpuconv.torch
    >>> gpuconv.torch.avg_pool2d(torch.arange(8.0).reshape(1, 1, 2, 4), 2)
    tensor([[[[2.5000, 4.5000]]]])
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    options |= {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
    return _avg_pool("avg_pool2d", 2, input, kernel_size, channels_last, options)


def avg_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    divisor_override: int | None = None,
    dilation: Ints = 1,
    channels_last: bool = False,
) -> Tensor:
    """Take the mean of every window of signals; as `avg_pool2d`, with one spatial axis."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    options |= {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
    return _avg_pool("avg_pool1d", 1, input, kernel_size, channels_last, options)


def avg_pool3d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Ints = 1,
    channels_last: bool = False,
) -> Tensor:
    """Take the mean of every window of volumes; as `avg_pool2d`, with three spatial axes."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    options |= {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
    return _avg_pool("avg_pool3d", 3, input, kernel_size, channels_last, options)


# What the functions of every rank do: `op` is the public function's name, `axes` the number of spatial axes.
# PyTorch's compiler stays out: it would make tensors of the arrays beneath, and copies of the tensors.


@torch.compiler.disable
def _convolve(op: str, axes: int, x: Any, w: Any, b: Any, channels_last: bool, options: Options) -> Tensor:
    _check_tensors(op, input=x, weight=w)
    if b is not None:
        _check_tensors(op, bias=b)
        if not b.is_complex() and (x.is_complex() or w.is_complex()):
            b = b.to(torch.promote_types(x.dtype, w.dtype))  # whose gradient is real again
    options = {**_each_axis(options, axes), "channels_last": channels_last}
    y: Tensor = _Convolution.apply(_batch(x, axes), w, b, op, options)
    return y if x.ndim != axes + 1 else y.squeeze(0)


@torch.compiler.disable
def _max_pool(
    op: str,
    axes: int,
    x: Any,
    kernel_size: Ints,
    return_indices: bool,
    channels_last: bool,
    options: Options,
) -> Any:
    _check_tensors(op, input=x)
    options = {**_each_axis({**options, "kernel_size": kernel_size}, axes), "channels_last": channels_last}
    batch = _batch(x, axes)
    wants_gradient = torch.is_grad_enabled() and x.requires_grad
    y, argmax = _MaxPool.apply(batch, op, options, return_indices or wants_gradient)
    results = [y]
    if return_indices:
        results.append(_compute("argmax_to_indices", argmax, tuple(batch.shape), **options))
    if x.ndim == axes + 1:
        results = [each.squeeze(0) for each in results]
    return tuple(results) if return_indices else results[0]


@torch.compiler.disable
def _avg_pool(op: str, axes: int, x: Any, kernel_size: Ints, channels_last: bool, options: Options) -> Tensor:
    _check_tensors(op, input=x)
    options = {**_each_axis({**options, "kernel_size": kernel_size}, axes), "channels_last": channels_last}
    y: Tensor = _AvgPool.apply(_batch(x, axes), op, options)
    return y if x.ndim != axes + 1 else y.squeeze(0)


def _check_tensors(op: str, **tensors: Any) -> None:
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            kind = type(value)
            raise TypeError(f"{op}: {name} must be a tensor, not {kind.__module__}.{kind.__qualname__}")


def _batch(x: Tensor, axes: int) -> Tensor:
    """Return a single image as a batch of one."""
    return x.unsqueeze(0) if x.ndim == axes + 1 else x


def _each_axis(options: Options, axes: int) -> Options:
    """Let a sequence of one integer hold for every axis, as PyTorch does."""
    return {
        name: value[0] if isinstance(value, tuple | list) and len(value) == 1 and axes > 1 else value
        for name, value in options.items()
    }


# The autograd functions. Their gradients are autograd functions again, and so differentiable.


class _Convolution(Function):
    """A convolution or a transposed one, y = op(x, w) + b: linear in each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, op: str, options: Options) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.op, ctx.options = op, options
        y: Tensor = _compute(op, x, w, b, **options)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        needs = tuple(name for name, need in zip("xwb", ctx.needs_input_grad, strict=False) if need)
        return *_ConvolutionGrads.apply(dy, *ctx.saved_tensors, ctx.op, ctx.options, needs), None, None


class _ConvolutionGrads(Function):
    """Its gradients: dx, linear in dy and conj(w); dw, linear in dy and conj(x); db, linear in dy.

    So with gradients g of these,
    by dy: ``op(g_dx, w) + op(x, g_dw) + g_db``; by x: dx with g_dw for w; by w: dw with g_dx for x.
    """

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, w: Tensor, op: str, options: Options, needs: tuple[str, ...]
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(dy, x, w)
        ctx.op, ctx.options = op, options
        ctx.set_materialize_grads(False)  # None for what wasn't needed, or isn't used
        return tuple(_compute(f"{op}_backward", dy, x, w, needs=needs, **options))

    @staticmethod
    def backward(ctx: Any, g_dx: Tensor | None, g_dw: Tensor | None, g_db: Tensor | None) -> tuple[Any, ...]:
        dy, x, w = ctx.saved_tensors
        op, options = ctx.op, ctx.options
        by_dy = by_x = by_w = None
        if ctx.needs_input_grad[0]:
            terms = []
            if g_dx is not None:
                terms.append(_Convolution.apply(g_dx, w, None, op, options))
            if g_dw is not None:
                terms.append(_Convolution.apply(x, g_dw, None, op, options))
            if g_db is not None:
                channels = g_db if options["channels_last"] else g_db.reshape(-1, *(1,) * (dy.ndim - 2))
                terms.append(channels.expand_as(dy))
            by_dy = reduce(add, terms) if terms else None
        if ctx.needs_input_grad[1] and g_dw is not None:
            by_x, _, _ = _ConvolutionGrads.apply(dy, x, g_dw, op, options, ("x",))
        if ctx.needs_input_grad[2] and g_dx is not None:
            _, by_w, _ = _ConvolutionGrads.apply(dy, g_dx, w, op, options, ("w",))
        return by_dy, by_x, by_w, None, None, None


class _MaxPool(Function):
    """Max pooling and, where it is wanted, its mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, op: str, options: Options, with_argmax: bool) -> tuple[Any, ...]:
        if not with_argmax:
            return _compute(op, x, return_argmax=False, **options), None
        y, argmax = _compute(op, x, **options)
        ctx.mark_non_differentiable(argmax)
        ctx.save_for_backward(argmax)
        ctx.op, ctx.options, ctx.x_shape = op, options, tuple(x.shape)
        return y, argmax

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Any, ...]:
        dx = _MaxPoolGrad.apply(dy, *ctx.saved_tensors, ctx.x_shape, ctx.op, ctx.options)
        return dx, None, None, None


class _MaxPoolGrad(Function):
    """Its gradient, linear in dy; the adjoint picks from each window what argmax names."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, argmax: Tensor, x_shape: tuple[int, ...], op: str, options: Options
    ) -> Tensor:
        ctx.save_for_backward(argmax)
        ctx.options, ctx.x_shape = options, x_shape
        dx: Tensor = _compute(f"{op}_backward", dy, argmax, x_shape, **options)
        return dx

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        (argmax,) = ctx.saved_tensors
        indices = _compute("argmax_to_indices", argmax, ctx.x_shape, **ctx.options)
        first = 1 if ctx.options["channels_last"] else 2  # of the spatial axes
        last = first + g.ndim - 3
        picked = g.flatten(first, last).gather(first, indices.flatten(first, last))
        return picked.view_as(argmax), None, None, None, None


class _AvgPool(Function):
    """Average pooling, linear in x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, op: str, options: Options) -> Tensor:
        ctx.op, ctx.options, ctx.x_shape = op, options, tuple(x.shape)
        y: Tensor = _compute(op, x, **options)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return _AvgPoolGrad.apply(dy, ctx.x_shape, ctx.op, ctx.options), None, None


class _AvgPoolGrad(Function):
    """Its gradient, linear in dy; the adjoint is average pooling again."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, x_shape: tuple[int, ...], op: str, options: Options) -> Tensor:
        ctx.op, ctx.options = op, options
        dx: Tensor = _compute(f"{op}_backward", dy, x_shape, **options)
        return dx

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return _AvgPool.apply(g, ctx.op, ctx.options), None, None, None


def _compute(op: str, *arguments: Any, **options: Any) -> Any:
    """Call a public function of gpuconv: tensors in, tensors out, on their memory."""
    seen = [_values(each) if isinstance(each, Tensor) else each for each in arguments]
    with _current_stream(seen[0]):
        return getattr(gpuconv, op)(*seen, like=seen[0], **options)


def _values(x: Tensor) -> Tensor:
    """Return a tensor that DLPack takes: without a graph, and nothing left to conjugate or negate."""
    return x.detach().resolve_conj().resolve_neg()


@contextmanager
def _current_stream(x: Tensor) -> Iterator[None]:
    """Let CuPy work on a GPU tensor's device, in PyTorch's current stream: one order for the work of both."""
    if not x.is_cuda:
        yield
        return
    check_gpu()
    import cupy

    stream = cupy.cuda.Stream.from_external(torch.cuda.current_stream(x.device))
    with cupy.cuda.Device(x.device.index), stream:  # which is entered only on its own device
        yield


# The modules: PyTorch's own, with another forward.


class _Convolving:
    """The `forward` of the convolution modules; `_function` is a module's function."""

    _function: Any

    def forward(self: Any, input: Tensor) -> Tensor:
        """Convolve; borders other than zeros are put around the input first."""
        padding = self.padding
        if self.padding_mode != "zeros":
            borders = self._reversed_padding_repeated_twice
            input, padding = nn.functional.pad(input, borders, mode=self.padding_mode), 0
        y: Tensor = self._function(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )
        return y


class Conv1d(_Convolving, nn.Conv1d):
    """`torch.nn.Conv1d`, computed by `conv1d`."""

    _function = staticmethod(conv1d)


class Conv2d(_Convolving, nn.Conv2d):
    """`torch.nn.Conv2d`, computed by `conv2d`.

    Examples
    --------
    >>> import torch, gpuconv.torch
    >>> layer = gpuconv.torch.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
    >>> original = torch.nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
    >>> layer.load_state_dict(original.state_dict())
    <All keys matched successfully>
    >>> x = torch.rand(2, 3, 9, 9)
    >>> torch.allclose(layer(x), original(x), atol=1e-6)
    True
    """

    _function = staticmethod(conv2d)


class Conv3d(_Convolving, nn.Conv3d):
    """`torch.nn.Conv3d`, computed by `conv3d`."""

    _function = staticmethod(conv3d)


class _Transposing:
    """The `forward` of the transposed convolution modules."""

    _function: Any

    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve transposed, to the output size that is asked for."""
        axes = len(self.kernel_size)
        window = (self.stride, self.padding, self.kernel_size, axes, self.dilation)
        output_padding = self._output_padding(input, output_size, *window)
        window = (self.stride, self.padding, output_padding, self.groups, self.dilation)
        y: Tensor = self._function(input, self.weight, self.bias, *window)
        return y


class ConvTranspose1d(_Transposing, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d`, computed by `conv_transpose1d`."""

    _function = staticmethod(conv_transpose1d)


class ConvTranspose2d(_Transposing, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d`, computed by `conv_transpose2d`."""

    _function = staticmethod(conv_transpose2d)


class ConvTranspose3d(_Transposing, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d`, computed by `conv_transpose3d`."""

    _function = staticmethod(conv_transpose3d)


class _TakingMaxima:
    """The `forward` of the max pooling modules."""

    _function: Any

    def forward(self: Any, input: Tensor) -> Any:
        """Take the maximum of every window."""
        window = (self.kernel_size, self.stride, self.padding, self.dilation)
        return self._function(input, *window, self.ceil_mode, self.return_indices)


class MaxPool1d(_TakingMaxima, nn.MaxPool1d):
    """`torch.nn.MaxPool1d`, computed by `max_pool1d`."""

    _function = staticmethod(max_pool1d)


class MaxPool2d(_TakingMaxima, nn.MaxPool2d):
    """`torch.nn.MaxPool2d`, computed by `max_pool2d`."""

    _function = staticmethod(max_pool2d)


class MaxPool3d(_TakingMaxima, nn.MaxPool3d):
    """`torch.nn.MaxPool3d`, computed by `max_pool3d`."""

    _function = staticmethod(max_pool3d)


class _TakingMeans:
    """The `forward` of the average pooling modules."""

    _function: Any

    def forward(self: Any, input: Tensor) -> Tensor:
        """Take the mean of every window."""
        y: Tensor = self._function(
            *(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad),
            divisor_override=getattr(self, "divisor_override", None),  # which AvgPool1d has not
        )
        return y


class AvgPool1d(_TakingMeans, nn.AvgPool1d):
    """`torch.nn.AvgPool1d`, computed by `avg_pool1d`."""

    _function = staticmethod(avg_pool1d)


class AvgPool2d(_TakingMeans, nn.AvgPool2d):
    """`torch.nn.AvgPool2d`, computed by `avg_pool2d`."""

    _function = staticmethod(avg_pool2d)


class AvgPool3d(_TakingMeans, nn.AvgPool3d):
    """`torch.nn.AvgPool3d`, computed by `avg_pool3d`."""

    _function = staticmethod(avg_pool3d)


_TWINS = {
    getattr(nn, twin.__name__): twin
    for twin in (
        *(Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d),
        *(MaxPool1d, MaxPool2d, MaxPool3d, AvgPool1d, AvgPool2d, AvgPool3d),
    )
}


def swap(model: nn.Module) -> nn.Module:
    """Make gpuconv's modules of PyTorch's convolution and pooling modules in a model, where they are.

    They stay the same objects, with their parameters, hooks and settings; only their class changes, so an
    optimizer made before goes on. Subclasses (of PyTorch's lazy, quantized and parametrized modules, and of
    your own) are left as they are.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.

    Returns
    -------
    model : torch.nn.Module
        The same.

    Examples
    --------
    >>> import torch, gpuconv.torch
    >>> model = gpuconv.torch.swap(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()))
    >>> isinstance(model[0], gpuconv.torch.Conv2d)
    True
    """
    for module in model.modules():
        module.__class__ = _TWINS.get(type(module), type(module))
    return model
