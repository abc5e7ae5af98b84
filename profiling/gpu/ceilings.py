"""What this GPU reaches at best: the bandwidth and the matrix rates that the floors are computed from."""

from typing import Any

from gpuconv.measure import bench

from .children import Deadline
from .results import Results

PRECISIONS = ("ieee", "tf32", "fp16")


def run(results: Results, deadline: Deadline, gpu: Any) -> str:
    """Measure; return how far it came."""
    results.data.update(bench.ceilings(gpu, PRECISIONS))
    results.save()
    shown = f"copy {results.data['copy_gbps']} GB/s, GEMM {results.data['gemm_tflops']} TFLOP/s"
    print(f"ceilings: {shown}", flush=True)
    return "complete"
