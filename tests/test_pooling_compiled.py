"""Pooling by C kernels beside NumPy's: the same results, any strides, nothing touched outside of arrays."""

import numpy as np
import pytest
from cases import draw, draw_adaptive
from compare import assert_close
from conftest import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuconv
from gpuconv.backends.cpu import jobs, pooling_compiled, threads
from gpuconv.geometry import sliding_window

randoms = st.randoms(use_true_random=False)
pytestmark = pytest.mark.skipif(
    bool(BACKENDS["compiled"].missing), reason=BACKENDS["compiled"].missing or "there are C kernels"
)
BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    with gpuconv.config(compiled=True):
        yield


def by_numpy(function, *arguments, **options):
    with gpuconv.config(compiled=False):
        return function(*arguments, **options)


def within(rng, x, poison):
    """Return an equal array that is a view into a larger one, some axes with steps or backwards; and that."""
    steps = [rng.choice([1, 1, 1, 2, -1]) for _ in x.shape]
    margins = [rng.randint(0, 2) for _ in x.shape]
    larger = np.full(
        [
            (n - 1) * abs(s) + 1 + 2 * m if n else 2 * m
            for n, s, m in zip(x.shape, steps, margins, strict=True)
        ],
        poison,
        x.dtype,
    )
    view = larger
    for axis, (n, step, margin) in enumerate(zip(x.shape, steps, margins, strict=True)):
        index = margin + np.arange(n) * abs(step)
        where = slice(index[0], index[-1] + 1, abs(step)) if n else slice(0, 0)
        view = view[(slice(None),) * axis + (where,)]
        view = np.flip(view, axis) if step < 0 else view
    view[...] = x
    return view, larger


def assert_only_view_was_written(view, larger, poison, want, compare):
    compare(view, want)
    view[...] = poison
    np.testing.assert_array_equal(larger, np.full_like(larger, poison))


def odd_values(case, shape, dtype):
    """Return few values, so that many tie, among them NaN and infinities."""
    x = case.array("x", shape, whole=True)
    for value in (np.nan, np.inf, -np.inf):
        x[case.array(f"{value}", x.shape) > 1.2] = value
    return x.astype(dtype)


@BOTH
@settings(max_examples=60)
@given(rng=randoms)
def test_poolings_are_numpys_and_touch_nothing_outside_of_their_arrays(dtype, rng):
    case = draw(rng, pool=True, axes=rng.randint(1, 3))
    axes, options, poison = len(case.kernel), case.pool(), dtype(1e30)
    max_pool, backward = (getattr(gpuconv, f"max_pool{axes}d{end}") for end in ("", "_backward"))
    x, _ = within(rng, odd_values(case, case.x_shape(), dtype), np.nan)
    x.flags.writeable = False
    want, want_mask = by_numpy(max_pool, x, case.kernel, **options)
    y, around = within(rng, np.zeros_like(want), poison)
    mask, around_mask = within(rng, np.zeros_like(want_mask), 99)
    max_pool(x, case.kernel, out=(y, mask), **options)
    np.testing.assert_array_equal(max_pool(x, case.kernel, return_argmax=False, **options), want)
    assert_only_view_was_written(y, around, poison, want, np.testing.assert_array_equal)

    dy, _ = within(rng, case.array("dy", want.shape, dtype, whole=True), np.nan)
    dx_want = by_numpy(backward, dy, want_mask, case.x_shape(), case.kernel, **options)
    dx, around = within(rng, np.zeros_like(dx_want), poison)
    backward(dy, mask, case.x_shape(), case.kernel, out=dx, **options)
    assert_only_view_was_written(dx, around, poison, dx_want, np.testing.assert_array_equal)
    assert_only_view_was_written(mask, around_mask, 99, want_mask, np.testing.assert_array_equal)

    avg_pool, backward = (getattr(gpuconv, f"avg_pool{axes}d{end}") for end in ("", "_backward"))
    options["count_include_pad"] = case.count_include_pad
    x, _ = within(rng, case.array("x", case.x_shape(), dtype), np.nan)
    want = by_numpy(avg_pool, x, case.kernel, **options)
    y, around = within(rng, np.zeros_like(want), poison)
    avg_pool(x, case.kernel, out=y, **options)
    assert_only_view_was_written(y, around, poison, want, assert_close)
    dx_want = by_numpy(backward, dy, case.x_shape(), case.kernel, **options)
    dx, around = within(rng, np.zeros_like(dx_want), poison)
    backward(dy, case.x_shape(), case.kernel, out=dx, **options)
    assert_only_view_was_written(dx, around, poison, dx_want, assert_close)


@BOTH
@settings(max_examples=60)
@given(rng=randoms)
def test_unpoolings_are_numpys_and_touch_nothing_outside_of_their_arrays(dtype, rng):
    case = draw(rng, pool=True, axes=rng.randint(1, 3))
    options, poison = case.pool(), dtype(1e30)
    name = f"pool{len(case.kernel)}d"
    image = odd_values(case, case.x_shape(), dtype)
    x, argmax = by_numpy(getattr(gpuconv, f"max_{name}"), image, case.kernel, **options)
    x, _ = within(rng, x, np.nan)
    mask, _ = within(rng, argmax.astype(rng.choice([np.uint8, np.int32, np.int64])), 99)
    dy, _ = within(rng, image, np.nan)
    unpool, backward = (getattr(gpuconv, f"max_un{name}{end}") for end in ("", "_backward"))
    for call, arguments in (
        (unpool, (x, mask, case.x_shape(), case.kernel)),
        (backward, (dy, mask, case.kernel)),
    ):
        want = by_numpy(call, *arguments, **options)
        out, around = within(rng, np.zeros_like(want), poison)
        call(*arguments, out=out, **options)
        assert_only_view_was_written(out, around, poison, want, np.testing.assert_array_equal)


@BOTH
@settings(max_examples=60)
@given(rng=randoms)
def test_adaptive_poolings_are_numpys_and_touch_nothing_outside_of_their_arrays(dtype, rng):
    (n, _), in_size, out_size, last = draw_adaptive(rng, most=rng.choice([9, 40]))
    shape, poison = (n, *in_size, 18) if last else (n, 3, *in_size), dtype(1e30)
    numbers = np.random.default_rng(rng.randrange(2**32))
    values = numbers.integers(-3, 4, shape).astype(dtype)
    for value in (np.nan, -np.inf):
        values[numbers.random(shape) < 0.1] = value
    x, _ = within(rng, values, np.nan)
    z, _ = within(rng, numbers.standard_normal(shape).astype(dtype), np.nan)
    want, places = by_numpy(gpuconv.adaptive_max_pool2d, x, out_size, channels_last=last)
    mask, around_mask = within(rng, np.zeros_like(places), 99)
    y, around = within(rng, np.zeros_like(want), poison)
    gpuconv.adaptive_max_pool2d(x, out_size, channels_last=last, out=(y, mask))
    assert_only_view_was_written(y, around, poison, want, np.testing.assert_array_equal)
    dy, _ = within(rng, numbers.integers(-3, 4, want.shape).astype(dtype), np.nan)
    for call, arguments, compare in (
        (gpuconv.adaptive_max_pool2d_backward, (dy, mask, shape), np.testing.assert_array_equal),
        (gpuconv.adaptive_avg_pool2d, (z, out_size), assert_close),
        (gpuconv.adaptive_avg_pool2d_backward, (dy, shape), assert_close),
    ):
        want = by_numpy(call, *arguments, channels_last=last)
        out, around = within(rng, np.zeros_like(want), poison)
        call(*arguments, channels_last=last, out=out)
        assert_only_view_was_written(out, around, poison, want, compare)
    assert_only_view_was_written(mask, around_mask, 99, places, np.testing.assert_array_equal)


# More channels, or longer rows, than a vector has lanes; and windows wider than that.
WIDE = {
    "channels": ((2, 9, 8, 150), (3, 2), 2, True),
    "channels, one image": ((1, 9, 8, 37), (3, 3), 1, True),
    "rows": ((2, 3, 9, 75), (3, 3), 2, False),
    "rows, many vectors": ((1, 2, 7, 171), (3, 3), 2, False),
    "rows, stride 1": ((2, 3, 9, 75), (2, 3), 1, False),
    "rows, stride 3": ((1, 2, 9, 75), (3, 5), 3, False),
    "planes": ((2, 37, 7, 7), (7, 7), 1, False),
    "planes, small": ((2, 17, 3, 2), (3, 2), 1, False),
    "planes, large": ((2, 3, 19, 75), (19, 75), 1, False),
    "windows, overlapping": ((2, 3, 40, 9), (33, 9), 2, False),
    "windows, few channels last": ((2, 40, 41, 3), (40, 35), 2, True),
}


@BOTH
@pytest.mark.parametrize("name", WIDE)
def test_whole_vectors_and_their_ends_are_numpys(dtype, name):
    shape, kernel, stride, last = WIDE[name]
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 5, shape).astype(dtype)
    for value in (np.nan, -np.inf, np.inf):
        x[rng.random(shape) < 0.02] = value
    padding = 0 if kernel == shape[2:] or max(kernel) >= 9 else 1
    options = {"stride": stride, "channels_last": last, "padding": padding}
    want, want_mask = by_numpy(gpuconv.max_pool2d, x, kernel, **options)
    y, mask = gpuconv.max_pool2d(x, kernel, **options)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(mask, want_mask)
    assert mask.dtype == want_mask.dtype
    np.testing.assert_array_equal(gpuconv.max_pool2d(x, kernel, return_argmax=False, **options), want)
    dy = rng.integers(-4, 5, y.shape).astype(dtype)
    for masks in (mask, mask.astype(np.int64), mask.astype(np.uint16)):
        dx = gpuconv.max_pool2d_backward(dy, masks, shape, kernel, **options)
        np.testing.assert_array_equal(
            dx, by_numpy(gpuconv.max_pool2d_backward, dy, mask, shape, kernel, **options)
        )
    for masks in (mask, mask.astype(np.int64)):
        for call, arguments in (
            (gpuconv.max_unpool2d, (y, masks, shape, kernel)),
            (gpuconv.max_unpool2d_backward, (x, masks, kernel)),
        ):
            np.testing.assert_array_equal(call(*arguments, **options), by_numpy(call, *arguments, **options))
    numbers = rng.standard_normal(shape).astype(dtype)
    options["count_include_pad"] = False
    assert_close(
        gpuconv.avg_pool2d(numbers, kernel, **options),
        by_numpy(gpuconv.avg_pool2d, numbers, kernel, **options),
    )
    assert_close(
        gpuconv.avg_pool2d_backward(dy, shape, kernel, **options),
        by_numpy(gpuconv.avg_pool2d_backward, dy, shape, kernel, **options),
    )


@BOTH
@pytest.mark.parametrize("width", [3, 14, 28, 75, 140])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_tiles_of_two_places_are_numpys_and_nothing_around_is_touched(dtype, width, ceil_mode):
    rng, shape = np.random.default_rng(width), (2, 3, 5, width)
    x, around = rng.integers(-4, 5, shape).astype(dtype), np.full(2 * 3 * 5 * width + 128, 77, dtype)
    dx = around[64:-64].reshape(shape)
    y, mask = gpuconv.max_pool2d(x, 2, ceil_mode=ceil_mode)
    want, want_mask = by_numpy(gpuconv.max_pool2d, x, 2, ceil_mode=ceil_mode)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(mask, want_mask)
    y = rng.integers(-9, 10, y.shape).astype(dtype)
    for backward, masks in ((gpuconv.max_pool2d_backward, (mask,)), (gpuconv.avg_pool2d_backward, ())):
        backward(y, *masks, shape, 2, ceil_mode=ceil_mode, out=dx)
        np.testing.assert_array_equal(dx, by_numpy(backward, y, *masks, shape, 2, ceil_mode=ceil_mode))
    assert (around[:64] == 77).all() and (around[-64:] == 77).all()


@BOTH
@pytest.mark.parametrize("size", [1, 3, 7, 40])
def test_planes_that_lie_apart_are_pooled_whole_and_nothing_between_them_is_touched(dtype, size):
    rng = np.random.default_rng(size)
    x, around = (np.full((2, 35, size * size + 2), np.nan, dtype) for _ in range(2))
    planes, dx = (a[:, 1:-1, 1:-1].reshape(2, 33, size, size, copy=False) for a in (x, around))
    planes[...] = rng.integers(-9, 10, planes.shape)
    want, want_mask = by_numpy(gpuconv.max_pool2d, planes, size)
    y, mask = (np.zeros((2, 33, 1, 2), d)[..., ::2] for d in (dtype, want_mask.dtype))
    gpuconv.max_pool2d(planes, size, out=(y, mask))
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(mask, want_mask)
    assert_close(gpuconv.avg_pool2d(planes, size), by_numpy(gpuconv.avg_pool2d, planes, size))
    for backward, masks in ((gpuconv.max_pool2d_backward, (mask,)), (gpuconv.avg_pool2d_backward, ())):
        backward(y, *masks, planes.shape, size, out=dx)
        assert_close(dx, by_numpy(backward, y, *masks, planes.shape, size))
    dx[...] = np.nan
    assert np.isnan(around).all()


def test_vectors_lie_along_channels_rows_windows_planes_and_columns():
    ways = set()
    for shape, kernel, stride, last in WIDE.values():
        x = np.zeros(shape, np.float32)
        y = gpuconv.max_pool2d(x, kernel, stride=stride, channels_last=last, return_argmax=False)
        if last:
            x, y = (a.transpose(0, 3, 1, 2) for a in (x, y))
        window = sliding_window("", x.shape[2:], kernel, stride, 0, 1)
        for backward in (False, True):
            ways.add((backward, pooling_compiled.pooling(x, y, None, window, backward=backward).told.way))
    for last in (False, True):
        x, y = np.zeros((1, 32, 9, 9), np.float32), np.zeros((1, 32, 4, 4), np.float32)
        if last:
            x, y = (a.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2) for a in (x, y))
        for backward in (False, True):
            window = pooling_compiled.sharing((9, 9), (4, 4))
            ways.add((backward, pooling_compiled.pooling(x, y, None, window, backward=backward).told.way))
    assert len(ways) == 10


GUARD = 1 << 16


@BOTH
@pytest.mark.parametrize("name", WIDE)
def test_calls_keep_within_the_memory_that_they_asked_for(monkeypatch, dtype, name):
    given = []

    def guarded(slot, size):
        array = np.full(size + 2 * GUARD, 77, np.uint8)
        given.append((array, size))
        return threads.Memory(array[GUARD : GUARD + size], array[GUARD:].ctypes.data)

    monkeypatch.setattr(jobs, "memory", guarded)
    shape, kernel, stride, last = WIDE[name]
    options = {"stride": stride, "channels_last": last, "padding": 1 if max(kernel) < 9 else 0}
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    y, mask = gpuconv.max_pool2d(x, kernel, **options)
    gpuconv.max_pool2d_backward(y, mask, shape, kernel, **options)
    gpuconv.avg_pool2d(x, kernel, **options)
    gpuconv.avg_pool2d_backward(y, shape, kernel, **options)
    gpuconv.max_unpool2d(y, mask, shape, kernel, **options)
    gpuconv.max_unpool2d_backward(x, mask, kernel, **options)
    last = {"channels_last": options["channels_last"]}
    for size in (2, (4, 13)):
        y, places = gpuconv.adaptive_max_pool2d(x, size, **last)
        gpuconv.adaptive_max_pool2d_backward(y, places, shape, **last)
        gpuconv.adaptive_avg_pool2d(x, size, **last)
        gpuconv.adaptive_avg_pool2d_backward(y, shape, **last)
    assert given
    for array, size in given:
        assert (array[:GUARD] == 77).all() and (array[GUARD + size :] == 77).all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch, channels_last):
    x = np.random.default_rng(0).standard_normal((3, 40, 40, 40), dtype=np.float32)
    options = {"stride": 2, "padding": 1, "channels_last": channels_last}

    def results():
        y, mask = gpuconv.max_pool2d(x, 3, **options)
        yield from (y, mask, gpuconv.max_pool2d_backward(y, mask, x.shape, 3, **options))
        yield from (
            gpuconv.avg_pool2d(x, 3, **options),
            gpuconv.avg_pool2d_backward(y, x.shape, 3, **options),
            gpuconv.max_unpool2d(y, mask, x.shape, 3, **options),
            gpuconv.max_unpool2d_backward(x, mask, 3, **options),
        )
        last = {"channels_last": channels_last}
        y, places = gpuconv.adaptive_max_pool2d(x, 7, **last)
        yield from (y, places, gpuconv.adaptive_max_pool2d_backward(y, places, x.shape, **last))
        yield gpuconv.adaptive_avg_pool2d(x, 7, **last)
        yield gpuconv.adaptive_avg_pool2d_backward(y, x.shape, **last)

    monkeypatch.setattr(threads, "SERIAL_WORK", 0)
    monkeypatch.setattr(pooling_compiled, "BLOCK_BYTES", 5000)
    found = []
    for number in (1, 2, 5):
        monkeypatch.setattr(threads, "count", lambda number=number: number)
        found.append([a.tobytes() for a in results()])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("wrong", [4, 200, -1])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_masks_that_name_no_place_are_refused_before_anything_is_written(dtype, wrong):
    if wrong < 0 and dtype == np.uint8:
        wrong = 255
    argmax, dx = np.zeros((2, 3, 8, 8), dtype), np.full((2, 3, 16, 16), 7, np.float32)
    argmax[1, 2, 7, 7] = wrong
    dy = np.ones(argmax.shape, np.float32)
    with pytest.raises(ValueError, match=f"argmax holds {wrong}, but a window of .2, 2. has 4 places"):
        gpuconv.max_pool2d_backward(dy, argmax, dx.shape, 2, out=dx)
    with pytest.raises(ValueError, match=f"max_unpool2d: argmax holds {wrong}, but"):
        gpuconv.max_unpool2d(dy, argmax, dx.shape, 2, out=dx)
    assert (dx == 7).all()
    with pytest.raises(ValueError, match="argmax names a place in the padding along spatial axis 1"):
        gpuconv.max_pool2d_backward(dy, argmax * 0 + 2, (2, 3, 16, 15), 2, padding=((0, 0), (1, 0)))


@pytest.mark.parametrize("channels_last", [False, True])
def test_places_outside_of_adaptive_windows_are_refused_before_anything_is_written(channels_last):
    # Of 9 places along an axis, two windows have 0 to 4 and 4 to 8.
    dx = np.full((2, 9, 9, 70) if channels_last else (2, 70, 9, 9), 7, np.float32)
    argmax = np.broadcast_to([[0, 8], [72, 80]], (2, 70, 2, 2)).copy()
    argmax = argmax.transpose(0, 2, 3, 1).copy() if channels_last else argmax
    windows = argmax[1, :, :, 69] if channels_last else argmax[1, 69]
    dy, options = np.ones(argmax.shape, np.float32), {"channels_last": channels_last}
    for window, wrong in (((0, 0), (45, 5, -1)), ((1, 0), (27, 35, 41, 50, 81, 2**63 - 1, -(2**63)))):
        before = windows[window]
        for place in wrong:
            windows[window] = place
            with pytest.raises(ValueError, match=f"argmax holds {place}, which is no place of its window"):
                gpuconv.adaptive_max_pool2d_backward(dy, argmax, dx.shape, out=dx, **options)
            assert (dx == 7).all()
        windows[window] = before
    for place in (36, 40, 72, 76, 58):
        windows[1, 0] = place
        gpuconv.adaptive_max_pool2d_backward(dy, argmax, dx.shape, out=dx, **options)
        assert dx.sum() == dy.sum()


def test_gradients_of_unpooling_are_numpys_where_rivals_are_too_many():
    x, y = np.zeros((1, 1, 40, 40), np.float32), np.zeros((1, 1, 26, 26), np.float32)
    window, mask = sliding_window("", (40, 40), 15, 1, 0, 1), np.zeros(y.shape, np.uint8)
    assert pooling_compiled.pooling(x, y, mask, window, unpool=True) is not None
    assert pooling_compiled.pooling(x, y, mask, window, unpool=True, backward=True) is None


def test_large_windows_sum_as_exactly_as_numpy():
    x = np.random.default_rng(0).random((1, 20, 500, 500)).astype(np.float32)
    want = x.mean((2, 3), np.float64)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    for y in (gpuconv.global_avg_pool(x), gpuconv.global_avg_pool(last, channels_last=True)):
        np.testing.assert_allclose(y.reshape(1, 20), want, 2e-6)


def test_large_windows_that_overlap_are_summed_axis_by_axis():
    x = np.zeros((1, 1, 100, 100), np.float32)
    window = sliding_window("", (100, 100), 31, 1, 0, 1)
    y = np.zeros((1, 1, 70, 70), np.float32)
    assert pooling_compiled.pooling(x, y, None, window, mean=True) is None
    assert pooling_compiled.pooling(x, y, None, window) is not None


@pytest.mark.parametrize("channels", [512, 600, 1030])
@pytest.mark.parametrize(
    "kernel, options",
    [(4, {"stride": 1}), (5, {"padding": 2}), ((2, 9), {"dilation": (1, 3)}), ((1, 150), {"stride": 1})],
)
def test_many_channels_of_large_windows_channels_last(kernel, options, channels):
    x = np.random.default_rng(0).standard_normal((1, 9, 155, channels)).astype(np.float32)
    x[0, 3::4, ::7, ::5] = np.nan
    found = []
    for compiled_ in (True, False):
        with gpuconv.config(compiled=compiled_):
            y, mask = gpuconv.max_pool2d(x, kernel, channels_last=True, return_argmax=True, **options)
            dx = gpuconv.max_pool2d_backward(
                np.ones_like(y), mask, x.shape, kernel, channels_last=True, **options
            )
            value_only = gpuconv.max_pool2d(x, kernel, channels_last=True, **options)
            mean = gpuconv.avg_pool2d(np.nan_to_num(x), kernel, channels_last=True, **options)
        found.append((y, mask, dx, value_only, mean))
    for ours, numpys in zip(*found, strict=True):
        np.testing.assert_allclose(ours, numpys, rtol=0, atol=1e-6)


def test_a_cut_is_remembered_for_some_batches_only(monkeypatch):
    monkeypatch.setattr(pooling_compiled, "MOST_CUTS", 2)
    window = sliding_window("max_pool2d", (8, 8), 2, 2, 0, 1)
    for images in (1, 2, 3, 1, 4):
        x, y = np.zeros((images, 3, 8, 8), np.float32), np.zeros((images, 3, 4, 4), np.float32)
        p = pooling_compiled.pooling(x, y, None, window)
        assert sum(n.stop - n.start for n, c in p.cut.jobs if not c.start) == images
        assert len(p.told.cuts) <= 2
