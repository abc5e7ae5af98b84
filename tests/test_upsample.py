"""Nearest upsampling and its gradient: the definition, NaN and infinity, wrong arguments."""

import re

import numpy as np
import pytest
from cases import draw_adaptive, lay_out, numbers
from compare import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuconv
from gpuconv import reference as define

drawn = given(rng=st.randoms(use_true_random=False))


@pytest.mark.parametrize("axes", [1, 2, 3])
@settings(max_examples=40)
@drawn
def test_upsampling_and_gradient_are_the_definition(backend, axes, rng):
    planes, in_size, scale, channels_last = draw_adaptive(rng, axes, 4)
    dtype = rng.choice(["f8", "f4", "f2", "c8", "c16"])
    large = tuple(n * s for n, s in zip(in_size, scale, strict=True))
    x, dy = (numbers(rng.randrange(2**32), planes + sizes, dtype, whole=True) for sizes in (in_size, large))
    x0, dy0 = (lay_out(rng, backend.to_array(define.last(a, channels_last))) for a in (x, dy))
    y = gpuconv.upsample(x0, list(scale), channels_last=channels_last)
    dx = gpuconv.upsample_backward(dy0, scale, channels_last=channels_last)
    assert (y.dtype, dx.dtype) == (x.dtype, x.dtype)
    # whole numbers: the sums are exact, and up to 7 ** 3 * 3 float16 holds them all
    np.testing.assert_array_equal(backend.to_numpy(y), define.last(define.upsample(x, scale), channels_last))
    must = define.last(define.upsample_backward(dy, scale), channels_last)
    np.testing.assert_array_equal(backend.to_numpy(dx), must)


def test_one_number_is_the_factor_of_every_axis(backend):
    x = np.arange(8.0).reshape(1, 1, 2, 2, 2)
    y = backend.to_numpy(gpuconv.upsample(backend.to_array(x), 3))
    np.testing.assert_array_equal(y, define.upsample(x, (3, 3, 3)))


def test_a_factor_of_1_is_a_copy(backend):
    x = backend.to_array(np.zeros((1, 2, 3)))
    y = gpuconv.upsample(x, 1)
    y[...] = 7
    assert not backend.to_numpy(x).any()


def test_nan_infinity_and_the_smallest_number_are_copied_to_their_blocks_alone(backend):
    x = np.array([[[1, np.nan, -np.inf, 5e-324]]])
    y = backend.to_numpy(gpuconv.upsample(backend.to_array(x), 2))
    np.testing.assert_array_equal(y.ravel(), np.repeat(x.ravel(), 2))


def test_float16_gradients_are_summed_in_float32(backend):
    dy = np.full((1, 1, 50, 50), 1, np.float16)  # from 2048 on, float16 has even numbers only
    dx = gpuconv.upsample_backward(backend.to_array(dy), 50)
    assert backend.to_numpy(dx).item() == 2500


def test_gradient_of_upsampling_is_average_pooling_of_its_blocks(backend):
    dy = np.random.default_rng(0).standard_normal((2, 3, 8, 9))
    dx = gpuconv.upsample_backward(backend.to_array(dy), (2, 3))
    means = gpuconv.avg_pool2d(backend.to_array(dy), (2, 3))
    assert_close(backend.to_numpy(dx), 6 * backend.to_numpy(means))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 0, 2, 2)])
def test_empty_batches_and_no_channels_work(backend, shape, channels_last):
    x = backend.to_array(define.last(np.ones(shape), channels_last))
    y = gpuconv.upsample(x, (2, 3), channels_last=channels_last)
    assert y.shape == define.last(np.ones((*shape[:2], 4, 6)), channels_last).shape
    assert gpuconv.upsample_backward(y, (2, 3), channels_last=channels_last).shape == x.shape


X = np.ones((2, 3, 4, 6))


@pytest.mark.parametrize(
    ("op", "arguments", "options", "error", "said"),
    [
        ("upsample", (X, 0), {}, ValueError, "scale_factor.* must be at least 1, not 0"),
        ("upsample", (X, 2.0), {}, TypeError, r"scale_factor.* must be an integer, not float 2\.0"),
        ("upsample", (X, True), {}, TypeError, "scale_factor.* must be an integer"),
        ("upsample", (X, (1, 2, 3)), {}, ValueError, r"scale_factor must be .* not \(1, 2, 3\)"),
        ("upsample", (X[0, 0], 2), {}, ValueError, "x must have 3, 4 or 5 axes"),
        ("upsample", (X[..., :0], 2), {}, ValueError, "x has no places along spatial axis 1"),
        ("upsample", (X.astype(int), 2), {}, TypeError, "x has dtype int64"),
        ("upsample", (X, 2), {"channels_last": None}, TypeError, "channels_last must be True or False"),
        ("upsample", ([1.0], 2), {}, TypeError, "x must be a NumPy or CuPy array"),
        ("upsample_backward", (X, (3, 2)), {}, ValueError, r"dy has spatial sizes \(4, 6\), .* \(3, 2\)"),
        ("upsample_backward", (X, 2), {"channels_last": True}, ValueError, r"dy has spatial sizes \(3, 4\)"),
        ("upsample_backward", (X, -1), {}, ValueError, "scale_factor.* must be at least 1, not -1"),
        ("upsample_backward", (X[..., None], 2.5), {}, TypeError, "scale_factor.* must be an integer"),
    ],
)
def test_wrong_arguments_are_named(op, arguments, options, error, said):
    with pytest.raises(error, match=said) as caught:
        getattr(gpuconv, op)(*arguments, **options)
    assert re.match(f"{op}: ", str(caught.value))
