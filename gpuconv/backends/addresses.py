"""Addresses as a NumPy array: shape and strides to reason about, and memory that must not be touched."""

from typing import Any

import numpy as np


def at(address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Return an array of these addresses; only views of it may be taken."""
    return np.asarray(_Memory(address, shape, strides, dtype))


class _Memory:
    """A piece of memory, by NumPy's array interface."""

    def __init__(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),
            "shape": shape,
            "strides": strides,
            "typestr": np.dtype(dtype).str,
        }
