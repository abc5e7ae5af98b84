"""`flip=True`: the convolution of mathematics, and its gradients, on every backend."""

import numpy as np
import pytest
from cases import draw
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuconv

randoms = st.randoms(use_true_random=False)


def test_full_padding_gives_numpys_convolve(backend):
    a, v = np.array([1.0, 2.0, 4.0, 7.0]), np.array([1.0, -3.0, 0.5])
    x, w = (backend.to_array(s.reshape(1, 1, -1)) for s in (a, v))
    y = backend.to_numpy(gpuconv.conv1d(x, w, padding=2, flip=True))
    np.testing.assert_allclose(y[0, 0], np.convolve(a, v), rtol=1e-15)


@pytest.mark.parametrize("axes", [1, 2, 3])
@settings(max_examples=15)
@given(rng=randoms)
def test_it_is_the_convolution_with_turned_kernels_and_so_are_its_gradients(backend, axes, rng):
    case = draw(rng, axes=axes)
    x, w, dy = (
        backend.to_array(case.array(name, shape, whole=True))
        for name, shape in (("x", case.x_shape()), ("w", case.w_shape()), ("dy", case.y_shape()))
    )
    ends = (slice(None, None, -1),) * axes
    turn = ends if case.channels_last else (slice(None), slice(None), *ends)
    conv, backward, input_grad, weight_grad = (
        getattr(gpuconv, f"conv{axes}d{name}") for name in ("", "_backward", "_input_grad", "_weight_grad")
    )
    options, flipped = case.conv(), {**case.conv(), "flip": True}
    plain = backward(dy, x, w[turn], **options)
    grads = backward(dy, x, w, **flipped)
    for got, want in (
        (conv(x, w, **flipped), conv(x, w[turn], **options)),
        (grads.dx, plain.dx),
        (grads.dw, plain.dw[turn]),
        (grads.db, plain.db),
        (input_grad(dy, w, case.x_shape(), **flipped), plain.dx),
        (weight_grad(dy, x, case.kernel, **flipped), plain.dw[turn]),
    ):
        np.testing.assert_array_equal(backend.to_numpy(got), backend.to_numpy(want))
        assert got.flags.c_contiguous
    assert backward(dy, x, w, needs=("x",), **flipped).dw is None


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_flip_is_true_or_false(value):
    x, w, dy = np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3)), np.ones((1, 1, 1, 1))
    for call in (
        lambda: gpuconv.conv2d(x, w, flip=value),
        lambda: gpuconv.conv2d_backward(dy, x, w, flip=value),
        lambda: gpuconv.conv2d_input_grad(dy, w, x.shape, flip=value),
        lambda: gpuconv.conv2d_weight_grad(dy, x, 3, flip=value),
    ):
        with pytest.raises(TypeError, match="flip must be True or False"):
            call()
