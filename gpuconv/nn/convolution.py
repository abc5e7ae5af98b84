"""Convolution as a layer: `gpuconv.conv2d` and its gradients, with weight and bias held.

The private class takes the number of spatial axes from its children, so another rank is one more small class.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from gpuconv.conv import conv2d, conv2d_backward
from gpuconv.geometry import Ints, Padding, flag, integer, per_axis
from gpuconv.nn.initializers import float_dtype, generator, he_normal
from gpuconv.nn.layer import Array, Layer, check_window, unusual


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
        *,
        channels_last: bool = False,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
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
        self.channels_last = flag(op, "channels_last", channels_last)
        kernel = per_axis(op, "kernel_size", kernel_size, self._axes, 1)
        shape = (out_channels, in_channels // groups, *kernel)
        if channels_last:
            shape = (*kernel, in_channels // groups, out_channels)
        dtype = float_dtype(op, dtype)
        self.params["weight"] = he_normal(
            shape, channels_last=channels_last, dtype=dtype, rng=generator(op, rng)
        )
        if bias:
            self.params["bias"] = np.zeros(out_channels, dtype)

    def forward(self, x: Array) -> Array:
        """Return the convolution of x with the weights, plus the bias."""
        w = self.params["weight"]
        return self._keep(type(self)._convolve(x, w, self.params.get("bias"), **self._window()), (x, w))

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Put the gradients of weight and bias, summed over the batch, into `grads` and return dx."""
        x, w = self._recall(dy)
        needs = ("x",) * needs_dx + ("w",) + ("b",) * ("bias" in self.params)
        dx, self.grads["weight"], db = type(self)._gradients(dy, x, w, needs=needs, **self._window())
        if db is not None:
            self.grads["bias"] = db
        return dx

    def _window(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
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
        For an argument of the wrong kind or an impossible value, on construction.

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
