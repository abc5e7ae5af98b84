"""The definitions themselves: independent, exact, and those that no other test asks for."""

import ast
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import gpuconv
from gpuconv import reference

RNG = np.random.default_rng(0)


def test_the_definitions_import_nothing_from_the_package():
    tree = ast.parse(Path(reference.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert {name.partition(".")[0] for name in names} - {"numpy"} <= set(sys.stdlib_module_names)


def test_all_of_the_public_names_and_no_others_are_listed():
    own = {
        name
        for name, value in vars(reference).items()
        if getattr(value, "__module__", "") == reference.__name__
    }
    assert {name for name in own if not name.startswith("_")} == set(reference.__all__)


def fractions(*shape):
    """Random fractions, as an array of objects."""
    numbers = [Fraction(int(a), int(b)) for a, b in RNG.integers(1, 30, (int(np.prod(shape)), 2))]
    return np.array(numbers, object).reshape(shape)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_a_convolution_are_adjoints_exactly_in_fractions(groups):
    window = reference.Sliding((5, 4), (3, 2), (2, 1), (1, 2), "same")
    x, w, b = fractions(2, 4, 5, 4), fractions(6, 4 // groups, 3, 2), fractions(6)
    y = reference.conv(x, w, None, window, groups)
    dy = fractions(*y.shape)
    product = (y * dy).sum()
    assert product == (x * reference.conv_input_grad(dy, w, window, groups)).sum()
    assert product == (w * reference.conv_weight_grad(dy, x, window, groups)).sum()
    with_bias = reference.conv(x, w, b, window, groups)
    assert (with_bias * dy).sum() - product == (b * reference.conv_bias_grad(dy)).sum()


def test_pooling_is_exact_in_fractions():
    window = reference.Sliding((5, 4), 2, padding=1)
    x = fractions(1, 2, 5, 4)
    y = reference.avg_pool(x, window)
    assert y[0, 0, 1, 1] == sum(x[0, 0, :2, :2].ravel()) / 4
    dy = fractions(*y.shape)
    assert (y * dy).sum() == (x * reference.avg_pool_backward(dy, window)).sum()
    assert reference.max_pool(x, window)[0][0, 0, 1, 1] == max(x[0, 0, :2, :2].ravel())


@pytest.mark.parametrize("padding", [1, (1, 1), ((1, 1), (1, 1))])
def test_a_window_takes_numbers_for_all_axes(padding):
    short = reference.Sliding((6, 5), 3, 2, 1, padding)
    long = reference.Sliding((6, 5), (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1)))
    assert (short.out_size, list(short.reads())) == (long.out_size, list(long.reads()))
    wide = reference.Spreading((6, 5), 3, 2, 1, padding, 1)
    assert wide.out_size == (12, 10)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("norm", [1, 2, 3.5])
def test_lp_pooling_and_its_gradient_are_the_definition(backend, channels_last, norm):
    x = RNG.standard_normal((2, 7, 6, 3) if channels_last else (2, 3, 7, 6))
    options = {"padding": 1, "ceil_mode": True, "channels_last": channels_last}
    window = reference.Sliding((7, 6), 3, 2, 1, 1, ceil_mode=True)
    y = gpuconv.lp_pool2d(backend.to_array(x), norm, 3, 2, **options)
    want = reference.lp_pool(reference.first(x, channels_last), norm, window)
    np.testing.assert_allclose(backend.to_numpy(y), reference.last(want, channels_last), rtol=1e-12)
    dy = RNG.standard_normal(y.shape)
    dx = gpuconv.lp_pool2d_backward(backend.to_array(dy), backend.to_array(x), y, norm, 3, 2, **options)
    first_dy, first_x = (reference.first(a, channels_last) for a in (dy, x))
    want = reference.last(reference.lp_pool_backward(first_dy, first_x, norm, window), channels_last)
    np.testing.assert_allclose(backend.to_numpy(dx), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("scale", [(3,), (2, 1), (1, 2, 3)])
def test_upsampling_and_its_gradient_are_the_definition(backend, channels_last, scale):
    sizes = (3, 4, 2)[: len(scale)]
    x = RNG.integers(-9, 9, (2, *sizes, 3) if channels_last else (2, 3, *sizes)).astype(np.float32)
    y = gpuconv.upsample(backend.to_array(x), scale, channels_last=channels_last)
    want = reference.last(reference.upsample(reference.first(x, channels_last), scale), channels_last)
    np.testing.assert_array_equal(backend.to_numpy(y), want)
    dy = RNG.integers(-9, 9, y.shape).astype(np.float32)
    dx = gpuconv.upsample_backward(backend.to_array(dy), scale, channels_last=channels_last)
    want = reference.last(
        reference.upsample_backward(reference.first(dy, channels_last), scale), channels_last
    )
    np.testing.assert_array_equal(backend.to_numpy(dx), want)
