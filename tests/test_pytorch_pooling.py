"""PyTorch on the CPU as an oracle: pooling of every kind, unpooling and upsampling, with their gradients.

Where PyTorch has no such padding, the image is padded first. Counts are test_pytorch.py's to tell.
"""

from dataclasses import replace
from functools import partial
from math import prod

import numpy as np
import pytest
from cases import draw, draw_adaptive, in_layout, lay_out, numbers
from compare import assert_close
from oracle import (
    AXES,
    COMPLEX,
    FLOATS,
    ROUNDS,
    F,
    backward,
    draws,
    images,
    ours,
    own_padding,
    padded,
    tensor,
    theirs,
    torch,
)

import gpuconv
from gpuconv.reference import first, last

pytestmark = pytest.mark.oracle

DRAWS, OTHER_DRAWS = 160, 60
# Of kernels, those that other tests compile too: each dtype more costs seconds.
ORDERED = (*FLOATS, "i1")
NORMS = {"f8": (1, 2, 3, 2.5, 4), "f4": (1, 3, 2.5), "f2": (2, 3, 4)}


def _draw_pool(rng, **options):
    """Draw a pooling that PyTorch can do; and its padding, None where the image must be padded first."""
    case = draw(rng, pool=True, free=rng.random() < 0.7, axes=rng.choice(AXES), **options)
    own = own_padding(case.sliding(pool=True).pads)
    # In 3-D it refuses averages of a volume smaller than the kernel, padded or not.
    small = len(case.kernel) == 3 and any(n < k for n, k in zip(case.in_size, case.kernel, strict=True))
    if own is not None and not small and all(p <= k // 2 for p, k in zip(own, case.kernel, strict=True)):
        return case, own
    return replace(case, ceil_mode=False), None  # padding first would move the end that ceil mode looks at


def _pooled(rng, backend, case, dtypes):
    """Return x and dy of drawn dtypes, then the same on the backend, somehow in memory."""
    shapes = {"x": case.x_shape(), "dy": case.y_shape(pool=True)}
    arrays = [
        case.array(name, shape, rng.choice(dtypes), whole=rng.random() < 0.3)  # whole numbers tie
        for name, shape in shapes.items()
    ]
    return *arrays, *(lay_out(rng, backend.to_array(a)) for a in arrays)


def _assert_sums(dx, dtype, want):
    """Check a max pooling's gradient of dy's dtype; whole numbers exactly."""
    assert dx.dtype == dtype
    if dtype.kind == "f":
        assert_close(dx, want)
    else:
        np.testing.assert_array_equal(dx, want)


def _in_parts(function, x):
    """Return a linear function of a tensor that takes real ones alone."""
    return torch.complex(function(x.real), function(x.imag)) if x.is_complex() else function(x)


@pytest.mark.parametrize("number", ROUNDS)
def test_max_pooling_and_its_gradient(backend, number):
    for rng in draws(backend, number, DRAWS):
        case, own = _draw_pool(rng)
        x, dy, x0, dy0 = _pooled(rng, backend, case, (*ORDERED, "u2", "i8"))
        pads = case.sliding(pool=True).pads
        x1 = images(case, x)
        image, padding = (padded(x1, pads, -torch.inf), 0) if own is None else (x1, own)
        want, indices = theirs("max_pool{}d", case)(
            image, case.kernel, case.stride, padding, case.dilation, case.ceil_mode, return_indices=True
        )
        indices = indices.numpy()
        if own is None:  # from the padded plane's numbering to that of x
            places = np.unravel_index(indices, image.shape[2:])
            places = [place - before for place, (before, _) in zip(places, pads, strict=True)]
            indices = np.ravel_multi_index(places, case.in_size)
        backward(want, dy, case.channels_last)

        y, argmax = ours("max_pool{}d", case)(x0, case.kernel, **case.pool())
        given = (case.x_shape(), case.kernel)
        dx = ours("max_pool{}d_backward", case)(dy0, lay_out(rng, argmax), *given, **case.pool())
        got = gpuconv.argmax_to_indices(argmax, *given, **case.pool())
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(backend.to_numpy(y), in_layout(case, want.detach().numpy()))
        np.testing.assert_array_equal(backend.to_numpy(got), in_layout(case, indices))
        _assert_sums(backend.to_numpy(dx), dy.dtype, in_layout(case, x1.grad.numpy()))


def _average(case, x, padding, counted, override):
    """Return PyTorch's average pooling; in 1-D, where it takes no divisor, of images one place high."""
    pool, ones = (F.avg_pool2d, 2 - len(case.kernel)) if len(case.kernel) < 3 else (F.avg_pool3d, 0)
    kernel, stride = (1,) * ones + case.kernel, (1,) * ones + case.stride
    padding = (0,) * len(kernel) if padding is None else (0,) * ones + padding
    y = pool(x.unsqueeze(2) if ones else x, kernel, stride, padding, case.ceil_mode, counted, override)
    return y.squeeze(2) if ones else y


@pytest.mark.parametrize("number", ROUNDS)
def test_average_pooling_and_its_gradient(backend, number):
    for rng in draws(backend, number, DRAWS):
        case, own = _draw_pool(rng, dilated=False)  # PyTorch's can't dilate
        x, dy, x0, dy0 = _pooled(rng, backend, case, FLOATS if rng.random() < 0.7 else COMPLEX)
        override = rng.choice([None, None, 1, 7])
        x1, pads, counted = images(case, x), case.sliding(pool=True).pads, case.count_include_pad

        def oracle(x, case=case, own=own, override=override, pads=pads, counted=counted):
            if own is not None:
                return _average(case, x, own, counted, override)
            y = _average(case, padded(x, pads), None, True, override)
            if override is None and not counted:
                y = y / _average(case, padded(torch.ones_like(x), pads), None, True, None)
            return y

        want = _in_parts(oracle, x1)
        backward(want, dy, case.channels_last)
        options = {**case.pool(), "count_include_pad": counted, "divisor_override": override}
        y = ours("avg_pool{}d", case)(x0, case.kernel, **options)
        dx = ours("avg_pool{}d_backward", case)(dy0, case.x_shape(), case.kernel, **options)
        assert (y.dtype, dx.dtype) == (x.dtype, dy.dtype)
        assert_close(backend.to_numpy(y), in_layout(case, want.detach().numpy()))
        assert_close(backend.to_numpy(dx), in_layout(case, x1.grad.numpy()))


@pytest.mark.parametrize("number", ROUNDS)
def test_unpooling_and_its_gradient(backend, number):
    for rng in draws(backend, number, OTHER_DRAWS):
        case = draw(rng, pool=True, free=rng.random() < 0.7, axes=rng.choice(AXES))
        image = backend.to_array(case.array("image", case.x_shape(), whole=True))
        _, argmax = ours("max_pool{}d", case)(image, case.kernel, **case.pool())
        indices = gpuconv.argmax_to_indices(argmax, image.shape, case.kernel, **case.pool())
        x = case.array("x", argmax.shape, rng.choice(ORDERED))
        dy = case.array("dy", image.shape, rng.choice(ORDERED))

        # PyTorch's public function refuses some paddings and dilations; a plane is a row in memory.
        x1, at = images(case, x), images(case, backend.to_numpy(indices)).detach().long()
        planes, windows = x1.shape[:2], prod(x1.shape[2:])
        values, at = (a.reshape(*planes, 1, windows) for a in (x1, at))
        want = torch.ops.aten.max_unpool2d(values, at, (1, prod(case.in_size)))
        want = want.reshape(*planes, *case.in_size)
        backward(want, dy, case.channels_last)

        x0, argmax0, dy0 = (lay_out(rng, a) for a in (backend.to_array(x), argmax, backend.to_array(dy)))
        y = ours("max_unpool{}d", case)(x0, argmax0, image.shape, case.kernel, **case.pool())
        dx = ours("max_unpool{}d_backward", case)(dy0, argmax0, case.kernel, **case.pool())
        assert (y.dtype, dx.dtype) == (x.dtype, dy.dtype)
        np.testing.assert_array_equal(backend.to_numpy(y), in_layout(case, want.detach().numpy()))
        # of a place that two windows name, PyTorch gives its gradient to both
        named = (at.unsqueeze(-1) == at.unsqueeze(-2)).sum(-1).reshape(x1.shape)
        once = in_layout(case, named.numpy() == 1)
        must = in_layout(case, x1.grad.numpy())
        np.testing.assert_array_equal(backend.to_numpy(dx)[once], must[once])


def _draw_planes(rng, kind, dtypes):
    """Draw an adaptive or a global pooling.

    Return our name for it, the output size if it takes one, options, PyTorch's function, and x and dy.
    """
    axes = rng.choice(AXES)
    planes, in_size, out_size, channels_last = draw_adaptive(rng, axes, 20 if axes < 3 else 5)
    name, sizes, options = f"adaptive_{kind}_pool2d", (out_size,), {"channels_last": channels_last}
    if axes != 2 or rng.random() < 0.3:
        name, sizes, out_size = f"global_{kind}_pool", (), (1,) * axes
        options["keepdims"] = rng.random() < 0.5
    x, dy = (
        last(numbers(rng.randrange(2**32), (*planes, *size), rng.choice(dtypes)), channels_last)
        for size in (in_size, out_size)
    )
    oracle = partial(getattr(F, f"adaptive_{kind}_pool{axes}d"), output_size=out_size)
    return name, sizes, options, oracle, x, dy if options.get("keepdims", True) else dy.reshape(planes)


@pytest.mark.parametrize("number", ROUNDS)
def test_adaptive_and_global_averages_and_their_gradients(backend, number):
    for rng in draws(backend, number, OTHER_DRAWS):
        name, sizes, options, oracle, x, dy = _draw_planes(rng, "avg", FLOATS)
        x1 = tensor(first(x, options["channels_last"]))
        want = oracle(x1)
        must = last(want.detach().numpy(), options["channels_last"])
        backward(want, dy.reshape(must.shape), options["channels_last"])
        x0, dy0 = (lay_out(rng, backend.to_array(a)) for a in (x, dy))
        y = getattr(gpuconv, name)(x0, *sizes, **options)
        dx = getattr(gpuconv, f"{name}_backward")(dy0, x.shape, **options)
        assert (y.dtype, dx.dtype) == (x.dtype, dy.dtype)
        assert_close(backend.to_numpy(y), must.reshape(dy.shape))
        assert_close(backend.to_numpy(dx), last(x1.grad.numpy(), options["channels_last"]))


@pytest.mark.parametrize("number", ROUNDS)
def test_adaptive_and_global_maxima_and_their_gradients(backend, number):
    for rng in draws(backend, number, OTHER_DRAWS):
        name, sizes, options, oracle, x, dy = _draw_planes(rng, "max", ORDERED)
        x1 = tensor(first(x, options["channels_last"]))
        want, indices = oracle(x1, return_indices=True)
        must, at = (last(a.detach().numpy(), options["channels_last"]) for a in (want, indices))
        backward(want, dy.reshape(must.shape), options["channels_last"])
        x0, dy0 = (lay_out(rng, backend.to_array(a)) for a in (x, dy))
        y, argmax = getattr(gpuconv, name)(x0, *sizes, **options)
        dx = getattr(gpuconv, f"{name}_backward")(dy0, lay_out(rng, argmax), x.shape, **options)
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(backend.to_numpy(y), must.reshape(dy.shape))
        np.testing.assert_array_equal(backend.to_numpy(argmax), at.reshape(dy.shape))
        _assert_sums(backend.to_numpy(dx), dy.dtype, last(x1.grad.numpy(), options["channels_last"]))


@pytest.mark.parametrize("number", ROUNDS)
def test_lp_pooling_and_its_gradient(backend, number):
    for rng in draws(backend, number, OTHER_DRAWS):
        # PyTorch's can neither pad nor dilate, and its ceil mode is another
        case = draw(rng, pool=True, free=rng.random() < 0.7, dilated=False)
        case, dtype = replace(case, ceil_mode=False), rng.choice(FLOATS)
        norm = rng.choice(NORMS[dtype])
        x = case.array("x", case.x_shape(), dtype)
        x = abs(x) + x.dtype.type(0.1)  # nor does it take magnitudes, and of zeros its gradient is NaN
        dy = case.array("dy", case.y_shape(pool=True), dtype)
        x1 = images(case, x)
        want = F.lp_pool2d(padded(x1, case.sliding(pool=True).pads), norm, case.kernel, case.stride)
        backward(want, dy, case.channels_last)
        x0, dy0 = (lay_out(rng, backend.to_array(a)) for a in (x, dy))
        y = gpuconv.lp_pool2d(x0, norm, case.kernel, **case.pool())
        dx = gpuconv.lp_pool2d_backward(dy0, x0, lay_out(rng, y), norm, case.kernel, **case.pool())
        assert (y.dtype, dx.dtype) == (x.dtype, x.dtype)
        assert_close(backend.to_numpy(y), in_layout(case, want.detach().numpy()))
        assert_close(backend.to_numpy(dx), in_layout(case, x1.grad.numpy()))


@pytest.mark.parametrize("number", ROUNDS)
def test_upsampling_and_its_gradient(backend, number):
    for rng in draws(backend, number, OTHER_DRAWS):
        planes, in_size, scale, channels_last = draw_adaptive(rng, rng.choice(AXES), 4)
        large = tuple(n * s for n, s in zip(in_size, scale, strict=True))
        x, dy = (
            last(numbers(rng.randrange(2**32), (*planes, *size), rng.choice(FLOATS)), channels_last)
            for size in (in_size, large)
        )
        x1 = tensor(first(x, channels_last))
        want = F.interpolate(x1, large, mode="nearest-exact")
        backward(want, dy, channels_last)
        x0, dy0 = (lay_out(rng, backend.to_array(a)) for a in (x, dy))
        y = gpuconv.upsample(x0, scale, channels_last=channels_last)
        dx = gpuconv.upsample_backward(dy0, scale, channels_last=channels_last)
        assert (y.dtype, dx.dtype) == (x.dtype, dy.dtype)
        np.testing.assert_array_equal(backend.to_numpy(y), last(want.detach().numpy(), channels_last))
        assert_close(backend.to_numpy(dx), last(x1.grad.numpy(), channels_last))
