"""CuPy's cuDNN functions: against the definitions, as old programs call them, and where these look."""

import importlib.util
import inspect
import random
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from cases import draw, lay_out
from compare import assert_close
from host import compiler, cupy_packages, cupy_stand_in

import gpuconv
from gpuconv.compat import cudnn
from gpuconv.reference import (
    Sliding,
    avg_pool,
    avg_pool_backward,
    conv,
    conv_input_grad,
    conv_weight_grad,
    last,
    max_pool,
    max_pool_backward,
)

NCHW, NHWC = cudnn.CUDNN_TENSOR_NCHW, cudnn.CUDNN_TENSOR_NHWC
FORWARD = {"auto_tune": True, "tensor_core": "auto"}
BACKWARD = {"deterministic": False, **FORWARD}
MODES = range(4)


def symmetric(seed, axes, *, pool=False):
    """Draw a configuration whose padding cuDNN can express; its arrays are channels first."""
    rng = random.Random(seed)
    while True:
        case = draw(rng, pool=pool, dilated=not pool, free=True, axes=axes)
        if not isinstance(case.padding, str) and all(p == q for p, q in case.pads):
            return replace(case, channels_last=False, ceil_mode=False)


def numbers(case):
    """Return pad, stride, dilation and groups, as callers pass them."""
    return tuple(before for before, _ in case.pads), case.stride, case.dilation, case.groups


def laid_out(x, layout):
    return last(x, layout == NHWC)


# Results.


@pytest.mark.parametrize("layouts", [(NCHW, NCHW), (NHWC, NHWC), (NCHW, NHWC), (NHWC, NCHW)])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_convolutions_are_the_definitions_in_every_layout(device, axes, layouts, seed):
    case, rng = symmetric(seed, axes), random.Random(seed)
    d_layout, w_layout = layouts
    sliding, g = case.sliding(), case.groups
    x, w = case.array("x", case.x_shape()), case.array("w", case.w_shape())
    dy, b = case.array("dy", case.y_shape()), case.array("b", (case.c_out,))
    c = case.array("c", (case.c_in,))

    def there(array, layout=d_layout):
        return lay_out(rng, device.to_array(laid_out(array, layout)))

    def empty(shape, layout=d_layout):
        return device.to_array(laid_out(np.full(shape, np.nan), layout))

    layout = {"d_layout": d_layout, "w_layout": w_layout}
    y, gx, gw = empty(case.y_shape()), empty(case.x_shape()), empty(case.w_shape(), w_layout)
    W = there(w, w_layout)
    bias = device.to_array(b.reshape(1, -1, 1))
    assert cudnn.convolution_forward(there(x), W, bias, y, *numbers(case), **FORWARD, **layout) is None
    cudnn.convolution_backward_data(
        W, there(dy), device.to_array(c), gx, *numbers(case), **BACKWARD, **layout
    )
    cudnn.convolution_backward_filter(there(x), there(dy), gw, *numbers(case), **BACKWARD, **layout)
    assert_close(device.to_numpy(y), laid_out(conv(x, w, b, sliding, g), d_layout))
    gx_want = conv_input_grad(dy, w, sliding, g) + c.reshape(-1, *(1,) * axes)
    assert_close(device.to_numpy(gx), laid_out(gx_want, d_layout))
    assert_close(device.to_numpy(gw), laid_out(conv_weight_grad(dy, x, sliding, g), w_layout))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_float_of_cudnn_is_kept(device, dtype):
    case = replace(symmetric(5, 2), n=2)
    arrays = {
        name: case.array(name, shape, dtype, whole=True)
        for name, shape in {"x": case.x_shape(), "w": case.w_shape(), "dy": case.y_shape()}.items()
    }
    x, w, dy = (device.to_array(array) for array in arrays.values())
    y, gx, gw = (device.to_array(np.empty(a.shape, dtype)) for a in (arrays["dy"], arrays["x"], arrays["w"]))
    cudnn.convolution_forward(x, w, None, y, *numbers(case), **FORWARD)
    cudnn.convolution_backward_data(w, dy, None, gx, *numbers(case), **BACKWARD)
    cudnn.convolution_backward_filter(x, dy, gw, *numbers(case), **BACKWARD)
    x, w, dy = (array.astype(np.float64) for array in arrays.values())
    window = (case.sliding(), case.groups)
    for got, want in (
        (y, conv(x, w, None, *window)),
        (gx, conv_input_grad(dy, w, *window)),
        (gw, conv_weight_grad(dy, x, *window)),
    ):
        assert_close(device.to_numpy(got), want)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_pooling_is_the_definition_in_every_mode(device, axes, mode, seed):
    case = symmetric(seed, axes, pool=True)
    sliding, (pad, stride, *_) = case.sliding(pool=True), numbers(case)
    x, dy = case.array("x", case.x_shape()), case.array("dy", case.y_shape(pool=True))
    if mode in (cudnn.CUDNN_POOLING_MAX, cudnn.CUDNN_POOLING_MAX_DETERMINISTIC):
        want, argmax = max_pool(x, sliding)
        gx_want = max_pool_backward(dy, argmax, sliding)
    else:
        counted = mode == cudnn.CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING
        want, gx_want = avg_pool(x, sliding, counted), avg_pool_backward(dy, sliding, counted)
    x, dy, y = (device.to_array(array) for array in (x, dy, np.empty_like(dy)))
    assert cudnn.pooling_forward(x, y, case.kernel, stride, pad, mode) is y
    gx = cudnn.pooling_backward(x, y, dy, case.kernel, stride, pad, mode)
    assert_close(device.to_numpy(y), want)
    assert_close(device.to_numpy(gx), gx_want)


@pytest.mark.parametrize("mode", MODES)
def test_one_window_more_than_fit_makes_the_last_one_partial(device, mode):
    # Chainer's cover_all: 5 places, windows of 2 at 0, 2 and 4, of which the last reads one place.
    x = device.to_array(np.array([[[3.0, 1.0, 4.0, 1.0, 5.0]]]))
    y = device.to_array(np.empty((1, 1, 3)))
    cudnn.pooling_forward(x, y, (2,), (2,), (0,), mode)
    gx = cudnn.pooling_backward(x, y, device.to_array(np.array([[[2.0, 4.0, 8.0]]])), (2,), (2,), (0,), mode)
    want, gx_want = {
        cudnn.CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING: ([2, 2.5, 2.5], [1, 1, 2, 2, 4]),
        cudnn.CUDNN_POOLING_AVERAGE_COUNT_EXCLUDE_PADDING: ([2, 2.5, 5], [1, 1, 2, 2, 8]),
    }.get(mode, ([3, 4, 5], [2, 0, 4, 0, 8]))
    np.testing.assert_array_equal(device.to_numpy(y)[0, 0], want)
    np.testing.assert_array_equal(device.to_numpy(gx)[0, 0], gx_want)


def test_partial_windows_beside_padding():
    # 6 places with one of padding on either side: windows of 3 begin at -1, 2 and, one more, at 5.
    x = np.arange(6.0).reshape(1, 1, 6)
    y = cudnn.pooling_forward(x, np.empty((1, 1, 3)), (3,), (3,), (1,), cudnn.CUDNN_POOLING_MAX)
    np.testing.assert_array_equal(y[0, 0], [1, 4, 5])


def test_pooling_gradient_goes_to_the_first_of_tied_maxima(device):
    x, y, gy = (device.to_array(np.ones(shape)) for shape in ((1, 1, 2, 2), (1, 1, 1, 1), (1, 1, 1, 1)))
    gx = cudnn.pooling_backward(x, y, gy, (2, 2), (2, 2), (0, 0), cudnn.CUDNN_POOLING_MAX)
    np.testing.assert_array_equal(device.to_numpy(gx)[0, 0], [[1, 0], [0, 0]])


def test_flags_change_nothing_and_dilation_may_be_none():
    case = replace(symmetric(2, 2), dilation=(1, 1))
    x, w = case.array("x", case.x_shape()), case.array("w", case.w_shape())
    pad, stride, _, groups = numbers(case)
    results = []
    for tensor_core in ("always", "auto", "never"):
        for auto_tune in (True, False):
            y = np.empty(case.y_shape())
            flags = {"auto_tune": auto_tune, "tensor_core": tensor_core}
            cudnn.convolution_forward(x, w, None, y, pad, stride, None, groups, **flags)
            results.append(y)
    assert all(np.array_equal(results[0], y) for y in results)
    assert_close(results[0], conv(x, w, None, case.sliding(), groups))


def test_results_are_written_into_a_slice_and_nowhere_else():
    whole = np.full((2, 6, 4, 4), 7.0)
    x, W = np.ones((2, 3, 4, 4)), np.ones((4, 3, 1, 1))
    cudnn.convolution_forward(x, W, None, whole[:, 1:5], (0, 0), (1, 1), (1, 1), 1, **FORWARD)
    assert (whole[:, 1:5] == 3).all() and (whole[:, [0, 5]] == 7).all()


def results(asarray, layout):
    """Return what all the functions write or return for some arrays of a module."""
    rng = np.random.default_rng(0)

    def array(*shape, layout=NCHW):
        return asarray(laid_out(rng.standard_normal(shape), layout))

    x, w, dy = (array(*shape, layout=layout) for shape in ((2, 4, 5, 6), (6, 2, 3, 3), (2, 6, 5, 6)))
    y, gx, gw = (array(*shape, layout=layout) for shape in ((2, 6, 5, 6), (2, 4, 5, 6), (6, 2, 3, 3)))
    window, layouts = ((1, 1), (1, 1), (1, 1), 2), {"d_layout": layout, "w_layout": layout}
    cudnn.convolution_forward(x, w, array(6), y, *window, **FORWARD, **layouts)
    cudnn.convolution_backward_data(w, dy, array(4), gx, *window, **BACKWARD, **layouts)
    cudnn.convolution_backward_filter(x, dy, gw, *window, **BACKWARD, **layouts)
    pooled = [y, gx, gw]
    for mode in MODES:
        images, small = array(2, 3, 5, 6), array(2, 3, 3, 3)
        pooled.append(cudnn.pooling_forward(images, small, (2, 2), (2, 2), (0, 0), mode))
        pooled.append(cudnn.pooling_backward(images, small, array(2, 3, 3, 3), (2, 2), (2, 2), (0, 0), mode))
    return pooled


@pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())
@pytest.mark.parametrize("layout", [NCHW, NHWC])
def test_cupy_s_arrays_do_and_nothing_waits_for_the_gpu(layout):
    with cupy_stand_in.installed() as cupy:
        got = results(cupy.asarray, layout)
        assert not cupy_stand_in.waits
        got = [array.get() for array in got]
    for array, want in zip(got, results(np.asarray, layout), strict=True):
        assert_close(array, want)


# CuPy 13.6: arguments in order, * before those that go by name only, = after those that may be left out.
SIGNATURES = {
    "convolution_forward": "x W b y pad stride dilation groups * auto_tune tensor_core d_layout= w_layout=",
    "convolution_backward_filter": (
        "x gy gW pad stride dilation groups * deterministic auto_tune tensor_core d_layout= w_layout="
    ),
    "convolution_backward_data": (
        "W x b y pad stride dilation groups * deterministic auto_tune tensor_core d_layout= w_layout="
    ),
    "pooling_forward": "x y ksize stride pad mode",
    "pooling_backward": "x y gy ksize stride pad mode",
    "create_tensor_descriptor": "arr format=",
    "create_filter_descriptor": "arr format=",
    "create_convolution_descriptor": "pad stride dtype mode= dilation= use_tensor_core= groups=",
    "create_pooling_descriptor": "ksize stride pad mode",
    "get_max_workspace_size": "",
    "set_max_workspace_size": "size",
    "getVersion": "",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_are_those_of_cupy_13(name):
    words = []
    for parameter in inspect.signature(getattr(cudnn, name)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(parameter.name + ("" if parameter.default is parameter.empty else "="))
    assert " ".join(words) == SIGNATURES[name]


def test_constants_are_cudnn_s():
    values = {name: value for name, value in vars(cudnn).items() if name.startswith("CUDNN_")}
    assert values == {
        "CUDNN_TENSOR_NCHW": 0,
        "CUDNN_TENSOR_NHWC": 1,
        "CUDNN_CONVOLUTION": 0,
        "CUDNN_CROSS_CORRELATION": 1,
        "CUDNN_POOLING_MAX": 0,
        "CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING": 1,
        "CUDNN_POOLING_AVERAGE_COUNT_EXCLUDE_PADDING": 2,
        "CUDNN_POOLING_MAX_DETERMINISTIC": 3,
    }


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_output_dimensions_are_those_of_the_definitions(axes, seed):
    case = symmetric(seed, axes)
    pad, stride, dilation, groups = numbers(case)
    x, w = np.empty(case.x_shape()), np.empty(case.w_shape())
    window = cudnn.create_convolution_descriptor(pad, stride, x.dtype, dilation=dilation, groups=groups)
    images = cudnn.create_tensor_descriptor(laid_out(x, NHWC), NHWC)
    kernels = cudnn.create_filter_descriptor(laid_out(w, NHWC), NHWC)
    assert cudnn.getConvolutionNdForwardOutputDim(window, images, kernels) == case.y_shape()
    case = symmetric(seed, axes, pool=True)
    pad, stride, *_ = numbers(case)
    window = cudnn.create_pooling_descriptor(case.kernel, stride, pad, cudnn.CUDNN_POOLING_MAX)
    images = cudnn.create_tensor_descriptor(np.empty(case.x_shape()))
    assert cudnn.getPoolingNdForwardOutputDim(window.value, images.value) == case.y_shape(pool=True)


def test_the_workspace_s_size_is_the_setting_s():
    try:
        assert cudnn.get_max_workspace_size() == 0 and gpuconv.config.workspace_limit is None
        cudnn.set_max_workspace_size(8 << 20)
        assert gpuconv.config.workspace_limit == cudnn.get_max_workspace_size() == 8 << 20
        cudnn.set_max_workspace_size(1)
        assert gpuconv.config.workspace_limit == 1 << 20
    finally:
        cudnn.set_max_workspace_size(0)
    assert gpuconv.config.workspace_limit is None


# Wrong arguments: good ones, and how each case spoils them.


def _ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


CONVOLUTION = {"pad": (0, 0), "stride": (1, 1), "dilation": (1, 1), "groups": 2}
POOLING = {"ksize": (2, 2), "stride": (2, 2), "pad": (0, 0), "mode": 0}
X, Y, KERNELS, POOLED = _ones(2, 4, 6, 6), _ones(2, 6, 4, 4), _ones(6, 2, 3, 3), _ones(2, 4, 3, 3)
GOOD = {
    "convolution_forward": {"x": X, "W": KERNELS, "b": _ones(6), "y": Y} | CONVOLUTION | FORWARD,
    "convolution_backward_data": {"W": KERNELS, "x": Y, "b": _ones(4), "y": X} | CONVOLUTION | BACKWARD,
    "convolution_backward_filter": {"x": X, "gy": Y, "gW": KERNELS} | CONVOLUTION | BACKWARD,
    "pooling_forward": {"x": X, "y": POOLED} | POOLING,
    "pooling_backward": {"x": X, "y": POOLED, "gy": POOLED} | POOLING,
}
ARRAYS = [(op, name) for op, good in GOOD.items() for name, value in good.items() if hasattr(value, "dtype")]
CONVOLUTIONS = [op for op in GOOD if op.startswith("convolution")]
WRITTEN = {
    "convolution_forward": ("y", "x"),
    "convolution_backward_data": ("y", "W"),
    "convolution_backward_filter": ("gW", "gy"),
    "pooling_forward": ("y", "x"),
}


def call(op, **spoilt):
    arguments = {**GOOD[op], **spoilt}
    arguments = {
        k: v.copy() if isinstance(v, np.ndarray) and k not in spoilt else v for k, v in arguments.items()
    }
    return getattr(cudnn, op)(**arguments)


def refused(op, error, *words, **spoilt):
    with pytest.raises(error) as caught:
        call(op, **spoilt)
    assert type(caught.value) is error
    message = str(caught.value)
    assert message.startswith(f"{op}: ")
    for word in words:
        assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message), message


@pytest.mark.parametrize("op", GOOD)
def test_good_arguments_are_good(op):
    call(op)


@pytest.mark.parametrize(("op", "name"), ARRAYS)
def test_what_is_no_array_is_refused_by_name(op, name):
    refused(op, TypeError, name, "list", **{name: [1.0]})


@pytest.mark.parametrize(("op", "name"), ARRAYS)
def test_another_dtype_is_refused_by_name(op, name):
    refused(op, TypeError, f"{name} is float64", **{name: GOOD[op][name].astype(np.float64)})


@pytest.mark.parametrize("dtype", ["int32", "complex64", "longdouble"])
@pytest.mark.parametrize("op", GOOD)
def test_dtypes_that_cudnn_has_not_are_refused(op, dtype):
    spoilt = {name: GOOD[op][name].astype(dtype) for other, name in ARRAYS if other == op}
    refused(op, TypeError, "float16", **spoilt)


@pytest.mark.parametrize(("op", "name"), ARRAYS)
def test_a_wrong_shape_is_refused_by_name(op, name):
    good = GOOD[op][name]
    if name == "b":
        refused(op, ValueError, name, str(good.shape[0]), b=good[1:])
    else:
        refused(op, ValueError, name, **{name: good[:, 1:]})
        refused(op, ValueError, name, "axes", **{name: good[0]})


@pytest.mark.parametrize(("op", "name"), WRITTEN.items())
def test_arrays_that_can_t_be_written_to_are_refused_by_name(op, name):
    written, other = name
    read_only = GOOD[op][written].copy()
    read_only.setflags(write=False)
    refused(op, ValueError, f"{written} is read-only", **{written: read_only})
    memory = np.ones(1000, np.float32)
    shared = {n: memory[: GOOD[op][n].size].reshape(GOOD[op][n].shape) for n in name}
    refused(op, ValueError, f"{written} shares memory with {other}", **shared)


@pytest.mark.parametrize("name", ["pad", "stride", "dilation", "ksize"])
@pytest.mark.parametrize("op", GOOD)
def test_wrong_numbers_are_refused_by_name(op, name):
    if name in GOOD[op]:
        refused(op, ValueError, name, **{name: (1, 1, 1)})
        refused(op, ValueError, f"{name}[1]", "-1", **{name: (1, -1)})
        refused(op, TypeError, f"{name}[0]", **{name: (1.5, 1)})


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_wrong_options_of_convolutions_are_refused_by_name(op):
    refused(op, ValueError, "tensor_core", "sometimes", tensor_core="sometimes")
    refused(op, ValueError, "d_layout", "2", d_layout=2)
    refused(op, ValueError, "w_layout", "7", w_layout=7)
    refused(op, TypeError, "groups", "2.0", groups=2.0)
    refused(op, ValueError, "groups=1", groups=1)
    refused(op, ValueError, "spans", "7", "dilation", dilation=(3, 3))


@pytest.mark.parametrize("op", ["pooling_forward", "pooling_backward"])
def test_wrong_options_of_poolings_are_refused_by_name(op):
    refused(op, ValueError, "mode", "4", mode=4)
    refused(op, TypeError, "mode", mode="max")
    refused(op, ValueError, "ksize", "spans", "7", ksize=(7, 7))
    beyond = {name: _ones(2, 4, 6, 6) for name in ("y", "gy") if name in GOOD[op]}
    refused(op, ValueError, "nothing but padding", pad=(3, 3), **beyond)


def test_wrong_sizes_are_refused_by_the_output_dimension_functions():
    op = "getConvolutionNdForwardOutputDim"
    window = cudnn.create_convolution_descriptor((0, 0), (1, 1), np.float32)
    x = cudnn.create_tensor_descriptor(_ones(2, 4, 6, 6))
    with pytest.raises(ValueError, match=f"^{op}: filterDesc has 3 channels per group"):
        cudnn.getConvolutionNdForwardOutputDim(window, x, cudnn.create_filter_descriptor(_ones(6, 3, 3, 3)))
    with pytest.raises(ValueError, match=f"^{op}: filterDesc spans 7 places"):
        cudnn.getConvolutionNdForwardOutputDim(window, x, cudnn.create_filter_descriptor(_ones(6, 4, 7, 3)))
    with pytest.raises(ValueError, match=r"^create_tensor_descriptor: format must be CUDNN_TENSOR_NCHW"):
        cudnn.create_tensor_descriptor(_ones(2, 4, 6, 6), 3)
    with pytest.raises(TypeError, match=r"^set_max_workspace_size: size must be a number of bytes"):
        cudnn.set_max_workspace_size("8 MB")


# Where old programs look.


def test_it_is_imported_without_cupy():
    program = "import sys; from gpuconv.compat import cudnn; assert 'cupy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


PLACES = ("cupy.cudnn", "cupyx.cudnn", "cupy.cuda.cudnn")


@pytest.fixture
def cupy_14(tmp_path):
    """CuPy 14 as far as such programs see it."""
    with cupy_packages.importable(tmp_path):
        yield importlib.import_module("cupy")


def test_programs_find_it_where_it_was(cupy_14):
    probe = """
import cupy, cupy.cudnn, cupyx.cudnn, cupy.cuda.cudnn
from cupy import cudnn
from cupy.cuda import cudnn as libcudnn
from cupyx.cudnn import convolution_forward, pooling_backward
import importlib.util
assert importlib.util.find_spec("cupy.cuda.cudnn") is not None
assert cupy.cudnn is cudnn and cupy.cuda.cudnn is libcudnn
assert cupy.cuda.cudnn_enabled and libcudnn.available and libcudnn.getVersion() >= 7000
assert libcudnn.CUDNN_POOLING_MAX == 0 and cudnn.convolution_forward is convolution_forward
"""
    with pytest.raises(ImportError):
        exec(probe, {})
    with cudnn.install():
        exec(probe, {})
    with pytest.raises(ImportError):
        exec(probe, {})


def state():
    """Return all that `install` could change."""
    packages = {
        name: module for name, module in sys.modules.items() if name.partition(".")[0] in ("cupy", "cupyx")
    }
    return packages, [dict(vars(sys.modules[name])) for name in ("cupy", "cupyx", "cupy.cuda")]


def test_uninstalling_leaves_no_trace(cupy_14):
    importlib.import_module("cupyx")
    before = state()
    cudnn.install()
    assert state() != before
    cudnn.uninstall()
    assert state() == before
    cudnn.uninstall()
    assert state() == before


def test_uninstalling_clears_a_package_whose_module_someone_forgot(cupy_14):
    importlib.import_module("cupyx")
    before = state()
    cudnn.install()
    del sys.modules["cupy.cudnn"]
    cudnn.uninstall()
    assert state() == before


def test_installing_twice_is_installing_once(cupy_14):
    cudnn.install()
    once = state()
    with cudnn.install():
        assert state() == once
    assert state() == once, "the inner block took away what it had not brought"
    cudnn.uninstall()
    assert all(importlib.util.find_spec(place) is None for place in PLACES)


@pytest.mark.parametrize("place", PLACES)
def test_a_cudnn_of_cupy_s_own_is_not_hidden(tmp_path, place):
    with cupy_packages.importable(tmp_path, **{place.replace(".", "__"): "own = True"}):
        with pytest.raises(RuntimeError, match=rf"^install: CuPy 14.2.0 has its own {place}, which stays"):
            cudnn.install()
        assert importlib.import_module(place).own
        assert not any(sys.modules.get(name) is cudnn for name in PLACES)
        with pytest.raises(RuntimeError, match="has its own"):  # now that it is imported, too
            cudnn.install()


def test_an_attribute_of_cupy_s_own_is_not_hidden(cupy_14):
    cupy_14.cuda.cudnn = own = object()  # as where CuPy 8 to 13 couldn't load the library
    with pytest.raises(RuntimeError, match=r"has its own cupy\.cuda\.cudnn"):
        cudnn.install()
    assert cupy_14.cuda.cudnn is own and not hasattr(cupy_14, "cudnn")


def test_without_cupy_it_says_what_is_missing(monkeypatch):
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("cupy", "cupyx"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        RuntimeError, match=r"^install: CuPy can't be imported .*pip install 'gpuconv\[cuda13\]'"
    ):
        cudnn.install()


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy isn't installed")
def test_the_real_cupy_takes_it_and_gives_it_back():
    import cupy

    if int(cupy.__version__.partition(".")[0]) < 14:
        pytest.skip(f"CuPy {cupy.__version__} has its own")
    importlib.import_module("cupyx")
    before = state()
    with cudnn.install():
        assert importlib.util.find_spec("cupy.cuda.cudnn") is not None
        assert sys.modules["cupy.cudnn"] is cupy.cudnn is cudnn and cupy.cuda.cudnn_enabled
    assert state() == before
    assert not hasattr(cupy.cuda, "cudnn")


def test_what_it_has_not_is_said():
    with pytest.raises(
        AttributeError, match=r"has no 'batch_normalization_forward_training'.*convolution and pool"
    ):
        cudnn.batch_normalization_forward_training  # noqa: B018
    assert not hasattr(cudnn, "activation_forward")


# A program of those days: a layer of Chainer's kind on cupy.cudnn, and the same network by the definitions.

PROGRAM = """
import cupy
from cupy import cudnn
from cupy.cuda import cudnn as libcudnn

class Convolution:
    def __init__(self, W, b, pad):
        self.W, self.b, self.pad = W, b, (pad, pad)
        self.stride, self.dilate, self.groups = (1, 1), (1, 1), 1

    def forward(self, x):
        n, _, h, w = x.shape
        out_c, _, kh, kw = self.W.shape
        (ph, pw), (sy, sx) = self.pad, self.stride
        y = cupy.empty((n, out_c, (h + ph * 2 - kh) // sy + 1, (w + pw * 2 - kw) // sx + 1), dtype=x.dtype)
        cudnn.convolution_forward(
            x, self.W, self.b, y, self.pad, self.stride, self.dilate, self.groups,
            auto_tune=True, tensor_core='auto')
        self.x = x
        return y

    def backward(self, gy):
        gx, gW = cupy.empty_like(self.x), cupy.empty_like(self.W)
        options = {'deterministic': False, 'auto_tune': True, 'tensor_core': 'auto'}
        cudnn.convolution_backward_data(
            self.W, gy, None, gx, self.pad, self.stride, self.dilate, self.groups, **options)
        cudnn.convolution_backward_filter(
            self.x, gy, gW, self.pad, self.stride, self.dilate, self.groups, **options)
        return gx, gW, gy.sum(axis=(0, 2, 3))

class MaxPooling:
    ksize, stride, pad, mode = (2, 2), (2, 2), (0, 0), libcudnn.CUDNN_POOLING_MAX

    def forward(self, x):
        n, c, h, w = x.shape
        self.x = x
        self.y = cupy.empty((n, c, -(-h // 2), -(-w // 2)), dtype=x.dtype)  # cover_all
        cudnn.pooling_forward(x, self.y, self.ksize, self.stride, self.pad, self.mode)
        return self.y

    def backward(self, gy):
        return cudnn.pooling_backward(self.x, self.y, gy, self.ksize, self.stride, self.pad, self.mode)

def train(x, target, W1, b1, W2, steps):
    losses = []
    for _ in range(steps):
        first, pool, second = Convolution(W1, b1, 1), MaxPooling(), Convolution(W2, None, 0)
        error = second.forward(pool.forward(first.forward(x))) - target
        losses.append(float((error * error).sum()))
        gx, gW2, _ = second.backward(error)
        _, gW1, gb1 = first.backward(pool.backward(gx))
        W1, b1, W2 = W1 - 0.002 * gW1, b1 - 0.002 * gb1, W2 - 0.002 * gW2
    return losses
"""


def plain_losses(x, target, W1, b1, W2, steps):
    """Train the program's network by the definitions."""
    same = Sliding((5, 5), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    halves = Sliding((5, 5), (2, 2), (2, 2), (1, 1), ((0, 1), (0, 1)))
    whole = Sliding((3, 3), (3, 3), (1, 1), (1, 1), ((0, 0), (0, 0)))
    losses = []
    for _ in range(steps):
        h = conv(x, W1, b1, same, 1)
        p, argmax = max_pool(h, halves)
        error = conv(p, W2, None, whole, 1) - target
        losses.append(float((error * error).sum()))
        gh = max_pool_backward(conv_input_grad(error, W2, whole, 1), argmax, halves)
        gW1, gb1, gW2 = (
            conv_weight_grad(gh, x, same, 1),
            gh.sum((0, 2, 3)),
            conv_weight_grad(error, p, whole, 1),
        )
        W1, b1, W2 = W1 - 0.002 * gW1, b1 - 0.002 * gb1, W2 - 0.002 * gW2
    return losses


def test_a_program_on_cupy_cudnn_trains_as_the_definitions_do(cupy_14):
    cupy_14.empty, cupy_14.empty_like = np.empty, np.empty_like
    rng = np.random.default_rng(0)
    images = [rng.standard_normal(shape) for shape in ((4, 2, 5, 5), (4, 3, 1, 1))]
    weights = [0.3 * rng.standard_normal(shape) for shape in ((6, 2, 3, 3), (6,), (3, 6, 3, 3))]
    program = {}
    with cudnn.install():
        exec(PROGRAM, program)
    losses = program["train"](*images, *weights, 30)
    np.testing.assert_allclose(losses, plain_losses(*images, *weights, 30), rtol=1e-9)
    assert losses[-1] < losses[0] / 100
