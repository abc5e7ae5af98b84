"""What the public functions ask of arrays: a new one, and where one lies.

A large new array is given the memory of one that nobody refers to any more, where there is such. The system
takes freed pages back and hands them out again one by one, filled with zeros.
"""

import os
import threading
from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.cpu.threads import VECTOR_BYTES

Array = np.ndarray[Any, Any]

# What malloc keeps by itself is no dearer.
LEAST_BYTES = 128 << 10

# Memory that no array has is kept up to so much: some activations of a small network, none of a large one.
KEPT_BYTES = 64 << 20

PAGE_BYTES = 4096


def empty(shape: tuple[int, ...], dtype: Any, beside: Array) -> Array:
    """Return a new array, not filled, where another lies."""
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    if not LEAST_BYTES <= size <= KEPT_BYTES:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, _idle.take(-(-size // PAGE_BYTES) * PAGE_BYTES).view(_Lease))


def extent(x: Array) -> Array:
    """Return a NumPy array with x's addresses: itself."""
    return x


def release() -> None:
    """Give back the memory that no array has."""
    global _idle
    _idle = _Idle()


class _Block(np.ndarray[Any, Any]):
    """Bytes that one array has after the other. Not a plain array, or NumPy would take it for their base."""

    __slots__ = ()


class _Lease(np.ndarray[Any, Any]):
    """A block while an array has it: that array's base, which ends with the last of its views."""

    __slots__ = ()

    def __del__(self) -> None:
        if self.base is not None:
            _idle.give(self.base)


class _Idle:
    """Blocks that no array has, by size."""

    def __init__(self) -> None:
        # The thread that has it may want it again: asking for memory may collect garbage, and end leases.
        self._lock = threading.RLock()
        self._blocks: dict[int, list[Any]] = {}  # the size that was given last comes last
        self._bytes = 0

    def take(self, size: int) -> Any:
        """Return a block of so many bytes, from a multiple of VECTOR_BYTES on."""
        with self._lock:
            if blocks := self._blocks.get(size):
                self._bytes -= size
                block = blocks.pop()
                if not blocks:
                    del self._blocks[size]
                return block
        memory = np.ndarray.__new__(_Block, size + VECTOR_BYTES, np.uint8)
        begin = -memory.__array_interface__["data"][0] % VECTOR_BYTES
        return memory[begin : begin + size]

    def give(self, block: Any) -> None:
        """Keep a block; where there are too many, drop some of the size that was given longest ago."""
        size = block.nbytes
        with self._lock:
            self._blocks[size] = [*self._blocks.pop(size, ()), block]
            self._bytes += size
            while self._bytes > KEPT_BYTES:
                oldest, blocks = next(iter(self._blocks.items()))
                blocks.pop()
                self._bytes -= oldest
                if not blocks:
                    del self._blocks[oldest]


_idle = _Idle()

if hasattr(os, "register_at_fork"):  # another thread of the parent may have had the lock
    os.register_at_fork(after_in_child=release)
