"""NumPy arrays as a GPU's: the CUDA backend, launch code, kernels and all, on the CPU."""

import weakref

import numpy as np

from gpuconv.backends import dispatch
from gpuconv.backends.cuda import runtime
from gpuconv.backends.cuda.kernels import THREADS
from gpuconv.config import PRECISIONS
from host.compiler import address_sanitized
from host.gemm import gemm
from host.kernel import HostKernel
from host.memory import lock, memory

DEFAULT_WORKSPACE = 16 << 20


class Device:
    """The one device; as CuPy's, it has no hash."""

    id = 0
    __hash__ = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


class DeviceArray(np.ndarray):
    """An array on the device; NumPy's expressions of them give such arrays again."""

    device = Device()

    def __array_wrap__(self, array, context=None, return_scalar=False):
        return array.view(DeviceArray)


class HostRuntime:
    """The `Runtime` of these arrays, which keeps account of what it is asked for.

    Attributes
    ----------
    launches
        Name and number of blocks of each launch.
    gemms
        m, n, k and batch of each matrix product.
    live_workspace, peak_workspace
        Bytes of workspace that are in use, and that were at most.
    capacity
        Bytes of workspace that there are; None: any number.
    exact
        Compile the window into kernels, as on a GPU.
    orders
        In how many orders each launch is run.
    races
        Whether races are looked for.
    name
        What the device is called.
    us
        Microseconds that a launch of a kernel of some name takes by the clock, or a product ("gemm"), or
        any of the "others".
    capturing
        Whether the stream is being captured: nothing can be timed, and CuPy refuses products.
    """

    def __init__(self):
        self._kernels = {}
        self.exact = False
        # The sanitizer makes everything slower; orders are compared without it.
        self.orders = 1 if address_sanitized() else 3
        self.races = False
        self.capacity = None
        self.name, self.us, self.capturing = "the host", {"others": 1.0}, False
        self.live_workspace = 0
        self.reset()

    def reset(self):
        """Begin a new account."""
        self.launches, self.gemms = [], []
        self.peak_workspace = self.live_workspace

    def elsewhere(self, array):
        return None

    def default_workspace(self):
        return DEFAULT_WORKSPACE

    def identity(self):
        return self.name

    def time(self, call):
        if self.capturing:
            return None
        launches, gemms = len(self.launches), len(self.gemms)
        call()
        names = [name for name, _ in self.launches[launches:]] + ["gemm"] * (len(self.gemms) - gemms)
        return sum(self.us.get(name, self.us["others"]) for name in names)

    def empty(self, shape, dtype):
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return np.ndarray.__new__(DeviceArray, shape, dtype, buffer=memory.allocate(size))

    def workspace(self, size):
        if self.capacity is not None and self.live_workspace + size > self.capacity:
            raise MemoryError(f"{size} bytes, but {self.live_workspace} of {self.capacity} are in use")
        array = self.empty((size,), np.uint8)
        self.live_workspace += size
        self.peak_workspace = max(self.peak_workspace, self.live_workspace)
        weakref.finalize(array, self._return_workspace, size).atexit = False
        return array

    def _return_workspace(self, size):
        self.live_workspace -= size

    def address(self, array):
        memory.adopt(array)
        return array.ctypes.data

    def launch(self, kernel, blocks, arguments, shared):
        key = kernel, self.exact, self.orders, self.races
        if key not in self._kernels:
            self._kernels[key] = HostKernel(*key)
        self.launches.append((kernel.name, blocks))
        self._kernels[key]((blocks,), (THREADS,), arguments, shared_mem=shared)

    def gemm(self, transposed, sizes, a, b, c, batch, dtypes, accumulate, precision):
        assert precision in PRECISIONS, precision
        if self.capturing:
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        self.gemms.append((*sizes, batch))
        with lock:
            gemm(transposed, sizes, a, b, c, batch, dtypes, accumulate)


host = HostRuntime()
dispatch.KINDS[DeviceArray] = "CuPy"
runtime.register(DeviceArray, host)


def to_device(x):
    """Return a copy in the device's memory, in row-major order."""
    x = np.asarray(x)
    array = host.empty(x.shape, x.dtype)
    array[...] = x
    return array


def to_host(x):
    """Return a copy as a plain NumPy array."""
    return np.array(x, subok=False)


def within_nan(rng, array):
    """Return equal values within a larger array of NaN on this device, aligned or not."""
    before, after = rng.choice([1, 4]), rng.choice([1, 4])
    whole = np.full([before + n + after for n in array.shape], np.nan, array.dtype)
    inside = tuple(slice(before, before + n) for n in array.shape)
    whole[inside] = array
    return to_device(whole)[inside]
