"""What operations must do at least: operations and bytes, counted from shapes alone."""

import inspect
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from cases import draw
from hypothesis import given
from hypothesis import strategies as st

from gpuconv.backends import unmade
from gpuconv.entry import OPERATIONS
from gpuconv.geometry import sliding_window
from gpuconv.measure.work import FAMILIES, Work, work_of


def a(*shape, dtype="float32"):
    return SimpleNamespace(shape=shape, dtype=np.dtype(dtype))


@given(st.randoms(use_true_random=False), st.integers(1, 3))
def test_the_places_that_windows_read_are_those_that_their_taps_name(rng, axes):
    case = draw(rng, free=True, axes=axes)
    window = sliding_window("t", case.in_size, case.kernel, case.stride, case.padding, case.dilation)
    for axis, read in enumerate(window.read):
        named = {
            o * window.stride[axis] - window.before[axis] + j * window.dilation[axis]
            for o, j in product(range(window.out_size[axis]), range(window.kernel[axis]))
        }
        assert read == len(named & set(range(window.in_size[axis])))


# Rows of conv_shapes.csv and pool_shapes.csv, with the figures of the benchmarks on a GPU.
KNOWN = [
    ("conv2d", {"x": a(32, 64, 56, 56), "w": a(64, 64, 3, 3), "padding": 1}, 7398752256, 51527680),
    (
        "conv2d_weight_grad",
        {"dy": a(32, 512, 28, 28), "x": a(32, 256, 56, 56), "kernel_size": 1, "stride": 2},
        6576668672,
        77594624,
    ),
    (
        "conv2d_input_grad",
        {"dy": a(32, 512, 28, 28), "w": a(512, 256, 1, 1), "x_shape": (32, 256, 56, 56), "stride": 2},
        6576668672,
        154664960,
    ),
    (
        "max_pool2d",
        {"x": a(32, 64, 112, 112), "kernel_size": 3, "stride": 2, "padding": 1},
        57802752,
        134873088,
    ),
    (
        "max_pool2d_backward",
        {
            "dy": a(32, 64, 56, 56, dtype="float16"),
            "argmax": a(32, 64, 56, 56, dtype="uint8"),
            "x_shape": (32, 64, 112, 112),
            "kernel_size": 3,
            "stride": 2,
            "padding": 1,
        },
        6422528,
        70647808,
    ),
    ("global_avg_pool", {"x": a(128, 2048, 7, 7)}, 12845056, 52428800),
    ("adaptive_max_pool2d", {"x": a(32, 64, 112, 112), "output_size": 7}, 25690112, 103964672),
    ("upsample", {"x": a(128, 192, 28, 28), "scale_factor": 2}, 77070336, 385351680),
]


@pytest.mark.parametrize("op, arguments, flops, size", KNOWN, ids=[op for op, *_ in KNOWN])
def test_work_of_shared_shapes(op, arguments, flops, size):
    assert work_of(op, arguments) == Work(flops, size)


def test_a_stride_beyond_the_kernel_skips_places():
    few = work_of("conv2d", {"x": a(1, 8, 9, 9), "w": a(4, 8, 1, 1), "stride": 3})
    assert few.bytes == 4 * (8 * 3 * 3 + 4 * 8 + 4 * 3 * 3)


def test_an_array_that_several_gradients_read_is_read_once():
    dy, x, w = a(2, 4, 6, 6), a(2, 3, 8, 8), a(4, 3, 3, 3)
    all_three = work_of("conv2d_backward", {"dy": dy, "x": x, "w": w})
    sizes = [np.prod(each.shape) for each in (dy, x, w)]
    assert all_three.bytes == 4 * (sum(sizes) + sizes[1] + sizes[2] + 4)
    one = work_of("conv2d_backward", {"dy": dy, "x": x, "w": w, "needs": ("x",)})
    assert one == work_of("conv2d_input_grad", {"dy": dy, "w": w, "x_shape": x.shape})
    assert work_of("conv2d_backward", {"dy": dy, "x": x, "w": w, "needs": ()}).flops == 0


def test_a_bias_costs_its_bytes_alone():
    x, w = a(2, 3, 8, 8), a(4, 3, 3, 3)
    without = work_of("conv2d", {"x": x, "w": w})
    assert work_of("conv2d", {"x": x, "w": w, "b": a(4)}) == (without.flops, without.bytes + 16)


def test_complex_numbers_multiply_by_eight_operations():
    real, complex_ = (
        work_of("conv2d", {"x": a(2, 3, 8, 8), "w": a(4, 3, 3, 3, dtype=d)}) for d in ("float32", "complex64")
    )
    assert complex_.flops == 4 * real.flops


@given(st.randoms(use_true_random=False))
def test_a_convolution_counts_as_its_transposed_does(rng):
    case = draw(rng)
    x, w, y = (a(*shape) for shape in (case.x_shape(), case.w_shape(), case.y_shape()))
    options = case.conv()
    passes = [
        work_of("conv2d", {"x": x, "w": w} | options),
        work_of("conv2d_input_grad", {"dy": y, "w": w, "x_shape": x.shape} | options),
        work_of("conv2d_weight_grad", {"dy": y, "x": x, "kernel_size": case.kernel} | options),
    ]
    assert len({each.flops for each in passes}) == 1
    taps = np.prod(case.kernel) * (case.c_in // case.groups)
    assert passes[0].flops == 2 * np.prod(case.y_shape()) * taps


def test_every_primitive_of_a_backend_belongs_to_a_family():
    from gpuconv.backends import cpu

    names = ("activations", "adaptive", "columns", "convolution", "pooling")
    modules = {name: getattr(cpu, name) for name in names}
    called = set()
    for op in OPERATIONS.values():
        source = inspect.getsource(inspect.getmodule(op.__wrapped__))
        called |= {
            f"{module}.{name}"
            for module, found in modules.items()
            for name in vars(found)
            if f"backend.{module}.{name}(" in source or (module == "convolution" and f"ops.{name}(" in source)
        }
    assert called == set(FAMILIES)


def test_wrong_arguments_are_the_functions_own_errors():
    with pytest.raises(ValueError, match="conv2d: w has 4 input channels per group"):
        work_of("conv2d", {"x": a(1, 3, 8, 8), "w": a(4, 4, 3, 3)})


def test_work_is_counted_on_arrays_far_larger_than_memory():
    x = unmade.empty((1 << 20, 64, 512, 512), "float32")
    assert work_of("avg_pool2d", {"x": x, "kernel_size": 2}).bytes == x.nbytes * 5 // 4
