"""The rectifier on CuPy arrays: by CuPy's own elementwise kernels, and where y lies by one of ours."""

from typing import Any

import numpy as np

from gpuconv.backends.cuda import runtime as runtimes
from gpuconv.backends.cuda.kernels import needs_wide, specialise
from gpuconv.backends.cuda.program import At, Program, kernel_launch, lanes, planned, run
from gpuconv.backends.dispatch import array_module

Array = Any


def relu(x: Array) -> Array:
    """Return max(x, 0); NaN stays."""
    return array_module(x).maximum(x, 0)


def rectify(y: Array) -> None:
    """Write max(y, 0) over y, in row-major order and at a multiple of 16 bytes; NaN stays."""
    runtime = runtimes.of(y)
    run(runtime, _rectify(y.size, y.dtype), [runtime.address(y)])


@planned
def _rectify(items: int, dtype: np.dtype[Any]) -> Program:
    vector = lanes(dtype.itemsize, items)
    kernel = specialise("relu", None, dtype, vector=vector, wide=needs_wide(items))
    return Program((kernel_launch(kernel, items // vector, (At(0),)),))


@runtimes.on_device()
def relu_input_grad(dy: Array, y: Array) -> Array:
    """Return dy, but 0 where y <= 0."""
    # By bits, all or none: an infinite dy times 0 would be NaN.
    bits = f"i{dy.dtype.itemsize}"
    passes = array_module(dy).subtract(y <= 0, 1, dtype=bits)
    passes &= dy.view(bits)
    return passes.view(dy.dtype)
