"""What this backend asks of a GPU: memory, launches, matrix products. Here of CuPy; in the tests, of the CPU.

Nothing is imported or asked of the driver before the first array on a GPU is seen.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from inspect import signature
from typing import Any, Protocol, TypeVar

import numpy as np

from gpuconv.backends.cuda.kernels import THREADS, Kernel
from gpuconv.backends.dispatch import accumulator

Array = Any
F = TypeVar("F", bound=Callable[..., Any])


class Runtime(Protocol):
    """Everything that is not integers. Addresses are plain ints; a stream and a device are those in force."""

    def elsewhere(self, array: Array) -> AbstractContextManager[Any] | None:
        """Return a context in which the array's device is the current one; None where it is already."""

    def default_workspace(self) -> int:
        """Return the bytes of workspace that an operation may take where the user sets no limit."""

    def identity(self) -> str:
        """Return what the device is: figures taken on one hold for those that are called the same."""

    def time(self, call: Callable[[], object]) -> float | None:
        """Return the microseconds that a call takes on the device; None, uncalled, where none can be taken.

        It may be called several times.
        """

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return a new array, not filled, in row-major order."""

    def workspace(self, size: int) -> Array:
        """Return `size` bytes of memory that live as long as the object; MemoryError where there aren't."""

    def address(self, array: Array) -> int:
        """Return the address of the array's first element."""

    def launch(self, kernel: Kernel, blocks: int, arguments: tuple[Any, ...], shared: int) -> None:
        """Start a kernel with this many blocks of THREADS threads and `shared` bytes of shared memory.

        Arguments are addresses (ints) and structs (NumPy arrays of size one).
        """

    def gemm(
        self,
        transposed: tuple[bool, bool],
        sizes: tuple[int, int, int],
        a: tuple[int, int, int],
        b: tuple[int, int, int],
        c: tuple[int, int, int],
        batch: int,
        dtypes: tuple[np.dtype[Any], np.dtype[Any]],
        accumulate: bool,
        precision: str,
    ) -> None:
        """Compute C = op(A) op(B), or C += op(A) op(B), for a batch of matrices in column-major order.

        `sizes` are m, n, k; `a`, `b` and `c` hold address, leading dimension and the stride from one matrix
        of the batch to the next (elements); `dtypes` that of a and b, and that of c. As cuBLAS's
        gemmStridedBatchedEx, whose C is never read where nothing is accumulated.
        """


class CupyRuntime:
    """The current device and stream, and cuBLAS, through CuPy."""

    def __init__(self) -> None:
        import cupy

        check_installed()
        self._cupy = cupy
        self._lock = threading.Lock()
        self._functions: dict[tuple[int, Kernel], Any] = {}
        self._workspace: dict[int, int] = {}
        self._identities: dict[int, str] = {}
        self._cublas: Any = None  # imported when first needed: pooling does without
        # The products of a chunk are many and small: their scalars lie ready, by the dtype of the factors.
        self._scalars = {
            dtype: tuple(np.array(value, accumulator(dtype)) for value in (0, 1)) for dtype in CUDA_TYPES
        }

    def elsewhere(self, array: Array) -> AbstractContextManager[Any] | None:
        """Return the array's device where it isn't the current one."""
        device: AbstractContextManager[Any] = array.device
        return None if device.id == self._cupy.cuda.runtime.getDevice() else device  # type: ignore[attr-defined]

    def default_workspace(self) -> int:
        """Return half of the device's L2: what a kernel writes there, the product reads without DRAM."""
        runtime = self._cupy.cuda.runtime
        device = runtime.getDevice()
        if device not in self._workspace:
            l2 = runtime.deviceGetAttribute(runtime.cudaDevAttrL2CacheSize, device)
            self._workspace[device] = max(LEAST_DEFAULT, l2 // 2)
        return self._workspace[device]

    def identity(self) -> str:
        """Return the device's name, its compute capability, and the version of CUDA that is installed.

        NVRTC's, beside which cuBLAS is installed; the runtime's is of the CUDA that CuPy was built with.
        """
        cuda = self._cupy.cuda
        device = cuda.runtime.getDevice()
        if device not in self._identities:
            found, version = cuda.runtime.getDeviceProperties(device), cuda.nvrtc.getVersion()
            self._identities[device] = (
                f"{found['name'].decode()}, compute capability {found['major']}.{found['minor']}, "
                f"CUDA {'.'.join(map(str, version))}"
            )
        return self._identities[device]

    def time(self, call: Callable[[], object]) -> float | None:
        """Return the time between events on the current stream; None while it is being captured."""
        cuda = self._cupy.cuda
        if cuda.get_current_stream().is_capturing():
            return None
        begin, end = cuda.Event(), cuda.Event()
        # While the device is at this one, the next is launched: what the CPU needs for it doesn't count, but
        # where it needs longer than the device.
        call()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(cuda.get_elapsed_time(begin, end) * 1e3)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return a new array, not filled."""
        return self._cupy.empty(shape, dtype)

    def workspace(self, size: int) -> Array:
        """Return memory from CuPy's pool; it goes back there, in the stream's order, with the object."""
        return self._cupy.empty(size, np.uint8)

    def address(self, array: Array) -> int:
        """Return the address of the array's first element."""
        return int(array.data.ptr)

    def launch(self, kernel: Kernel, blocks: int, arguments: tuple[Any, ...], shared: int) -> None:
        """Launch on the current stream; compile the kernel where this device hasn't seen it."""
        device = self._cupy.cuda.runtime.getDevice()
        function = self._functions.get((device, kernel))
        if function is None:
            function = self._compile(device, kernel)
        function((blocks,), (THREADS,), arguments, shared_mem=shared)

    def _compile(self, device: int, kernel: Kernel) -> Any:
        with self._lock:
            if (device, kernel) not in self._functions:
                module = self._cupy.RawModule(code=kernel.text, options=OPTIONS)
                try:
                    function = module.get_function(kernel.function)
                except Exception as error:  # of many kinds: a library not found, the compiler's own
                    raise _cannot_compile(kernel, error) from error
                self._functions[device, kernel] = function
            return self._functions[device, kernel]

    def gemm(
        self,
        transposed: tuple[bool, bool],
        sizes: tuple[int, int, int],
        a: tuple[int, int, int],
        b: tuple[int, int, int],
        c: tuple[int, int, int],
        batch: int,
        dtypes: tuple[np.dtype[Any], np.dtype[Any]],
        accumulate: bool,
        precision: str,
    ) -> None:
        """Call gemmStridedBatchedEx on the current stream."""
        cublas = self._cublas = self._cublas or _import_cublas()
        handle = self._cupy.cuda.device.get_cublas_handle()
        double, half = dtypes[0] in DOUBLES, dtypes[0] == np.float16
        zero, one = self._scalars[dtypes[0]]
        if double:
            compute = cublas.CUBLAS_COMPUTE_64F
        elif precision == "tf32" and not half:
            compute = cublas.CUBLAS_COMPUTE_32F_FAST_TF32
        else:
            compute = cublas.CUBLAS_COMPUTE_32F
        try:
            with _sums_in_float32(cublas, handle) if half else nullcontext():
                cublas.gemmStridedBatchedEx(
                    handle,
                    *(cublas.CUBLAS_OP_T if flag else cublas.CUBLAS_OP_N for flag in transposed),
                    *sizes,
                    one.ctypes.data,
                    *(a[0], CUDA_TYPES[dtypes[0]], *a[1:]),
                    *(b[0], CUDA_TYPES[dtypes[0]], *b[1:]),
                    (one if accumulate else zero).ctypes.data,
                    *(c[0], CUDA_TYPES[dtypes[1]], *c[1:]),
                    batch,
                    compute,
                    cublas.CUBLAS_GEMM_DEFAULT,
                )
        except NotImplementedError as error:  # while the stream is captured
            raise NotImplementedError(f"CuPy: {error}; {CAPTURE}") from error


@contextmanager
def _sums_in_float32(cublas: Any, handle: int) -> Iterator[None]:
    """Keep cuBLAS from adding parts of a float16 product in float16, as it else may."""
    mode = cublas.getMathMode(handle)
    cublas.setMathMode(handle, mode | NO_REDUCED_PRECISION)
    try:
        yield
    finally:
        cublas.setMathMode(handle, mode)


# CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION
NO_REDUCED_PRECISION = 16
CAPTURE = (
    'gpuconv.config.algorithm = "implicit" has kernels of our own do what they can of it, and '
    "gpuconv.explain(...).capturable tells whether a CUDA graph can hold a call"
)
# The default workspace where the L2 is small (or its size unknown).
LEAST_DEFAULT = 16 << 20
OPTIONS = ("--std=c++17",)
# cudaDataType_t
CUDA_TYPES: dict[np.dtype[Any], int] = {
    np.dtype(np.float16): 2,
    np.dtype(np.float32): 0,
    np.dtype(np.float64): 1,
    np.dtype(np.complex64): 4,
    np.dtype(np.complex128): 5,
}
DOUBLES = (np.dtype(np.float64), np.dtype(np.complex128))

INSTALL = (
    "pip install 'gpuconv[cuda13]' (driver 580 or newer) or 'gpuconv[cuda12]' (driver 525 or newer) brings it"
)


def check_installed() -> None:
    """Find what is missing for a GPU, before anything else fails on it.

    Raises
    ------
    RuntimeError
        Where CuPy is not there, is built for AMD's GPUs, or finds no driver, one too old, or no GPU; with the
        command that mends it.
    """
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(f"CUDA needs CuPy, which can't be imported ({error}); {INSTALL}") from error
    if cupy.cuda.runtime.is_hip:
        raise RuntimeError(
            f"this CuPy is built for ROCm, but gpuconv's kernels are CUDA; {INSTALL} for NVIDIA"
        )
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(
            f"CuPy finds no usable NVIDIA driver ({error}); nvidia-smi shows the one that is there. CUDA 13 "
            "needs 580 or newer, CUDA 12 525 or newer"
        ) from error
    if count == 0:
        raise RuntimeError("no NVIDIA GPU is visible to CuPy; CUDA_VISIBLE_DEVICES may hide it")


def to_gpu(x: Any) -> Array:
    """Return an array on CuPy's current device: itself where it is there, else a copy."""
    check_installed()
    import cupy

    return cupy.asarray(x)


def _import_cublas() -> Any:
    try:
        from cupy_backends.cuda.libs import cublas
    except ImportError as error:
        raise RuntimeError(f"convolutions need cuBLAS, which CuPy can't load ({error}); {INSTALL}") from error
    return cublas


def _cannot_compile(kernel: Kernel, error: Exception) -> RuntimeError:
    if type(error).__name__ == "CompileException":  # CuPy's, for what NVRTC refuses
        return RuntimeError(f"{kernel.function} doesn't compile for this device: {error}")
    return RuntimeError(
        f"kernels are compiled by NVRTC when first used, but CuPy can't use it ({error}); {INSTALL}"
    )


_RUNTIMES: dict[type, Runtime] = {}


def of(array: Array) -> Runtime:
    """Return the runtime for arrays of this type."""
    runtime = _RUNTIMES.get(type(array))
    if runtime is None:
        runtime = _RUNTIMES[type(array)] = CupyRuntime()
    return runtime


def present() -> Runtime | None:
    """Return the runtime of CuPy's current device; None without a GPU."""
    try:
        check_installed()
    except RuntimeError:
        return None
    import cupy

    return _RUNTIMES.get(cupy.ndarray) or CupyRuntime()


def on_device(*results: str) -> Callable[[F], F]:
    """Let an operation run on the device of its first argument, and on the current stream there.

    `results` are the parameters that it writes to, as kernels do: in row-major order and 16 bytes at a time.
    One that lies otherwise is written elsewhere and then copied.
    """

    def decorate(operation: F) -> F:
        names = list(signature(operation).parameters)
        written = [names.index(name) for name in results]

        def in_order(runtime: Runtime, *arguments: Any) -> Any:
            for i in written:
                y = arguments[i]
                if y is not None and not (y.flags.c_contiguous and runtime.address(y) % 16 == 0):
                    ordered = runtime.empty(y.shape, y.dtype)
                    in_order(runtime, *arguments[:i], ordered, *arguments[i + 1 :])
                    y[...] = ordered
                    return None
            return operation(*arguments)

        @wraps(operation)
        def wrapper(*arguments: Any) -> Any:
            runtime = of(arguments[0])
            elsewhere = runtime.elsewhere(arguments[0])
            if elsewhere is None:
                return in_order(runtime, *arguments)
            with elsewhere:
                return in_order(runtime, *arguments)

        return wrapper  # type: ignore[return-value]

    return decorate


def register(array_type: type, runtime: Runtime) -> None:
    """Let arrays of this type be worked on by this runtime: how the tests run the kernels without a GPU."""
    _RUNTIMES[array_type] = runtime


def _steps_over_elements(x: Array) -> bool:
    return all(step % x.itemsize == 0 for n, step in zip(x.shape, x.strides, strict=True) if n > 1)


def check_device(op: str, arrays: dict[str, Array]) -> None:
    """Check that all arrays lie on one GPU, and where it can read and write their elements.

    Raises
    ------
    ValueError
        Where they lie on several, or at addresses that are no multiples of their itemsize.
    """
    for name, x in arrays.items():
        if of(x).address(x) % x.itemsize or not (x.flags.c_contiguous or _steps_over_elements(x)):
            raise ValueError(
                f"{op}: {name} has elements of {x.dtype.name} at addresses that are no multiples of their "
                f"{x.itemsize} bytes, which a GPU can't reach; copy it first"
            )
    devices = {name: x.device.id for name, x in arrays.items()}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on GPU {number}" for name, number in devices.items())
        raise ValueError(f"{op}: all arrays must be on one GPU, but there are {listed}")
