"""Max and average pooling and their gradients: the definition, ties, NaN, padding, ceil mode, divisors."""

import numpy as np
import pytest
from cases import draw, in_layout, lay_out
from compare import assert_close
from hypothesis import given
from hypothesis import strategies as st

import gpuconv
from gpuconv import reference as define

randoms = st.randoms(use_true_random=False)


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i1", "u2", "i8"])
@given(rng=randoms)
def test_max_pooling_and_gradient_are_exactly_the_definition(backend, dtype, rng):
    case = draw(rng, pool=True)
    x = case.array("x", case.x_shape(), whole=True)  # seven values: many ties
    if np.dtype(dtype).kind == "f":
        for value in (np.nan, np.inf, -np.inf):
            x[case.array(f"{value}", x.shape) > 1] = value
    else:
        x = x + 3
    x = x.astype(dtype)
    sliding = case.sliding(pool=True)
    y, argmax = gpuconv.max_pool2d(lay_out(rng, backend.to_array(x)), case.kernel, **case.pool())
    want, positions = define.max_pool(define.first(x, case.channels_last), sliding)
    assert (y.dtype, argmax.dtype) == (np.dtype(dtype), np.uint8)
    np.testing.assert_array_equal(backend.to_numpy(y), in_layout(case, want))
    np.testing.assert_array_equal(backend.to_numpy(argmax), in_layout(case, positions))
    alone = gpuconv.max_pool2d(backend.to_array(x), case.kernel, return_argmax=False, **case.pool())
    np.testing.assert_array_equal(backend.to_numpy(alone), in_layout(case, want))

    dy = (case.array("dy", y.shape, whole=True) + 3).astype(dtype)
    dx = gpuconv.max_pool2d_backward(
        lay_out(rng, backend.to_array(dy)),
        lay_out(rng, argmax),
        list(case.x_shape()),
        case.kernel,
        **case.pool(),
    )
    must = define.max_pool_backward(define.first(dy, case.channels_last), positions, sliding)
    assert dx.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(backend.to_numpy(dx), in_layout(case, must))

    indices = gpuconv.argmax_to_indices(argmax, case.x_shape(), case.kernel, **case.pool())
    assert indices.dtype == np.int64
    must = in_layout(case, define.flat_indices(positions, sliding))
    np.testing.assert_array_equal(backend.to_numpy(indices), must)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@given(rng=randoms)
def test_average_pooling_and_gradient_are_the_definition(backend, dtype, rng):
    case = draw(rng, pool=True)
    x = case.array("x", case.x_shape(), dtype)
    dy = case.array("dy", case.y_shape(pool=True), dtype)
    options = {**case.pool(), "count_include_pad": case.count_include_pad}
    y = gpuconv.avg_pool2d(lay_out(rng, backend.to_array(x)), case.kernel, **options)
    dx = gpuconv.avg_pool2d_backward(
        lay_out(rng, backend.to_array(dy)), list(case.x_shape()), case.kernel, **options
    )
    sliding = case.sliding(pool=True)
    x1, dy1 = (define.first(a.astype(np.float64), case.channels_last) for a in (x, dy))
    assert (y.dtype, dx.dtype) == (dtype, dtype)
    want = in_layout(case, define.avg_pool(x1, sliding, case.count_include_pad))
    assert_close(backend.to_numpy(y), want)
    want = in_layout(case, define.avg_pool_backward(dy1, sliding, case.count_include_pad))
    assert_close(backend.to_numpy(dx), want)


@pytest.mark.parametrize("axes", [1, 3])
@given(rng=randoms)
def test_pooling_over_one_and_three_spatial_axes(backend, axes, rng):
    case = draw(rng, pool=True, axes=axes)
    x = case.array("x", case.x_shape(), whole=True)
    sliding, counted, options = case.sliding(pool=True), case.count_include_pad, case.pool()
    x0, x1 = backend.to_array(x), define.first(x, case.channels_last)
    y, argmax = getattr(gpuconv, f"max_pool{axes}d")(x0, case.kernel, **options)
    want, positions = define.max_pool(x1, sliding)
    np.testing.assert_array_equal(backend.to_numpy(y), in_layout(case, want))
    np.testing.assert_array_equal(backend.to_numpy(argmax), in_layout(case, positions))
    indices = gpuconv.argmax_to_indices(argmax, x.shape, case.kernel, **options)
    must = in_layout(case, define.flat_indices(positions, sliding))
    np.testing.assert_array_equal(backend.to_numpy(indices), must)
    dx = getattr(gpuconv, f"max_pool{axes}d_backward")(y, argmax, x.shape, case.kernel, **options)
    must = in_layout(case, define.max_pool_backward(want, positions, sliding))
    np.testing.assert_array_equal(backend.to_numpy(dx), must)
    options["count_include_pad"] = counted
    mean = getattr(gpuconv, f"avg_pool{axes}d")(x0, case.kernel, **options)
    assert_close(backend.to_numpy(mean), in_layout(case, define.avg_pool(x1, sliding, counted)))
    dx = getattr(gpuconv, f"avg_pool{axes}d_backward")(y, x.shape, case.kernel, **options)
    must = in_layout(case, define.avg_pool_backward(want, sliding, counted))
    assert_close(backend.to_numpy(dx), must)


@given(rng=randoms)
def test_max_pooling_gradient_agrees_with_finite_differences(backend, rng):
    case = draw(rng, pool=True, free=True)
    # all values differ by more than two steps, so that no maximum changes place
    order = case.array("x", (int(np.prod(case.x_shape())),)).argsort()
    x = order.reshape(case.x_shape()) * 0.01
    direction = case.array("direction", x.shape).clip(-3, 3)
    dy = case.array("dy", case.y_shape(pool=True))
    step = 1e-4

    def loss(x):
        y = gpuconv.max_pool2d(backend.to_array(x), case.kernel, return_argmax=False, **case.pool())
        return (backend.to_numpy(y) * dy).sum()

    _, argmax = gpuconv.max_pool2d(backend.to_array(x), case.kernel, **case.pool())
    dx = gpuconv.max_pool2d_backward(backend.to_array(dy), argmax, case.x_shape(), case.kernel, **case.pool())
    slope = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert slope == pytest.approx((backend.to_numpy(dx) * direction).sum(), rel=1e-7, abs=1e-6)


def test_first_of_tied_maxima_wins(backend):
    x = backend.to_array(np.array([[1.0, 5, 5, 0], [5, 5, 0, 5]]).reshape(1, 1, 2, 4))
    y, argmax = gpuconv.max_pool2d(x, 2)
    assert backend.to_numpy(y).ravel().tolist() == [5, 5]
    assert backend.to_numpy(argmax).ravel().tolist() == [1, 0]


def test_minus_zero_and_zero_tie(backend):
    for row in ([-0.0, 0.0], [0.0, -0.0]):
        x = backend.to_array(np.array(row).reshape(1, 1, 1, 2))
        assert backend.to_numpy(gpuconv.max_pool2d(x, (1, 2))[1]).item() == 0


def test_max_pool_gradient_goes_to_first_of_tied_maxima(backend):
    x = backend.to_array(np.ones((1, 1, 3, 3)))
    _, argmax = gpuconv.max_pool2d(x, 2, 1)
    dx = gpuconv.max_pool2d_backward(
        backend.to_array(np.array([[1.0, 2], [3, 4]])[None, None]), argmax, (1, 1, 3, 3), 2, 1
    )
    assert backend.to_numpy(dx)[0, 0].tolist() == [[1, 2, 0], [3, 4, 0], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_nan_wins_over_numbers_and_the_first_nan_over_later_ones(backend, dtype):
    x = np.array([[1, np.nan, np.inf, 2], [np.nan, 9, 3, 4]], dtype).reshape(1, 1, 2, 4)
    y, argmax = gpuconv.max_pool2d(backend.to_array(x), 2)
    np.testing.assert_array_equal(backend.to_numpy(y).ravel(), [np.nan, np.inf])
    assert backend.to_numpy(argmax).ravel().tolist() == [1, 0]


@pytest.mark.parametrize(
    ("dtype", "lowest"),
    [("f4", -np.inf), ("f8", -np.inf), ("f2", -np.inf), ("i1", -128), ("i8", -(2**63)), ("u1", 0)],
)
def test_padding_never_wins_not_even_over_the_lowest_value(backend, dtype, lowest):
    x = backend.to_array(np.full((1, 1, 3, 3), lowest, dtype))
    y, argmax = gpuconv.max_pool2d(x, 3, 2, padding=1)
    assert (backend.to_numpy(y) == np.array(lowest, dtype)).all()
    # the first place of each window that lies inside x
    assert backend.to_numpy(argmax)[0, 0].tolist() == [[4, 3], [1, 0]]


def test_windows_of_more_than_255_places_have_int32_masks(backend):
    x = backend.to_array(np.arange(32 * 32.0).reshape(1, 1, 32, 32))
    y, argmax = gpuconv.max_pool2d(x, (15, 17), 1)  # 255 places
    assert argmax.dtype == np.uint8
    assert (backend.to_numpy(argmax) == 254).all()
    y, argmax = gpuconv.max_pool2d(x, (16, 16))  # 256
    assert argmax.dtype == np.int32
    assert (backend.to_numpy(argmax) == 255).all()
    dx = backend.to_numpy(gpuconv.max_pool2d_backward(y, argmax, x.shape, 16))
    assert dx.sum() == backend.to_numpy(y).sum()
    assert dx[0, 0, 15, 15] == backend.to_numpy(x)[0, 0, 15, 15]
    indices = gpuconv.argmax_to_indices(argmax, x.shape, 16)
    assert backend.to_numpy(indices).ravel().tolist() == [15 * 32 + 15, 15 * 32 + 31, 31 * 32 + 15, 1023]
    nothing, argmax = gpuconv.max_pool2d(backend.to_array(np.full((1, 1, 17, 20), np.nan)), (17, 20))
    assert np.isnan(backend.to_numpy(nothing)).all()
    assert backend.to_numpy(argmax).item() == 0


def test_one_window_over_each_of_many_planes(backend):
    x = np.random.default_rng(0).random((8, 2048, 7, 7), np.float32)
    y, argmax = gpuconv.max_pool2d(backend.to_array(x), 7)
    where = x.reshape(8, 2048, 49).argmax(axis=2)
    indices = gpuconv.argmax_to_indices(argmax, x.shape, 7)
    np.testing.assert_array_equal(backend.to_numpy(indices)[:, :, 0, 0], where)
    dx = backend.to_numpy(gpuconv.max_pool2d_backward(y, argmax, x.shape, 7)).reshape(8, 2048, 49)
    np.testing.assert_array_equal(dx.argmax(axis=2), where)
    assert np.count_nonzero(dx) == 8 * 2048


@pytest.mark.parametrize("masked", [np.uint8, np.int32, np.int64, np.uint16])
def test_masks_may_come_back_in_any_integer_dtype(backend, masked):
    x = backend.to_array(np.random.default_rng(0).random((2, 3, 6, 6)))
    y, argmax = gpuconv.max_pool2d(x, 3, 2)
    want = gpuconv.max_pool2d_backward(y, argmax, x.shape, 3, 2)
    got = gpuconv.max_pool2d_backward(y, argmax.astype(masked), x.shape, 3, 2)
    np.testing.assert_array_equal(backend.to_numpy(got), backend.to_numpy(want))


@pytest.mark.parametrize(
    ("arguments", "window"),
    [
        ({"kernel_size": 2, "padding": 2}, 0),
        ({"kernel_size": 1, "padding": ((0, 1), 0), "stride": 1}, 4),
        ({"kernel_size": 2, "padding": 3, "dilation": 9, "stride": 1}, 0),  # one tap on either side of x
    ],
)
def test_a_window_of_nothing_but_padding_is_an_error_at_call_time(backend, arguments, window):
    x = backend.to_array(np.ones((1, 1, 4, 4)))
    for pool in (gpuconv.max_pool2d, gpuconv.avg_pool2d):
        with pytest.raises(
            ValueError,
            match=f"{pool.__name__}: window {window} along spatial axis 0 holds nothing but padding",
        ):
            pool(x, **arguments)


def test_padding_may_exceed_half_the_kernel_where_every_window_sees_a_place(backend):
    x = backend.to_array(np.arange(1.0, 5).reshape(1, 1, 2, 2))
    y, _ = gpuconv.max_pool2d(x, 3, 1, padding=2)
    assert backend.to_numpy(y)[0, 0].tolist() == [[1, 2, 2, 2], [3, 4, 4, 4], [3, 4, 4, 4], [3, 4, 4, 4]]


def test_divisors_are_pytorchs_with_padding_and_a_last_window_cut_short(backend):
    x = backend.to_array(np.ones((1, 1, 1, 6)))
    options = {"kernel_size": (1, 3), "stride": (1, 2), "padding": (0, 1)}
    counted = gpuconv.avg_pool2d(x, **options, ceil_mode=True)
    # places -1..1, 1..3, 3..5, 5..7, of which 7 lies outside of the padding too
    np.testing.assert_allclose(backend.to_numpy(counted).ravel(), [2 / 3, 1, 1, 1 / 2], rtol=1e-15)
    inside = gpuconv.avg_pool2d(x, **options, ceil_mode=True, count_include_pad=False)
    np.testing.assert_allclose(backend.to_numpy(inside).ravel(), [1, 1, 1, 1], rtol=1e-15)


# The numbers of ONNX's own examples of MaxPool and AveragePool, on pictures of 1, 2, 3 ... row by row.
ROWS_13 = [[13, 14, 15, 15, 15], [18, 19, 20, 20, 20], *[[23, 24, 25, 25, 25]] * 3]
ONNX_MAX = {
    "5x5, two places of padding": (5, (5, 1), {"padding": 2}, ROWS_13),
    "same": (5, (3, 2), {"padding": "same"}, [[7, 9, 10], [17, 19, 20], [22, 24, 25]]),
    "ceil mode": (4, (3, 2), {"ceil_mode": True}, [[11, 12], [15, 16]]),
    "ceil mode, a window beyond x": (2, (1, 2), {"ceil_mode": True}, [[1]]),
    "dilation": (4, (2, 1), {"dilation": 2}, [[11, 12], [15, 16]]),
}
MEANS = [[first + column / 2 for column in range(5)] for first in (7, 9.5, 12, 14.5, 17)]
SUMS_OVER_25 = [
    [2.52, 3.6, 4.8, 4.08, 3.24],
    [4.56, 6.4, 8.4, 7.04, 5.52],
    [7.2, 10, 13, 10.8, 8.4],
    [6.96, 9.6, 12.4, 10.24, 7.92],
    [6.12, 8.4, 10.8, 8.88, 6.84],
]
ONNX_AVERAGE = {
    "5x5, padding left out": (5, (5, 1), {"padding": 2, "count_include_pad": False}, MEANS),
    "5x5, padding counted": (5, (5, 1), {"padding": 2}, SUMS_OVER_25),
    "same": (
        5,
        (3, 2),
        {"padding": "same", "count_include_pad": False},
        [[4, 5.5, 7], [11.5, 13, 14.5], [19, 20.5, 22]],
    ),
    "ceil mode": (4, (3, 2), {"ceil_mode": True}, [[6, 7.5], [12, 13.5]]),
    "dilation": (4, (2, 1), {"dilation": 2, "ceil_mode": True}, [[6, 7], [10, 11]]),
}


def _numbered(n):
    return np.arange(1.0, n * n + 1).reshape(1, 1, n, n)


@pytest.mark.parametrize("example", ONNX_MAX)
def test_max_pooling_gives_the_numbers_and_indices_of_onnx_s_examples(backend, example):
    n, given, options, want = ONNX_MAX[example]
    y, argmax = gpuconv.max_pool2d(backend.to_array(_numbered(n)), *given, **options)
    assert backend.to_numpy(y)[0, 0].tolist() == want
    indices = gpuconv.argmax_to_indices(argmax, (1, 1, n, n), *given, **options)
    assert backend.to_numpy(indices)[0, 0].tolist() == (np.array(want) - 1).tolist()


@pytest.mark.parametrize("example", ONNX_AVERAGE)
def test_average_pooling_gives_the_numbers_of_onnx_s_examples(backend, example):
    n, given, options, want = ONNX_AVERAGE[example]
    y = gpuconv.avg_pool2d(backend.to_array(_numbered(n)), *given, **options)
    np.testing.assert_allclose(backend.to_numpy(y)[0, 0], want, rtol=1e-14)


@pytest.mark.parametrize(
    ("size", "pads", "sums", "divisors"),
    [
        (6, (2, 0), [1, 3, 3, 2], [3, 3, 3, 2]),  # the last window sticks out of x, where nothing is padded
        (6, (0, 2), [3, 3, 2], [3, 3, 3]),  # a fourth would start in the padding after
        (7, (0, 1), [3, 3, 3, 1], [3, 3, 3, 2]),  # one place of padding is counted, the one beyond is not
        (7, (1, 0), [2, 3, 3, 2], [3, 3, 3, 2]),
        (7, (2, 1), [1, 3, 3, 3, 1], [3, 3, 3, 3, 2]),
        (4, (0, 8), [3, 2], [3, 3]),  # four windows more would start in the padding after
    ],
)
def test_ceil_mode_and_divisors_are_onnx_s_with_more_padding_on_one_side(backend, size, pads, sums, divisors):
    x = backend.to_array(np.ones((1, 1, 1, size)))
    options = {"kernel_size": (1, 3), "stride": (1, 2), "padding": (0, pads), "ceil_mode": True}
    counted = backend.to_numpy(gpuconv.avg_pool2d(x, **options)).ravel()
    np.testing.assert_allclose(counted, np.divide(sums, divisors), rtol=1e-15)
    inside = backend.to_numpy(gpuconv.avg_pool2d(x, **options, count_include_pad=False)).ravel()
    np.testing.assert_allclose(inside, np.ones(len(sums)), rtol=1e-15)
    # a place's share is the sum over the windows that read it of 1 / divisor
    dx = gpuconv.avg_pool2d_backward(
        backend.to_array(np.ones((1, 1, 1, len(sums)))), (1, 1, 1, size), **options
    )
    shares = np.zeros(size)
    for o, divisor in enumerate(divisors):
        start = o * 2 - pads[0]
        shares[max(start, 0) : start + 3] += 1 / divisor
    np.testing.assert_allclose(backend.to_numpy(dx).ravel(), shares, rtol=1e-15)


def test_stride_is_the_kernel_size_where_not_given(backend):
    x = backend.to_array(np.arange(36.0).reshape(1, 1, 6, 6))
    for given_stride in (None, (2, 3)):
        y, argmax = gpuconv.max_pool2d(x, (2, 3), given_stride)
        assert backend.to_numpy(y)[0, 0].tolist() == [[8, 11], [20, 23], [32, 35]]
        assert gpuconv.max_pool2d_backward(y, argmax, x.shape, (2, 3), given_stride).shape == x.shape
        assert gpuconv.avg_pool2d(x, (2, 3), given_stride).shape == y.shape
        assert gpuconv.avg_pool2d_backward(y, x.shape, (2, 3), given_stride).shape == x.shape
        assert gpuconv.argmax_to_indices(argmax, x.shape, (2, 3), given_stride).shape == y.shape


def test_float16_averages_are_summed_in_float32(backend):
    x = np.full((1, 1, 64, 64), 60000, np.float16)
    assert backend.to_numpy(gpuconv.avg_pool2d(backend.to_array(x), 64)).item() == 60000
    # 25 shares of 0.1 / 25 are 0.1, rounded once
    dy = np.full((1, 1, 16, 16), 0.1, np.float16)
    dx = gpuconv.avg_pool2d_backward(backend.to_array(dy), (1, 1, 16, 16), 5, 1, padding=2)
    assert backend.to_numpy(dx)[0, 0, 8, 8] == np.float16(0.1)


def test_float16_max_pooling_gradient_is_summed_in_float32(backend):
    x = np.zeros((1, 1, 65, 65), np.float16)
    x[0, 0, 32, 32] = 1
    _, argmax = gpuconv.max_pool2d(backend.to_array(x), 33, 1)
    dy = np.full(argmax.shape, 3, np.float16)
    dx = gpuconv.max_pool2d_backward(backend.to_array(dy), argmax, x.shape, 33, 1)
    # all 33 * 33 windows name one place; from 2048 on, float16 has even numbers only
    assert backend.to_numpy(dx)[0, 0, 32, 32] == np.float16(33 * 33 * 3)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 0, 5, 5)])
def test_empty_batches_and_no_channels_work(backend, shape, channels_last):
    x = backend.to_array(define.last(np.ones(shape), channels_last))
    y, argmax = gpuconv.max_pool2d(x, 2, channels_last=channels_last)
    assert y.shape == argmax.shape == define.last(np.ones((*shape[:2], 2, 2)), channels_last).shape
    for dx in (
        gpuconv.max_pool2d_backward(y, argmax, x.shape, 2, channels_last=channels_last),
        gpuconv.avg_pool2d_backward(y, x.shape, 2, channels_last=channels_last),
    ):
        assert dx.shape == x.shape
    assert gpuconv.avg_pool2d(x, 2, channels_last=channels_last).shape == y.shape
    assert gpuconv.argmax_to_indices(argmax, x.shape, 2, channels_last=channels_last).shape == y.shape


def test_places_that_no_window_reads_get_no_gradient(backend):
    dx = gpuconv.avg_pool2d_backward(backend.to_array(np.ones((1, 1, 1, 1))), (1, 1, 4, 4), 2, 4)
    assert backend.to_numpy(dx)[0, 0].tolist() == [[0.25, 0.25, 0, 0], [0.25, 0.25, 0, 0], [0] * 4, [0] * 4]


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4"])
def test_foreign_byte_order_is_read_right(backend, dtype):
    x = np.arange(16).astype(dtype).reshape(1, 1, 4, 4)
    y, argmax = gpuconv.max_pool2d(x, 2)
    assert y.tolist() == [[[[5, 7], [13, 15]]]]
    dx = gpuconv.max_pool2d_backward(y, argmax, x.shape, 2)
    assert dx[0, 0, 1::2, 1::2].tolist() == [[5, 7], [13, 15]]
    if np.dtype(dtype).kind == "f":
        assert gpuconv.avg_pool2d(x, 2).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]


def test_non_finite_values_reach_only_the_averages_that_read_them(backend):
    x = np.ones((1, 1, 6, 6))
    x[0, 0, 0, 0], x[0, 0, 5, 5] = np.nan, np.inf
    y = backend.to_numpy(gpuconv.avg_pool2d(backend.to_array(x), 2))[0, 0]
    assert np.isnan(y[0, 0])
    assert np.isposinf(y[2, 2])
    assert np.isfinite(y).sum() == 7
    dx = backend.to_numpy(gpuconv.avg_pool2d_backward(backend.to_array(y[None, None]), x.shape, 2))
    assert np.isfinite(dx).sum() == 28
