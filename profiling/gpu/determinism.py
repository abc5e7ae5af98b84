"""Every operation ten times: the same bits each time, whatever lay in memory before, and NumPy's answer."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpuconv.measure.calls import Calls, difference
from gpuconv.measure.shapes import shared
from gpuconv.measure.work import arrays

from .cases import Case, cases, small_cases
from .children import Deadline
from .results import Results

RUNS = 10
# NaN in every floating type, and a large number: neither may show in a result.
POISONS = (0xFF, 0x55)

# ||ours - NumPy's|| / ||NumPy's||; both sum in float32 at least, in another order.
TOLERANCE = {"float16": 2e-3, "float32": 1e-5, "float64": 1e-13, "tf32": 1e-3}

# Large enough for many blocks and several chunks.
LARGE = ("rn50_c3_3x3", "rx50_c3_g32", "mbv2_dw3", "rn50_ds_1x1s2", "dsp_5x10s2", "rn50_maxpool_3x3s2p1")


def run(results: Results, deadline: Deadline, gpu: Any, among: list[Case] | None = None) -> str:
    """Check case by case; return how far it came."""
    wanted = [*small_cases(), *_large()] if among is None else among
    found: dict[str, Any] = {"runs": RUNS, "cases": 0, "differing": [], "wrong": []}
    results.data["determinism"] = found
    for case in wanted:
        if deadline.left < 2:
            return f"stopped: out of time after {found['cases']} of {len(wanted)} cases"
        first, same = repeat(case, gpu)
        if not same:
            found["differing"].append(str(case))
        if case.shape.name.startswith("small") and not _as_numpy(case, first):
            found["wrong"].append(str(case))
        found["cases"] += 1
        del first
        gpu.release()
        results.save()
    print(
        f"determinism: {found['cases']} cases, {len(found['differing'])} differ, {len(found['wrong'])} wrong"
    )
    return "complete"


def _large() -> Iterator[Case]:
    for dtype in ("float32", "float16"):
        yield from cases(shared(*LARGE), dtype)


def repeat(case: Case, gpu: Any) -> tuple[tuple[Any, ...], bool]:
    """Return a case's first result, and whether all runs give these bits."""
    calls = Calls(case.op, case.shape, case.dtype, case.channels_last, gpu.xp)
    first: tuple[Any, ...] = ()
    for turn in range(RUNS):
        with case.settings(), gpu.poisoned(POISONS[turn % len(POISONS)]):
            again = arrays(calls.ours())
        first = first or again
        if not all(_same_bits(a, b) for a, b in zip(first, again, strict=True)):
            return first, False
    return first, True


def _same_bits(a: Any, b: Any) -> bool:
    return bool((a.view(np.uint8) == b.view(np.uint8)).all())


def _as_numpy(case: Case, found: tuple[Any, ...]) -> bool:
    expected = arrays(Calls(case.op, case.shape, case.dtype, case.channels_last, np).ours())
    ours = [a if isinstance(a, np.ndarray) else a.get() for a in found]
    tolerance = TOLERANCE[case.precision if case.precision in TOLERANCE else case.dtype]
    return difference(ours[0], expected[0], np) <= tolerance and all(
        np.array_equal(a, b) for a, b in zip(ours[1:], expected[1:], strict=True)
    )
