"""Workspace against its limit, counted by the allocator, on shapes whose columns are far larger than it."""

from collections.abc import Iterator
from typing import Any

import gpuconv
from gpuconv.measure.calls import Calls, difference
from gpuconv.measure.shapes import CONV_PASSES, shared

from .cases import Case
from .children import Deadline
from .results import Results

SMALLEST = 1 << 20
SHAPES = (
    "soumith_L1",
    "vgg1_2",
    "dsp_5x20s2",
    "rn50_c3_3x3",
    "alex4_3x3_g2",
    "convnext_dw7",
    "rn50_ds_1x1s2",
)

# Between results of two limits, which add up in another order: of 800,000 float32 products (vgg1_2's dw) by
# some 1e-5 of their sum.
TOLERANCE = {"float16": 2e-3, "float32": 1e-4}


def run(results: Results, deadline: Deadline, gpu: Any, among: list[Case] | None = None) -> str:
    """Check case by case; return how far it came."""
    wanted = list(_cases()) if among is None else among
    found = results.data["workspace"] = []
    default = gpuconv.config.workspace_limit or max(16 << 20, gpu.l2_bytes // 2)
    for i, case in enumerate(wanted):
        if deadline.left < 3:
            return f"stopped: out of time after {i} of {len(wanted)} cases"
        calls = Calls(case.op, case.shape, case.dtype, case.channels_last, gpu.xp)
        usual = None
        for limit, setting in ((default, None), (SMALLEST, SMALLEST)):
            with gpuconv.config(workspace_limit=setting), gpu.poisoned(0xFF):
                result, taken = gpu.workspace(calls.ours)
            usual = result if usual is None else usual
            agrees = difference(result, usual, gpu.xp) <= TOLERANCE[case.dtype]
            found.append({"case": str(case), "limit": limit, "bytes": taken, "agrees": agrees})
        del calls, usual, result
        gpu.release()
        results.save()
    over = sum(case["bytes"] > case["limit"] for case in found)
    print(f"workspace: {len(found)} calls, {over} over the limit")
    return "complete"


def _cases() -> Iterator[Case]:
    for name in SHAPES:
        for dtype in ("float32", "float16"):
            for channels_last in (False, True):
                for op in CONV_PASSES:
                    yield Case(op, shared(name)[0], dtype, channels_last)
