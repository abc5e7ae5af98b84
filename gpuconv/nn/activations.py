"""Activation functions as layers. Each backward holds the derivative of its function and nothing else."""

from types import ModuleType

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
        backend = _check(self, x)
        y = backend.activations.relu(x)
        return self._keep(y, y)

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Return dx = dy where x > 0, else 0."""
        y = self._recall(dy)
        backend = backend_of("ReLU", dy=dy, y=y)
        return backend.activations.relu_input_grad(dy, y)


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
        _check(self, x)
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
        _check(self, x)
        y = array_module(x).tanh(x)
        return self._keep(y, y)

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Return dx = dy (1 - y²)."""
        y = self._recall(dy)
        return dy * (1 - y * y)


def _check(layer: Layer, x: Array) -> ModuleType:
    """Return the backend of an array of floats."""
    backend = backend_of(type(layer).__name__, x=x)
    float_result(type(layer).__name__, x=x)
    return backend
