"""The CPU as the measurements use it: time, memory, ceilings, and a watch for other programs on its cores."""

import ctypes
import math
import os
import platform
import re
import time
import tracemalloc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, Self, TypeVar

import numpy as np

from gpuconv.backends.cpu import compiled, threads
from gpuconv.buffers import release_buffers
from gpuconv.measure.timing import Call, Sample

R = TypeVar("R")

TURN_SECONDS = 0.01  # a sample repeats a faster call until it lasts this long
# PyTorch's OpenMP threads spin for some 4 ms after a call, on the cores that the next one needs: without a
# pause a rn50_c2_3x3 forward of ours takes 17.7 ms in place of 13.8.
PAUSE_SECONDS = 0.01
# A faster call is repeated so long, untimed, to wake its threads again, and the cores: of a virtual machine's
# two, one was slow for 0.1 s after a pause. After 5 ms of calls a 7x7 pooling took 171 us with a spread of
# 20 %, and PyTorch's 52; after 60 ms 83 and 45, with a spread of 2 %; after 150 ms no less.
LEAD_SECONDS = 0.06

# Share of the cores above which a measurement isn't worth having; two idle cores show under 2 %.
DISTURBED = 0.05
QUIET_SECONDS = 0.2

COPIED_BYTES = 64 << 20  # more than the caches hold
GEMM_SIZE = 2048
DTYPES = {"ieee": np.float32, "fp16": np.float32, "fp64": np.float64}  # float16 is multiplied in float32


class Cpu:
    """The cores that this process may use, and NumPy on them."""

    xp: ModuleType = np
    gpu: str | None = None
    stem = "cpu"

    def facts(self) -> dict[str, Any]:
        """Return what a reader must know to compare figures with others."""
        return {
            "gpu": None,
            "cpu": _model(),
            "machine": {
                "threads": threads.count(),
                "cores": cores(),
                "blas": ", ".join(_blas()) or "unknown",
                "kernels": _kernels(),
                "system": platform.platform(),
            },
            "versions": {"python": platform.python_version(), "numpy": np.__version__},
        }

    def sampler(self, call: Call) -> Callable[[], Sample]:
        """Return what times one turn: as many calls as last TURN_SECONDS, after a pause."""
        once = min(_seconds(call) for _ in range(2))  # the first may compile, or ask for memory
        repeats = max(1, math.ceil(TURN_SECONDS / once))
        lead = math.ceil(LEAD_SECONDS / once) if once < LEAD_SECONDS else 0

        def sample() -> Sample:
            time.sleep(PAUSE_SECONDS)
            for _ in range(lead):
                call()
            begin = time.perf_counter()
            for _ in range(repeats):
                call()
            us = (time.perf_counter() - begin) / repeats * 1e6
            return Sample(us, us)

        return sample

    def stamp(self) -> float:
        """Return the time, to be given to `between`."""
        return time.perf_counter()

    def between(self, begin: float, end: float) -> float:
        """Return the microseconds between two stamps."""
        return (end - begin) * 1e6

    def undisturbed(self, work: Callable[[], R], patience: float) -> tuple[R, float | None]:
        """Wait until other programs leave the cores alone, at most `patience` seconds, and do it.

        Returns
        -------
        tuple
            What `work` gave, and the share of the cores that other programs took during the last attempt;
            None where nobody can tell.
        """
        if not OtherPrograms.can_be_seen():
            return work(), None
        give_up = time.perf_counter() + patience
        while True:
            with OtherPrograms() as before:
                time.sleep(QUIET_SECONDS)
            if before.share > DISTURBED and time.perf_counter() < give_up:
                continue
            with OtherPrograms() as meanwhile:
                result = work()
            if meanwhile.share <= DISTURBED or time.perf_counter() > give_up:
                return result, meanwhile.share

    def workspace(self, call: Callable[[], Any]) -> tuple[Any, int]:
        """Return a call's result and the most bytes that NumPy held beside it, as asked of the allocator.

        Memory that is kept for the next call is given back before, so it counts. BLAS's own isn't NumPy's.
        """
        release_buffers()
        # Someone else's trace goes on; its peak is put down to what is there now.
        mine = not tracemalloc.is_tracing()
        if mine:
            tracemalloc.start()
        try:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            result = call()
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            if mine:
                tracemalloc.stop()
        arrays = result if isinstance(result, tuple) else (result,)
        return result, max(0, peak - sum(x.nbytes for x in arrays if x is not None))

    def poisoned(self, byte: int) -> AbstractContextManager[None]:
        """Do nothing: what nobody writes is found by the tests' sanitizers."""
        return nullcontext()

    def copy_gbps(self) -> float:
        """Measure the bandwidth of a large copy by all threads, in GB/s, bytes read and bytes written."""
        source = np.ones(COPIED_BYTES, np.uint8)
        target = np.zeros_like(source)
        step = -(-COPIED_BYTES // (4 * threads.count()))
        parts = [slice(i, i + step) for i in range(0, COPIED_BYTES, step)]

        def copy(part: slice) -> None:
            target[part] = source[part]

        return 2 * COPIED_BYTES / _fastest(lambda: threads.parallel(copy, parts)) / 1e9

    def gemm_tflops(self, precision: str) -> float:
        """Measure a large square matrix product through NumPy's BLAS, in TFLOP/s."""
        rng = np.random.default_rng(0)
        n, dtype = GEMM_SIZE, DTYPES[precision]
        a, b = (rng.random((n, n), np.float32).astype(dtype) for _ in range(2))
        c = np.empty_like(a)
        return 2 * n**3 / _fastest(lambda: np.matmul(a, b, out=c)) / 1e12

    def alive(self) -> bool:
        """Return True: there is no context to lose."""
        return True

    def shares_with(self, torch: ModuleType) -> bool:
        """Return True: PyTorch sees NumPy's memory."""
        return True

    def synchronize(self) -> None:
        """Do nothing: a call that has returned is done."""

    wake = release = synchronize


def _fastest(call: Call, turns: int = 10) -> float:
    """Return the seconds of the fastest of some calls: a ceiling is what can be reached."""
    call()
    return min(_seconds(call) for _ in range(turns))


def _seconds(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


class OtherPrograms:
    """A `with` block's `share`: the part of our cores' time that other programs took meanwhile.

    One busy neighbour makes PyTorch's OpenMP loops wait for a thread that has no core: a hundredfold on
    small shapes, far more than it costs us, and so a flattering ratio.
    """

    STAT = Path("/proc/stat")

    def __init__(self) -> None:
        self.share = 0.0
        self._begin = self._now()

    @classmethod
    def can_be_seen(cls) -> bool:
        """Tell whether this system says what its cores do (Linux)."""
        return cls.STAT.is_file() and hasattr(os, "sched_getaffinity")

    def __enter__(self) -> Self:
        self._begin = self._now()
        return self

    def __exit__(self, *exception: object) -> None:
        wall, busy, own = (b - a for a, b in zip(self._begin, self._now(), strict=True))
        self.share = max(0.0, busy - own) / (wall * cores())

    @classmethod
    def _now(cls) -> tuple[float, float, float]:
        ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        lines = (line.split() for line in cls.STAT.read_text().splitlines())
        # user, nice, system, idle, waiting, interrupts, soft interrupts, stolen: all but idle and waiting
        ticks = sum(int(t) for name, *times in lines if name in ours for t in times[:3] + times[5:8])
        return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> bool:
    """Have malloc keep what is freed, so that timed calls find results' pages in place; tell if it does.

    By default large results go back to the system after every call and fault in again in the next, 4 KiB at a
    time for PyTorch but 2 MiB for NumPy, which asks for huge pages. On the two cores of a virtual machine
    this tripled PyTorch's time on the 1x1 layers: the page tables' time, and no convolution's.
    """
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    try:
        c = ctypes.CDLL(None)
        return bool(c.mallopt(mmap_max, 0) and c.mallopt(trim_threshold, -1))
    except (OSError, AttributeError, TypeError):  # another C library than glibc
        return False


def _model() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor()


def _kernels() -> str:
    """Return what computes, beside NumPy."""
    found = compiled.kernels(np.empty(0, np.float32))
    return "none: NumPy alone" if found is None else f"C, compiled by {found.compiler}"


def _blas() -> list[str]:
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    return [
        f"{b['internal_api']} {b['version']} {b.get('architecture', '')}".strip()
        for b in threadpool_info()
        if b["user_api"] == "blas"
    ]
