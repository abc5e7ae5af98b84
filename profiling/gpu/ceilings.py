"""What this GPU reaches at best: the bandwidth and the matrix rates that the floors are computed from."""

from typing import Any

from .children import Deadline
from .results import Results
from .shapes import Row

PRECISIONS = ("ieee", "tf32", "fp16")


def run(results: Results, deadline: Deadline, gpu: Any) -> str:
    """Measure; return how far it came."""
    gpu.wake()
    results.data["copy_gbps"] = round(gpu.copy_gbps(), 1)
    rates = results.data["gemm_tflops"] = {}
    for precision in PRECISIONS:
        if deadline.left < 1:
            return "stopped: out of time"
        rates[precision] = round(gpu.gemm_tflops(precision), 2)
        results.save()
    print(f"ceilings: copy {results.data['copy_gbps']} GB/s, GEMM {rates} TFLOP/s", flush=True)
    return "complete"


def floor_us(row: Row, data: dict[str, Any]) -> float | None:
    """Return the least time for a row: its bytes at a copy's bandwidth or its products at a GEMM's rate."""
    rate = data.get("gemm_tflops", {}).get(row.precision)
    if "copy_gbps" not in data or rate is None:
        return None
    bytes_us = row.shape.least_bytes(row.op, row.dtype) / data["copy_gbps"] / 1e3
    return max(bytes_us, row.shape.flops / rate / 1e6)
