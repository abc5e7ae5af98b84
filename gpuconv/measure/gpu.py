"""The GPU as the measurements use it: times, workspace, poison, ceilings; all that is CuPy's alone."""

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np

import gpuconv
from gpuconv.backends.cuda.runtime import CUDA_TYPES
from gpuconv.backends.dispatch import accumulator
from gpuconv.distributed import Communicator, world
from gpuconv.measure.calls import random
from gpuconv.measure.cpu import R
from gpuconv.measure.records import file_stem
from gpuconv.measure.timing import Call, Sample
from gpuconv.measure.work import arrays

# Takes the given number of clock cycles, so that what is queued behind it starts without waiting for the CPU.
WAIT = """
extern "C" __global__ void gpuconv_check_wait(long long cycles) {
    long long begin = clock64();
    while (clock64() - begin < cycles) {}
}
"""
CYCLES_A_MICROSECOND = 2000  # about the fastest clock there is; on a slower one the wait is longer
LONGEST_WAIT_US = 20_000.0
# Bytes written between calls, twice the L2 where that is more: every line of it is another's then.
LEAST_FLUSHED = 64 << 20


def missing() -> str | None:
    """Say in one line why no GPU can be used here, or return None."""
    try:
        import cupy
    except ImportError as error:
        return f"no GPU check: CuPy can't be imported ({error}); pip install 'gpuconv[cuda13]' brings it"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no GPU check: CuPy finds no usable NVIDIA driver ({error})"
    return None if count else "no GPU check: no NVIDIA GPU is visible (CUDA_VISIBLE_DEVICES?)"


def name() -> str:
    """Return the GPU's name, as in "NVIDIA H200"."""
    import cupy

    return str(cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())


class Gpu:
    """The current device and stream."""

    def __init__(self) -> None:
        import cupy

        self.xp: ModuleType = cupy
        self.gpu: str | None = name()
        self.stem = file_stem(name())
        properties = cupy.cuda.runtime.getDeviceProperties(0)
        self.l2_bytes = int(properties["l2CacheSize"])
        self._properties = properties
        self._wait = cupy.RawKernel(WAIT, "gpuconv_check_wait", options=("--std=c++17",))
        self._flushed = cupy.empty(max(LEAST_FLUSHED, 2 * self.l2_bytes), np.uint8)

    def facts(self) -> dict[str, Any]:
        """Return what a reader must know to compare figures with others."""
        runtime, properties = self.xp.cuda.runtime, self._properties
        return {
            "gpu": self.gpu,
            "driver": _driver() or f"CUDA {runtime.driverGetVersion()}",
            "versions": versions(self.xp.cuda.nvrtc.getVersion()),
            "machine": {
                "compute_capability": f"{properties['major']}.{properties['minor']}",
                "multiprocessors": properties["multiProcessorCount"],
                "memory_bytes": properties["totalGlobalMem"],
                "l2_bytes": self.l2_bytes,
                "system": platform.platform(),
                "cores": len(os.sched_getaffinity(0)),
            },
        }

    def world(self) -> Communicator:
        """Return a world of NCCL's, of this GPU alone; RuntimeError without NCCL."""
        return world("cuda")

    def synchronize(self) -> None:
        """Wait for the GPU; errors of kernels come up here."""
        self.xp.cuda.runtime.deviceSynchronize()

    def wake(self) -> None:
        """Keep the GPU busy for a moment: an idle one runs at a fraction of its clock."""
        for _ in range(20):
            self._wait((1,), (1,), (np.int64(LONGEST_WAIT_US * CYCLES_A_MICROSECOND),))
        self.synchronize()

    def time(self, call: Callable[[], object], wait_us: float, flush: bool = True) -> tuple[float, float]:
        """Time one call: microseconds on the GPU, and the CPU's until the call returned.

        Everything is queued behind a wait of `wait_us`, so that gaps between launches don't count as the
        GPU's time. Nothing of the arguments is in the L2 unless `flush` is False.
        """
        events = self.xp.cuda.Event(), self.xp.cuda.Event()
        self.synchronize()
        cycles = np.int64(min(wait_us, LONGEST_WAIT_US) * CYCLES_A_MICROSECOND)
        self._wait((1,), (1,), (cycles,))
        if flush:
            self._flushed.fill(1)
        events[0].record()
        begin = time.perf_counter()
        result = call()
        cpu_us = (time.perf_counter() - begin) * 1e6
        events[1].record()
        events[1].synchronize()
        del result  # not before: its memory may be asked for again
        return self.xp.cuda.get_elapsed_time(*events) * 1e3, cpu_us

    def sampler(self, call: Call) -> Callable[[], Sample]:
        """Return what times one call; its second CPU time, all compiled and tuned, says how long to wait."""
        self.time(call, 0.0)
        wait_us = 50.0 + 2.0 * self.time(call, 0.0)[1]
        return lambda: Sample(*self.time(call, wait_us))

    def captured(self, call: Callable[[], Any]) -> tuple[Any, Callable[[], object]] | None:
        """Capture a call in a CUDA graph; return its result, whose values each launch makes, and the launch.

        None where CuPy refuses, as it does for products by cuBLAS. What the graph writes to beside the result
        is in a memory pool that is the graph's own.
        """
        cuda = self.xp.cuda
        self.synchronize()  # the arguments may still be written to
        stream, pool = cuda.Stream(non_blocking=True), cuda.MemoryPool()
        with cuda.using_allocator(pool.malloc), stream:
            call()  # compiles, and makes the pool as large as it must be
            stream.begin_capture()
            try:
                result = call()
            except NotImplementedError:
                stream.end_capture()
                return None
            graph = stream.end_capture()
        self.synchronize()

        def launch(kept: Any = pool) -> None:
            graph.launch()

        return result, launch

    def stamp(self) -> Any:
        """Record an event, to be given to `between` once the GPU has come to it."""
        event = self.xp.cuda.Event()
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Return the microseconds between two stamps."""
        return float(self.xp.cuda.get_elapsed_time(begin, end) * 1e3)

    def undisturbed(self, work: Callable[[], R], patience: float) -> tuple[R, float | None]:
        """Do it: programs on the CPU's cores don't disturb what is queued on the GPU."""
        return work(), None

    def workspace(self, call: Callable[[], Any]) -> tuple[Any, int]:
        """Return a call's result and the most bytes that it held beside it, as asked of the allocator."""
        events: list[tuple[int, int]] = []

        class Ledger(self.xp.cuda.MemoryHook):  # type: ignore[misc, name-defined]
            name = "gpuconv check"

            def malloc_postprocess(self, **allocated: Any) -> None:
                if allocated["mem_ptr"]:  # else there wasn't enough memory
                    events.append((allocated["mem_ptr"], allocated["size"]))

            def free_postprocess(self, **freed: Any) -> None:
                events.append((freed["mem_ptr"], -1))

        with Ledger():
            result = call()
        kept = {array.data.mem.ptr for array in arrays(result)}
        return result, peak_beside(kept, events)

    @contextmanager
    def poisoned(self, byte: int) -> Iterator[None]:
        """Fill all memory that is allocated meanwhile: what nobody writes shows in the results."""
        cuda = self.xp.cuda
        pool = cuda.get_allocator()

        def allocate(size: int) -> Any:
            memory = pool(size)
            if size:
                memory.memset_async(byte, size)
            return memory

        with cuda.using_allocator(allocate):
            yield

    def release(self) -> None:
        """Give unused memory back, ours and PyTorch's, for the other to have it."""
        self.xp.get_default_memory_pool().free_all_blocks()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()

    def alive(self) -> bool:
        """Tell whether the GPU still takes work; after some errors it takes none from this process."""
        try:
            self.synchronize()
        except self.xp.cuda.runtime.CUDARuntimeError:
            return False
        return True

    def shares_with(self, torch: ModuleType) -> bool:
        """Tell whether this PyTorch can work on our arrays: it may be built for CPUs only."""
        return bool(torch.cuda.is_available())

    def copy_gbps(self) -> float:
        """Measure the bandwidth of a large copy in GB/s, bytes read and bytes written."""
        free = int(self.xp.cuda.runtime.memGetInfo()[0])
        size = min(2 << 30, free // 4) // 4
        source = random(self.xp, (size,), "float32", 0)
        target = self.xp.empty_like(source)
        us = self._fastest(lambda: self.xp.copyto(target, source))
        return 2.0 * 4 * size / us / 1e3

    def gemm_tflops(self, precision: str, n: int = 8192) -> float:
        """Measure a large square matrix product through cuBLAS on random data, in TFLOP/s."""
        from cupy_backends.cuda.libs import cublas

        dtype, compute = {
            "ieee": ("float32", cublas.CUBLAS_COMPUTE_32F),
            "tf32": ("float32", cublas.CUBLAS_COMPUTE_32F_FAST_TF32),
            "fp16": ("float16", cublas.CUBLAS_COMPUTE_32F),
            "fp64": ("float64", cublas.CUBLAS_COMPUTE_64F),
        }[precision]
        kind = CUDA_TYPES[np.dtype(dtype)]
        a, b = (random(self.xp, (n, n), dtype, seed) for seed in (1, 2))
        c = self.xp.empty_like(a)
        one, zero = (np.array([value], accumulator(a.dtype)) for value in (1, 0))
        handle = self.xp.cuda.device.get_cublas_handle()

        def multiply() -> None:
            cublas.gemmEx(
                handle, cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_N, n, n, n, one.ctypes.data,
                a.data.ptr, kind, n, b.data.ptr, kind, n, zero.ctypes.data, c.data.ptr, kind, n,
                compute, cublas.CUBLAS_GEMM_DEFAULT,
            )  # fmt: skip

        return 2 * n**3 / self._fastest(multiply) / 1e6

    def _fastest(self, call: Callable[[], object], turns: int = 10) -> float:
        """Return the microseconds of the fastest of some calls: a ceiling is what can be reached."""
        self.time(call, 0.0, flush=False)
        return min(self.time(call, 0.0, flush=False)[0] for _ in range(turns))


def peak_beside(kept: set[int], events: list[tuple[int, int]]) -> int:
    """Return the most bytes in use at once, leaving out the results.

    `events` are addresses in order, each with the bytes allocated there or -1 where it was freed. An address
    in `kept` belongs to a result from its last allocation on.
    """
    last = {address: i for i, (address, size) in enumerate(events) if size >= 0}
    used: dict[int, int] = {}
    peak = 0
    for i, (address, size) in enumerate(events):
        if size < 0:
            used.pop(address, None)
        elif not (address in kept and last[address] == i):
            used[address] = size
            peak = max(peak, sum(used.values()))
    return peak


def versions(cuda: tuple[int, int]) -> dict[str, str | None]:
    """Return the versions of what takes part; None where it isn't installed, or as no Python package."""
    import cupy

    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "gpuconv": gpuconv.__version__,
        "numpy": np.__version__,
        "cupy": cupy.__version__,
        "cuda": ".".join(map(str, cuda)),
    }
    for package in ("nvidia-cublas", "torch", "nvidia-cudnn-cu13", "pytest", "nvtx"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (subprocess.SubprocessError, OSError):
        return None
    return shown.splitlines()[0].strip() if shown.strip() else None
