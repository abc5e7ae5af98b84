"""Pooling by norms and its gradient: the definition, slopes, zeros, NaN and infinity, wrong arguments."""

import re

import numpy as np
import pytest
from cases import draw, in_layout, lay_out
from compare import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuconv
from gpuconv import reference as define
from gpuconv.testing import check_gradients

NORMS = [1, 2, 3, 2.5, 10]
drawn = given(rng=st.randoms(use_true_random=False))


def _defined(case, norm, x, dy):
    """Return y and dx by the definition, in at least float64 and in the case's layout."""
    wide = np.promote_types(x.dtype, np.float64)
    x1, dy1 = (define.first(a, case.channels_last) for a in (x.astype(wide), dy.astype(np.float64)))
    y = define.lp_pool(x1, norm, case.sliding(pool=True))
    return [in_layout(case, a) for a in (y, define.lp_pool_backward(dy1, x1, norm, case.sliding(pool=True)))]


# 1, 2 and all others are kernels of their own: not each of them in each dtype.
@pytest.mark.parametrize(
    ("dtype", "norms"), [("f8", NORMS), ("f4", [1, 10]), ("f2", [2, 3]), ("c8", [2.5]), ("c16", NORMS)]
)
@settings(max_examples=40)
@drawn
def test_norms_and_gradient_are_the_definition(backend, dtype, norms, rng):
    case, norm = draw(rng, pool=True), rng.choice(norms)
    x = case.array("x", case.x_shape(), dtype)
    x[case.array("zeros", x.shape) > 0.5] = 0  # some windows hold nothing else
    # float16 is summed in float32, whose smallest numbers 0.01 ** 10 is far from
    x = np.where(abs(x) < 0.01, 0, x).astype(dtype)
    dy = case.array("dy", case.y_shape(pool=True), x.real.dtype)
    x0, dy0 = (lay_out(rng, backend.to_array(a)) for a in (x, dy))
    y = gpuconv.lp_pool2d(x0, norm, case.kernel, **case.pool())
    dx = gpuconv.lp_pool2d_backward(dy0, x0, lay_out(rng, y), norm, case.kernel, **case.pool())
    assert (y.dtype, dx.dtype) == (x.real.dtype, x.dtype)
    want, must = _defined(case, norm, x, dy)
    assert_close(backend.to_numpy(y), want)
    assert_close(backend.to_numpy(dx), must)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_gradient_is_the_slope(backend, dtype, norm, channels_last):
    rng = np.random.default_rng(0)
    # away from zero, where the 1-norm has no slope
    x = rng.uniform(0.5, 2, (2, 6, 7, 2)) * rng.choice([-1, 1], (2, 6, 7, 2))
    dy = rng.standard_normal((2, 3, 4, 2))
    if dtype == np.complex128:
        x = x * np.exp(1j * rng.uniform(0, 6, x.shape))
    if not channels_last:
        x, dy = np.moveaxis(x, -1, 1), np.moveaxis(dy, -1, 1)
    options = {"stride": 2, "padding": ((0, 1), 1), "channels_last": channels_last}

    def loss(x):
        return (dy * backend.to_numpy(gpuconv.lp_pool2d(backend.to_array(x), norm, 3, **options))).sum()

    y = gpuconv.lp_pool2d(backend.to_array(x), norm, 3, **options)
    dx = gpuconv.lp_pool2d_backward(backend.to_array(dy), backend.to_array(x), y, norm, 3, **options)
    for turn in (1, 1j)[: 1 + (dtype == np.complex128)]:
        direction = turn * rng.standard_normal(x.shape)
        slope = (loss(x + 1e-5 * direction) - loss(x - 1e-5 * direction)) / 2e-5
        assert slope == pytest.approx(np.vdot(direction, backend.to_numpy(dx)).real, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_windows_of_zeros_have_norm_0_and_give_no_gradient(backend, norm):
    x = np.zeros((1, 2, 3, 4))
    x[0, 0, 0, 0] = -3  # padding adds nothing to it
    x0, dy = backend.to_array(x), backend.to_array(np.full((1, 2, 2, 3), 7.0))
    y = gpuconv.lp_pool2d(x0, norm, 2, padding=((1, 0), (1, 1)))
    assert backend.to_numpy(y)[0].tolist() == [[[pytest.approx(3, rel=1e-14), 0, 0], [0] * 3], [[0] * 3] * 2]
    dx = backend.to_numpy(gpuconv.lp_pool2d_backward(dy, x0, y, norm, 2, padding=((1, 0), (1, 1))))
    assert dx[0, 0, 0, 0] == pytest.approx(-7, rel=1e-14)
    assert np.count_nonzero(dx) == 1


@pytest.mark.filterwarnings("ignore:invalid value")  # infinity times 0 in its own gradient
@pytest.mark.parametrize("norm", NORMS)
def test_nan_and_infinity_reach_only_the_windows_that_read_them(backend, norm):
    x = np.ones((1, 1, 4, 6))
    x[0, 0, 0, 0], x[0, 0, 3, 5] = np.nan, -np.inf
    x0 = backend.to_array(x)
    y = gpuconv.lp_pool2d(x0, norm, 2)
    got = backend.to_numpy(y)[0, 0]
    assert np.isnan(got).tolist() == [[True, False, False], [False] * 3]
    assert np.isposinf(got).tolist() == [[False] * 3, [False, False, True]]
    dy = backend.to_array(np.ones((1, 1, 2, 3)))
    dx = backend.to_numpy(gpuconv.lp_pool2d_backward(dy, x0, y, norm, 2))[0, 0]
    assert np.isnan(dx[0, 0])
    inside = np.ones((4, 6), bool)
    inside[:2, :2] = inside[2:, 4:] = False
    np.testing.assert_allclose(dx[inside], 4 ** (1 / norm - 1), rtol=1e-12)


def test_float16_is_summed_in_float32(backend):
    x = np.full((1, 1, 32, 32), 300, np.float16)  # a square of it is more than float16 holds
    y = gpuconv.lp_pool2d(backend.to_array(x), 2, 32)
    assert backend.to_numpy(y).item() == 9600
    dy = backend.to_array(np.ones((1, 1, 1, 1), np.float16))
    dx = gpuconv.lp_pool2d_backward(dy, backend.to_array(x), y, 2, 32)
    assert (backend.to_numpy(dx) == np.float16(1 / 32)).all()


def test_norm_1_sums_magnitudes_and_a_large_one_comes_near_the_maximum(backend):
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8))
    x0 = backend.to_array(x)
    sums = backend.to_numpy(gpuconv.lp_pool2d(x0, 1, 3, 2))
    means = backend.to_numpy(gpuconv.avg_pool2d(backend.to_array(abs(x)), 3, 2))
    np.testing.assert_allclose(sums, 9 * means, rtol=1e-13)
    largest = backend.to_numpy(gpuconv.max_pool2d(backend.to_array(abs(x)), 3, 2, return_argmax=False))
    np.testing.assert_allclose(backend.to_numpy(gpuconv.lp_pool2d(x0, 200, 3, 2)), largest, rtol=0.012)


@pytest.mark.parametrize("norm", [2, 2.0, np.float32(2), np.int64(2)])
def test_the_norm_may_be_any_kind_of_number(backend, norm):
    x = backend.to_array(np.array([[[[3.0, -4.0, 0.0, 1.0]]]]))
    assert backend.to_numpy(gpuconv.lp_pool2d(x, norm, (1, 2))).tolist() == [[[[5, 1]]]]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 0, 5, 5)])
def test_empty_batches_and_no_channels_work(backend, shape, channels_last):
    x = backend.to_array(define.last(np.ones(shape), channels_last))
    y = gpuconv.lp_pool2d(x, 2, 2, channels_last=channels_last)
    assert y.shape == define.last(np.ones((*shape[:2], 2, 2)), channels_last).shape
    assert gpuconv.lp_pool2d_backward(y, x, y, 2, 2, channels_last=channels_last).shape == x.shape


def test_layers_worth_of_gradients_agree_with_finite_differences(device):
    x = device.to_array(np.random.default_rng(1).uniform(0.5, 2, (2, 2, 5, 5)))
    check_gradients(
        lambda x: gpuconv.lp_pool2d(x, 3, 2, 1),
        x,
        backward=lambda dy, x: gpuconv.lp_pool2d_backward(dy, x, gpuconv.lp_pool2d(x, 3, 2, 1), 3, 2, 1),
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_shares_are_numbers_where_powers_alone_are_not(backend, channels_last):
    # in float32 1e8 / y**9 is infinite, though |x|**10 is a number
    x = backend.to_array(np.full((1, 4, 4, 4), 2e-4, np.float32))
    dy = backend.to_array(np.full((1, 4, 2, 2) if not channels_last else (1, 2, 2, 4), 1e8, np.float32))
    y = gpuconv.lp_pool2d(x, 10, 2, channels_last=channels_last)
    dx = backend.to_numpy(gpuconv.lp_pool2d_backward(dy, x, y, 10, 2, channels_last=channels_last))
    np.testing.assert_allclose(dx, 1e8 * 4**-0.9, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:invalid value")  # infinity by infinity, to the power of 0
@pytest.mark.parametrize("value", [5e-38, -5e-38, 5e-38j, np.inf, -np.inf])
def test_the_slope_of_a_magnitude_is_1_for_tiny_and_infinite_numbers_too(backend, value):
    x = np.full((1, 1, 1, 2), value, np.complex64 if isinstance(value, complex) else np.float32)
    dy, norms = np.full((1, 1, 1, 1), 40, np.float32), np.full((1, 1, 1, 1), 2 * abs(value), np.float32)
    arrays = [backend.to_array(a) for a in (dy, x, norms)]
    dx = backend.to_numpy(gpuconv.lp_pool2d_backward(*arrays, 1, (1, 2)))
    np.testing.assert_allclose(dx, 40 * np.sign(x), rtol=1e-6)


X, Y = np.ones((2, 3, 6, 6)), np.ones((2, 3, 3, 3))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        ((X, 0.5, 2), {}, ValueError, r"norm_type must be a number from 1 to .*, not 0\.5"),
        ((X, np.inf, 2), {}, ValueError, "norm_type must be a number from 1 to .*, not inf"),
        ((X, np.nan, 2), {}, ValueError, "norm_type must be a number from 1 to .*, not nan"),
        ((X, 10**400, 2), {}, ValueError, "norm_type must be a number from 1 to"),
        ((X, True, 2), {}, TypeError, "norm_type must be a number, not True"),
        ((X, "2", 2), {}, TypeError, "norm_type must be a number, not '2'"),
        ((X, 2 + 0j, 2), {}, TypeError, "norm_type must be a number, not"),
        ((X[0], 2, 2), {}, ValueError, r"x must have 4 axes \[N, C, H, W\]"),
        ((X.astype(int), 2, 2), {}, TypeError, "x has dtype int64"),
        ((X, 2, 7), {}, ValueError, "kernel"),
        ((X, 2, 2), {"padding": 2}, ValueError, "window 0 along spatial axis 0 holds nothing but padding"),
        ((X, 2, 2), {"channels_last": 1}, TypeError, "channels_last must be True or False"),
        (([1.0], 2, 2), {}, TypeError, "x must be a NumPy or CuPy array"),
        ((Y[:1], X, Y, 2, 2), {}, ValueError, r"dy has shape \(1, 3, 3, 3\), .* it must be \(2, 3, 3, 3\)"),
        ((Y, X, Y[..., :2], 2, 2), {}, ValueError, r"y has shape \(2, 3, 3, 2\)"),
        ((Y.astype("f4"), X, Y, 2, 2), {}, TypeError, "dy has dtype float32, .* it must be float64"),
        ((Y, X.astype("c16"), Y.astype("c16"), 2, 2), {}, TypeError, "y has dtype complex128, .* float64"),
        ((Y, X, Y, 0, 2), {}, ValueError, "norm_type must be a number from 1 to .*, not 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, options, error, said):
    op = "lp_pool2d_backward" if len(arguments) == 5 else "lp_pool2d"
    with pytest.raises(error, match=said) as caught:
        getattr(gpuconv, op)(*arguments, **options)
    assert re.match(f"{op}: ", str(caught.value))
