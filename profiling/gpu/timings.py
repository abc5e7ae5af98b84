"""Time the shared shapes, in order of priority, beside PyTorch with cuDNN where it is installed."""

import math
import statistics
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import gpuconv

from . import ceilings
from .calls import Calls, difference
from .calls import results as arrays
from .children import Deadline
from .results import Results
from .shapes import Row, rows

MIN_TURNS, MOST_TURNS = 5, 25
ROW_SECONDS = 0.12  # then a row ends, with MIN_TURNS turns at least
LAST_ROW_SECONDS = 4.0  # with less time left none is begun: PyTorch's tuning may take some

# cuDNN's algorithms that are tried per shape when PyTorch tunes; 0 would try all, however long they take.
TUNED_ALGORITHMS = 10

# ||ours - PyTorch's|| / ||PyTorch's||: far above rounding, far below what a wrong answer gives.
TOLERANCE = {"ieee": 1e-3, "tf32": 1e-2, "fp16": 1e-2}


def run(results: Results, deadline: Deadline, gpu: Any, wanted: Iterable[Row] | None = None) -> str:
    """Time the rows that have no figures yet; return how far it came."""
    pending = list(rows() if wanted is None else wanted)
    known = {_identity(row) for row in results.rows}
    pending = [row for row in pending if _identity(row.key) not in known]
    torch = _torch(gpu)
    if "copy_gbps" not in results.data:
        ceilings.run(results, deadline, gpu)
    gpu.wake()
    for i, row in enumerate(pending):
        if deadline.left < LAST_ROW_SECONDS:
            return f"stopped: out of time, {len(pending) - i} rows are left"
        results.note("timings", f"failed: it ended in {row.op}, {row.shape.name}, {row.precision}")
        record = {**row.key, **_empty(), "floor_us": ceilings.floor_us(row, results.data)}
        try:
            record.update(measure(row, gpu, torch))
        except MemoryError as error:
            record["left_out"] = f"not enough memory: {_first_line(error)}"
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {_first_line(error)}"
        results.rows.append({key: _rounded(value) for key, value in record.items()})
        results.save()
        print(_line(record), flush=True)
        if "error" in record and not gpu.alive():
            return f"failed: the GPU takes nothing more after {row.op}, {row.shape.name}; run again to go on"
        gpu.release()
    return "complete"


def measure(row: Row, gpu: Any, torch: ModuleType | None) -> dict[str, Any]:
    """Compare with PyTorch, then time both in turns; return what was found. A wrong answer isn't timed."""
    calls = Calls(row.op, row.shape, row.dtype, row.channels_last, gpu.xp)
    contenders: dict[str, Callable[[], object]] = {"ours": calls.ours}
    found: dict[str, Any] = {}
    with gpuconv.config(fp32_precision="tf32" if row.precision == "tf32" else "ieee"):
        with gpu.poisoned(0xFF):
            result, found["workspace_bytes"] = gpu.workspace(calls.ours)
        gpu.synchronize()
        if torch is not None:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = row.precision == "tf32"
            try:
                contenders["torch"] = theirs = calls.theirs(torch)
                expected = calls.compared(theirs())
            except Exception as error:  # PyTorch's trouble: too little memory, no such kernel
                contenders.pop("torch", None)
                found["torch_left_out"] = _first_line(error)
            else:
                found["difference"] = difference(arrays(result)[0], expected, gpu.xp)
                if not found["difference"] <= TOLERANCE[row.precision]:
                    return {**found, "error": f"differs from PyTorch by {found['difference']:.1e}"}
                del expected
        del result
        samples = in_turns(contenders, gpu.time, deadline=Deadline(ROW_SECONDS))
    us, cpu_us = _medians(samples["ours"])
    found.update(us=us, cpu_us=cpu_us, turns=len(samples["ours"]), spread=spread(samples["ours"]))
    if "torch" in samples:
        found["torch_us"], found["torch_cpu_us"] = _medians(samples["torch"])
    found["gbps"] = row.shape.least_bytes(row.op, row.dtype) / us / 1e3
    found["tflops"] = row.shape.flops / us / 1e6 if row.shape.flops else None
    return found


Sample = tuple[float, float]  # microseconds on the GPU and of the CPU


def in_turns(
    contenders: dict[str, Callable[[], object]],
    time: Callable[[Callable[[], object], float], Sample],
    deadline: Deadline,
) -> dict[str, list[Sample]]:
    """Time the contenders in turns until the deadline, so that both meet the same clocks."""
    # The second call's CPU time, when all is compiled and tuned, says how long the GPU must be kept waiting.
    waits = {}
    for name, call in contenders.items():
        time(call, 0.0)
        waits[name] = 50.0 + 2.0 * time(call, 0.0)[1]
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    for turn in range(MOST_TURNS):
        if turn >= MIN_TURNS and deadline.left < 0:
            break
        for name, call in contenders.items():
            samples[name].append(time(call, waits[name]))
    return samples


def _medians(samples: list[Sample]) -> Sample:
    return statistics.median(us for us, _ in samples), statistics.median(cpu_us for _, cpu_us in samples)


def spread(samples: list[Sample]) -> float:
    """Return half of the interquartile range of the GPU's times over their median."""
    q1, median, q3 = statistics.quantiles([us for us, _ in samples], n=4, method="inclusive")
    return (q3 - q1) / (2 * median)


def _empty() -> dict[str, Any]:
    figures = ("us", "cpu_us", "torch_us", "floor_us", "gbps", "tflops", "workspace_bytes")
    return {"chosen": True, **dict.fromkeys(figures)}


def _identity(key: dict[str, Any]) -> tuple[str, ...]:
    return tuple(key[part] for part in ("op", "name", "dtype", "precision", "layout", "algorithm"))


def _torch(gpu: Any) -> ModuleType | None:
    try:
        import torch
    except ImportError:
        return None
    if not gpu.shares_with(torch):
        return None
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = TUNED_ALGORITHMS
    return torch


def _rounded(value: Any) -> Any:
    """Return a figure as it goes into JSON, which has no infinity."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _line(record: dict[str, Any]) -> str:
    if record["us"] is None:
        return f"{record['op']:20} {record['name']:20} {record.get('error') or record['left_out']}"
    beside = f"{record['torch_us']:10.1f}" if record["torch_us"] else " " * 10
    return (
        f"{record['op']:20} {record['name']:20} {record['precision']:5} {record['layout']:14} "
        f"{record['us']:10.1f} us, PyTorch {beside}, CPU {record['cpu_us']:7.1f} {record.get('error', '')}"
    )
