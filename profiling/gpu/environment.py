"""Where this runs, and a first sign of life: one convolution with NumPy's answer."""

from datetime import UTC, datetime
from typing import Any

import numpy as np

from gpuconv.measure.calls import Calls, difference

from .cases import SMALL_CONVS
from .children import Deadline
from .results import Results


def run(results: Results, deadline: Deadline, gpu: Any) -> str:
    """Write the facts down; return whether the first convolution is right."""
    results.data.update(gpu.facts(), date=datetime.now(UTC).isoformat(timespec="seconds"))
    results.save()
    ours = Calls("conv2d", SMALL_CONVS[0], "float32", False, gpu.xp).ours()
    expected = Calls("conv2d", SMALL_CONVS[0], "float32", False, np).ours()
    off = difference(ours if isinstance(ours, np.ndarray) else ours.get(), expected, np)
    print(
        f"{results.data['gpu']}, driver {results.data['driver']}; first convolution off by {off:.1e}",
        flush=True,
    )
    return "complete" if off < 1e-5 else f"failed: the first convolution is off by {off:.1e}"
