"""Every operation captured in a CUDA graph and replayed: the same bits as a call, and what a launch costs."""

from statistics import median
from typing import Any

import numpy as np

from gpuconv.measure.calls import Calls
from gpuconv.measure.work import arrays

from .cases import Case, small_cases
from .children import Deadline
from .results import Results

POISON = 0x55
WAIT_US = 100.0  # before a call that is timed


def run(results: Results, deadline: Deadline, gpu: Any, among: list[Case] | None = None) -> str:
    """Check case by case; return how far it came."""
    wanted = list(small_cases() if among is None else among)
    found: dict[str, Any] = {"captured": 0, "refused": [], "wrong": []}
    results.data["graphs"] = found
    call_us, launch_us = [], []
    for i, case in enumerate(wanted):
        if deadline.left < 2:
            return f"stopped: out of time after {i} of {len(wanted)} cases"
        with case.settings():
            calls = Calls(case.op, case.shape, case.dtype, case.channels_last, gpu.xp)
            captured = gpu.captured(calls.ours)
            if captured is None:  # products by cuBLAS can't be
                found["refused"].append(str(case))
                continue
            result, launch = captured
            found["captured"] += 1
            if not _replays(calls, arrays(result), launch, gpu):
                found["wrong"].append(str(case))
            call_us.append(gpu.time(calls.ours, WAIT_US)[1])
            launch_us.append(gpu.time(launch, WAIT_US)[1])
            found |= {"call_us": median(call_us), "launch_us": median(launch_us)}
        gpu.release()
        results.save()
    shown = f"{found['captured']} captured, {len(found['refused'])} refused, {len(found['wrong'])} wrong"
    print(f"graphs: {shown}", flush=True)
    return "complete"


def _replays(calls: Calls, result: tuple[Any, ...], launch: Any, gpu: Any) -> bool:
    """Tell whether a launch gives, of inputs that have changed since, what a call gives."""
    calls.x *= 0.5
    calls.dy *= 0.5
    want = arrays(calls.ours())
    for array in result:
        array.view(np.uint8).fill(POISON)
    gpu.synchronize()
    launch()
    gpu.synchronize()
    same = [(a.view(np.uint8) == b.view(np.uint8)).all() for a, b in zip(result, want, strict=True)]
    return all(map(bool, same))
