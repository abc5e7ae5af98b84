"""Poolings of small windows by the CUDA kernels, a tile of results a thread: borders, ties, what is used."""

from dataclasses import replace

import numpy as np
import pytest
from cases import draw
from host import compiler
from host import runtime as host_runtime
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuconv
from gpuconv.backends import unmade
from gpuconv.backends.cuda import planning, pooling
from gpuconv.geometry import sliding_window
from gpuconv.measure.shapes import pool_shapes

needs_kernels = pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True])
SPECIAL = (np.nan, np.inf, -np.inf, -np.inf)


def drawn(rng, channels_last):
    """Draw a pooling whose images are several tiles wide and high."""
    case = draw(rng, pool=True, axes=rng.choice([1, 2, 2, 2, 3]), free=rng.random() < 0.5)
    larger, channels = rng.choice([0, 4, 8, 15]), rng.choice([1, 3, 4, 8])
    return replace(
        case,
        n=max(1, case.n),
        c_in=channels,
        in_size=tuple(size + larger for size in case.in_size),
        channels_last=channels_last,
    )


def passes(case, x, dy):
    """Return y and argmax, the maximum's gradient, y without argmax, the mean and its gradient."""
    d, options = len(case.kernel), case.pool()
    means = options | {"count_include_pad": case.count_include_pad}
    of = {name: getattr(gpuconv, f"{name}{d}d") for name in ("max_pool", "avg_pool")}
    back = {name: getattr(gpuconv, f"{name}{d}d_backward") for name in ("max_pool", "avg_pool")}
    y, argmax = of["max_pool"](x, case.kernel, **options)
    return (
        y,
        argmax,
        back["max_pool"](dy, argmax, x.shape, case.kernel, **options),
        of["max_pool"](x, case.kernel, return_argmax=False, **options),
        of["avg_pool"](x, case.kernel, **means),
        back["avg_pool"](dy, x.shape, case.kernel, **means),
    )


def agree(found, must, dtype):
    """Check that maxima are the same bits and means the same to rounding."""
    for got, want in zip(found[:4], must[:4], strict=True):
        np.testing.assert_array_equal(got, want)
    near = {"float16": 2e-3, "float32": 1e-6, "float64": 1e-14}[np.dtype(dtype).name]
    for got, want in zip(found[4:], must[4:], strict=True):
        np.testing.assert_allclose(got, want, rtol=near, atol=8 * near)


@LAYOUTS
@settings(max_examples=8)
@given(rng=st.randoms(use_true_random=False))
def test_poolings_are_numpys(gpu, channels_last, rng):
    case, dtype = drawn(rng, channels_last), rng.choice(["float16", "float32", "float64"])
    x = case.array("x", case.x_shape(), dtype, whole=True)
    dy = case.array("dy", case.y_shape(pool=True), dtype, whole=True)
    must = passes(case, x, dy)
    found = passes(case, *map(gpu.to_array, (x, dy)))
    agree([gpu.to_numpy(a) for a in found], must, dtype)


@LAYOUTS
@settings(max_examples=8)
@given(rng=st.randoms(use_true_random=False))
def test_the_first_of_equal_maxima_counts_whatever_they_are(gpu, channels_last, rng):
    case, dtype = drawn(rng, channels_last), rng.choice(["float16", "float32", "float64"])
    x = case.array("x", case.x_shape(), dtype, whole=True)
    chosen = np.random.default_rng(case.seed)
    for special in SPECIAL:  # most windows hold nothing but minus infinities, those at borders too
        x[chosen.random(x.shape) < 0.5] = special
    options = case.pool()
    op = getattr(gpuconv, f"max_pool{len(case.kernel)}d")
    found, must = op(gpu.to_array(x), case.kernel, **options), op(x, case.kernel, **options)
    for got, want in zip(found, must, strict=True):
        np.testing.assert_array_equal(gpu.to_numpy(got), want)


@needs_kernels
@LAYOUTS
@settings(max_examples=8)
@given(rng=st.randoms(use_true_random=False))
def test_nothing_around_an_array_is_read(channels_last, rng):
    case = drawn(rng, channels_last)
    x = case.array("x", case.x_shape(), np.float32, whole=True)
    dy = case.array("dy", case.y_shape(pool=True), np.float32, whole=True)
    alone = passes(case, *map(host_runtime.to_device, (x, dy)))
    for got, want in zip(
        passes(case, host_runtime.within_nan(rng, x), host_runtime.within_nan(rng, dy)), alone, strict=True
    ):
        np.testing.assert_array_equal(host_runtime.to_host(got), host_runtime.to_host(want))


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize("kernel, stride, padding", [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
def test_tiles_whose_sizes_are_compiled_in_are_the_same(kernel, stride, padding, channels_last, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (1, 16, 24, 8) if channels_last else (1, 8, 16, 24)).astype(np.float32)
    options = {"stride": stride, "padding": padding, "channels_last": channels_last}

    def both(x, dy=None):
        y, argmax = gpuconv.max_pool2d(x, kernel, **options)
        means = gpuconv.avg_pool2d(x, kernel, **options)
        dy = y if dy is None else dy
        return (
            y, argmax, means, gpuconv.max_pool2d_backward(dy, argmax, x.shape, kernel, **options),
            gpuconv.avg_pool2d_backward(dy, x.shape, kernel, **options),
        )  # fmt: skip

    must = both(x)
    monkeypatch.setattr(host_runtime.host, "exact", True)
    for got, want in zip(both(host_runtime.to_device(x), host_runtime.to_device(must[0])), must, strict=True):
        np.testing.assert_allclose(host_runtime.to_host(got), want, rtol=1e-6, atol=1e-6)


@needs_kernels
def test_a_mask_that_names_no_place_of_its_window_adds_to_none():
    dy = np.ones((1, 1, 3, 3), np.float32)
    argmax = np.full(dy.shape, 4, np.uint8)
    argmax[0, 0, 0] = 0, 9, 255  # in the padding, and no tap at all
    argmax[0, 0, 2, 2] = 8  # beyond the end
    dx = gpuconv.max_pool2d_backward(
        *map(host_runtime.to_device, (dy, argmax)), (1, 1, 5, 5), 3, 2, padding=1
    )
    want = np.zeros((5, 5))
    want[2, [0, 2, 4]] = want[4, [0, 2]] = 1
    np.testing.assert_array_equal(host_runtime.to_host(dx)[0, 0], want)


def launched(op, window, n, c, dtype, channels_last, mask="uint8"):
    """Return the kernel that a pooling launches."""

    def empty(sizes, dtype):
        return unmade.empty((n, *sizes, c) if channels_last else (n, c, *sizes), np.dtype(dtype))

    x, y, argmax = (empty(s, d) for s, d in (
        (window.in_size, dtype), (window.out_size, dtype), (window.out_size, mask)
    ))  # fmt: skip
    calls = {
        "max_pool": (x, y, argmax), "avg_pool": (x, y), "max_pool_backward": (y, argmax, x),
        "avg_pool_backward": (y, x), "max_unpool": (y, argmax, x),
    }  # fmt: skip
    counts = (True, None) if op.startswith("avg") else ()
    call = getattr(pooling, op)
    (launch,) = (
        values for what, values in planning.noted(lambda: call(*calls[op], window, channels_last, *counts))
        if what == "launch"
    )  # fmt: skip
    return launch["kernel"]


OPS = ("max_pool", "max_pool_backward", "avg_pool", "avg_pool_backward")


@LAYOUTS
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_poolings_of_known_networks_have_tiles_and_move_several_elements_at_once(dtype, channels_last):
    for shape in pool_shapes():
        window = sliding_window(
            "pool", (shape.h, shape.w), (shape.kernel,) * 2, shape.stride, shape.padding, 1
        )
        for op in OPS:
            kernel = launched(op, window, shape.n, shape.c, dtype, channels_last)
            assert kernel.name == (f"{op}_tile" if shape.kernel < 4 else op)
            even = shape.w % 8 == 0 and window.out_size[1] % 8 == 0
            if kernel.name.endswith("tile") and (even or channels_last):
                defines = dict(kernel.defines)
                assert int(defines["VECTOR"]) * np.dtype(dtype).itemsize >= 8, (shape.name, op)
                assert int(defines["ROWS"]) * int(defines["COLUMNS"]) >= (2 if channels_last else 8)


@pytest.mark.parametrize(
    "op, kernel, stride, dtype, mask",
    [
        ("max_pool", 3, 1, "int32", "uint8"),
        ("avg_pool", 3, 1, "complex64", "uint8"),
        ("max_pool", 7, 1, "float32", "uint8"),
        ("avg_pool", 3, 5, "float32", "uint8"),
        ("max_pool_backward", 2, 2, "float32", "int64"),
        ("max_unpool", 2, 2, "float32", "uint8"),
    ],
)
def test_what_tiles_are_not_for_has_the_kernels_that_do_everything(op, kernel, stride, dtype, mask):
    window = sliding_window("pool", (20, 20), (kernel, kernel), stride)
    found = launched(op, window, 2, 8, dtype, False, mask).name
    assert found == {"max_unpool": "max_pool_backward"}.get(op, op)
