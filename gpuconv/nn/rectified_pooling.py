"""A ReLU and the max pooling behind it, run the other way round."""

from typing import Any, ClassVar

from gpuconv.nn.activations import ReLU
from gpuconv.nn.layer import Array, Layer
from gpuconv.nn.pooling import MaxPool1d, MaxPool2d, MaxPool3d
from gpuconv.trace import AROUND_LAYER


def pooling_behind(relu: Layer, pool: Layer) -> bool:
    """Tell whether these are a ReLU and a max pooling; classes derived from them may compute other things."""
    return type(relu) is ReLU and type(pool) in (MaxPool1d, MaxPool2d, MaxPool3d)


class RectifiedPooling:
    """Layers i and i + 1 of a `Sequential`: the maximum of rectified values is the rectified maximum.

    So the rectifier is left with one value a window, forward and backward. Where a window holds no positive
    number, the gradient arrives at another place of it, and the rectifier takes it away as it would have
    there. What the layers keep is what they'd keep had they run in their order: they can be called one by
    one behind this.
    """

    params: ClassVar[dict[str, Array]] = {}

    def __init__(self, i: int, relu: Layer, pool: Any) -> None:
        self._i, self._relu, self._pool = i, relu, pool
        self._ran: tuple[Any, Any, Any] = None, None, None  # x, what the pooling kept, y

    def __call__(self, x: Array) -> Array:
        """Return the maxima, rectified."""
        if self._pool.undone:  # by an unpooling, which reads where the maximum is among rectified values
            return self._run(self._pool, "forward", self._run(self._relu, "forward", x))
        y = self._run(self._relu, "forward", self._run(self._pool, "forward", x))
        self._relu._keep(x, x)  # of y it would ask the sign, and x has the same
        self._ran = x, self._pool._kept, y
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx."""
        x, kept, y = self._ran
        if x is None or self._relu._kept is not x or self._pool._kept is not kept:  # one has run alone since
            return self._run(self._relu, "backward", self._run(self._pool, "backward", dy))
        self._pool._recall(dy)  # a dy of the wrong shape is wrong for this layer, not for the rectifier
        self._relu._keep(y, y)
        try:
            dy = self._run(self._relu, "backward", dy)
        finally:
            self._relu._keep(x, x)
        return self._run(self._pool, "backward", dy)

    def _run(self, layer: Layer, which: str, x: Array) -> Array:
        function, around = getattr(layer, which), AROUND_LAYER.get()
        if around is None:
            return function(x)
        return around(function, self._i + (layer is self._pool), layer, which, x)
