"""Arrays of other libraries: seen on their memory, results given back on ours."""

import inspect
import sys

import numpy as np
import pytest
from conftest import BACKENDS

import gpuconv
from gpuconv import entry

try:
    import torch
except ImportError:
    torch = None

OFF = BACKENDS["cupy"].missing
on_gpu = (pytest.mark.gpu, pytest.mark.skipif(bool(OFF), reason=OFF))
with_torch = (
    pytest.mark.oracle,
    pytest.mark.skipif(torch is None, reason="PyTorch's tensors are the other library's arrays here"),
)


def with_tensors(test):
    """Mark a test that needs PyTorch."""
    for mark in with_torch:
        test = mark(test)
    return test


X = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)
W = np.arange(24, dtype=np.float32).reshape(3, 2, 2, 2)


class Wrapped:
    """An array of a library that nobody knows."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


@with_tensors
def test_a_tensor_is_seen_on_its_memory():
    x = torch.from_numpy(X.copy())
    seen = entry.taken("conv2d", "x", x)
    assert type(seen) is np.ndarray
    assert seen.ctypes.data == x.data_ptr()
    assert seen.strides == tuple(4 * step for step in x.stride())


@with_tensors
def test_a_tensors_strides_are_kept():
    x = torch.from_numpy(X.copy()).permute(0, 2, 3, 1)
    seen = entry.taken("conv2d", "x", x)
    assert seen.strides == tuple(4 * step for step in x.stride()) and not seen.flags.c_contiguous


@with_tensors
def test_tensors_and_arrays_give_an_array_of_the_same_values():
    want = gpuconv.conv2d(X, W)
    for x, w in ((torch.from_numpy(X), torch.from_numpy(W)), (torch.from_numpy(X), W), (Wrapped(X), W)):
        y = gpuconv.conv2d(x, w=w)
        assert type(y) is np.ndarray
        np.testing.assert_array_equal(y, want)


@with_tensors
def test_out_may_be_a_tensor_and_is_written_where_it_lies():
    y = torch.zeros(1, 3, 3, 3)
    result = gpuconv.conv2d(X, W, out=y)
    assert result.ctypes.data == y.data_ptr()
    np.testing.assert_array_equal(y.numpy(), gpuconv.conv2d(X, W))
    dw = torch.zeros(3, 2, 2, 2)
    grads = gpuconv.conv2d_backward(np.ones((1, 3, 3, 3), np.float32), X, W, out=(None, dw, None))
    assert grads.dw.ctypes.data == dw.data_ptr() and dw.abs().sum() > 0


@with_tensors
def test_like_gives_the_results_back_in_kind_on_the_same_memory():
    x, y = torch.from_numpy(X), torch.zeros(1, 3, 3, 3)
    result = gpuconv.conv2d(x, W, like=x, out=y)
    assert type(result) is torch.Tensor and result.data_ptr() == y.data_ptr()
    assert type(gpuconv.conv2d(x, W, like=X)) is np.ndarray


@with_tensors
def test_like_may_be_of_a_subclass_of_its_librarys_array():
    class Picture(torch.Tensor):
        pass

    assert type(gpuconv.conv2d(X, W, like=torch.from_numpy(X).as_subclass(Picture))) is torch.Tensor


@with_tensors
def test_like_keeps_tuples_and_what_is_none():
    x = torch.from_numpy(X)
    grads = gpuconv.conv2d_backward(np.ones((1, 3, 3, 3), np.float32), x, W, needs=("w",), like=x)
    assert type(grads) is gpuconv.ConvGrads and grads.dx is None and type(grads.dw) is torch.Tensor
    y, argmax = gpuconv.max_pool2d(x, 2, like=x)
    assert argmax.dtype == torch.uint8 and type(y) is torch.Tensor


@pytest.mark.parametrize("name", [n for n in gpuconv.__all__ if inspect.isfunction(getattr(gpuconv, n))])
def test_every_public_function_of_arrays_says_like(name):
    function = getattr(gpuconv, name)
    if not function.__module__.startswith(
        ("gpuconv.training", "gpuconv.explain", "gpuconv.measure", "gpuconv.buffers")
    ):
        assert "like" in inspect.signature(function).parameters
        assert "\n    like : array, optional\n" in function.__doc__


@pytest.mark.parametrize(
    ("make", "why"),
    [
        pytest.param(lambda: torch.from_numpy(X).requires_grad_(), "detach", marks=with_torch),
        pytest.param(lambda: torch.from_numpy(X).bfloat16(), "bfloat16", marks=with_torch),
        pytest.param(lambda: torch.empty(1, 2, 4, 4, device="meta"), "meta", marks=with_torch),
        pytest.param(lambda: torch.from_numpy(X * 1j).conj().imag, "negated in name only", marks=with_torch),
        (lambda: Wrapped(X, device=(10, 0)), "no CPU and no NVIDIA GPU"),
    ],
    ids=["wants gradients", "bfloat16", "no memory", "negated", "ROCm"],
)
def test_what_cannot_be_seen_is_refused_by_name(make, why):
    x = make()
    with pytest.raises(TypeError, match=f"^conv2d: x, a .*{why}"):
        gpuconv.conv2d(x, W)
    with pytest.raises(TypeError, match=r"^conv2d: out, a "):
        gpuconv.conv2d(X, W, out=x)


@pytest.mark.parametrize("like", ["torch", np.float32(1), 3, object(), np.float32])
def test_like_must_be_an_array(like):
    with pytest.raises(TypeError, match="conv2d: like must be an array that knows DLPack, not"):
        gpuconv.conv2d(X, W, like=like)


def test_a_read_only_array_of_another_library_is_read_but_not_written():
    frozen = X.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(gpuconv.conv2d(Wrapped(frozen), W), gpuconv.conv2d(X, W))
    y = np.zeros((1, 3, 3, 3), np.float32)
    y.flags.writeable = False
    with pytest.raises(ValueError, match="conv2d: out is read-only"):
        gpuconv.conv2d(X, W, out=Wrapped(y))


def test_objects_that_are_no_arrays_are_refused_as_before():
    with pytest.raises(TypeError, match="conv2d: x must be a NumPy or CuPy array, not builtins"):
        gpuconv.conv2d(object(), W)


# On a GPU.


class Device:
    """An array that says only by the CUDA array interface where it lies, as Numba's do."""

    def __init__(self, array):
        self.__cuda_array_interface__ = array.__cuda_array_interface__
        self.array = array


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda x: Wrapped(x, x.__dlpack_device__()), marks=on_gpu, id="DLPack"),
        pytest.param(Device, marks=on_gpu, id="CUDA array interface"),
    ],
)
def test_an_array_on_a_gpu_is_seen_on_its_memory(wrap):
    import cupy

    x = cupy.asarray(X)
    seen = entry.taken("conv2d", "x", wrap(x))
    assert type(seen) is cupy.ndarray and seen.data.ptr == x.data.ptr
    y = gpuconv.conv2d(wrap(x), cupy.asarray(W))
    assert type(y) is cupy.ndarray
    np.testing.assert_allclose(y.get(), gpuconv.conv2d(X, W), rtol=1e-5)


@pytest.mark.parametrize("kind", [pytest.param("tensor", marks=(*on_gpu, *with_torch))])
def test_a_tensor_on_a_gpu_is_given_back_as_one(kind):
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    x, w = torch.from_numpy(X).cuda(), torch.from_numpy(W).cuda()
    y = gpuconv.conv2d(x, w, like=x)
    assert y.device == x.device
    np.testing.assert_allclose(y.cpu().numpy(), gpuconv.conv2d(X, W), rtol=1e-5)


def test_without_cupy_an_array_on_a_gpu_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(TypeError, match=r"conv2d: w, a .*Wrapped, is on a GPU, where CuPy can't see it"):
        gpuconv.conv2d(X, Wrapped(W, device=(2, 0)))
