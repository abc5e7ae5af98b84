"""Time the shared shapes, in order of priority, beside PyTorch with cuDNN where it is installed."""

from collections.abc import Iterable
from typing import Any

from gpuconv.measure import bench
from gpuconv.measure.shapes import Row, rows

from . import ceilings
from .children import Deadline
from .results import Results

ROW_SECONDS = 0.12  # then a row ends
LAST_ROW_SECONDS = 4.0  # with less time left none is begun: PyTorch's tuning may take some


def run(results: Results, deadline: Deadline, gpu: Any, wanted: Iterable[Row] | None = None) -> str:
    """Time the rows that have no figures yet; return how far it came."""
    known = {bench.identity(row) for row in results.rows}
    pending = [row for row in (rows() if wanted is None else wanted) if bench.identity(row.key) not in known]
    torch = bench.peer(gpu)
    if "copy_gbps" not in results.data:
        ceilings.run(results, deadline, gpu)
    gpu.wake()
    for i, row in enumerate(pending):
        if deadline.left < LAST_ROW_SECONDS:
            return f"stopped: out of time, {len(pending) - i} rows are left"
        results.note("timings", f"failed: it ended in {row.op}, {row.shape.name}, {row.precision}")
        found = bench.record(row, gpu, torch, results.data, ROW_SECONDS)
        results.rows.append(found)
        results.save()
        print(bench.line(found), flush=True)
        if "error" in found and not gpu.alive():
            return f"failed: the GPU takes nothing more after {row.op}, {row.shape.name}; run again to go on"
        gpu.release()
    return "complete"
