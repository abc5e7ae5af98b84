"""The rectifier on CuPy arrays: by CuPy's own elementwise kernels, and where a result lies by one of ours."""

from typing import Any

import numpy as np

from gpuconv.backends.cuda import runtime as runtimes
from gpuconv.backends.cuda.kernels import needs_wide, specialise
from gpuconv.backends.cuda.problem import RESULT
from gpuconv.backends.cuda.program import At, Launch, kernel_launch, lanes
from gpuconv.backends.dispatch import array_module

Array = Any


def relu(x: Array) -> Array:
    """Return max(x, 0); NaN stays."""
    return array_module(x).maximum(x, 0)


def rectify(items: int, dtype: np.dtype[Any]) -> Launch:
    """Return the launch that writes max(y, 0) over a result of so many elements; NaN stays."""
    vector = lanes(dtype.itemsize, items)
    kernel = specialise("relu", None, dtype, vector=vector, wide=needs_wide(items))
    return kernel_launch(kernel, items // vector, (At(RESULT),))


@runtimes.on_device()
def relu_input_grad(dy: Array, y: Array) -> Array:
    """Return dy, but 0 where y <= 0."""
    # By bits, all or none: an infinite dy times 0 would be NaN.
    bits = f"i{dy.dtype.itemsize}"
    passes = array_module(dy).subtract(y <= 0, 1, dtype=bits)
    passes &= dy.view(bits)
    return passes.view(dy.dtype)
