"""conv2d and its gradients: the definition, finite differences, memory, odd inputs."""

import random
import subprocess
import sys

import numpy as np
import pytest
from cases import draw, in_layout, lay_out, weights_in_layout
from compare import assert_close
from hypothesis import given
from hypothesis import strategies as st

import gpuconv
from gpuconv import reference as define
from gpuconv.backends.cpu import compiled, direct
from gpuconv.geometry import sliding_window

randoms = st.randoms(use_true_random=False)
DTYPES = [np.float64, np.float32, np.float16]


def _arrays(case, dtype=np.float64, *, whole=True):
    return (
        case.array("x", case.x_shape(), dtype, whole=whole),
        case.array("w", case.w_shape(), dtype, whole=whole),
        case.array("b", (case.c_out,), dtype, whole=whole),
        case.array("dy", case.y_shape(), dtype, whole=whole),
    )


def _first(case, *arrays):
    return [define.first(a.astype(np.float64), case.channels_last) for a in arrays]


@pytest.mark.parametrize("dtype", DTYPES)
@given(rng=randoms)
def test_convolution_and_gradients_are_exactly_the_definition_on_whole_numbers(backend, dtype, rng):
    case = draw(rng)
    x, w, b, dy = _arrays(case, dtype)
    given_x, given_w, given_b, given_dy = (lay_out(rng, backend.to_array(a)) for a in (x, w, b, dy))
    y = gpuconv.conv2d(given_x, given_w, given_b, **case.conv())
    grads = gpuconv.conv2d_backward(given_dy, given_x, given_w, **case.conv())
    sliding, (x1, dy1) = case.sliding(), _first(case, x, dy)
    w1 = define.weights_first(w.astype(np.float64), case.channels_last)
    want = [
        in_layout(case, define.conv(x1, w1, b, sliding, case.groups)),
        in_layout(case, define.conv_input_grad(dy1, w1, sliding, case.groups)),
        weights_in_layout(case, define.conv_weight_grad(dy1, x1, sliding, case.groups)),
        define.conv_bias_grad(dy1),
    ]
    for got, must in zip((y, *grads), want, strict=True):
        assert got.dtype == dtype
        assert got.shape == must.shape
        # numbers from -3 to 3 in sums this short are exact in float32 and, rounded once, in float16
        np.testing.assert_array_equal(backend.to_numpy(got), must.astype(dtype))


@pytest.mark.parametrize("axes", [1, 3])
@given(rng=randoms)
def test_one_and_three_spatial_axes_are_the_definition_too(backend, axes, rng):
    case = draw(rng, axes=axes)
    x, w, b, dy = _arrays(case)
    x0, w0, b0, dy0 = (backend.to_array(a) for a in (x, w, b, dy))
    sliding, (x1, dy1) = case.sliding(), _first(case, x, dy)
    w1 = define.weights_first(w, case.channels_last)
    y, dx, dw, db = (
        in_layout(case, define.conv(x1, w1, b, sliding, case.groups)),
        in_layout(case, define.conv_input_grad(dy1, w1, sliding, case.groups)),
        weights_in_layout(case, define.conv_weight_grad(dy1, x1, sliding, case.groups)),
        define.conv_bias_grad(dy1),
    )
    conv, backward, input_grad, weight_grad, bias_grad = (
        getattr(gpuconv, f"conv{axes}d{name}")
        for name in ("", "_backward", "_input_grad", "_weight_grad", "_bias_grad")
    )
    grads = backward(dy0, x0, w0, **case.conv())
    for got, must in [
        (conv(x0, w0, b0, **case.conv()), y),
        *zip(grads, (dx, dw, db), strict=True),
        (input_grad(dy0, w0, x.shape, **case.conv()), dx),
        (weight_grad(dy0, x0, case.kernel, **case.conv()), dw),
        (bias_grad(dy0, channels_last=case.channels_last), db),
    ]:
        np.testing.assert_array_equal(backend.to_numpy(got), must)


@pytest.mark.parametrize(
    "channels", [(24, 2), (2, 24)]
)  # few or many outputs: two ways to the input gradient
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"stride": 2, "padding": 1},
        {"stride": (2, 3), "padding": (5, 0)},  # padding beyond the kernel's reach
        {"stride": 3, "padding": "same", "dilation": 2},
        {"stride": 4},  # places that no window reads
        {"groups": 2, "dilation": (1, 2), "stride": 2},
    ],
)
def test_input_gradient_is_the_definition_whichever_way_it_takes(backend, options, channels_last, channels):
    c_in, c_out = channels
    groups, rng = options.get("groups", 1), np.random.default_rng(0)
    x_shape, w_shape = (2, c_in, 9, 8), (c_out, c_in // groups, 3, 3)
    w = rng.integers(-3, 4, w_shape).astype(np.float32)
    arguments = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options}
    window = sliding_window("test", (9, 8), 3, **{k: v for k, v in arguments.items() if k != "groups"})
    sliding = define.Sliding(
        (9, 8), (3, 3), window.stride, window.dilation, tuple(zip(window.before, window.after, strict=True))
    )
    dy = rng.integers(-3, 4, (2, c_out, *sliding.out_size)).astype(np.float32)
    want = define.last(define.conv_input_grad(dy, w, sliding, groups), channels_last)
    got = gpuconv.conv2d_input_grad(
        backend.to_array(define.last(dy, channels_last)),
        backend.to_array(define.weights_last(w, channels_last)),
        define.last(np.empty(x_shape), channels_last).shape,
        **options,
        channels_last=channels_last,
    )
    np.testing.assert_array_equal(backend.to_numpy(got), want)


@given(rng=randoms)
def test_gradients_agree_with_finite_differences(backend, rng):
    case = draw(rng)
    x, w, b, dy = _arrays(case, whole=False)
    grads = gpuconv.conv2d_backward(*(backend.to_array(a) for a in (dy, x, w)), **case.conv())
    step = 1e-4

    def loss(x, w, b):
        y = gpuconv.conv2d(*(backend.to_array(a) for a in (x, w, b)), **case.conv())
        return (backend.to_numpy(y) * dy).sum()

    for number, grad in enumerate(grads):
        # one random direction tries every entry at once
        direction = case.array(f"direction{number}", grad.shape)
        ahead, behind = ([x, w, b] for _ in range(2))
        ahead[number] = ahead[number] + step * direction
        behind[number] = behind[number] - step * direction
        slope = (loss(*ahead) - loss(*behind)) / (2 * step)
        along = (backend.to_numpy(grad) * direction).sum()
        # the loss is linear in each argument, so only rounding is left
        assert slope == pytest.approx(along, rel=1e-7, abs=1e-6)


@given(rng=randoms)
def test_backward_is_the_three_gradients_and_skips_what_is_not_needed(backend, rng):
    case = draw(rng)
    x, w, _, dy = (backend.to_array(a) for a in _arrays(case))
    needs = tuple(name for name in "xwb" if rng.randint(0, 1))
    grads = gpuconv.conv2d_backward(dy, x, w, needs=needs, **case.conv())
    alone = gpuconv.ConvGrads(
        dx=gpuconv.conv2d_input_grad(dy, w, list(case.x_shape()), **case.conv()),
        dw=gpuconv.conv2d_weight_grad(dy, x, list(case.kernel), **case.conv()),
        db=gpuconv.conv2d_bias_grad(dy, channels_last=case.channels_last),
    )
    for name, got, must in zip("xwb", grads, alone, strict=True):
        if name in needs:
            np.testing.assert_array_equal(backend.to_numpy(got), backend.to_numpy(must))
        else:
            assert got is None


@given(rng=randoms)
def test_input_gradient_at_stride_1_is_a_convolution_with_the_rotated_kernel(backend, rng):
    case = draw(rng)
    sliding = define.Sliding(case.in_size, case.kernel, (1, 1), case.dilation, case.pads)
    w = case.array("w", (case.c_out, case.c_in, *case.kernel), whole=True)
    dy = case.array("dy", (case.n, case.c_out, *sliding.out_size), whole=True)
    reach = [(k - 1) * d for k, d in zip(case.kernel, case.dilation, strict=True)]
    turned = np.ascontiguousarray(w[:, :, ::-1, ::-1].swapaxes(0, 1))
    full = gpuconv.conv2d(
        backend.to_array(dy), backend.to_array(turned), padding=tuple(reach), dilation=case.dilation
    )
    # full covers the padded x: cut the padding off
    (top, _), (left, _) = sliding.pads
    padded = np.zeros((case.n, case.c_in, 40, 40))
    padded[:, :, : full.shape[2], : full.shape[3]] = backend.to_numpy(full)
    want = padded[:, :, top : top + case.in_size[0], left : left + case.in_size[1]]
    got = gpuconv.conv2d_input_grad(
        backend.to_array(dy), backend.to_array(w), want.shape, padding=case.padding, dilation=case.dilation
    )
    np.testing.assert_array_equal(backend.to_numpy(got), want)


def test_two_convolutions_of_a_separable_kernel_are_one(backend):
    x = backend.to_array(np.random.default_rng(0).integers(-9, 9, (2, 1, 7, 8)).astype(np.float32))
    smooth = backend.to_array(np.array([1, 2, 1], np.float32).reshape(1, 1, 3, 1))
    slope = backend.to_array(np.array([-1, 0, 1], np.float32).reshape(1, 1, 1, 3))
    sobel = backend.to_array(np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32).reshape(1, 1, 3, 3))
    in_two = gpuconv.conv2d(gpuconv.conv2d(x, smooth), slope)
    np.testing.assert_array_equal(*(backend.to_numpy(y) for y in (in_two, gpuconv.conv2d(x, sobel))))


def test_groups_are_convolutions_side_by_side(backend):
    rng = np.random.default_rng(0)
    x, w = (backend.to_array(rng.integers(-3, 4, s).astype(np.float64)) for s in ((2, 6, 5, 5), (9, 2, 3, 3)))
    together = gpuconv.conv2d(x, w, groups=3)
    apart = [gpuconv.conv2d(x[:, 2 * g : 2 * g + 2], w[3 * g : 3 * g + 3]) for g in range(3)]
    np.testing.assert_array_equal(
        backend.to_numpy(together), np.concatenate([backend.to_numpy(y) for y in apart], axis=1)
    )


@pytest.mark.parametrize(
    ("x", "w", "b", "y"),
    [
        ("f4", "f4", "f4", "f4"),
        ("f4", "f8", None, "f8"),
        ("f2", "f4", None, "f4"),
        ("f2", "f2", "f8", "f8"),
        ("u1", "f4", "f4", "f4"),
        ("i8", "f4", None, "f8"),
        ("?", "f2", None, "f2"),
        (">f4", "f4", None, "f4"),
        (">f8", ">f8", ">f8", "f8"),
    ],
)
def test_results_have_the_dtype_numpy_promotes_to_in_native_byte_order(x, w, b, y):
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 4, (2, 3, 5, 5)).astype(x), rng.integers(0, 4, (4, 3, 3, 3)).astype(w)
    b = None if b is None else np.arange(4).astype(b)
    got = gpuconv.conv2d(x, w, b)
    assert got.dtype == np.dtype(y)
    assert got.dtype.isnative
    plain = [None if a is None else a.astype(np.float64) for a in (x, w, b)]
    np.testing.assert_array_equal(got, gpuconv.conv2d(*plain))


def test_each_gradient_promotes_only_the_arrays_it_is_made_of():
    dy, x, w = np.ones((1, 1, 2, 2), np.float32), np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2), np.float16)
    grads = gpuconv.conv2d_backward(dy, x, w)
    assert [g.dtype for g in grads] == [np.float32, np.float64, np.float32]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("c_in", "c_out", "groups"), [(2, 24, 1), (24, 2, 1), (8, 8, 8), (8, 8, 2)])
def test_float16_is_summed_in_float32_and_rounded_once(backend, c_in, c_out, groups, channels_last):
    rng = np.random.default_rng(0)
    shapes = ((2, c_in, 12, 20), (c_out, c_in // groups, 3, 3), (2, c_out, 12, 20))
    x, w, dy = (rng.random(shape).astype(np.float16) for shape in shapes)  # positive: nothing cancels
    sliding = define.Sliding((12, 20), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    x1, w1, dy1 = (a.astype(np.float64) for a in (x, w, dy))
    x, dy = (backend.to_array(define.last(a, channels_last)) for a in (x, dy))
    w = backend.to_array(define.weights_last(w, channels_last))
    options = {"padding": 1, "groups": groups, "channels_last": channels_last}
    y = gpuconv.conv2d(x, w, **options)
    dx, dw, db = gpuconv.conv2d_backward(dy, x, w, **options)
    once = 1.01 * 2.0**-11
    for got, want in [
        (y, define.last(define.conv(x1, w1, None, sliding, groups), channels_last)),
        (dx, define.last(define.conv_input_grad(dy1, w1, sliding, groups), channels_last)),
        (dw, define.weights_last(define.conv_weight_grad(dy1, x1, sliding, groups), channels_last)),
        (db, define.conv_bias_grad(dy1)),
    ]:
        np.testing.assert_allclose(backend.to_numpy(got).astype(np.float64), want, rtol=once)


def test_bias_gradient_of_many_places_keeps_float32_precision(backend):
    dy = np.random.default_rng(0).random((16, 2, 128, 128), np.float32)
    got = backend.to_numpy(gpuconv.conv2d_bias_grad(backend.to_array(dy)))
    np.testing.assert_allclose(got, dy.sum(axis=(0, 2, 3), dtype=np.float64), rtol=1e-6)


EXTREMES = {
    "image of one pixel": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "kernel wider than the image": ((2, 2, 1, 1), (2, 2, 3, 3), {"padding": 1}),
    "padding far beyond the kernel": ((1, 1, 3, 2), (2, 1, 2, 2), {"padding": ((9, 0), (0, 11))}),
    "padding beyond the kernel, strided": ((1, 2, 3, 2), (2, 2, 2, 1), {"padding": (7, 6), "stride": (3, 4)}),
    "only padding": ((1, 1, 1, 1), (1, 1, 2, 2), {"padding": 5, "dilation": 4, "stride": 2}),
    "taps a thousand apart": ((1, 1, 1, 1), (1, 1, 2, 2), {"padding": 500, "dilation": 1000}),
    "stride wider than the image": ((2, 1, 5, 5), (1, 1, 2, 2), {"stride": 1000}),
    "kernel 31x31": ((1, 1, 2, 12), (1, 1, 31, 31), {"padding": 15}),
    "one column out": ((2, 3, 6, 3), (2, 3, 3, 3), {}),
    "one row out": ((2, 3, 3, 6), (2, 3, 3, 3), {}),
    "depthwise": ((2, 5, 6, 6), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
    "depthwise, two each, strided": ((2, 5, 6, 6), (10, 1, 3, 3), {"groups": 5, "padding": 1, "stride": 2}),
    "many groups": ((2, 64, 4, 4), (64, 2, 3, 3), {"groups": 32}),
    "long and thin": ((1, 1, 1, 3000), (2, 1, 1, 5), {"stride": (1, 7)}),
    "no image": ((0, 4, 5, 5), (2, 2, 3, 3), {"groups": 2}),
    "1x1 on part of the images": ((3, 4, 5, 5), (2, 4, 1, 1), {"padding": "same"}),
    "1x1 padded on one side": ((2, 1, 3, 3), (1, 1, 1, 1), {"padding": ((1, 0), (0, 2))}),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_shapes(backend, name, channels_last):
    x_shape, w_shape, options = EXTREMES[name]
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-2, 3, shape).astype(np.float32) for shape in (x_shape, w_shape))
    numbers = {k: v for k, v in options.items() if k != "groups"}
    window = sliding_window("test", x_shape[2:], w_shape[2:], **numbers)
    sliding = define.Sliding(
        window.in_size,
        window.kernel,
        window.stride,
        window.dilation,
        tuple(zip(window.before, window.after, strict=True)),
    )
    groups = options.get("groups", 1)
    dy = rng.integers(-2, 3, (x_shape[0], w_shape[0], *sliding.out_size)).astype(np.float32)
    want = [
        define.last(define.conv(x, w, None, sliding, groups), channels_last),
        define.last(define.conv_input_grad(dy, w, sliding, groups), channels_last),
        define.weights_last(define.conv_weight_grad(dy, x, sliding, groups), channels_last),
    ]
    x0, dy0 = (backend.to_array(define.last(a, channels_last)) for a in (x, dy))
    w0 = backend.to_array(define.weights_last(w, channels_last))
    y = gpuconv.conv2d(x0, w0, channels_last=channels_last, **options)
    grads = gpuconv.conv2d_backward(dy0, x0, w0, channels_last=channels_last, **options)
    for got, must in zip((y, grads.dx, grads.dw), want, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(got), must)


def test_repeated_and_overlapping_views_are_read_as_they_are(backend):
    line = np.arange(12, dtype=np.float32)
    overlapping = np.lib.stride_tricks.as_strided(line, (2, 3, 4, 4), (4, 8, 4, 4))
    one = np.broadcast_to(np.float32(2), (4, 3, 2, 2))
    got = gpuconv.conv2d(overlapping, one)
    np.testing.assert_array_equal(got, gpuconv.conv2d(overlapping.copy(), one.copy()))
    dy = np.broadcast_to(np.float32(1), got.shape)
    for a, b in zip(
        gpuconv.conv2d_backward(dy, overlapping, one),
        gpuconv.conv2d_backward(dy.copy(), overlapping.copy(), one.copy()),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_the_same_array_may_be_image_and_kernel_and_is_left_alone(backend):
    x = backend.to_array(np.arange(9.0).reshape(1, 1, 3, 3))
    assert float(gpuconv.conv2d(x, x)[0, 0, 0, 0]) == 204
    np.testing.assert_array_equal(backend.to_numpy(x).ravel(), np.arange(9.0))


def test_subclasses_of_ndarray_give_plain_arrays(tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(1, 2, 4, 4))
    x[:] = 1
    y = gpuconv.conv2d(x, np.ones((1, 2, 1, 1), np.float32))
    assert type(y) is np.ndarray
    assert (y == 2).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (2, 1), (4, 2), (4, 4)], ids=["one", "all", "grouped", "depthwise"]
)
def test_a_value_that_is_no_number_reaches_the_windows_that_read_it_and_no_other(
    backend, value, channels_last, channels, groups
):
    x = np.ones((2, channels, 6, 40))
    x[0, 0, 0, 2] = value
    w = define.weights_last(np.ones((channels, channels // groups, 3, 3)), channels_last)
    options = {"padding": 1, "groups": groups, "channels_last": channels_last}
    y = gpuconv.conv2d(backend.to_array(define.last(x, channels_last)), backend.to_array(w), **options)
    reached = np.zeros(x.shape, bool)
    reached[0, : channels // groups, :2, 1:4] = True
    y = define.first(backend.to_numpy(y), channels_last)
    np.testing.assert_array_equal(~np.isfinite(y), reached)
    dx = gpuconv.conv2d_input_grad(
        backend.to_array(define.last(x, channels_last)),
        backend.to_array(w),
        define.last(x, channels_last).shape,
        **options,
    )
    np.testing.assert_array_equal(~np.isfinite(define.first(backend.to_numpy(dx), channels_last)), reached)


def test_results_are_bit_identical_from_run_to_run(backend):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 16, 24, 24), np.float32), rng.standard_normal((32, 16, 3, 3), np.float32)
    x, w = backend.to_array(x), backend.to_array(w)
    runs = []
    for _ in range(3):
        y = gpuconv.conv2d(x, w, padding=1)
        runs.append([backend.to_numpy(a) for a in (y, *gpuconv.conv2d_backward(y, x, w, padding=1))])
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


MEMORY = """
import tracemalloc
import numpy as np, gpuconv
last = {last}
x = np.ones((8, 56, 56, 64) if last else (8, 64, 56, 56), np.float32)
w = np.ones((3, 3, 64, 64) if last else (64, 64, 3, 3), np.float32)
gpuconv.conv2d(x[:1], w, padding=1, channels_last=last)  # whatever is made once
tracemalloc.start()
before = tracemalloc.get_traced_memory()[0]
y = gpuconv.conv2d(x, w, padding=1, channels_last=last)
print(tracemalloc.get_traced_memory()[1] - before - y.nbytes)
"""


@pytest.mark.parametrize("last", [False, True])
def test_forward_pass_takes_no_more_than_a_few_blocks_of_columns(last):
    result = subprocess.run(
        [sys.executable, "-c", MEMORY.format(last=last)], capture_output=True, text=True, check=True
    )
    # all columns at once would be 58 MB; two threads hold about 2 MB of columns each, and padded images
    assert int(result.stdout) < 16 << 20


@pytest.mark.parametrize("seed", range(40))
def test_free_draws_in_every_dtype_stay_near_the_definition(backend, seed):
    rng = random.Random(seed)
    case = draw(rng, free=True)
    dtypes = [rng.choice(DTYPES) for _ in range(3)]
    x, w, dy = (
        case.array(name, shape, dtype)
        for name, shape, dtype in zip(
            ("x", "w", "dy"), (case.x_shape(), case.w_shape(), case.y_shape()), dtypes, strict=True
        )
    )
    x0, w0, dy0 = (lay_out(rng, backend.to_array(a)) for a in (x, w, dy))
    (x1, dy1), w1 = _first(case, x, dy), define.weights_first(w.astype(np.float64), case.channels_last)
    y = gpuconv.conv2d(x0, w0, **case.conv())
    grads = gpuconv.conv2d_backward(dy0, x0, w0, **case.conv())
    sliding = case.sliding()
    assert_close(backend.to_numpy(y), in_layout(case, define.conv(x1, w1, None, sliding, case.groups)))
    assert_close(
        backend.to_numpy(grads.dx), in_layout(case, define.conv_input_grad(dy1, w1, sliding, case.groups))
    )
    assert_close(
        backend.to_numpy(grads.dw),
        weights_in_layout(case, define.conv_weight_grad(dy1, x1, sliding, case.groups)),
    )
    assert_close(backend.to_numpy(grads.db), define.conv_bias_grad(dy1))


@pytest.fixture
def vectors_of(monkeypatch):
    """Make all direct convolutions' vectors run along kernels or along places."""

    def forget():
        direct._forward_cut.cache_clear()
        direct._weight_cut.cache_clear()

    def choose(what):
        forget()
        monkeypatch.setattr(direct, "_by_outer", lambda *_: what == "kernels")

    with gpuconv.config(compiled=True):
        if compiled.kernels(np.zeros(1, np.float32)) is None:
            pytest.skip(compiled.why_not())
    yield choose
    forget()


@pytest.mark.parametrize("what", ["kernels", "places"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_are_the_same_whether_kernels_or_places_run_along_the_vector(
    vectors_of, what, channels_last, dtype
):
    vectors_of(what)
    rng = np.random.default_rng(0)
    # Blocks of kernels that end within a vector and beyond one; strided, unpadded, and 1x1 in place.
    for groups, cg, og, k, stride, padding in [
        (2, 3, 41, 3, 2, 1),
        (1, 5, 64, 2, 1, 0),
        (2, 16, 70, 1, 1, 0),
    ]:
        x = rng.integers(-3, 4, (2, groups * cg, 7, 9)).astype(dtype)
        w = rng.integers(-3, 4, (groups * og, cg, k, k)).astype(dtype)
        b = rng.integers(-3, 4, groups * og).astype(dtype)
        if channels_last:
            x, w = (np.ascontiguousarray(a) for a in (x.transpose(0, 2, 3, 1), w.transpose(2, 3, 1, 0)))
        options = {"stride": stride, "padding": padding, "groups": groups, "channels_last": channels_last}
        with gpuconv.config(compiled=False):
            y = gpuconv.conv2d(x, w, b, **options)
            dy = rng.integers(-3, 4, y.shape).astype(dtype)
            wanted = y, *gpuconv.conv2d_backward(dy, x, w, **options)
        with gpuconv.config(compiled=True, algorithm="direct"):
            found = gpuconv.conv2d(x, w, b, **options), *gpuconv.conv2d_backward(dy, x, w, **options)
        for got, want in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(got, want)
