"""The package as it is imported: quickly, alone, typed, from a bare checkout, and documented."""

import importlib.resources
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpuconv

CHECKOUT = Path(gpuconv.__file__).parents[1]
FUNCTIONS = sorted(name for name in gpuconv.__all__ if inspect.isfunction(getattr(gpuconv, name)))
EXTRAS = [
    "cupy",
    "mpi4py",
    "torch",
    "rich",
    "matplotlib",
    "sklearn",
    "scipy",
    "mlxtend",
    "safetensors",
    "dask",
    "distributed",
    "zarr",
    "hypothesis",
    "pytest",
]


def run(program):
    """Run a Python program with only this checkout on its path, and return what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_takes_less_than_a_fifth_of_a_second_more_than_numpy():
    clock = "time.process_time()"  # the processor's, which other programs on the machine don't lengthen
    program = f"import time, numpy; start = {clock}; import gpuconv; print({clock} - start)"
    run(program)  # writes the byte code
    assert min(float(run(program)) for _ in range(5)) < 0.2


def test_import_loads_no_extra_and_no_cupy():
    loaded = run("import sys, gpuconv; print(*sys.modules)").split()
    assert not set(EXTRAS) & {name.partition(".")[0] for name in loaded}


def test_computing_on_numpy_arrays_loads_no_extra_and_no_cupy():
    program = """
import sys
import numpy as np, gpuconv
x, w = np.ones((2, 4, 9, 9), np.float32), np.ones((4, 4, 3, 3), np.float32)
y = gpuconv.conv2d(x, w)
gpuconv.conv2d_backward(y, x, w)
y, argmax = gpuconv.max_pool2d(x, 2)
gpuconv.max_pool2d_backward(y, argmax, x.shape, 2)
try:
    gpuconv.conv2d([1], w)
except TypeError:
    print(*sys.modules)
"""
    assert not set(EXTRAS) & {name.partition(".")[0] for name in run(program).split()}


def test_a_world_of_one_process_loads_no_extra_and_no_cupy():
    program = "import sys; from gpuconv import distributed; distributed.world(); print(*sys.modules)"
    assert not set(EXTRAS) & {name.partition(".")[0] for name in run(program).split()}


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Blocker())
import numpy as np, gpuconv
x, w = np.ones((4, 8, 32, 32), np.float32), np.ones((8, 8, 3, 3), np.float32)
y = gpuconv.conv2d(x, w, padding=1)
dx, dw, db = gpuconv.conv2d_backward(y, x, w, padding=1)
pooled, argmax = gpuconv.max_pool2d(y, 2)
assert not {{name for name in sys.modules}} & set({missing!r})
print(y[0, 0, 5, 5], dw.shape, pooled.shape, argmax.max(), gpuconv.__version__)
"""


@pytest.mark.parametrize("missing", [["nvtx"], ["threadpoolctl"], ["nvtx", "threadpoolctl", *EXTRAS]])
def test_a_bare_checkout_works_with_numpy_alone(missing):
    said = run(BLOCKED.format(missing=missing))
    assert said == f"72.0 (8, 8, 3, 3) (4, 8, 16, 16) 3 {gpuconv.__version__}\n"


def test_package_says_that_it_is_typed():
    assert importlib.resources.files(gpuconv).joinpath("py.typed").is_file()


def test_everything_public_is_there_once():
    assert len(set(gpuconv.__all__)) == len(gpuconv.__all__)
    assert set(gpuconv.__all__) <= set(dir(gpuconv))


# The public functions as users call them: names, order and defaults are fixed.
CONV = "stride=1, padding=0, dilation=1, groups=1, channels_last=False"
COLUMNS = "stride=1, padding=0, dilation=1, channels_last=False"
POOL = "stride=None, *, padding=0, dilation=1, ceil_mode=False"
MEAN = "count_include_pad=True, channels_last=False, divisor_override=None"
SIGNATURES = {
    "conv2d": f"x, w, b=None, *, {CONV}, flip=False, activation=None",
    "conv2d_backward": (f"dy, x, w, *, {CONV}, needs=('x', 'w', 'b'), flip=False, activation=None, y=None"),
    "conv2d_input_grad": f"dy, w, x_shape, *, {CONV}, flip=False",
    "conv2d_weight_grad": f"dy, x, kernel_size, *, {CONV}, flip=False",
    "conv2d_bias_grad": "dy, *, channels_last=False",
    "im2col": f"x, kernel_size, *, {COLUMNS}",
    "col2im": f"col, x_shape, kernel_size, *, {COLUMNS}",
    "max_pool2d": f"x, kernel_size, {POOL}, channels_last=False, return_argmax=True",
    "max_pool2d_backward": f"dy, argmax, x_shape, kernel_size, {POOL}, channels_last=False",
    "argmax_to_indices": f"argmax, x_shape, kernel_size, {POOL}, channels_last=False",
    "max_unpool2d": f"x, argmax, x_shape, kernel_size, {POOL}, channels_last=False",
    "max_unpool2d_backward": f"dy, argmax, kernel_size, {POOL}, channels_last=False",
    "global_avg_pool": "x, *, channels_last=False, keepdims=True",
    "global_avg_pool_backward": "dy, x_shape, *, channels_last=False, keepdims=True",
    "global_max_pool": "x, *, channels_last=False, keepdims=True, return_argmax=True",
    "global_max_pool_backward": "dy, argmax, x_shape, *, channels_last=False, keepdims=True",
    "adaptive_avg_pool2d": "x, output_size, *, channels_last=False",
    "adaptive_avg_pool2d_backward": "dy, x_shape, *, channels_last=False",
    "adaptive_max_pool2d": "x, output_size, *, channels_last=False, return_argmax=True",
    "adaptive_max_pool2d_backward": "dy, argmax, x_shape, *, channels_last=False",
    "avg_pool2d": f"x, kernel_size, {POOL}, {MEAN}",
    "avg_pool2d_backward": f"dy, x_shape, kernel_size, {POOL}, {MEAN}",
    "lp_pool2d": f"x, norm_type, kernel_size, {POOL}, channels_last=False",
    "lp_pool2d_backward": f"dy, x, y, norm_type, kernel_size, {POOL}, channels_last=False",
    "upsample": "x, scale_factor, *, channels_last=False",
    "upsample_backward": "dy, scale_factor, *, channels_last=False",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_those_of_the_design(name):
    signature = inspect.signature(getattr(gpuconv, name))
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(plain)) == f"({SIGNATURES[name]}, out=None, like=None)"


def test_gradients_of_a_convolution_are_a_named_tuple():
    assert gpuconv.ConvGrads._fields == ("dx", "dw", "db")


def _sections(docstring):
    """Return numpydoc sections as a dict of heading to text."""
    lines = inspect.cleandoc(docstring).splitlines()
    starts = [
        i for i, line in enumerate(lines[1:]) if line and set(line) == {"-"} and len(line) == len(lines[i])
    ]
    ends = [*starts[1:], len(lines)]
    return {lines[a]: "\n".join(lines[a + 2 : b]) for a, b in zip(starts, ends, strict=True)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_are_documented_with_an_example(name):
    function = getattr(gpuconv, name)
    sections = _sections(function.__doc__)
    assert ">>> " in sections["Examples"]
    if not inspect.signature(function).parameters:
        return
    assert {"Parameters", "Returns", "Raises"} <= set(sections)
    assert "Error" in sections["Raises"]
    headings = [line for line in sections["Parameters"].splitlines() if line and not line.startswith(" ")]
    described = [part.strip(" *") for line in headings for part in line.partition(" : ")[0].split(",")]
    assert sorted(described) == sorted(inspect.signature(function).parameters)
