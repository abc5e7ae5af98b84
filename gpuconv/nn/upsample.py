"""Nearest upsampling as a layer."""

from gpuconv.geometry import Ints, flag, per_axis
from gpuconv.nn.layer import Array, Layer, unusual
from gpuconv.upsample import upsample, upsample_backward


class Upsample(Layer):
    """Every place a block of copies, as `gpuconv.upsample` makes them, over one to three spatial axes.

    With `Conv2d` behind it, it enlarges without the checks that a transposed convolution leaves where its
    windows overlap unevenly.

    Parameters
    ----------
    scale_factor : int or one per spatial axis
        How many times each place stands along each axis.
    channels_last : bool, default False
        x is [N, H, W, C] instead of [N, C, H, W]; or with one or three spatial axes.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> larger = nn.Upsample(2)
    >>> larger(np.array([[[[1.0, 2.0]]]]))
    array([[[[1., 1., 2., 2.],
             [1., 1., 2., 2.]]]])
    >>> larger.backward(np.ones((1, 1, 2, 4)))
    array([[[[4., 4.]]]])
    """

    def __init__(self, scale_factor: Ints, *, channels_last: bool = False) -> None:
        super().__init__()
        axes = len(scale_factor) if isinstance(scale_factor, list | tuple) else 1
        if not 1 <= axes <= 3:
            raise ValueError(
                "Upsample: scale_factor must be an integer, or 1 to 3 of them, one per spatial axis, not "
                f"{scale_factor!r}"
            )
        per_axis("Upsample", "scale_factor", scale_factor, axes, 1)
        self.scale_factor = scale_factor
        self.channels_last = flag("Upsample", "channels_last", channels_last)

    def forward(self, x: Array) -> Array:
        """Return x enlarged."""
        return self._keep(upsample(x, self.scale_factor, channels_last=self.channels_last), None)

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Return dx: the sum of every block of copies."""
        self._recall(dy)
        return upsample_backward(dy, self.scale_factor, channels_last=self.channels_last)

    def _arguments(self) -> str:
        return f"{self.scale_factor}" + unusual(channels_last=(self.channels_last, False))
