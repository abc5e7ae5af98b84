"""The rectifier on CuPy arrays, by CuPy's own elementwise kernels."""

from typing import Any

from gpuconv.backends.dispatch import array_module

Array = Any


def relu(x: Array) -> Array:
    """Return max(x, 0); NaN stays."""
    return array_module(x).maximum(x, 0)


def relu_input_grad(dy: Array, y: Array) -> Array:
    """Return dy, but 0 where y <= 0."""
    # By bits, all or none: an infinite dy times 0 would be NaN.
    bits = f"i{dy.dtype.itemsize}"
    passes = array_module(dy).subtract(y <= 0, 1, dtype=bits)
    passes &= dy.view(bits)
    return passes.view(dy.dtype)
