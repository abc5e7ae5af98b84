"""Activation functions as layers. Each backward holds the derivative of its function and nothing else."""

from types import ModuleType
from typing import Any, NamedTuple

from gpuconv.backends.dispatch import array_module, backend_of, float_result
from gpuconv.nn.layer import Array, Layer


class ReLU(Layer):
    """The rectifier, y = max(x, 0); dx = dy where x > 0, else 0.

    At x = 0, where there is no derivative, dx is 0. NaN passes in both directions.

    Examples
    --------
    >>> import numpy as np
    >>> relu = ReLU()
    >>> relu(np.array([-2.0, 0.0, 3.0]))
    array([0., 0., 3.])
    >>> relu.backward(np.array([5.0, 5.0, 5.0]))
    array([0., 0., 5.])
    """

    def forward(self, x: Array) -> Array:
        """Return max(x, 0)."""
        backend = check_floats(self, x)
        y = backend.activations.relu(x)
        return self._keep(y, y)

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Return dx = dy where x > 0, else 0."""
        kept = self._recall(dy)
        return self._gradient(dy, kept.x if isinstance(kept, _Behind) else kept)

    def _gradient(self, dy: Array, y: Array) -> Array:
        backend = backend_of("ReLU", dy=dy, y=y)
        return backend.activations.relu_input_grad(dy, y)

    # As `gpuconv.nn.rectified_pooling` runs it: on the y of a max pooling that is behind it in the network,
    # as if on its x.

    def keep_behind(self, x: Array, pooled: Any, y: Array) -> None:
        """Keep the pooling's x, of which this layer's gradient could ask the signs, what it kept, and y."""
        self._keep(x, _Behind(x, pooled, y))

    def ran_behind(self, pool: Layer) -> bool:
        """Tell whether both last ran together so."""
        return isinstance(self._kept, _Behind) and self._kept.pooled is pool._kept

    def backward_behind(self, dy: Array) -> Array:
        """Return dy, but 0 where y is."""
        return self._gradient(dy, self._kept.y)

    def run_before(self, pool: Layer) -> None:
        """Let both keep what they keep where the pooling runs last."""
        pool.forward(self.forward(self._kept.x))


class _Behind(NamedTuple):
    """What a ReLU keeps that ran behind a max pooling."""

    x: Array
    pooled: Any
    y: Array


class Sigmoid(Layer):
    """The logistic function, y = 1 / (1 + exp(-x)); dx = dy y (1 - y).

    Computed from exp(-|x|), so that no x overflows, however large, and small y keep their digits.

    Examples
    --------
    >>> import numpy as np
    >>> sigmoid = Sigmoid()
    >>> sigmoid(np.array([-1e4, 0.0, 1e4]))
    array([0. , 0.5, 1. ])
    >>> sigmoid.backward(np.array([1.0, 1.0, 1.0]))
    array([0.  , 0.25, 0.  ])
    """

    def forward(self, x: Array) -> Array:
        """Return 1 / (1 + exp(-x))."""
        check_floats(self, x)
        xp = array_module(x)
        e = xp.exp(-abs(x))
        y = xp.where(x >= 0, 1, e) / (1 + e)
        return self._keep(y, y)

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Return dx = dy y (1 - y)."""
        y = self._recall(dy)
        return dy * (y * (1 - y))


class Tanh(Layer):
    """The hyperbolic tangent, y = tanh(x); dx = dy (1 - y²).

    Examples
    --------
    >>> import numpy as np
    >>> tanh = Tanh()
    >>> tanh(np.array([-100.0, 0.0]))
    array([-1.,  0.])
    >>> tanh.backward(np.array([1.0, 1.0]))
    array([0., 1.])
    """

    def forward(self, x: Array) -> Array:
        """Return tanh(x)."""
        check_floats(self, x)
        y = array_module(x).tanh(x)
        return self._keep(y, y)

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Return dx = dy (1 - y²)."""
        y = self._recall(dy)
        return dy * (1 - y * y)


def check_floats(layer: Layer, x: Array) -> ModuleType:
    """Return the backend of an array of floats."""
    backend = backend_of(type(layer).__name__, x=x)
    float_result(type(layer).__name__, x=x)
    return backend
