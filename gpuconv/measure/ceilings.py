"""What a device reaches at best: a copy's bandwidth and a matrix product's rate, measured once a process.

The floor of a call is the longer of its least bytes at that bandwidth and its products at that rate: the
roofline of [1]_, with measured lines.

References
----------
.. [1] S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for multicore
   architectures", Communications of the ACM 52 (2009).
"""

from functools import lru_cache
from typing import NamedTuple

from gpuconv.measure import devices
from gpuconv.measure.work import Work

# How numbers of a dtype are multiplied; float32 has two ways on a GPU (`gpuconv.config.fp32_precision`).
PRECISIONS = {
    "float16": "fp16",
    "float32": "ieee",
    "float64": "fp64",
    "complex64": "ieee",
    "complex128": "fp64",
}


class Ceiling(NamedTuple):
    """A copy's bandwidth, bytes read and bytes written, and the rate of matrix products."""

    bytes_per_second: float
    flops_per_second: float

    def seconds(self, work: Work) -> float:
        """Return the least time for so much work."""
        return max(work.bytes / self.bytes_per_second, work.flops / self.flops_per_second)


def present(kind: str, dtype: str, precision: str = "ieee") -> Ceiling | None:
    """Return what the CPU ("cpu") or the current GPU ("cuda") reaches; None without such a GPU.

    Parameters
    ----------
    kind
        "cpu" or "cuda".
    dtype
        Name of what is multiplied; any other than a float counts as float32.
    precision
        `gpuconv.config.fp32_precision`; only float32 on a GPU heeds it.

    Examples
    --------
    >>> present("cpu", "float32").flops_per_second > 0
    True
    """
    name = PRECISIONS.get(dtype, "ieee")
    try:
        if (kind, name) != ("cuda", "ieee") or precision == "ieee":
            return _measured(kind, name)
        by_tensor_cores = _measured(kind, "tf32")
        if precision == "tf32":
            return by_tensor_cores
        third = by_tensor_cores.flops_per_second / 3  # three products each; some are computed as by "ieee"
        exact = _measured(kind, name)
        return exact._replace(flops_per_second=max(third, exact.flops_per_second))
    except RuntimeError:
        return None


@lru_cache
def _measured(kind: str, precision: str) -> Ceiling:
    device = _device(kind)
    return Ceiling(_copy(kind) * 1e9, device.gemm_tflops(precision) * 1e12)


@lru_cache
def _device(kind: str) -> devices.Device:
    device = devices.find(kind)
    device.wake()
    return device


@lru_cache
def _copy(kind: str) -> float:
    return _device(kind).copy_gbps()
