"""Max unpooling and its gradient: the definition, whose value stands where windows overlap."""

import numpy as np
import pytest
from cases import draw, in_layout, lay_out
from hypothesis import given
from hypothesis import strategies as st

import gpuconv
from gpuconv import reference as define

randoms = st.randoms(use_true_random=False)


def _unpool(axes):
    return getattr(gpuconv, f"max_unpool{axes}d"), getattr(gpuconv, f"max_unpool{axes}d_backward")


def _mask(case):
    """Return, channels first, a max pooling's mask: of seven values, so that windows often share a place."""
    image = define.first(case.array("image", case.x_shape(), whole=True), case.channels_last)
    return define.max_pool(image, case.sliding(pool=True))[1]


@pytest.mark.parametrize(
    ("axes", "dtype"), [(2, "f8"), (2, "f4"), (2, "f2"), (2, "i1"), (1, "f8"), (3, "f8")]
)
@given(rng=randoms)
def test_unpooling_and_gradient_are_exactly_the_definition(backend, axes, dtype, rng):
    case = draw(rng, pool=True, axes=axes)
    sliding, positions = case.sliding(pool=True), _mask(case)
    unpool, backward = _unpool(axes)
    x = (9 * case.array("x", case.y_shape(pool=True))).astype(dtype)
    dy = (9 * case.array("dy", case.x_shape())).astype(dtype)
    argmax = in_layout(case, positions).astype(np.uint8)
    y = unpool(
        lay_out(rng, backend.to_array(x)),
        lay_out(rng, backend.to_array(argmax)),
        list(case.x_shape()),
        case.kernel,
        **case.pool(),
    )
    dx = backward(
        lay_out(rng, backend.to_array(dy)), lay_out(rng, backend.to_array(argmax)), case.kernel, **case.pool()
    )
    x1, dy1 = (define.first(a, case.channels_last) for a in (x, dy))
    assert (y.dtype, dx.dtype) == (x.dtype, x.dtype)
    np.testing.assert_array_equal(
        backend.to_numpy(y), in_layout(case, define.max_unpool(x1, positions, sliding))
    )
    np.testing.assert_array_equal(
        backend.to_numpy(dx), in_layout(case, define.max_unpool_backward(dy1, positions, sliding))
    )


def test_of_windows_that_name_one_place_the_last_in_row_major_order_wins(backend):
    x = backend.to_array(np.array([[1.0, 2], [3, 4]])[None, None])
    argmax = backend.to_array(np.array([[3, 2], [1, 0]], np.uint8)[None, None])  # all name the middle
    y = backend.to_numpy(gpuconv.max_unpool2d(x, argmax, (1, 1, 3, 3), 2, 1))
    assert y[0, 0].tolist() == [[0, 0, 0], [0, 4, 0], [0, 0, 0]]
    dy = backend.to_array(np.arange(9.0).reshape(1, 1, 3, 3))
    dx = backend.to_numpy(gpuconv.max_unpool2d_backward(dy, argmax, 2, 1))
    assert dx[0, 0].tolist() == [[0, 0], [0, 4]]


def test_pooling_and_unpooling_keep_the_maxima_of_windows_that_tile(backend):
    x = backend.to_array(np.random.default_rng(0).random((2, 3, 6, 8)))
    y, argmax = gpuconv.max_pool2d(x, (2, 4))
    whole = gpuconv.max_unpool2d(y, argmax, x.shape, (2, 4))
    again, same = gpuconv.max_pool2d(whole, (2, 4))
    np.testing.assert_array_equal(backend.to_numpy(again), backend.to_numpy(y))
    np.testing.assert_array_equal(backend.to_numpy(same), backend.to_numpy(argmax))


def test_written_values_keep_every_bit(backend):
    x = backend.to_array(np.array([[[-0.0, np.nan, -np.inf]]]))
    argmax = backend.to_array(np.array([[[1, 0, 1]]], np.uint8))
    y = backend.to_numpy(gpuconv.max_unpool1d(x, argmax, (1, 1, 6), 2)).ravel()
    np.testing.assert_array_equal(y, [0, -0.0, np.nan, 0, 0, -np.inf])
    assert np.signbit(y).tolist()[:2] == [False, True]


def test_windows_of_more_than_255_places(backend):
    x = backend.to_array(np.random.default_rng(0).random((1, 2, 32, 33)))
    y, argmax = gpuconv.max_pool2d(x, (16, 17), (8, 16))
    assert argmax.dtype == np.int32
    whole = backend.to_numpy(gpuconv.max_unpool2d(y, argmax, x.shape, (16, 17), (8, 16)))
    flat = gpuconv.argmax_to_indices(argmax, x.shape, (16, 17), (8, 16))
    want = np.zeros((2, 32 * 33))
    for plane, indices, values in zip(
        want, backend.to_numpy(flat).reshape(2, -1), backend.to_numpy(y).reshape(2, -1), strict=True
    ):
        plane[indices] = values
    np.testing.assert_array_equal(whole.reshape(2, -1), want)


def test_masks_may_come_in_any_integer_dtype(backend):
    x = backend.to_array(np.random.default_rng(0).random((2, 3, 7, 7)))
    y, argmax = gpuconv.max_pool2d(x, 3, 2)
    want = [
        backend.to_numpy(a)
        for a in (
            gpuconv.max_unpool2d(y, argmax, x.shape, 3, 2),
            gpuconv.max_unpool2d_backward(x, argmax, 3, 2),
        )
    ]
    for dtype in (np.int16, np.int64, np.uint32):
        mask = argmax.astype(dtype)
        got = gpuconv.max_unpool2d(y, mask, x.shape, 3, 2), gpuconv.max_unpool2d_backward(x, mask, 3, 2)
        for one, other in zip(got, want, strict=True):
            np.testing.assert_array_equal(backend.to_numpy(one), other)


def test_offsets_that_name_no_place_are_refused_or_on_a_gpu_left_out(backend):
    y, dy = backend.to_array(np.ones((1, 1, 2))), backend.to_array(np.ones((1, 1, 3)))
    for bad in ([0, 1], [1, 2], [1, -1]):  # the padding before x; more than the window has; negative
        argmax = backend.to_array(np.array(bad, np.int32)[None, None])
        if backend.is_numpy:
            with pytest.raises(ValueError, match="max_unpool1d: argmax"):
                gpuconv.max_unpool1d(y, argmax, (1, 1, 3), 2, padding=1)
            with pytest.raises(ValueError, match="max_unpool1d_backward: argmax"):
                gpuconv.max_unpool1d_backward(dy, argmax, 2, padding=1)
        else:
            whole = gpuconv.max_unpool1d(y, argmax, (1, 1, 3), 2, padding=1)
            assert backend.to_numpy(whole).sum() == 1
            dx = backend.to_numpy(gpuconv.max_unpool1d_backward(dy, argmax, 2, padding=1))
            assert dx.ravel().tolist() == ([0, 1] if bad[0] == 0 else [1, 0])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 0, 5, 5)])
def test_empty_batches_and_no_channels_work(backend, shape, channels_last):
    x = backend.to_array(define.last(np.ones(shape), channels_last))
    y, argmax = gpuconv.max_pool2d(x, 2, channels_last=channels_last)
    assert gpuconv.max_unpool2d(y, argmax, x.shape, 2, channels_last=channels_last).shape == x.shape
    assert gpuconv.max_unpool2d_backward(x, argmax, 2, channels_last=channels_last).shape == y.shape
