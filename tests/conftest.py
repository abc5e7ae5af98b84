"""The backends that the tests run on, and the settings of the property tests."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis
import numpy as np
import pytest

from gpuconv.backends import cpu

# The draws are the same on every run: a failure that nobody can repeat helps nobody.
hypothesis.settings.register_profile("gpuconv", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("gpuconv")


@dataclass(frozen=True)
class Backend:
    """How to bring arrays to a backend and back."""

    to_array: Callable[[np.ndarray], Any]
    to_numpy: Callable[[Any], np.ndarray]
    small_pieces: bool = False


def _as_it_is(x):
    return x


BACKENDS = {
    "numpy": Backend(_as_it_is, _as_it_is),
    "numpy in small pieces": Backend(_as_it_is, _as_it_is, small_pieces=True),
}

# The NumPy backend's limits, so low that small arrays are cut up and threaded as large ones are.
SMALL_PIECES = {"BLOCK_BYTES": 512, "GEMM_COLUMNS": 4, "WEIGHT_ROWS": 8, "TILE": 4, "SERIAL_WORK": 0}


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    """Each backend in turn; NumPy's once more with arrays cut into small pieces."""
    chosen = BACKENDS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        if chosen.small_pieces:
            _cut_small(patch)
        yield chosen


def _cut_small(patch):
    modules = [module for name, module in sys.modules.items() if name.startswith(cpu.__name__ + ".")]
    for limit, value in SMALL_PIECES.items():
        holders = [module for module in modules if hasattr(module, limit)]
        assert holders, f"no module of the NumPy backend has {limit} any more"
        for module in holders:
            patch.setattr(module, limit, value)
