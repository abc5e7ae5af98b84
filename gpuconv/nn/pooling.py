"""Pooling and max unpooling as layers: `gpuconv.max_pool2d`, `gpuconv.avg_pool2d`, their like and gradients.

The private classes take the number of spatial axes from their children.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from gpuconv.geometry import Ints, Padding, flag, integer
from gpuconv.lp_pool import check_norm, lp_pool2d, lp_pool2d_backward
from gpuconv.nn.layer import Array, Layer, check_window, unusual
from gpuconv.pool import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
from gpuconv.pool1d import avg_pool1d, avg_pool1d_backward, max_pool1d, max_pool1d_backward
from gpuconv.pool3d import avg_pool3d, avg_pool3d_backward, max_pool3d, max_pool3d_backward
from gpuconv.unpool import (
    max_unpool1d,
    max_unpool1d_backward,
    max_unpool2d,
    max_unpool2d_backward,
    max_unpool3d,
    max_unpool3d_backward,
)


class _Pool(Layer):
    """What every pooling layer knows of its window, over `_axes` spatial axes."""

    _axes: ClassVar[int]

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None,
        padding: Padding,
        dilation: Ints,
        ceil_mode: bool,
        channels_last: bool,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        check_window(op, self._axes, kernel_size, 1 if stride is None else stride, padding, dilation)
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = flag(op, "ceil_mode", ceil_mode)
        self.channels_last = flag(op, "channels_last", channels_last)

    def _window(self) -> dict[str, Any]:
        return {
            "padding": self.padding,
            "dilation": self.dilation,
            "ceil_mode": self.ceil_mode,
            "channels_last": self.channels_last,
        }


class _MaxPool(_Pool):
    """A max pooling over `_axes` spatial axes."""

    _pool: ClassVar[Callable[..., Any]]
    _gradient: ClassVar[Callable[..., Array]]
    undone = False  # whether a max unpooling reads what this layer keeps
    rectifier: Any = None  # a ReLU that ran behind it, though it is before it in the network

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Padding = 0,
        dilation: Ints = 1,
        *,
        ceil_mode: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode, channels_last)

    def forward(self, x: Array) -> Array:
        """Return each window's maximum and keep its place."""
        y, argmax = type(self)._pool(x, self.kernel_size, self.stride, **self._window())
        return self._keep(y, (argmax, x.shape))

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Return dx: each dy at the place its window's maximum was found, zero elsewhere."""
        argmax, x_shape = self._recall(dy)
        return type(self)._gradient(dy, argmax, x_shape, self.kernel_size, self.stride, **self._window())

    def _arguments(self) -> str:
        return f"kernel_size={self.kernel_size}" + unusual(
            stride=(self.stride, None),
            padding=(self.padding, 0),
            dilation=(self.dilation, 1),
            ceil_mode=(self.ceil_mode, False),
            channels_last=(self.channels_last, False),
        )


class MaxPool2d(_MaxPool):
    """The maximum of each window, as `gpuconv.max_pool2d` computes it.

    dx holds each dy at the place of its window's maximum, the first where several are equal; places that
    won several windows get the sum. Of x the layer keeps only the shape, beside one small integer per window.

    Parameters
    ----------
    kernel_size, stride, padding, dilation, ceil_mode, channels_last
        As in `gpuconv.max_pool2d`; `stride` None means `kernel_size`, so that windows don't overlap.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> pool = nn.MaxPool2d(2)
    >>> pool(np.array([[1.0, 2.0], [4.0, 3.0]]).reshape(1, 1, 2, 2)).item()
    4.0
    >>> pool.backward(np.full((1, 1, 1, 1), 7.0))
    array([[[[0., 0.],
             [7., 0.]]]])
    """

    _axes = 2
    _pool = staticmethod(max_pool2d)
    _gradient = staticmethod(max_pool2d_backward)


class MaxPool1d(_MaxPool):
    """The maximum of each window of signals, as `gpuconv.max_pool1d` computes it.

    Parameters
    ----------
    kernel_size, stride, padding, dilation, ceil_mode, channels_last
        As in `MaxPool2d`, with one spatial axis.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> nn.MaxPool1d(2)(np.arange(4.0).reshape(1, 1, 4)).ravel()
    array([1., 3.])
    """

    _axes = 1
    _pool = staticmethod(max_pool1d)
    _gradient = staticmethod(max_pool1d_backward)


class MaxPool3d(_MaxPool):
    """The maximum of each window of volumes, as `gpuconv.max_pool3d` computes it.

    Parameters
    ----------
    kernel_size, stride, padding, dilation, ceil_mode, channels_last
        As in `MaxPool2d`, with three spatial axes.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> nn.MaxPool3d(2)(np.arange(8.0).reshape(1, 1, 2, 2, 2)).ravel()
    array([7.])
    """

    _axes = 3
    _pool = staticmethod(max_pool3d)
    _gradient = staticmethod(max_pool3d_backward)


class _MaxUnpool(Layer):
    """The way back through a max pooling of the class `_pooling`."""

    _pooling: ClassVar[type[_MaxPool]]
    _unpool: ClassVar[Callable[..., Array]]
    _gradient: ClassVar[Callable[..., Array]]

    def __init__(self, pool: Any) -> None:
        super().__init__()
        if not isinstance(pool, self._pooling):
            raise TypeError(
                f"{type(self).__name__}: pool must be the {self._pooling.__name__} layer to undo, not "
                f"{type(pool).__name__} {pool!r}"
            )
        self.pool = pool
        pool.undone = True
        if pool.rectifier is not None and pool.rectifier.ran_behind(pool):
            pool.rectifier.run_before(pool)

    def forward(self, x: Array) -> Array:
        """Return an array like the pool's last x, with x's values where the maxima were, zero elsewhere."""
        pool = self.pool
        if pool._kept is None:
            raise RuntimeError(
                f"{type(self).__name__}: call {pool!r} first; it finds where the values belong"
            )
        argmax, x_shape = pool._kept
        y = type(self)._unpool(x, argmax, x_shape, pool.kernel_size, pool.stride, **pool._window())
        return self._keep(y, argmax)

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Return dx: each value's gradient from the place it was put."""
        argmax = self._recall(dy)
        pool = self.pool
        return type(self)._gradient(dy, argmax, pool.kernel_size, pool.stride, **pool._window())

    def _arguments(self) -> str:
        return repr(self.pool)


class MaxUnpool2d(_MaxUnpool):
    """A max pooling undone: values go back to where its maxima were, as `gpuconv.max_unpool2d` puts them.

    For decoders: the layer is given the pooling layer of the encoder and takes window, layout, sizes and
    argmax from it, so that it needs nothing but x when called.

    Parameters
    ----------
    pool : MaxPool2d
        The layer to undo, which runs before this one in every forward pass. x is shaped like its last y, and
        the result like its last x.

    Attributes
    ----------
    pool : MaxPool2d

    Raises
    ------
    TypeError
        For anything but such a layer, on construction.
    ValueError
        In `forward`, for an x not shaped like the pool's last y.
    RuntimeError
        In `forward`, where the pool has not run yet.

    Notes
    -----
    The pool is read at every `forward` and is not part of this layer: it has its own place in the network.
    `backward` uses the argmax of its own `forward`, even if the pool has run again since. Copy and pickle the
    network as a whole, as a copy of this layer alone takes a copy of the pool with it.

    PyTorch's layer of this name is built from the window's numbers and called with the indices. The function
    `gpuconv.max_unpool2d` is there for an argmax from anywhere else.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> pool = nn.MaxPool2d(2)
    >>> network = nn.Sequential(pool, nn.Sigmoid(), nn.MaxUnpool2d(pool))
    >>> network(np.array([[0.0, -1.0, -3.0, -4.0], [-2.0, -3.0, -5.0, 0.0]]).reshape(1, 1, 2, 4))
    array([[[[0.5, 0. , 0. , 0. ],
             [0. , 0. , 0. , 0.5]]]])
    >>> network.backward(np.arange(8.0).reshape(1, 1, 2, 4))
    array([[[[0.  , 0.  , 0.  , 0.  ],
             [0.  , 0.  , 0.  , 1.75]]]])
    """

    _pooling = MaxPool2d
    _unpool = staticmethod(max_unpool2d)
    _gradient = staticmethod(max_unpool2d_backward)


class MaxUnpool1d(_MaxUnpool):
    """A max pooling of signals undone, as `gpuconv.max_unpool1d` computes it.

    Parameters
    ----------
    pool : MaxPool1d
        The layer to undo, as in `MaxUnpool2d`.

    Attributes
    ----------
    pool : MaxPool1d

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `MaxUnpool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> pool = nn.MaxPool1d(2)
    >>> y = pool(np.array([[[3.0, 1.0, 0.0, 2.0]]]))
    >>> nn.MaxUnpool1d(pool)(10 * y)
    array([[[30.,  0.,  0., 20.]]])
    """

    _pooling = MaxPool1d
    _unpool = staticmethod(max_unpool1d)
    _gradient = staticmethod(max_unpool1d_backward)


class MaxUnpool3d(_MaxUnpool):
    """A max pooling of volumes undone, as `gpuconv.max_unpool3d` computes it.

    Parameters
    ----------
    pool : MaxPool3d
        The layer to undo, as in `MaxUnpool2d`.

    Attributes
    ----------
    pool : MaxPool3d

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `MaxUnpool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> pool = nn.MaxPool3d(2)
    >>> y = pool(np.arange(8.0).reshape(1, 1, 2, 2, 2))
    >>> nn.MaxUnpool3d(pool)(y).ravel()
    array([0., 0., 0., 0., 0., 0., 0., 7.])
    """

    _pooling = MaxPool3d
    _unpool = staticmethod(max_unpool3d)
    _gradient = staticmethod(max_unpool3d_backward)


class _AvgPool(_Pool):
    """An average pooling over `_axes` spatial axes."""

    _pool: ClassVar[Callable[..., Array]]
    _gradient: ClassVar[Callable[..., Array]]

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        dilation: Ints = 1,
        channels_last: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
        op = type(self).__name__
        self.count_include_pad = flag(op, "count_include_pad", count_include_pad)
        if divisor_override is not None:
            divisor_override = integer(op, "divisor_override", divisor_override, 1)
        self.divisor_override = divisor_override

    def forward(self, x: Array) -> Array:
        """Return each window's mean."""
        return self._keep(type(self)._pool(x, self.kernel_size, self.stride, **self._window()), x.shape)

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Return dx: each dy spread evenly over its window."""
        x_shape = self._recall(dy)
        return type(self)._gradient(dy, x_shape, self.kernel_size, self.stride, **self._window())

    def _window(self) -> dict[str, Any]:
        return {
            **super()._window(),
            "count_include_pad": self.count_include_pad,
            "divisor_override": self.divisor_override,
        }

    def _arguments(self) -> str:
        return f"kernel_size={self.kernel_size}" + unusual(
            stride=(self.stride, None),
            padding=(self.padding, 0),
            ceil_mode=(self.ceil_mode, False),
            count_include_pad=(self.count_include_pad, True),
            divisor_override=(self.divisor_override, None),
            dilation=(self.dilation, 1),
            channels_last=(self.channels_last, False),
        )


class AvgPool2d(_AvgPool):
    """The mean of each window, as `gpuconv.avg_pool2d` computes it.

    dx spreads each dy evenly over its window; where windows overlap, they add up.

    Parameters
    ----------
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation, channels_last
        As in `gpuconv.avg_pool2d`, in PyTorch's order; `stride` None means `kernel_size`.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> pool = nn.AvgPool2d(2)
    >>> pool(np.array([[1.0, 2.0], [4.0, 3.0]]).reshape(1, 1, 2, 2)).item()
    2.5
    >>> pool.backward(np.full((1, 1, 1, 1), 8.0))
    array([[[[2., 2.],
             [2., 2.]]]])
    """

    _axes = 2
    _pool = staticmethod(avg_pool2d)
    _gradient = staticmethod(avg_pool2d_backward)


class AvgPool1d(_AvgPool):
    """The mean of each window of signals, as `gpuconv.avg_pool1d` computes it.

    Parameters
    ----------
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation, channels_last
        As in `AvgPool2d`, with one spatial axis.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> nn.AvgPool1d(2)(np.arange(4.0).reshape(1, 1, 4)).ravel()
    array([0.5, 2.5])
    """

    _axes = 1
    _pool = staticmethod(avg_pool1d)
    _gradient = staticmethod(avg_pool1d_backward)


class AvgPool3d(_AvgPool):
    """The mean of each window of volumes, as `gpuconv.avg_pool3d` computes it.

    Parameters
    ----------
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation, channels_last
        As in `AvgPool2d`, with three spatial axes.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> nn.AvgPool3d(2)(np.arange(8.0).reshape(1, 1, 2, 2, 2)).ravel()
    array([3.5])
    """

    _axes = 3
    _pool = staticmethod(avg_pool3d)
    _gradient = staticmethod(avg_pool3d_backward)


class LPPool2d(_Pool):
    """The p-norm of each window, as `gpuconv.lp_pool2d` computes it.

    Parameters
    ----------
    norm_type : float
        The exponent p, 1 or more.
    kernel_size, stride, ceil_mode, padding, dilation, channels_last
        As in `gpuconv.lp_pool2d`, in PyTorch's order; `stride` None means `kernel_size`.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> pool = nn.LPPool2d(2, (1, 2))
    >>> pool(np.array([[[[3.0, -4.0, 0.0, 1.0]]]]))
    array([[[[5., 1.]]]])
    >>> pool.backward(np.array([[[[5.0, 7.0]]]]))
    array([[[[ 3., -4.,  0.,  7.]]]])
    """

    _axes = 2

    def __init__(
        self,
        norm_type: float,
        kernel_size: Ints,
        stride: Ints | None = None,
        ceil_mode: bool = False,
        *,
        padding: Padding = 0,
        dilation: Ints = 1,
        channels_last: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode, channels_last)
        check_norm("LPPool2d", norm_type)
        self.norm_type = norm_type

    def forward(self, x: Array) -> Array:
        """Return each window's norm."""
        y = lp_pool2d(x, self.norm_type, self.kernel_size, self.stride, **self._window())
        return self._keep(y, (x, y))

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Return dx: each dy shared out by how much each place adds to its window's norm."""
        x, y = self._recall(dy)
        window = (self.norm_type, self.kernel_size, self.stride)
        return lp_pool2d_backward(dy, x, y, *window, **self._window())

    def _arguments(self) -> str:
        return f"norm_type={self.norm_type}, kernel_size={self.kernel_size}" + unusual(
            stride=(self.stride, None),
            ceil_mode=(self.ceil_mode, False),
            padding=(self.padding, 0),
            dilation=(self.dilation, 1),
            channels_last=(self.channels_last, False),
        )
