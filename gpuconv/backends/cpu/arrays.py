"""What the public functions ask of arrays: a new one, and where one lies."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def empty(shape: tuple[int, ...], dtype: Any, beside: Array) -> Array:
    """Return a new array, not filled, where another lies."""
    return np.empty(shape, dtype)


def extent(x: Array) -> Array:
    """Return a NumPy array with x's addresses: itself."""
    return x
