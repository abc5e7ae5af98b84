"""im2col and col2im: the definition, the matrix product that makes a convolution of them."""

import numpy as np
import pytest
from cases import draw, in_layout, lay_out
from compare import assert_close
from hypothesis import given
from hypothesis import strategies as st

import gpuconv
from gpuconv import reference as define

randoms = st.randoms(use_true_random=False)


def _columns_in_layout(case, col):
    return define.columns_last(col, case.c_in) if case.channels_last else col


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "u1", "i4", "c8"])
@given(rng=randoms)
def test_columns_are_the_definition_and_keep_the_dtype(backend, dtype, rng):
    case = draw(rng, free=True)
    x = case.array("x", case.x_shape(), whole=True).astype(np.int8).astype(dtype)
    got = gpuconv.im2col(lay_out(rng, backend.to_array(x)), case.kernel, **case.columns())
    want = define.im2col(define.first(x, case.channels_last), case.sliding())
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(backend.to_numpy(got), _columns_in_layout(case, want))


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "u1", "i4", "c8"])
@given(rng=randoms)
def test_col2im_adds_every_entry_to_the_place_it_came_from(backend, dtype, rng):
    case = draw(rng, free=True)
    shape = define.im2col(np.zeros((case.n, case.c_in, *case.in_size)), case.sliding()).shape
    col = case.array("col", shape, whole=True).astype(np.int8).astype(dtype)
    got = gpuconv.col2im(
        lay_out(rng, backend.to_array(_columns_in_layout(case, col))),
        list(case.x_shape()),
        case.kernel,
        **case.columns(),
    )
    assert got.dtype == np.dtype(dtype)
    want = in_layout(case, define.col2im(col, case.c_in, case.sliding()))
    np.testing.assert_array_equal(backend.to_numpy(got), want)


@pytest.mark.parametrize("axes", [1, 3])
@given(rng=randoms)
def test_columns_over_one_and_three_spatial_axes(backend, axes, rng):
    case = draw(rng, axes=axes)
    x = case.array("x", case.x_shape(), whole=True)
    want = define.im2col(define.first(x, case.channels_last), case.sliding())
    got = gpuconv.im2col(backend.to_array(x), case.kernel, **case.columns())
    np.testing.assert_array_equal(backend.to_numpy(got), _columns_in_layout(case, want))
    col = backend.to_array(_columns_in_layout(case, want))
    back = gpuconv.col2im(col, x.shape, case.kernel, **case.columns())
    must = in_layout(case, define.col2im(want, case.c_in, case.sliding()))
    np.testing.assert_array_equal(backend.to_numpy(back), must)


@given(rng=randoms)
def test_weights_times_columns_is_the_convolution(backend, rng):
    case = draw(rng)
    x = backend.to_array(case.array("x", case.x_shape(), whole=True))
    w_shape = (*case.kernel, case.c_in, 5) if case.channels_last else (5, case.c_in, *case.kernel)
    w = backend.to_array(case.array("w", w_shape, whole=True))
    y = gpuconv.conv2d(x, w, **case.columns())
    col = gpuconv.im2col(x, case.kernel, **case.columns())
    product = col @ w.reshape(-1, 5) if case.channels_last else w.reshape(5, -1) @ col
    np.testing.assert_array_equal(backend.to_numpy(product.reshape(y.shape)), backend.to_numpy(y))


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_empty_batch_has_empty_columns(backend, channels_last):
    x = backend.to_array(np.ones((0, 4, 4, 3) if channels_last else (0, 3, 4, 4)))
    col = gpuconv.im2col(x, 3, channels_last=channels_last)
    assert col.shape == ((0, 4, 27) if channels_last else (0, 27, 4))
    assert gpuconv.col2im(col, x.shape, 3, channels_last=channels_last).shape == x.shape


def test_padding_is_zero_in_every_dtype(backend):
    for dtype in ("?", "u1", "i8", "f2", "c16", ">i2"):
        x = backend.to_array(np.ones((1, 1, 1, 1), dtype))
        col = gpuconv.im2col(x, 3, padding=1)
        assert col.dtype == x.dtype  # CuPy's arrays have one order of bytes
        assert backend.to_numpy(col).ravel().tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]


def test_columns_are_a_copy_that_may_be_written_to(backend):
    x = backend.to_array(np.zeros((1, 1, 3, 3)))
    col = gpuconv.im2col(x, 1)
    col[...] = 7
    assert not backend.to_numpy(x).any()


def test_col2im_sums_float16_in_float32(backend):
    col = np.full((1, 49, 256), 0.1, np.float16)
    options = {"x_shape": (1, 1, 16, 16), "kernel_size": 7, "padding": 3}
    got = gpuconv.col2im(backend.to_array(col), **options)
    want = gpuconv.col2im(col.astype(np.float64), **options)
    assert got.dtype == np.float16
    # one rounding to float16, not 49 of them
    assert_close(backend.to_numpy(got), want, tolerance=2.0**-11)
