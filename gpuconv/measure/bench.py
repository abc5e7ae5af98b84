"""One row of a benchmark: an operation on a shape, beside PyTorch on the same arrays, compared and timed."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import gpuconv
from gpuconv.backends.cpu import threads
from gpuconv.backends.cuda import pooling
from gpuconv.config import PRECISIONS
from gpuconv.measure.calls import Calls, difference
from gpuconv.measure.devices import Device
from gpuconv.measure.records import rounded
from gpuconv.measure.shapes import PoolShape, Row
from gpuconv.measure.tables import called
from gpuconv.measure.timing import in_turns
from gpuconv.measure.work import arrays

Record = dict[str, Any]

# ||ours - PyTorch's|| / ||PyTorch's||: far above rounding, far below what a wrong answer gives.
TOLERANCE = {"ieee": 1e-3, "3xtf32": 1e-3, "tf32": 1e-2, "fp16": 1e-2, "fp64": 1e-10}

FIGURES = ("us", "cpu_us", "torch_us", "floor_us", "gbps", "tflops", "workspace_bytes")
# Workspace is the most that a call held beside arguments and results; with the results, `allocated_bytes`.

# cuDNN's algorithms that are tried per shape when PyTorch tunes; 0 would try all, however long they take.
TUNED_ALGORITHMS = 10


def peer(device: Device) -> ModuleType | None:
    """Return PyTorch where it is installed and works on the device's arrays, tuned as its users would."""
    try:
        import torch
    except ImportError:
        return None
    if not device.shares_with(torch):
        return None
    if device.gpu is None:
        torch.set_num_threads(threads.count())
    else:
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.benchmark_limit = TUNED_ALGORITHMS
    module: ModuleType = torch
    return module


def ceilings(device: Device, precisions: tuple[str, ...]) -> Record:
    """Measure what the floors are computed from."""
    device.wake()
    rates = {precision: round(device.gemm_tflops(precision), 4) for precision in precisions}
    return {"copy_gbps": round(device.copy_gbps(), 2), "gemm_tflops": rates}


def floor_us(row: Row, rates: Mapping[str, Any]) -> float | None:
    """Return the least time for a row: its bytes at a copy's bandwidth or its products at a GEMM's rate."""
    measured = rates.get("gemm_tflops", {})
    rate: float | None = measured.get(row.precision)
    if row.precision == "3xtf32" and "tf32" in measured:
        rate = measured["tf32"] / 3
    if "copy_gbps" not in rates or rate is None:
        return None
    bytes_us: float = row.shape.least_bytes(row.op, row.dtype) / rates["copy_gbps"] / 1e3
    return max(bytes_us, row.shape.flops / rate / 1e6)


def record(
    row: Row,
    device: Device,
    torch: ModuleType | None,
    rates: Mapping[str, Any],
    seconds: float,
    patience: float = 0.0,
) -> Record:
    """Measure a row for so many seconds; what goes wrong is in the record, as `error` or `left_out`.

    Parameters
    ----------
    row
        What to call.
    device
        Where.
    torch
        As `peer` gives it.
    rates
        As `ceilings` gives them.
    seconds
        For the turns of both.
    patience
        How long to wait for other programs to leave the CPU's cores alone.
    """
    found = {**row.key, "chosen": row.chosen, **dict.fromkeys(FIGURES), "floor_us": floor_us(row, rates)}
    try:
        found.update(_measured(row, device, torch, seconds, patience))
    except MemoryError as error:
        found["left_out"] = f"not enough memory: {_first_line(error)}"
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {_first_line(error)}"
    return {key: rounded(value) for key, value in found.items()}


def _measured(row: Row, device: Device, torch: ModuleType | None, seconds: float, patience: float) -> Record:
    """Compare with PyTorch, then time both in turns. A wrong answer isn't timed."""
    calls = Calls(row.op, row.shape, row.dtype, row.channels_last, device.xp)
    contenders: dict[str, Callable[[], object]] = {"ours": calls.ours}
    found: Record = {}
    precision = row.precision if row.precision in PRECISIONS else "ieee"
    with gpuconv.config(fp32_precision=precision), _by(row.algorithm, row):
        with device.poisoned(0xFF):
            result, found["workspace_bytes"] = device.workspace(calls.ours)
        found["allocated_bytes"] = found["workspace_bytes"] + sum(array.nbytes for array in arrays(result))
        device.synchronize()
        if torch is not None:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = row.precision == "tf32"
            try:
                contenders["torch"] = theirs = calls.theirs(torch)
                expected = calls.compared(theirs())
            except Exception as error:  # PyTorch's trouble: too little memory, no such kernel
                contenders.pop("torch", None)
                found["torch_left_out"] = _first_line(error)
            else:
                found["difference"] = difference(arrays(result)[0], expected, device.xp)
                if not found["difference"] <= TOLERANCE[row.precision]:
                    return {**found, "error": f"differs from PyTorch by {found['difference']:.1e}"}
                del expected
        del result
        if row.beside:
            _add_beside(contenders, row)
        timings, others = device.undisturbed(lambda: in_turns(contenders, device, seconds), patience)
    ours = timings["ours"]
    found.update(us=ours.us, cpu_us=ours.cpu_us, turns=ours.turns, spread=ours.spread)
    if "torch" in timings:
        theirs_ = timings["torch"]
        found.update(torch_us=theirs_.us, torch_cpu_us=theirs_.cpu_us, torch_spread=theirs_.spread)
    if "beside" in timings:
        found["chosen_us"] = timings["beside"].us
    found["gbps"] = row.shape.least_bytes(row.op, row.dtype) / ours.us / 1e3
    found["tflops"] = row.shape.flops / ours.us / 1e6 if row.shape.flops else None
    if others is not None:
        found["others"] = others
    return found


def _by(algorithm: str, row: Row) -> AbstractContextManager[None]:
    """Let a row's operation be computed by this algorithm; "": as it is by itself."""
    if isinstance(row.shape, PoolShape):
        return pooling.by(algorithm)
    return gpuconv.config(algorithm=algorithm or gpuconv.config.algorithm)


def _add_beside(contenders: dict[str, Callable[[], object]], row: Row) -> None:
    """Let what the planner would take have its turns, too; where there isn't enough memory for it, none."""
    ours = contenders["ours"]

    def chosen() -> object:
        with _by(row.beside, row):
            return ours()

    try:
        chosen()
    except MemoryError:
        return
    contenders["beside"] = chosen


def identity(key: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what tells a row from the others."""
    return tuple(key[part] for part in ("op", "name", "dtype", "precision", "layout", "algorithm"))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def line(found: Mapping[str, Any]) -> str:
    """Return a record as it is printed while a benchmark runs."""
    name = f"{found['op']:20} {called(found):20} {found['precision']:5} {found['layout']:14}"
    if found["us"] is None:
        return f"{name} {found.get('error') or found['left_out']}"
    beside = f", PyTorch {found['torch_us']:10.1f}" if found["torch_us"] else ""
    ratio = f" ({found['torch_us'] / found['us']:5.2f})" if found["torch_us"] else ""
    roofline = f", {found['floor_us'] / found['us']:.0%} of the roofline" if found["floor_us"] else ""
    busy = f", others {found['others']:.0%}" if found.get("others") and found["others"] > 0.05 else ""
    return f"{name} {found['us']:10.1f} us ±{found['spread']:3.0%}{beside}{ratio}{roofline}{busy}"
