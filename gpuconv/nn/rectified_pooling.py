"""A ReLU and the max pooling behind it, run the other way round."""

from collections.abc import Callable
from typing import Any, ClassVar

from gpuconv.nn.activations import ReLU, check_floats
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
    there. Both layers keep what they need to be called one by one behind this.
    """

    params: ClassVar[dict[str, Array]] = {}

    def __init__(self, i: int, relu: Any, pool: Any) -> None:
        self._i, self._relu, self._pool = i, relu, pool

    def __call__(self, x: Array) -> Array:
        """Return the maxima, rectified."""
        relu, pool = self._relu, self._pool
        check_floats(relu, x)  # before the pooling, which takes more, forgets what it had
        if pool.undone:  # by an unpooling, which reads where the maximum is among rectified values
            return self._run(pool, pool.forward, "forward", self._run(relu, relu.forward, "forward", x))
        y = self._run(relu, relu.forward, "forward", self._run(pool, pool.forward, "forward", x))
        relu.keep_behind(x, pool._kept, y)
        pool.rectifier = relu
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx."""
        relu, pool = self._relu, self._pool
        if not relu.ran_behind(pool):  # or since then one has run alone
            return self._run(relu, relu.backward, "backward", self._run(pool, pool.backward, "backward", dy))
        pool._recall(dy)  # a dy of the wrong shape is wrong for this layer, not for the rectifier
        dy = self._run(relu, relu.backward_behind, "backward", dy)
        return self._run(pool, pool.backward, "backward", dy)

    def _run(self, layer: Layer, function: Callable[[Array], Array], which: str, x: Array) -> Array:
        if (around := AROUND_LAYER.get()) is None:
            return function(x)
        return around(function, self._i + (layer is self._pool), layer, which, x)
