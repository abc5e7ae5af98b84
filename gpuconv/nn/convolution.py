"""Convolution and transposed convolution as layers, with weight and bias held.

The private classes take the number of spatial axes and the functions from their children.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from gpuconv.backends.dispatch import backend_of
from gpuconv.conv import check_activation, conv2d, conv2d_backward
from gpuconv.conv1d import conv1d, conv1d_backward
from gpuconv.conv3d import conv3d, conv3d_backward
from gpuconv.conv_transpose import (
    conv_transpose1d,
    conv_transpose1d_backward,
    conv_transpose2d,
    conv_transpose2d_backward,
    conv_transpose3d,
    conv_transpose3d_backward,
)
from gpuconv.geometry import Ints, Padding, flag, integer, per_axis, sliding_window, transposed_window
from gpuconv.nn.initializers import float_dtype, generator, he_normal
from gpuconv.nn.layer import Array, Layer, check_window, unusual
from gpuconv.nn.padding import Pads, check_borders, check_mode, pad, pad_backward


class _Conv(Layer):
    """A convolution over `_axes` spatial axes."""

    _axes: ClassVar[int]
    _convolve: ClassVar[Callable[..., Array]]
    _gradients: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        activation: str | None = None,
        channels_last: bool = False,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        check_activation(op, activation)
        in_channels = integer(op, "in_channels", in_channels, 1)
        out_channels = integer(op, "out_channels", out_channels, 1)
        groups = integer(op, "groups", groups, 1)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{op}: {name}={channels} doesn't divide into groups={groups}")
        check_window(op, self._axes, kernel_size, stride, padding, dilation)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        self.bias = flag(op, "bias", bias)
        self.padding_mode = check_mode(op, padding_mode)
        self.activation = activation
        self.channels_last = flag(op, "channels_last", channels_last)
        kernel = per_axis(op, "kernel_size", kernel_size, self._axes, 1)
        dtype = float_dtype(op, dtype)
        self.params["weight"] = self._draw(kernel, dtype, generator(op, rng))
        if bias:
            self.params["bias"] = np.zeros(out_channels, dtype)

    def _draw(self, kernel: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
        """Return the first weights."""
        shape = (self.out_channels, self.in_channels // self.groups, *kernel)
        if self.channels_last:
            shape = (*kernel, *shape[1::-1])
        return he_normal(shape, channels_last=self.channels_last, dtype=dtype, rng=rng)

    def forward(self, x: Array) -> Array:
        """Return the convolution of x with the weights, plus the bias, through the activation."""
        w = self.params["weight"]
        pads = () if self.padding_mode == "zeros" else self._borders(x, w)
        if pads:
            x = pad(x, pads, self.padding_mode)
        after = {} if self.activation is None else {"activation": self.activation}
        y = type(self)._convolve(x, w, self.params.get("bias"), **after, **self._window())
        return self._keep(y, (x, w, pads, {**after, "y": y} if after else {}))

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Put the gradients of weight and bias, summed over the batch, into `grads` and return dx."""
        x, w, pads, after = self._recall(dy)
        needs = ("x",) * needs_dx + ("w",) + ("b",) * ("bias" in self.params)
        dx, self.grads["weight"], db = type(self)._gradients(dy, x, w, needs=needs, **after, **self._window())
        if db is not None:
            # The function doesn't know the bias: of a real one the gradient is real.
            self.grads["bias"] = db if db.dtype.kind == self.params["bias"].dtype.kind else db.real
        return pad_backward(dx, pads, self.padding_mode) if pads and needs_dx else dx

    def _borders(self, x: Array, w: Array) -> Pads:
        """Return what to add before and after every axis of x; () for nothing, or an x that conv refuses."""
        op = type(self).__name__
        backend_of(op, x=x, weight=w)
        if not x.ndim == w.ndim == self._axes + 2:
            return ()
        image, kernel = (slice(1, -1), slice(-2)) if self.channels_last else (slice(2, None),) * 2
        window = sliding_window(
            *(op, x.shape[image], w.shape[kernel], self.stride, self.padding, self.dilation),
            kernel_name="the kernel of weight",
        )
        check_borders(op, self.padding_mode, window)
        if not any((*window.before, *window.after)):
            return ()
        pads = [(0, 0)] * x.ndim
        pads[image] = zip(window.before, window.after, strict=True)
        return tuple(pads)

    def _window(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding if self.padding_mode == "zeros" else 0,
            "dilation": self.dilation,
            "groups": self.groups,
            "channels_last": self.channels_last,
        }

    def _arguments(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}" + unusual(
            stride=(self.stride, 1),
            padding=(self.padding, 0),
            dilation=(self.dilation, 1),
            groups=(self.groups, 1),
            bias=(self.bias, True),
            padding_mode=(self.padding_mode, "zeros"),
            activation=(self.activation, None),
            channels_last=(self.channels_last, False),
        )


class Conv2d(_Conv):
    """A convolution of images with trained kernels, as `gpuconv.conv2d` computes it.

    y = conv2d(x, weight, bias); dx, dw and db are those of `gpuconv.conv2d_backward`: dw and db are sums
    over the batch and all places.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of x and of y; each divisible by `groups`.
    kernel_size, stride, padding, dilation, groups
        As in `gpuconv.conv2d`: an int or one per axis; padding also (before, after) pairs or a word.
    bias : bool, default True
        Without it there is no `params["bias"]`; a `BatchNorm2d` right after makes it superfluous.
    padding_mode : "zeros", "reflect", "replicate" or "circular", default "zeros"
        What stands around x, by however much `padding` says. Along an axis a b c d with padding 2:
        "reflect" c b [a b c d] c b (less than the axis's size), "replicate" a a [a b c d] d d, "circular"
        c d [a b c d] a b (at most its size). All but zeros make a padded copy of x, which the layer keeps.
    activation : "relu", optional
        What y goes through, as in `gpuconv.conv2d`. All is as with a `ReLU` behind the layer, but y is
        rectified where it lies.
    channels_last : bool, default False
        False: x is [N, C, H, W] and the weight [C_out, C_in/groups, kh, kw], as in PyTorch. True: x is
        [N, H, W, C] and the weight [kh, kw, C_in/groups, C_out].
    dtype : float16, float32 or float64, default float32
        Of the parameters. float32 is what GPUs are fast at and precise enough for training.
    rng : Generator, int or None, default None
        Where the weights come from. They are drawn by `he_normal` (variance 2 / fan_in), which keeps the
        signal's size through layers with ReLU; the bias starts at zero. Assign to `params["weight"]` to start
        otherwise.

    Attributes
    ----------
    params : {"weight", "bias"}
    grads : {"weight", "bias"}

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction; in `forward`, for an x
        that doesn't fit, or that is too small for the padding to be taken from it.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, rng=0)
    >>> y = conv(np.ones((2, 3, 10, 10), np.float32))
    >>> y.shape
    (2, 8, 5, 5)
    >>> conv.backward(np.ones_like(y)).shape
    (2, 3, 10, 10)
    >>> {name: grad.shape for name, grad in conv.grads.items()}
    {'weight': (8, 3, 3, 3), 'bias': (8,)}
    """

    _axes = 2
    _convolve = staticmethod(conv2d)
    _gradients = staticmethod(conv2d_backward)


class Conv1d(_Conv):
    """A convolution of signals with trained kernels, as `gpuconv.conv1d` computes it.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As in `Conv2d`.
    activation, channels_last, dtype, rng
        As in `Conv2d`, with one spatial axis: x is [N, C, L] and the weight [C_out, C_in/groups, k], or
        channels last [N, L, C] and [k, C_in/groups, C_out].

    Attributes
    ----------
    params : {"weight", "bias"}
    grads : {"weight", "bias"}

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> nn.Conv1d(3, 8, 3, padding=1, rng=0)(np.ones((2, 3, 10), np.float32)).shape
    (2, 8, 10)
    """

    _axes = 1
    _convolve = staticmethod(conv1d)
    _gradients = staticmethod(conv1d_backward)


class Conv3d(_Conv):
    """A convolution of volumes with trained kernels, as `gpuconv.conv3d` computes it.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As in `Conv2d`.
    activation, channels_last, dtype, rng
        As in `Conv2d`, with three spatial axes: x is [N, C, D, H, W] and the weight
        [C_out, C_in/groups, kd, kh, kw], or channels last [N, D, H, W, C] and
        [kd, kh, kw, C_in/groups, C_out].

    Attributes
    ----------
    params : {"weight", "bias"}
    grads : {"weight", "bias"}

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> nn.Conv3d(3, 8, 3, padding=1, rng=0)(np.ones((2, 3, 4, 5, 6), np.float32)).shape
    (2, 8, 4, 5, 6)
    """

    _axes = 3
    _convolve = staticmethod(conv3d)
    _gradients = staticmethod(conv3d_backward)


class _ConvTranspose(_Conv):
    """A transposed convolution over `_axes` spatial axes."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Padding = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Ints = 1,
        *,
        channels_last: bool = False,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        op = type(self).__name__
        super().__init__(
            *(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias),
            channels_last=channels_last,
            dtype=dtype,
            rng=rng,
        )
        kernel = per_axis(op, "kernel_size", kernel_size, self._axes, 1)
        one = (1 << 40,) * self._axes  # no padding takes all of this
        transposed_window(op, one, kernel, stride, padding, output_padding, dilation, self.groups)
        self.output_padding = output_padding

    def _draw(self, kernel: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
        """Return the first weights, of a variance as if every output summed all taps of its group."""
        drawn = super()._draw(kernel, dtype, rng)
        shape = (self.in_channels, self.out_channels // self.groups, *kernel)
        return drawn.reshape((*kernel, *shape[1::-1]) if self.channels_last else shape)

    def _window(self) -> dict[str, Any]:
        return {**super()._window(), "output_padding": self.output_padding}

    def _arguments(self) -> str:
        return super()._arguments() + unusual(output_padding=(self.output_padding, 0))


class ConvTranspose2d(_ConvTranspose):
    """A transposed convolution with trained kernels, as `gpuconv.conv_transpose2d` computes it: it enlarges.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of x and of y; each divisible by `groups`.
    kernel_size, stride, padding, output_padding, groups, dilation
        As in `gpuconv.conv_transpose2d`, in PyTorch's order.
    bias : bool, default True
        Without it there is no `params["bias"]`.
    channels_last : bool, default False
        False: x is [N, C, H, W] and the weight [C_in, C_out/groups, kh, kw], as in PyTorch. True: x is
        [N, H, W, C] and the weight [kh, kw, C_out/groups, C_in].
    dtype : float16, float32 or float64, default float32
        Of the parameters.
    rng : Generator, int or None, default None
        Where the weights come from, as in `Conv2d`.

    Attributes
    ----------
    params : {"weight", "bias"}
    grads : {"weight", "bias"}

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> larger = nn.ConvTranspose2d(3, 8, 4, stride=2, padding=1, rng=0)
    >>> y = larger(np.ones((2, 3, 10, 10), np.float32))
    >>> y.shape
    (2, 8, 20, 20)
    >>> larger.backward(np.ones_like(y)).shape
    (2, 3, 10, 10)
    """

    _axes = 2
    _convolve = staticmethod(conv_transpose2d)
    _gradients = staticmethod(conv_transpose2d_backward)


class ConvTranspose1d(_ConvTranspose):
    """A transposed convolution of signals, as `gpuconv.conv_transpose1d` computes it.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation
        As in `ConvTranspose2d`, with one spatial axis.
    channels_last, dtype, rng
        As in `ConvTranspose2d`.

    Attributes
    ----------
    params : {"weight", "bias"}
    grads : {"weight", "bias"}

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> nn.ConvTranspose1d(3, 8, 2, stride=2, rng=0)(np.ones((1, 3, 5), np.float32)).shape
    (1, 8, 10)
    """

    _axes = 1
    _convolve = staticmethod(conv_transpose1d)
    _gradients = staticmethod(conv_transpose1d_backward)


class ConvTranspose3d(_ConvTranspose):
    """A transposed convolution of volumes, as `gpuconv.conv_transpose3d` computes it.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation
        As in `ConvTranspose2d`, with three spatial axes.
    channels_last, dtype, rng
        As in `ConvTranspose2d`.

    Attributes
    ----------
    params : {"weight", "bias"}
    grads : {"weight", "bias"}

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> nn.ConvTranspose3d(3, 8, 2, stride=2, rng=0)(np.ones((1, 3, 2, 3, 4), np.float32)).shape
    (1, 8, 4, 6, 8)
    """

    _axes = 3
    _convolve = staticmethod(conv_transpose3d)
    _gradients = staticmethod(conv_transpose3d_backward)
