"""What a cached call on GPU arrays costs the CPU, the launches themselves left out. Needs no GPU.

    python profiling/call_overhead.py

The arrays are NumPy's and the runtime does nothing, so what is timed is gpuconv: checking the arguments,
finding the program, adding addresses to offsets. CuPy's launches and allocations, and cuBLAS's calls, come on
top, as gpu_check.py measures them (`cpu_us`).
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not another installed one

import gpuconv
from gpuconv.backends import dispatch
from gpuconv.backends.cuda import runtime
from gpuconv.measure.cpu import Cpu
from gpuconv.measure.timing import in_turns


class Still(np.ndarray):
    """An array for the runtime that does nothing."""

    device = SimpleNamespace(id=0)


class StillRuntime:
    """A runtime that does nothing and allocates each size once."""

    def __init__(self):
        self._arrays = {}
        self._addresses = {}

    def elsewhere(self, array):
        """Return None: there is one device."""

    def default_workspace(self):
        """Return what a GPU with 32 MB of L2 has."""
        return 16 << 20

    def empty(self, shape, dtype):
        """Return the array of this shape; the same one again."""
        key = shape, np.dtype(dtype)
        if key not in self._arrays:
            self._arrays[key] = np.zeros(shape, dtype).view(Still)
        return self._arrays[key]

    def workspace(self, size):
        """Return an array of this many bytes."""
        return self.empty((size,), np.uint8)

    def address(self, array):
        """Return the array's address."""
        if id(array) not in self._addresses:
            self._addresses[id(array)] = array.ctypes.data  # takes longer than CuPy's .data.ptr
        return self._addresses[id(array)]

    def launch(self, *arguments):
        """Do nothing."""

    def gemm(self, *arguments):
        """Do nothing."""


def main():
    still = StillRuntime()
    dispatch.KINDS[Still] = "CuPy"
    runtime.register(Still, still)
    x, w, b = (still.empty(shape, np.float32) for shape in ((2, 16, 14, 14), (16, 16, 3, 3), (16,)))
    y = still.empty((2, 16, 14, 14), np.float32)
    pooled, argmax = still.empty((2, 16, 7, 7), np.float32), still.empty((2, 16, 7, 7), np.uint8)
    calls = {
        "conv2d": lambda: gpuconv.conv2d(x, w, padding=1),
        "conv2d with a bias": lambda: gpuconv.conv2d(x, w, b, padding=1),
        "conv2d_backward": lambda: gpuconv.conv2d_backward(y, x, w, padding=1),
        "max_pool2d": lambda: gpuconv.max_pool2d(x, 2),
        "max_pool2d_backward": lambda: gpuconv.max_pool2d_backward(pooled, argmax, x.shape, 2),
        "avg_pool2d": lambda: gpuconv.avg_pool2d(x, 2),
    }
    for name, timing in in_turns(calls, Cpu(), 2.0).items():
        print(f"{name:22}{timing.us:6.1f} us ±{timing.spread:.0%}")


if __name__ == "__main__":
    main()
