"""What the public functions ask of arrays: a new one, and where one lies."""

from typing import Any

import numpy as np

from gpuconv.backends import addresses
from gpuconv.backends.cuda import runtime as runtimes

Array = Any


def empty(shape: tuple[int, ...], dtype: Any, beside: Array) -> Array:
    """Return a new array, not filled, on the GPU where another lies."""
    runtime = runtimes.of(beside)
    elsewhere = runtime.elsewhere(beside)
    if elsewhere is None:
        return runtime.empty(shape, dtype)
    with elsewhere:
        return runtime.empty(shape, dtype)


def extent(x: Array) -> np.ndarray[Any, Any]:
    """Return a NumPy array with x's addresses, which must not be read."""
    return addresses.at(runtimes.of(x).address(x), x.shape, x.strides, f"V{x.itemsize}")
