"""The backends that the tests run on, and the settings of the property tests."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis
import numpy as np
import pytest
from host import compiler, cupy_stand_in
from host import runtime as host_runtime

import gpuconv
from gpuconv.backends import cpu
from gpuconv.backends.cpu import compiled
from gpuconv.backends.cuda import implicit, kernels, problem, program
from gpuconv.backends.cuda.runtime import check_installed

# The draws are the same on every run: a failure that nobody can repeat helps nobody.
hypothesis.settings.register_profile("gpuconv", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("gpuconv")


def _as_it_is(x):
    return x


def _numpy_alone(patch):
    patch.setattr(gpuconv.config, "compiled", False)


@dataclass(frozen=True)
class Backend:
    """How to bring arrays to a backend and back, what to change before, and why it can't be used."""

    to_array: Callable[[np.ndarray], Any] = _as_it_is
    to_numpy: Callable[[Any], np.ndarray] = _as_it_is
    change: Callable[[pytest.MonkeyPatch], None] = _numpy_alone
    missing: str = ""
    marks: tuple = ()

    @property
    def is_numpy(self):
        return self.to_array is _as_it_is

    def move(self, layer):
        """Bring a layer's parameters and buffers here, as its `to` brings them to a GPU; return the layer."""
        for arrays in (layer.params, layer.buffers):
            for name, array in arrays.items():
                arrays[name] = self.to_array(array)
        return layer


# The NumPy backend's limits, so low that small arrays are cut up and threaded as large ones are.
SMALL_PIECES = {
    "BLOCK_BYTES": 512,
    "GEMM_COLUMNS": 4,
    "LEAST_COLUMNS": 1,
    "ENOUGH_COLUMNS": 8,
    "SMALL_PRODUCT": 200,
    "SMALL_COLUMNS": 2,
    "WEIGHT_ROWS": 8,
    "TILE": 4,
    "SERIAL_WORK": 0,
}


def _cut_small(patch):
    _numpy_alone(patch)
    _in_small_pieces(patch)


def _compiled_in_small_pieces(patch):
    patch.setattr(gpuconv.config, "compiled", True)
    _in_small_pieces(patch)


def _in_small_pieces(patch):
    modules = [module for name, module in sys.modules.items() if name.startswith(cpu.__name__ + ".")]
    for limit, value in SMALL_PIECES.items():
        holders = [module for module in modules if hasattr(module, limit)]
        assert holders, f"no module of the NumPy backend has {limit} any more"
        for module in holders:
            patch.setattr(module, limit, value)


# Workspace enough for the smallest pieces of what the tests draw.
SMALL_WORKSPACE = 8 << 10


def _cut_small_and_count_in_64_bits(patch):
    patch.setattr(host_runtime, "DEFAULT_WORKSPACE", SMALL_WORKSPACE)
    patch.setattr(kernels, "NARROW", 0)
    patch.setattr(problem, "MOST_ROWS", 5)
    patch.setattr(implicit, "LEAST_SLICES", 1)


def _to_cupy(x):
    import cupy

    return cupy.asarray(x)


def _from_cupy(x):
    return x.get()


def _no_gpu():
    try:
        check_installed()
    except RuntimeError as error:
        return f"needs a GPU: {error}".partition(";")[0]
    return ""


def _no_c_kernels():
    with gpuconv.config(compiled=True):
        found = compiled.kernels(np.zeros(1, np.float32))
    return "" if found else compiled.why_not()


_KERNELS = (host_runtime.to_device, host_runtime.to_host)
BACKENDS = {
    "numpy": Backend(),
    "numpy in small pieces": Backend(change=_cut_small),
    "compiled": Backend(change=_compiled_in_small_pieces, missing=_no_c_kernels()),
    "kernels": Backend(*_KERNELS, missing=compiler.missing()),
    "kernels in small pieces, 64-bit indices": Backend(
        *_KERNELS, change=_cut_small_and_count_in_64_bits, missing=compiler.missing()
    ),
    "cupy": Backend(_to_cupy, _from_cupy, missing=_no_gpu(), marks=(pytest.mark.gpu,)),
}


def pytest_report_header():
    """Say which backends are not there, once: their skipped tests are many."""
    missing = [f"{name}: skipped, {backend.missing}" for name, backend in BACKENDS.items() if backend.missing]
    return missing or "all backends are there"


def _parameter(name):
    backend = BACKENDS[name]
    skip = pytest.mark.skipif(bool(backend.missing), reason=backend.missing)
    return pytest.param(name, marks=(skip, *backend.marks))


_changes = pytest.MonkeyPatch()
_used = [None]  # the name of the backend in use, or of none in particular


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Change what the backend changes that the test asks for, and nothing for a test that asks for none."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    asked = map(params.get, ("backend", "gpu", "device"))  # fixtures, or parameters that are called so
    name = next((each for each in asked if each in BACKENDS), None)
    if _used == [name]:
        return
    _changes.undo()
    program.forget()
    if name:
        BACKENDS[name].change(_changes)
    _used[:] = [name]


# For a module each: tests of one backend then run one after the other.


@pytest.fixture(scope="module", params=[_parameter(name) for name in BACKENDS])
def backend(request):
    """Each backend in turn: NumPy and C kernels, CUDA kernels run on the CPU (also in small pieces), CuPy."""
    return BACKENDS[request.param]


@pytest.fixture(scope="module", params=[_parameter(name) for name in BACKENDS if not BACKENDS[name].is_numpy])
def gpu(request):
    """Each backend with the CUDA kernels in turn."""
    return BACKENDS[request.param]


@pytest.fixture(scope="module", params=[_parameter(name) for name in ("numpy", "kernels", "cupy")])
def device(request):
    """Each backend once, for what is built on the public functions: how these cut arrays is their affair."""
    return BACKENDS[request.param]


STAND_IN = pytest.param(
    "stand-in", marks=pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())
)


@pytest.fixture(params=[STAND_IN, _parameter("cupy")])
def cupy(request):
    """CuPy with a GPU, or what stands for both."""
    if request.param == "cupy":
        yield pytest.importorskip("cupy")
    else:
        with cupy_stand_in.installed() as module:
            yield module
