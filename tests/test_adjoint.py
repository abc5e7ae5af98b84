"""Adjoints: <f(x), y> = <x, g(y)> for every linear operation f and its gradient g.

A gradient of something linear is right if and only if this holds for all x and y; finite differences could
say no more, and less exactly. It holds in float64 to 1e-12 of the sum of the terms' magnitudes, and in
complex128 with <a, b> = sum of conj(a) * b. A pooling that picks maxima is linear for a fixed mask.
"""

from math import prod

import numpy as np
import pytest
from cases import draw, draw_adaptive, draw_transposed, lay_out, numbers
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuconv
from gpuconv.reference import first, last

ranks = pytest.mark.parametrize("axes", [1, 2, 3])
some = settings(max_examples=25)
drawn = given(rng=st.randoms(use_true_random=False))


def _assert_adjoint(backend, y, dy, x, dx):
    """Check that <y, dy> = <x, dx>."""
    left, right = (
        np.multiply(*(backend.to_numpy(a).ravel() for a in pair)) for pair in ((y.conj(), dy), (x.conj(), dx))
    )
    scale = float(abs(left).sum() + abs(right).sum())
    assert abs(left.sum() - right.sum()) <= 1e-12 * scale


def _arrays(backend, rng, case, dtype, **shapes):
    """Return drawn arrays on the backend, somehow in memory."""
    return [lay_out(rng, backend.to_array(case.array(name, shape, dtype))) for name, shape in shapes.items()]


@ranks
@some
@drawn
def test_convolution_and_its_input_and_weight_gradients(backend, axes, rng):
    case, dtype = draw(rng, free=True, axes=axes), rng.choice(["f8", "f8", "c16"])
    conv, input_grad, weight_grad = (
        getattr(gpuconv, f"conv{axes}d{end}") for end in ("", "_input_grad", "_weight_grad")
    )
    shapes = {"x": case.x_shape(), "w": case.w_shape(), "dy": case.y_shape()}
    x, w, dy = _arrays(backend, rng, case, dtype, **shapes)
    options = {**case.conv(), "flip": bool(rng.randint(0, 1))}
    y = conv(x, w, **options)
    _assert_adjoint(backend, y, dy, x, input_grad(dy, w, x.shape, **options))
    _assert_adjoint(backend, y, dy, w, weight_grad(dy, x, case.kernel, **options))


@ranks
@some
@drawn
def test_transposed_convolution_and_its_gradients(backend, axes, rng):
    case, dtype = draw_transposed(rng, free=True, axes=axes), rng.choice(["f8", "f8", "c16"])
    conv, backward = (getattr(gpuconv, f"conv_transpose{axes}d{end}") for end in ("", "_backward"))
    shapes = {"x": case.x_shape(), "w": case.w_shape(), "dy": case.y_shape()}
    x, w, dy = _arrays(backend, rng, case, dtype, **shapes)
    options = {**case.conv(), "flip": bool(rng.randint(0, 1))}
    y, grads = conv(x, w, **options), backward(dy, x, w, **options)
    _assert_adjoint(backend, y, dy, x, grads.dx)
    _assert_adjoint(backend, y, dy, w, grads.dw)


@ranks
@some
@drawn
def test_im2col_and_col2im(backend, axes, rng):
    case, dtype = draw(rng, free=True, axes=axes), rng.choice(["f8", "c16"])
    (x,) = _arrays(backend, rng, case, dtype, x=case.x_shape())
    col = gpuconv.im2col(x, case.kernel, **case.columns())
    (other,) = _arrays(backend, rng, case, dtype, other=col.shape)
    _assert_adjoint(backend, col, other, x, gpuconv.col2im(other, x.shape, case.kernel, **case.columns()))


@ranks
@some
@drawn
def test_average_pooling_and_its_gradient(backend, axes, rng):
    case, dtype = draw(rng, pool=True, free=True, axes=axes), rng.choice(["f8", "c16"])
    pool, backward = (getattr(gpuconv, f"avg_pool{axes}d{end}") for end in ("", "_backward"))
    options = {**case.pool(), "count_include_pad": case.count_include_pad}
    options["divisor_override"] = rng.choice([None, 1, 5])
    x, dy = _arrays(backend, rng, case, dtype, x=case.x_shape(), dy=case.y_shape(pool=True))
    dx = backward(dy, x.shape, case.kernel, **options)
    _assert_adjoint(backend, pool(x, case.kernel, **options), dy, x, dx)


@ranks
@some
@drawn
def test_picking_what_a_mask_names_and_max_pooling_s_gradient(backend, axes, rng):
    case = draw(rng, pool=True, free=True, axes=axes)
    pool, backward = (getattr(gpuconv, f"max_pool{axes}d{end}") for end in ("", "_backward"))
    shapes = {"image": case.x_shape(), "x": case.x_shape(), "dy": case.y_shape(pool=True)}
    image, x, dy = _arrays(backend, rng, case, "f8", **shapes)
    y, argmax = pool(image, case.kernel, **case.pool())
    dx = backward(dy, argmax, x.shape, case.kernel, **case.pool())
    _assert_adjoint(backend, y, dy, image, dx)
    indices = gpuconv.argmax_to_indices(argmax, x.shape, case.kernel, **case.pool())
    _assert_adjoint_of_picking(backend, indices, dy, x, dx, case.channels_last)


def _assert_adjoint_of_picking(backend, indices, dy, x, dx, channels_last):
    """Check it for what flat indices name in the planes of any x."""
    flat, at = (
        a.reshape(*a.shape[:2], prod(a.shape[2:]))
        for a in (first(backend.to_numpy(a), channels_last) for a in (x, indices))
    )
    picked = np.take_along_axis(flat, at, axis=2).reshape(first(indices, channels_last).shape)
    _assert_adjoint(backend, backend.to_array(last(picked, channels_last)), dy, x, dx)


@ranks
@some
@drawn
def test_unpooling_and_its_gradient(backend, axes, rng):
    case = draw(rng, pool=True, axes=axes)
    pool, pool_backward, unpool, backward = (
        getattr(gpuconv, name.format(axes))
        for name in ("max_pool{}d", "max_pool{}d_backward", "max_unpool{}d", "max_unpool{}d_backward")
    )
    # of few values, so that windows often share a place
    image = backend.to_array(case.array("image", case.x_shape(), whole=True))
    _, argmax = pool(image, case.kernel, **case.pool())
    x, dy = _arrays(backend, rng, case, "f8", x=case.y_shape(pool=True), dy=case.x_shape())
    y = unpool(x, argmax, dy.shape, case.kernel, **case.pool())
    _assert_adjoint(backend, y, dy, x, backward(dy, argmax, case.kernel, **case.pool()))
    if all((k - 1) * d < s for k, d, s in zip(case.kernel, case.dilation, case.stride, strict=True)):
        # Windows apart: nothing to overwrite or to add, so unpooling is max pooling's gradient.
        same = pool_backward(x, argmax, dy.shape, case.kernel, **case.pool())
        np.testing.assert_array_equal(backend.to_numpy(y), backend.to_numpy(same))


def _planes(backend, rng, *shapes, dtype="f8", channels_last):
    """Return arrays of the shapes, given channels first, on the backend, somehow in memory."""
    arrays = (last(numbers(rng.randrange(2**32), shape, dtype), channels_last) for shape in shapes)
    return [lay_out(rng, backend.to_array(a)) for a in arrays]


@some
@drawn
def test_adaptive_pooling_and_its_gradients(backend, rng):
    planes, in_size, out_size, channels_last = draw_adaptive(rng)
    layout = {"channels_last": channels_last}
    x, other, dy = _planes(backend, rng, planes + in_size, planes + in_size, planes + out_size, **layout)
    y = gpuconv.adaptive_avg_pool2d(x, out_size, **layout)
    _assert_adjoint(backend, y, dy, x, gpuconv.adaptive_avg_pool2d_backward(dy, x.shape, **layout))
    y, argmax = gpuconv.adaptive_max_pool2d(x, out_size, **layout)
    dx = gpuconv.adaptive_max_pool2d_backward(dy, argmax, x.shape, **layout)
    _assert_adjoint(backend, y, dy, x, dx)
    _assert_adjoint_of_picking(backend, argmax, dy, other, dx, channels_last)


@ranks
@some
@drawn
def test_global_pooling_and_its_gradients(backend, axes, rng):
    planes, in_size, _, channels_last = draw_adaptive(rng, axes, 9 if axes < 3 else 5)
    layout = {"channels_last": channels_last}
    x, other, dy = _planes(backend, rng, planes + in_size, planes + in_size, planes + (1,) * axes, **layout)
    y = gpuconv.global_avg_pool(x, **layout)
    _assert_adjoint(backend, y, dy, x, gpuconv.global_avg_pool_backward(dy, x.shape, **layout))
    y, argmax = gpuconv.global_max_pool(x, **layout)
    dx = gpuconv.global_max_pool_backward(dy, argmax, x.shape, **layout)
    _assert_adjoint(backend, y, dy, x, dx)
    _assert_adjoint_of_picking(backend, argmax, dy, other, dx, channels_last)


@ranks
@some
@drawn
def test_upsampling_and_its_gradient(backend, axes, rng):
    planes, in_size, scale, channels_last = draw_adaptive(rng, axes, 4)
    layout = {"channels_last": channels_last}
    large = tuple(n * s for n, s in zip(in_size, scale, strict=True))
    dtype = rng.choice(["f8", "c16"])
    x, dy = _planes(backend, rng, planes + in_size, planes + large, dtype=dtype, **layout)
    y = gpuconv.upsample(x, scale, **layout)
    _assert_adjoint(backend, y, dy, x, gpuconv.upsample_backward(dy, scale, **layout))
