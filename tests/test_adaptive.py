"""Adaptive and global pooling and their gradients: the definition, NaN, slopes, wrong arguments."""

import re

import numpy as np
import pytest
from cases import draw_adaptive, lay_out, numbers
from compare import assert_close
from hypothesis import given
from hypothesis import strategies as st

import gpuconv
from gpuconv import reference as define
from gpuconv.testing import check_gradients

randoms = st.randoms(use_true_random=False)


def _numbers(rng, shape, dtype, *, whole=False):
    return numbers(rng.randrange(2**32), shape, dtype, whole=whole)


def _with_nan(rng, x):
    if x.dtype.kind == "f":
        for value in (np.nan, np.inf, -np.inf):
            x[_numbers(rng, x.shape, "f8") > 1.3] = value
    return x


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@given(rng=randoms)
def test_adaptive_average_and_gradient_are_the_definition(backend, dtype, rng):
    planes, in_size, out_size, last = draw_adaptive(rng)
    x, dy = _numbers(rng, planes + in_size, dtype), _numbers(rng, planes + out_size, dtype)
    x1, dy1 = (lay_out(rng, backend.to_array(define.last(a, last))) for a in (x, dy))
    y = gpuconv.adaptive_avg_pool2d(x1, out_size, channels_last=last)
    dx = gpuconv.adaptive_avg_pool2d_backward(dy1, list(x1.shape), channels_last=last)
    assert (y.dtype, dx.dtype) == (dtype, dtype)
    assert_close(backend.to_numpy(y), define.last(define.adaptive_avg_pool(x.astype("f8"), out_size), last))
    want = define.adaptive_avg_pool_backward(dy.astype("f8"), in_size)
    assert_close(backend.to_numpy(dx), define.last(want, last))


@pytest.mark.parametrize("dtype", ["f8", "f2", "i1"])
@given(rng=randoms)
def test_adaptive_maximum_and_gradient_are_exactly_the_definition(backend, dtype, rng):
    planes, in_size, out_size, last = draw_adaptive(rng)
    x = _with_nan(rng, (_numbers(rng, planes + in_size, "i8", whole=True) + 3).astype(dtype))
    dy = (_numbers(rng, planes + out_size, "i8", whole=True) % 3).astype(dtype)  # sums fit int8
    x1, dy1 = (lay_out(rng, backend.to_array(define.last(a, last))) for a in (x, dy))
    y, argmax = gpuconv.adaptive_max_pool2d(x1, out_size, channels_last=last)
    want, positions = define.adaptive_max_pool(x, out_size)
    assert (y.dtype, argmax.dtype) == (np.dtype(dtype), np.int64)
    np.testing.assert_array_equal(backend.to_numpy(y), define.last(want, last))
    np.testing.assert_array_equal(backend.to_numpy(argmax), define.last(positions, last))
    alone = gpuconv.adaptive_max_pool2d(x1, out_size, channels_last=last, return_argmax=False)
    np.testing.assert_array_equal(backend.to_numpy(alone), define.last(want, last))
    dx = gpuconv.adaptive_max_pool2d_backward(dy1, lay_out(rng, argmax), list(x1.shape), channels_last=last)
    assert dx.dtype == np.dtype(dtype)
    want = define.adaptive_max_pool_backward(dy, positions, in_size)
    np.testing.assert_array_equal(backend.to_numpy(dx), define.last(want, last))


@pytest.mark.parametrize("axes", [1, 2, 3])
@given(rng=randoms)
def test_global_pooling_and_gradients_are_the_definition(backend, axes, rng):
    planes, in_size, _, last = draw_adaptive(rng, axes, 9 if axes < 3 else 5)
    keepdims = bool(rng.randint(0, 1))
    options = {"channels_last": last, "keepdims": keepdims}
    ones = (1,) * axes

    def shaped(y):
        return define.last(y, last) if keepdims else y.reshape(planes)

    x = _numbers(rng, planes + in_size, "f8", whole=True)
    dy = _numbers(rng, planes + ones, "f8", whole=True)
    x1, dy1 = (lay_out(rng, backend.to_array(a)) for a in (define.last(x, last), shaped(dy)))
    mean = gpuconv.global_avg_pool(x1, **options)
    assert_close(backend.to_numpy(mean), shaped(define.adaptive_avg_pool(x, ones)))
    dx = gpuconv.global_avg_pool_backward(dy1, x1.shape, **options)
    assert_close(backend.to_numpy(dx), define.last(define.adaptive_avg_pool_backward(dy, in_size), last))
    y, argmax = gpuconv.global_max_pool(x1, **options)
    want, positions = define.adaptive_max_pool(x, ones)
    np.testing.assert_array_equal(backend.to_numpy(y), shaped(want))
    np.testing.assert_array_equal(backend.to_numpy(argmax), shaped(positions))
    alone = gpuconv.global_max_pool(x1, return_argmax=False, **options)
    np.testing.assert_array_equal(backend.to_numpy(alone), shaped(want))
    dx = gpuconv.global_max_pool_backward(dy1, argmax, list(x1.shape), **options)
    want = define.adaptive_max_pool_backward(dy, positions, in_size)
    np.testing.assert_array_equal(backend.to_numpy(dx), define.last(want, last))


@pytest.mark.parametrize("channels_last", [False, True])
def test_planes_of_many_places(backend, channels_last):
    x = np.random.default_rng(0).random((3, 5, 61, 47), np.float32)
    x[1, 2, 60, 46] = x[1, 3, 0, 0] = 2  # the last place and the first
    x[2, 4, 30, 20] = x[2, 4, 50, 2] = np.nan
    x1 = backend.to_array(np.ascontiguousarray(define.last(x, channels_last)))
    options = {"channels_last": channels_last, "keepdims": False}
    y, argmax = gpuconv.global_max_pool(x1, **options)
    flat = x.reshape(3, 5, -1)
    np.testing.assert_array_equal(backend.to_numpy(y), flat.max(2))
    np.testing.assert_array_equal(backend.to_numpy(argmax), flat.argmax(2))
    mean = backend.to_numpy(gpuconv.global_avg_pool(x1, **options))
    np.testing.assert_allclose(mean, flat.mean(2, dtype=np.float64), rtol=1e-6)
    whole = gpuconv.global_max_pool_backward(y, argmax, x1.shape, **options)
    assert (backend.to_numpy(whole) != 0).sum() == 15


def test_float16_is_summed_in_float32(backend):
    x = np.full((1, 1, 64, 64), 60000, np.float16)
    assert backend.to_numpy(gpuconv.global_avg_pool(backend.to_array(x))).item() == 60000
    dy = np.full((1, 1, 3, 3), 1, np.float16)
    dx = gpuconv.adaptive_avg_pool2d_backward(backend.to_array(dy), (1, 1, 4, 4))
    assert backend.to_numpy(dx)[0, 0, 1].tolist() == [0.5, 1, 1, 0.5]


def test_infinities_stay_in_the_windows_that_have_them(backend):
    x = np.zeros((1, 1, 5, 5))
    x[0, 0, 0, 0], x[0, 0, 4, 4] = np.inf, np.nan
    y = backend.to_numpy(gpuconv.adaptive_avg_pool2d(backend.to_array(x), 3))[0, 0]
    assert np.isinf(y).tolist() == [[True, False, False], [False] * 3, [False] * 3]
    assert np.isnan(y).tolist() == [[False] * 3, [False] * 3, [False, False, True]]


def test_none_keeps_an_axis_as_it_is(backend):
    x = backend.to_array(np.random.default_rng(0).random((2, 3, 4, 6)))
    assert gpuconv.adaptive_avg_pool2d(x, (None, 2)).shape == (2, 3, 4, 2)
    for same in (None, (None, None), (4, 6)):
        np.testing.assert_array_equal(
            backend.to_numpy(gpuconv.adaptive_avg_pool2d(x, same)), backend.to_numpy(x)
        )


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_are_the_slopes(device, channels_last):
    last = {"channels_last": channels_last}
    x = np.random.default_rng(1).permutation(140).reshape(2, 2, 5, 7) / 8
    x = device.to_array(define.last(x, channels_last))
    pairs = {
        "adaptive average": (
            lambda x: gpuconv.adaptive_avg_pool2d(x, (3, 4), **last),
            lambda dy, x: gpuconv.adaptive_avg_pool2d_backward(dy, x.shape, **last),
        ),
        "adaptive maximum": (
            lambda x: gpuconv.adaptive_max_pool2d(x, (3, 4), **last)[0],
            lambda dy, x: gpuconv.adaptive_max_pool2d_backward(
                dy, gpuconv.adaptive_max_pool2d(x, (3, 4), **last)[1], x.shape, **last
            ),
        ),
        "global average": (
            lambda x: gpuconv.global_avg_pool(x, **last),
            lambda dy, x: gpuconv.global_avg_pool_backward(dy, x.shape, **last),
        ),
        "global maximum": (
            lambda x: gpuconv.global_max_pool(x, **last)[0],
            lambda dy, x: gpuconv.global_max_pool_backward(
                dy, gpuconv.global_max_pool(x, **last)[1], x.shape, **last
            ),
        ),
    }
    for forward, backward in pairs.values():
        check_gradients(forward, x, backward=backward)


def test_places_outside_of_their_window_are_refused_or_on_a_gpu_left_out(backend):
    dy = backend.to_array(np.ones((1, 1, 1, 2)))
    for bad in ([2, 3], [0, 4], [-1, 3]):  # the other window's; beyond the plane; before it
        argmax = backend.to_array(np.array(bad)[None, None, None])
        if backend.is_numpy:
            with pytest.raises(ValueError, match="adaptive_max_pool2d_backward: argmax holds"):
                gpuconv.adaptive_max_pool2d_backward(dy, argmax, (1, 1, 1, 4))
        else:
            dx = gpuconv.adaptive_max_pool2d_backward(dy, argmax, (1, 1, 1, 4))
            assert backend.to_numpy(dx).ravel().tolist() == ([1, 0, 0, 0] if bad[0] == 0 else [0, 0, 0, 1])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_places_may_come_in_any_integer_dtype(backend, dtype):
    x = backend.to_array(np.random.default_rng(0).random((2, 3, 9, 7)))
    y, argmax = gpuconv.adaptive_max_pool2d(x, 2)
    want = gpuconv.adaptive_max_pool2d_backward(y, argmax, x.shape)
    got = gpuconv.adaptive_max_pool2d_backward(y, argmax.astype(dtype), x.shape)
    np.testing.assert_array_equal(backend.to_numpy(got), backend.to_numpy(want))


X, DY = np.ones((2, 3, 6, 6)), np.ones((2, 3, 2, 2))
ONE, AT = np.ones((2, 3, 1, 1)), np.zeros((2, 3, 1, 1), np.int64)


AVG, MAX = "adaptive_avg_pool2d", "adaptive_max_pool2d"


@pytest.mark.parametrize(
    ("op", "arguments", "options", "error", "said"),
    [
        (AVG, (X, 0), {}, ValueError, r"output_size.* must be at least 1, not 0"),
        (AVG, (X, 2.0), {}, TypeError, r"output_size.* must be an integer, not float 2\.0"),
        (MAX, (X, (1, 2, 3)), {}, ValueError, r"output_size must be .* not \(1, 2, 3\)"),
        (MAX, (X[0], 1), {}, ValueError, r"x must have 4 axes \[N, C, H, W\]"),
        (AVG, (X[..., :0], 1), {}, ValueError, "x has no places along spatial axis 1"),
        (AVG, (X.astype(np.int64), 1), {}, TypeError, "x has dtype int64"),
        (MAX, (X.astype(complex), 1), {}, TypeError, "x has dtype complex"),
        (AVG, (X, 1), {"channels_last": 1}, TypeError, "channels_last must be True or False"),
        (MAX, (X, 1), {"return_argmax": 1}, TypeError, "return_argmax must be True or False"),
        (f"{AVG}_backward", (DY, (1, 3, 6, 6)), {}, ValueError, r"dy has .* it must be \(1, 3, 2, 2\)"),
        (f"{AVG}_backward", (DY, (2, 3, 6, 0)), {}, ValueError, "x has no places"),
        (f"{MAX}_backward", (DY, AT, X.shape), {}, ValueError, "argmax has shape"),
        (f"{MAX}_backward", (DY, DY, X.shape), {}, TypeError, "argmax has dtype float64"),
        ("global_avg_pool", (X[0, 0],), {}, ValueError, "x must have 3, 4 or 5 axes"),
        ("global_avg_pool", (X,), {"keepdims": None}, TypeError, "keepdims must be True or False"),
        ("global_max_pool", (X[:, :, :0],), {}, ValueError, "x has no places along spatial axis 0"),
        ("global_avg_pool_backward", (ONE, X.shape), {"keepdims": False}, ValueError, r"must be \(2, 3\)"),
        ("global_avg_pool_backward", (ONE, X.shape), {"channels_last": True}, ValueError, r"\(2, 1, 1, 6\)"),
        ("global_max_pool_backward", (ONE, AT + 36, X.shape), {}, ValueError, "argmax holds 36"),
        ("global_max_pool", ([1.0],), {}, TypeError, "x must be a NumPy or CuPy array"),
    ],
)
def test_wrong_arguments_are_named(op, arguments, options, error, said):
    with pytest.raises(error, match=said) as caught:
        getattr(gpuconv, op)(*arguments, **options)
    assert re.match(f"{op}: ", str(caught.value))
