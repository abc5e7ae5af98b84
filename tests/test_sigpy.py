"""sigpy on `gpuconv.compat.cudnn`: its own CUDA code, unchanged, against its code for the CPU.

sigpy looks for cuDNN when it is imported, so it is imported within `cudnn.install`, beside the real CuPy or,
where that isn't there, the few files of `host.cupy_packages`. On a GPU nothing in it is changed. On the CPU
two functions of its module `backend` are: they say of what kind an array is, and on which device.
"""

import importlib.util
import sys
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from host import cupy_packages
from host.runtime import host

from gpuconv.compat import cudnn

if importlib.util.find_spec("sigpy") is None:
    pytest.skip("sigpy isn't installed (extra `oracle`)", allow_module_level=True)
pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def sigpy(tmp_path_factory):
    has_cupy = importlib.util.find_spec("cupy") is not None
    with nullcontext() if has_cupy else cupy_packages.importable(tmp_path_factory.mktemp("cupy")):
        _forget()
        with cudnn.install(), warnings.catch_warnings(action="ignore"):  # sigpy misses NCCL, too
            module = importlib.import_module("sigpy")
        yield module
        _forget()


def _forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "sigpy"]:
        del sys.modules[name]


@pytest.fixture
def on_device(sigpy, device, monkeypatch):
    """Return a function that calls one of sigpy's on the device and returns what it gives in NumPy."""
    xp = SimpleNamespace(**{**vars(np), "empty": np.empty if device.is_numpy else host.empty})

    def call(name, *arguments, **options):
        there = [device.to_array(a) if isinstance(a, np.ndarray) else a for a in arguments]
        with monkeypatch.context() as patch:
            if isinstance(there[0], np.ndarray):  # in the place of CuPy's
                patch.setattr(sigpy.backend, "get_array_module", lambda array: xp)
                patch.setattr(sigpy.backend, "get_device", lambda array: sigpy.cpu_device)
            return device.to_numpy(getattr(sigpy, name)(*there, **options))

    return call


@pytest.fixture
def called(monkeypatch):
    """List the functions that sigpy calls of `cupy.cudnn`."""
    names = []

    def listed(name, function):
        def call(*arguments, **options):
            names.append(name)
            return function(*arguments, **options)

        return call

    for name in ("convolution_forward", "convolution_backward_data", "convolution_backward_filter"):
        monkeypatch.setattr(cudnn, name, listed(name, getattr(cudnn, name)))
    return names


def numbers(shape, dtype):
    """Return random numbers, complex ones too where the dtype is."""
    rng = np.random.default_rng(shape)
    whole = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    return (whole if np.dtype(dtype).kind == "c" else whole.real).astype(dtype)


TOLERANCE = {np.float32: 1e-5, np.complex64: 1e-5, np.float64: 1e-12, np.complex128: 1e-12}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("multi_channel", [False, True])
@pytest.mark.parametrize("strides", [None, (2, 3, 1)])
@pytest.mark.parametrize("mode", ["full", "valid"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_sigpy_s_cuda_code_gives_what_its_cpu_code_gives(
    sigpy, on_device, called, axes, mode, strides, multi_channel, dtype
):
    sizes, taps = (7, 6, 5)[:axes], (3, 2, 4)[:axes]
    data = numbers((2, 2, *sizes) if multi_channel else (2, *sizes), dtype)
    filt = numbers((3, 2, *taps) if multi_channel else taps, dtype)
    options = {"mode": mode, "strides": strides and strides[:axes], "multi_channel": multi_channel}
    output = numbers(sigpy.convolve(data, filt, **options).shape, dtype)
    for expected, name, *arguments in (
        ("convolution_forward", "convolve", data, filt),
        ("convolution_backward_data", "convolve_data_adjoint", output, filt, data.shape),
        ("convolution_backward_filter", "convolve_filter_adjoint", output, data, filt.shape),
    ):
        want = getattr(sigpy, name)(*arguments, **options)
        assert not called
        got = on_device(name, *arguments, **options)
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[dtype] * np.abs(want).max())
        assert called == [expected] * (4 if np.dtype(dtype).kind == "c" else 1)
        called.clear()


def test_sigpy_s_adjoints_are_adjoint_on_the_device(on_device):
    data, filt, output = (numbers(shape, np.complex128) for shape in ((4, 9, 8), (3, 4, 3, 3), (3, 11, 10)))
    ahead = np.vdot(output, on_device("convolve", data, filt, multi_channel=True))
    by_data = on_device("convolve_data_adjoint", output, filt, data.shape, multi_channel=True)
    by_filt = on_device("convolve_filter_adjoint", output, data, filt.shape, multi_channel=True)
    np.testing.assert_allclose([np.vdot(by_data, data), np.vdot(by_filt, filt)], [ahead, ahead], rtol=1e-12)
