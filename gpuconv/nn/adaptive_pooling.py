"""Global and adaptive pooling as layers: a fixed number of outputs, whatever the image's size."""

from gpuconv.adaptive import (
    OutputSize,
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    adaptive_max_pool2d,
    adaptive_max_pool2d_backward,
    output_sizes,
)
from gpuconv.geometry import flag
from gpuconv.global_pool import (
    global_avg_pool,
    global_avg_pool_backward,
    global_max_pool,
    global_max_pool_backward,
)
from gpuconv.nn.layer import Array, Layer, unusual


class _GlobalPool(Layer):
    def __init__(self, *, channels_last: bool = False, keepdims: bool = True) -> None:
        super().__init__()
        op = type(self).__name__
        self.channels_last = flag(op, "channels_last", channels_last)
        self.keepdims = flag(op, "keepdims", keepdims)

    def _layout(self) -> dict[str, bool]:
        return {"channels_last": self.channels_last, "keepdims": self.keepdims}

    def _arguments(self) -> str:
        return unusual(
            channels_last=(self.channels_last, False), keepdims=(self.keepdims, True)
        ).removeprefix(", ")


class GlobalAvgPool(_GlobalPool):
    """The mean of each whole plane, as `gpuconv.global_avg_pool` computes it, over one to three axes.

    Between convolutions and a dense layer it does what `Flatten` does, with fewer weights behind it and for
    images of any size. dx spreads each dy evenly over its plane.

    Parameters
    ----------
    channels_last : bool, default False
        x is [N, H, W, C] instead of [N, C, H, W]; or with one or three spatial axes.
    keepdims : bool, default True
        Whether y keeps the spatial axes, each with one place, or is [N, C], as `Linear` takes it.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind, on construction; as `gpuconv.global_avg_pool`, in `forward`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> pool = nn.GlobalAvgPool(keepdims=False)
    >>> pool(np.arange(8.0).reshape(1, 2, 2, 2))
    array([[1.5, 5.5]])
    >>> pool.backward(np.array([[4.0, 8.0]]))
    array([[[[1., 1.],
             [1., 1.]],
    <BLANKLINE>
            [[2., 2.],
             [2., 2.]]]])
    """

    def forward(self, x: Array) -> Array:
        """Return each plane's mean."""
        return self._keep(global_avg_pool(x, **self._layout()), x.shape)

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Return dx: each dy spread evenly over its plane."""
        return global_avg_pool_backward(dy, self._recall(dy), **self._layout())


class GlobalMaxPool(_GlobalPool):
    """The maximum of each whole plane, as `gpuconv.global_max_pool` computes it, over one to three axes.

    dx holds each dy at the place of its plane's maximum, the first where several are equal.

    Parameters
    ----------
    channels_last, keepdims
        As in `GlobalAvgPool`.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind, on construction; as `gpuconv.global_max_pool`, in `forward`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> pool = nn.GlobalMaxPool()
    >>> pool(np.array([[[[1.0, 2.0], [9.0, 4.0]]]]))
    array([[[[9.]]]])
    >>> pool.backward(np.full((1, 1, 1, 1), 7.0))
    array([[[[0., 0.],
             [7., 0.]]]])
    """

    def forward(self, x: Array) -> Array:
        """Return each plane's maximum and keep its place."""
        y, argmax = global_max_pool(x, **self._layout())
        return self._keep(y, (argmax, x.shape))

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Return dx: each dy at the place its plane's maximum was found, zero elsewhere."""
        argmax, x_shape = self._recall(dy)
        return global_max_pool_backward(dy, argmax, x_shape, **self._layout())


class _AdaptivePool2d(Layer):
    def __init__(self, output_size: OutputSize, *, channels_last: bool = False) -> None:
        super().__init__()
        op = type(self).__name__
        output_sizes(op, output_size, (1, 1))
        self.output_size = output_size
        self.channels_last = flag(op, "channels_last", channels_last)

    def _arguments(self) -> str:
        return f"output_size={self.output_size}" + unusual(channels_last=(self.channels_last, False))


class AdaptiveAvgPool2d(_AdaptivePool2d):
    """The means of a fixed number of windows, as `gpuconv.adaptive_avg_pool2d` computes them.

    The windows share out the image, whatever its size, by PyTorch's rule. dx spreads each dy evenly over its
    window; where windows share places, they add up.

    Parameters
    ----------
    output_size : int or (int, int)
        y's size (OH, OW); None in its place keeps an axis as it is.
    channels_last : bool, default False
        x is [N, H, W, C] instead of [N, C, H, W].

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction; as
        `gpuconv.adaptive_avg_pool2d`, in `forward`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> pool = nn.AdaptiveAvgPool2d((1, 2))
    >>> pool(np.array([[[[1.0, 2.0, 3.0, 4.0, 5.0]]]]))
    array([[[[2., 4.]]]])
    >>> pool.backward(np.array([[[[3.0, 6.0]]]]))
    array([[[[1., 1., 3., 2., 2.]]]])
    """

    def forward(self, x: Array) -> Array:
        """Return each window's mean."""
        y = adaptive_avg_pool2d(x, self.output_size, channels_last=self.channels_last)
        return self._keep(y, x.shape)

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Return dx: each dy spread evenly over its window."""
        return adaptive_avg_pool2d_backward(dy, self._recall(dy), channels_last=self.channels_last)


class AdaptiveMaxPool2d(_AdaptivePool2d):
    """The maxima of a fixed number of windows, as `gpuconv.adaptive_max_pool2d` computes them.

    The windows are those of `AdaptiveAvgPool2d`. dx holds each dy at the place of its window's maximum, the
    first where several are equal; places that won several windows get the sum.

    Parameters
    ----------
    output_size, channels_last
        As in `AdaptiveAvgPool2d`.

    Raises
    ------
    TypeError, ValueError
        As `AdaptiveAvgPool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> pool = nn.AdaptiveMaxPool2d((1, 2))
    >>> pool(np.array([[[[1.0, 2.0, 9.0, 4.0, 5.0]]]]))
    array([[[[9., 9.]]]])
    >>> pool.backward(np.array([[[[3.0, 6.0]]]]))
    array([[[[0., 0., 9., 0., 0.]]]])
    """

    def forward(self, x: Array) -> Array:
        """Return each window's maximum and keep its place."""
        y, argmax = adaptive_max_pool2d(x, self.output_size, channels_last=self.channels_last)
        return self._keep(y, (argmax, x.shape))

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Return dx: each dy at the place its window's maximum was found, zero elsewhere."""
        argmax, x_shape = self._recall(dy)
        return adaptive_max_pool2d_backward(dy, argmax, x_shape, channels_last=self.channels_last)
