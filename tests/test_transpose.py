"""Transposed convolution and its gradients: the definition, finite differences, odd inputs."""

import numpy as np
import pytest
from cases import draw_transposed, in_layout, lay_out, weights_in_layout
from hypothesis import assume, given
from hypothesis import strategies as st

import gpuconv
from gpuconv import reference as define

randoms = st.randoms(use_true_random=False)
ranks = pytest.mark.parametrize("axes", [1, 2, 3])
layouts = pytest.mark.parametrize("channels_last", [False, True])
DTYPES = [np.float64, np.float32, np.float16]


def _public(name, axes):
    return getattr(gpuconv, name.format(axes))


def _arrays(case, dtype=np.float64, *, whole=True):
    return (
        case.array("x", case.x_shape(), dtype, whole=whole),
        case.array("w", case.w_shape(), dtype, whole=whole),
        case.array("b", (case.c_out,), dtype, whole=whole),
        case.array("dy", case.y_shape(), dtype, whole=whole),
    )


def _defined(case, x, w, b, dy):
    """Return y, dx, dw and db by the definition, in float64 and in the case's layout."""
    x, dy = (define.first(a.astype(np.float64), case.channels_last) for a in (x, dy))
    w, spreading = define.weights_first(w.astype(np.float64), case.channels_last), case.sliding()
    return (
        in_layout(case, define.conv_transpose(x, w, b, spreading, case.groups)),
        in_layout(case, define.conv_transpose_input_grad(dy, w, spreading, case.groups)),
        weights_in_layout(case, define.conv_transpose_weight_grad(dy, x, spreading, case.groups)),
        define.conv_bias_grad(dy),
    )


@ranks
@given(rng=randoms)
def test_transposed_convolution_and_gradients_are_exactly_the_definition_on_whole_numbers(backend, axes, rng):
    case = draw_transposed(rng, axes=axes, free=bool(rng.randint(0, 1)))
    dtype = rng.choice(DTYPES)
    x, w, b, dy = _arrays(case, dtype)
    given_x, given_w, given_b, given_dy = (lay_out(rng, backend.to_array(a)) for a in (x, w, b, dy))
    y = _public("conv_transpose{}d", axes)(given_x, given_w, given_b, **case.conv())
    grads = _public("conv_transpose{}d_backward", axes)(given_dy, given_x, given_w, **case.conv())
    for got, must in zip((y, *grads), _defined(case, x, w, b, dy), strict=True):
        assert got.dtype == dtype
        assert got.shape == must.shape
        # numbers from -3 to 3 in sums this short are exact in float32 and, rounded once, in float16
        np.testing.assert_array_equal(backend.to_numpy(got), must.astype(dtype))


@ranks
@given(rng=randoms)
def test_transposed_convolution_is_an_input_gradient_and_its_gradients_are_convolutions(backend, axes, rng):
    case = draw_transposed(rng, axes=axes, free=True)
    # with more, the convolution would see one place more than x has
    assume(all(extra < s for extra, s in zip(case.output_padding, case.stride, strict=True)))
    x, w, _, dy = (backend.to_array(a) for a in _arrays(case))
    y = _public("conv_transpose{}d", axes)(x, w, **case.conv())
    grads = _public("conv_transpose{}d_backward", axes)(dy, x, w, needs=("x", "w"), **case.conv())
    options = {**case.conv(), "padding": case.sliding().pads}
    del options["output_padding"]
    for got, must in [
        (y, _public("conv{}d_input_grad", axes)(x, w, dy.shape, **options)),
        (grads.dx, _public("conv{}d", axes)(dy, w, **options)),
        (grads.dw, _public("conv{}d_weight_grad", axes)(x, dy, case.kernel, **options)),
    ]:
        np.testing.assert_array_equal(backend.to_numpy(got), backend.to_numpy(must))


@given(rng=randoms)
def test_gradients_agree_with_finite_differences(backend, rng):
    case = draw_transposed(rng, axes=rng.randint(1, 3))
    axes = len(case.kernel)
    x, w, b, dy = _arrays(case, whole=False)
    arrays = (backend.to_array(a) for a in (dy, x, w))
    grads = _public("conv_transpose{}d_backward", axes)(*arrays, **case.conv())
    step = 1e-4

    def loss(x, w, b):
        arrays = (backend.to_array(a) for a in (x, w, b))
        return (backend.to_numpy(_public("conv_transpose{}d", axes)(*arrays, **case.conv())) * dy).sum()

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
def test_backward_skips_what_is_not_needed(backend, rng):
    case = draw_transposed(rng, axes=rng.randint(1, 3))
    backward = _public("conv_transpose{}d_backward", len(case.kernel))
    x, w, _, dy = (backend.to_array(a) for a in _arrays(case))
    needs = tuple(name for name in "xwb" if rng.randint(0, 1))
    every = backward(dy, x, w, **case.conv())
    for name, got, must in zip("xwb", backward(dy, x, w, needs=needs, **case.conv()), every, strict=True):
        if name in needs:
            np.testing.assert_array_equal(backend.to_numpy(got), backend.to_numpy(must))
        else:
            assert got is None


# x, w and options of one line, and y: each written down from the formula.
LINES = {
    "defaults": ([1, 2], [1, 10, 100], {}, [1, 12, 120, 200]),
    "one place, one tap": ([3], [2], {}, [6]),
    "stride": ([1, 2], [1, 10, 100], {"stride": 2}, [1, 10, 102, 20, 200]),
    "places that nothing is written to": ([1, 2], [1], {"stride": 3}, [1, 0, 0, 2]),
    "dilation": ([1, 2], [1, 10], {"dilation": 3}, [1, 2, 0, 10, 20]),
    "padding": ([1, 2], [1, 10, 100], {"padding": 1}, [12, 120]),
    "padding before": ([1, 2], [1, 10, 100], {"padding": ((2, 0),)}, [120, 200]),
    "padding after": ([1, 2], [1, 10, 100], {"padding": ((0, 3),)}, [1]),
    "padding beyond the kernel": ([1, 2, 3], [1, 10], {"padding": ((2, 0),), "stride": 2}, [2, 20, 3, 30]),
    "output_padding": ([1, 2], [1, 10], {"stride": 3, "output_padding": 2}, [1, 10, 0, 2, 20, 0, 0]),
    "output_padding shows padded places": (
        [1, 2],
        [1, 10, 100],
        {"stride": 2, "padding": 1, "output_padding": 1},
        [10, 102, 20, 200],
    ),
    "output_padding below dilation": ([1], [1, 10], {"dilation": 2, "output_padding": 1}, [1, 0, 10, 0]),
    "valid": ([1, 2], [1, 10, 100], {"padding": "valid"}, [1, 12, 120, 200]),
    "valid, output_padding": (
        [1],
        [1, 10],
        {"padding": "valid", "stride": 2, "output_padding": 1},
        [1, 10, 0],
    ),
    "same": ([1, 2], [1, 10, 100], {"padding": "same"}, [12, 120]),
    "same, odd": ([1, 2], [1, 10, 100], {"padding": "same", "stride": 2}, [1, 10, 102, 20]),
    "same_lower, odd": ([1, 2], [1, 10, 100], {"padding": "same_lower", "stride": 2}, [10, 102, 20, 200]),
    "same, stride beyond the kernel": (
        [1, 2],
        [1, 10],
        {"padding": "same", "stride": 4},
        [1, 10, 0, 0, 2, 20, 0, 0],
    ),
    "same_lower, stride beyond the kernel": (
        [1, 2],
        [3],
        {"padding": "same_lower", "stride": 2},
        [3, 0, 6, 0],
    ),
    "same, output_padding": (
        [1, 2],
        [1, 10, 100],
        {"padding": "same", "stride": 2, "output_padding": 1},
        [10, 102, 20, 200],
    ),
}


@layouts
@pytest.mark.parametrize("name", LINES)
def test_worked_lines(backend, name, channels_last):
    x, w, options, y = LINES[name]
    lines = (np.array(a, np.float32).reshape(1, 1, -1) for a in (x, w))
    x, w = (move(a, channels_last) for a, move in zip(lines, (define.last, define.weights_last), strict=True))
    b = backend.to_array(np.array([0.5], np.float32))  # reaches all of y
    got = gpuconv.conv_transpose1d(
        backend.to_array(x), backend.to_array(w), b, channels_last=channels_last, **options
    )
    np.testing.assert_array_equal(backend.to_numpy(got).ravel(), np.array(y) + 0.5)


@layouts
@ranks
def test_an_empty_batch_gives_an_empty_result_and_no_gradient(backend, axes, channels_last):
    size, kernel = (3,) * axes, (2,) * axes
    x = define.last(np.empty((0, 4, *size), np.float32), channels_last)
    w = define.weights_last(np.ones((4, 3, *kernel), np.float32), channels_last)
    options = {"stride": 2, "output_padding": 1, "groups": 2, "channels_last": channels_last}
    x, w = backend.to_array(x), backend.to_array(w)
    y = _public("conv_transpose{}d", axes)(x, w, **options)
    assert y.shape == define.last(np.empty((0, 6, *(7,) * axes)), channels_last).shape
    dx, dw, db = _public("conv_transpose{}d_backward", axes)(y, x, w, **options)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(backend.to_numpy(dw), np.zeros(w.shape))
    np.testing.assert_array_equal(backend.to_numpy(db), np.zeros(6))


@layouts
@pytest.mark.parametrize(("c_in", "c_out", "groups"), [(2, 24, 1), (24, 2, 1), (8, 8, 8), (8, 8, 2)])
def test_float16_is_summed_in_float32_and_rounded_once(backend, c_in, c_out, groups, channels_last):
    rng = np.random.default_rng(0)
    shapes = ((2, c_in, 7, 10), (c_in, c_out // groups, 3, 3), (c_out,), (2, c_out, 14, 20))
    x, w, b, dy = (rng.random(shape).astype(np.float16) for shape in shapes)  # positive: nothing cancels
    spreading = define.Spreading((7, 10), (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1)), (1, 1))
    x1, w1, b1, dy1 = (a.astype(np.float64) for a in (x, w, b, dy))
    x, dy = (backend.to_array(define.last(a, channels_last)) for a in (x, dy))
    w, b = backend.to_array(define.weights_last(w, channels_last)), backend.to_array(b)
    options = {
        "stride": 2,
        "padding": 1,
        "output_padding": 1,
        "groups": groups,
        "channels_last": channels_last,
    }
    y = gpuconv.conv_transpose2d(x, w, b, **options)
    dx, dw, db = gpuconv.conv_transpose2d_backward(dy, x, w, **options)
    once = 1.01 * 2.0**-11
    for got, want in [
        (y, define.last(define.conv_transpose(x1, w1, b1, spreading, groups), channels_last)),
        (dx, define.last(define.conv_transpose_input_grad(dy1, w1, spreading, groups), channels_last)),
        (
            dw,
            define.weights_last(define.conv_transpose_weight_grad(dy1, x1, spreading, groups), channels_last),
        ),
        (db, define.conv_bias_grad(dy1)),
    ]:
        np.testing.assert_allclose(backend.to_numpy(got).astype(np.float64), want, rtol=once)


@pytest.mark.parametrize(
    ("x", "w", "b", "y"),
    [("f4", "f4", "f4", "f4"), ("f4", "f8", None, "f8"), ("f2", "f2", "f8", "f8"), ("u1", "f4", None, "f4")],
)
def test_results_have_the_dtype_numpy_promotes_to(x, w, b, y):
    x, w, b = (None if t is None else np.ones(s, t) for t, s in ((x, (1, 2, 3)), (w, (2, 4, 2)), (b, 4)))
    assert gpuconv.conv_transpose1d(x, w, b).dtype == np.dtype(y)


def test_each_gradient_promotes_only_the_arrays_it_is_made_of():
    dy, x, w = np.ones((1, 1, 3), np.float32), np.ones((1, 1, 2)), np.ones((1, 1, 2), np.float16)
    grads = gpuconv.conv_transpose1d_backward(dy, x, w)
    assert [g.dtype for g in grads] == [np.float32, np.float64, np.float32]


EXTREMES = {
    "one place": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "padding that leaves one place": ((1, 2, 3, 2), (2, 1, 3, 3), {"padding": ((2, 2), (0, 3))}),
    "padding beyond all but the last window": (
        (1, 1, 5, 1),
        (1, 2, 2, 2),
        {"padding": ((8, 0), (0, 1)), "stride": 2},
    ),
    "taps a thousand apart": (
        (1, 1, 2, 1),
        (1, 1, 2, 2),
        {"dilation": (1, 1000), "output_padding": (0, 999)},
    ),
    "windows a thousand apart": ((2, 1, 1, 3), (1, 1, 2, 2), {"stride": 1000, "padding": ((0, 0), (1, 1))}),
    "kernel 31x31": ((1, 1, 2, 12), (1, 1, 31, 31), {"padding": 15}),
    "depthwise": ((2, 5, 6, 6), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
    "depthwise, two each, strided": ((2, 5, 3, 3), (5, 2, 3, 3), {"groups": 5, "padding": 1, "stride": 2}),
    "many groups": ((2, 64, 4, 4), (64, 2, 3, 3), {"groups": 32}),
    "long and thin": ((1, 2, 1, 500), (2, 1, 1, 5), {"stride": (1, 7)}),
    "1x1, strided": ((3, 4, 3, 3), (4, 2, 1, 1), {"stride": 2, "output_padding": 1}),
}


@layouts
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_shapes(backend, name, channels_last):
    x_shape, w_shape, options = EXTREMES[name]
    numbers = {"stride": 1, "dilation": 1, "output_padding": 0, "padding": 0, "groups": 1, **options}
    groups = numbers.pop("groups")
    both = {key: (n, n) if isinstance(n, int) else n for key, n in numbers.items()}
    both["padding"] = tuple((p, p) if isinstance(p, int) else p for p in both["padding"])
    spreading = define.Spreading(x_shape[2:], w_shape[2:], **both)
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-2, 3, shape).astype(np.float32) for shape in (x_shape, w_shape))
    dy = rng.integers(-2, 3, (x_shape[0], w_shape[1] * groups, *spreading.out_size)).astype(np.float32)
    want = [
        define.last(define.conv_transpose(x, w, None, spreading, groups), channels_last),
        define.last(define.conv_transpose_input_grad(dy, w, spreading, groups), channels_last),
        define.weights_last(define.conv_transpose_weight_grad(dy, x, spreading, groups), channels_last),
    ]
    x0, dy0 = (backend.to_array(define.last(a, channels_last)) for a in (x, dy))
    w0 = backend.to_array(define.weights_last(w, channels_last))
    y = gpuconv.conv_transpose2d(x0, w0, channels_last=channels_last, **options)
    grads = gpuconv.conv_transpose2d_backward(dy0, x0, w0, channels_last=channels_last, **options)
    for got, must in zip((y, grads.dx, grads.dw), want, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(got), must)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@layouts
@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (2, 1), (4, 2), (4, 4)], ids=["one", "all", "grouped", "depthwise"]
)
def test_a_value_that_is_no_number_reaches_the_places_it_writes_and_no_other(
    backend, value, channels_last, channels, groups
):
    x = np.ones((2, channels, 5, 20))
    x[0, 0, 0, 2] = value
    w = define.weights_last(np.ones((channels, channels // groups, 2, 2)), channels_last)
    y = gpuconv.conv_transpose2d(
        backend.to_array(define.last(x, channels_last)),
        backend.to_array(w),
        stride=(1, 3),
        dilation=(1, 2),
        groups=groups,
        channels_last=channels_last,
    )
    y = define.first(backend.to_numpy(y), channels_last)
    reached = np.zeros(y.shape, bool)
    reached[0, : channels // groups, :2, [6, 8]] = True
    np.testing.assert_array_equal(~np.isfinite(y), reached)
