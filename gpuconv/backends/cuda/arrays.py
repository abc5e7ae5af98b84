"""What the public functions ask of arrays: a new one, and where one lies."""

from typing import Any

import numpy as np

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
    return np.asarray(_Memory(runtimes.of(x).address(x), x.shape, x.strides, x.itemsize))


class _Memory:
    """A piece of memory, by NumPy's array interface."""

    def __init__(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),
            "shape": shape,
            "strides": strides,
            "typestr": f"|V{itemsize}",
        }
