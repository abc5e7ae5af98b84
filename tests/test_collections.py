"""Dask arrays: whatever the chunks, results are those of the whole arrays; where they lie; what is refused.

Each drawn case is a call and its gradients with chunks at random: `GPUCONV_DRAWS=500` draws so many for each
family and number of axes.
"""

import os
import re
import subprocess
import sys
from functools import wraps
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from anywhere import close, equal
from cases import draw, draw_transposed
from conftest import BACKENDS
from every_op import CALLS, N, listed
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuconv
from gpuconv import blocks
from gpuconv.backends import cpu
from gpuconv.geometry import sliding_window

dask = pytest.importorskip("dask", reason="the extra `dask`")
da = pytest.importorskip("dask.array", reason="the extra `dask`")

AXES = pytest.mark.parametrize("axes", [1, 2, 3])


def drawn(test):
    """Draw this many cases."""
    test = given(rng=st.randoms(use_true_random=False))(test)
    return settings(max_examples=int(os.environ.get("GPUCONV_DRAWS", "10")))(test)


@pytest.fixture(autouse=True)
def scheduler():
    """One task after the other, unless a test says otherwise: errors are then where they arise."""
    with dask.config.set(scheduler="synchronous"):
        yield


def cut(rng, x):
    """Return a Dask array of x, cut at random places; or at times x itself."""
    if rng.random() < 0.1:
        return x
    chunks = []
    for n in x.shape:
        ends = sorted({0, n, *(rng.randint(0, n) for _ in range(rng.choice([0, 1, 1, 2, 3])))})
        chunks.append(tuple(b - a for a, b in pairwise(ends)) or (0,))
    return da.from_array(x, tuple(chunks))


def blocks_of(y):
    """Yield a lazy array's blocks, with their places in it."""
    keys = [(y.name, *index) for index in np.ndindex(y.numblocks)]
    return zip(da.core.slices_from_chunks(y.chunks), dask.get(dict(y.dask), keys), strict=True)


def same(got, want, compare=equal):
    """Check lazy results: what they say of themselves, and their values."""
    for y, must in zip(listed(got), listed(want), strict=True):
        assert isinstance(y, da.Array)
        assert (y.shape, y.dtype, y._meta.dtype, y._meta.ndim) == (
            must.shape,
            must.dtype,
            must.dtype,
            must.ndim,
        )
        found = np.empty(y.shape, y.dtype)
        for place, block in blocks_of(y):
            assert (block.shape, block.dtype) == (found[place].shape, must.dtype)
            found[place] = block
        compare(found, must)


def on_chunks(rng, function, *arguments, **options):
    """Call a function with its arrays cut at random, one of them at least; return what it gives."""

    def lazy(value):
        return cut(rng, value) if isinstance(value, np.ndarray) else value

    given = [*map(lazy, arguments)], {name: lazy(value) for name, value in options.items()}
    if not any(isinstance(each, da.Array) for each in (*given[0], *given[1].values())):
        given[0][0] = da.from_array(given[0][0], -1)
    return function(*given[0], **given[1])


def check(rng, function, *arguments, compare=equal, **options):
    """Compare a call on chunks with the same on whole arrays; return what that gives."""
    want = function(*arguments, **options)
    same(on_chunks(rng, function, *arguments, **options), want, compare)
    return want


def family(name, axes):
    return (getattr(gpuconv, f"{name}{axes}d{end}") for end in ("", "_backward"))


@AXES
@drawn
def test_convolution_by_chunks_is_that_of_the_whole(axes, rng):
    case = draw(rng, free=True, axes=axes)
    forward, backward = family("conv", axes)
    options = {**case.conv(), "flip": rng.random() < 0.3}
    x, w, b = (
        case.array(name, shape, whole=True)
        for name, shape in (("x", case.x_shape()), ("w", case.w_shape()), ("b", (case.c_out,)))
    )
    activation = rng.choice([None, "relu"])
    y = check(rng, forward, x, w, b, activation=activation, **options)
    dy = case.array("dy", y.shape, whole=True)
    check(rng, backward, dy, x, w, activation=activation, y=None if activation is None else y, **options)


@AXES
@drawn
def test_transposed_convolution_by_chunks_is_that_of_the_whole(axes, rng):
    case = draw_transposed(rng, free=True, axes=axes)
    forward, backward = family("conv_transpose", axes)
    options = {**case.conv(), "flip": rng.random() < 0.3}
    x, w, b = (
        case.array(name, shape, whole=True)
        for name, shape in (("x", case.x_shape()), ("w", case.w_shape()), ("b", (case.c_out,)))
    )
    y = check(rng, forward, x, w, b, **options)
    check(rng, backward, case.array("dy", y.shape, whole=True), x, w, **options)


@AXES
@drawn
def test_max_pooling_by_chunks_is_that_of_the_whole(axes, rng):
    case = draw(rng, pool=True, free=True, axes=axes)
    x, options = case.array("x", case.x_shape(), whole=True), case.pool()
    forward, backward = family("max_pool", axes)
    unpool, unpool_backward = family("max_unpool", axes)
    y, argmax = check(rng, forward, x, case.kernel, **options)
    check(rng, forward, x, case.kernel, return_argmax=False, **options)
    dy = case.array("dy", y.shape, whole=True)
    check(rng, backward, dy, argmax, x.shape, case.kernel, **options)
    check(rng, unpool, dy, argmax, x.shape, case.kernel, **options)
    check(rng, unpool_backward, x, argmax, case.kernel, **options)
    check(rng, gpuconv.argmax_to_indices, argmax, x.shape, case.kernel, **options)


@AXES
@drawn
def test_average_pooling_by_chunks_is_that_of_the_whole(axes, rng):
    case = draw(rng, pool=True, free=True, axes=axes)
    x, options = case.array("x", case.x_shape(), whole=True), case.pool()
    options["count_include_pad"] = case.count_include_pad
    options["divisor_override"] = rng.choice([None, None, 2])
    forward, backward = family("avg_pool", axes)
    y = check(rng, forward, x, case.kernel, compare=close, **options)
    check(
        rng, backward, case.array("dy", y.shape, whole=True), x.shape, case.kernel, compare=close, **options
    )


@drawn
def test_pooling_by_norms_by_chunks_is_that_of_the_whole(rng):
    case = draw(rng, pool=True, free=True)
    x, options = case.array("x", case.x_shape()), case.pool()
    y = check(rng, gpuconv.lp_pool2d, x, 2, case.kernel, compare=close, **options)
    dy = case.array("dy", y.shape)
    check(rng, gpuconv.lp_pool2d_backward, dy, x, y, 2, case.kernel, compare=close, **options)


@AXES
@drawn
def test_global_pooling_by_chunks_is_that_of_the_whole(axes, rng):
    case = draw(rng, pool=True, free=True, axes=axes)
    shape, options = case.x_shape(), {"channels_last": case.channels_last}
    x = case.array("x", shape, whole=True)  # whose maxima are often several
    if rng.random() < 0.3 and x.dtype.kind == "f":
        x[np.random.default_rng(rng.randint(0, 99)).random(shape) < 0.1] = np.nan
    options["keepdims"] = rng.random() < 0.5
    with dask.config.set({"array.chunk-size": rng.choice(["64B", "1kB", "128MiB"])}):
        y = check(rng, gpuconv.global_avg_pool, x, compare=close, **options)
        dy = case.array("dy", y.shape, whole=True)
        check(rng, gpuconv.global_avg_pool_backward, dy, x.shape, compare=close, **options)
        y, argmax = check(rng, gpuconv.global_max_pool, x, **options)
        check(rng, gpuconv.global_max_pool, x, return_argmax=False, **options)
        check(rng, gpuconv.global_max_pool_backward, dy, argmax, x.shape, **options)


# Of every public function: its values, and what it says of itself before.


def in_two(x):
    return da.from_array(x, tuple(max(1, -(-n // 2)) for n in x.shape)) if isinstance(x, np.ndarray) else x


def arguments_of(name, turn):
    arguments, options = CALLS[name]
    return [turn(a) for a in arguments], {key: turn(value) for key, value in options.items()}


def close_by_rounding(got, want):
    close(got, want, 1e-4, 1e-5)


@pytest.mark.parametrize("name", CALLS)
def test_every_public_function_takes_dask_arrays(name):
    function, (arguments, options) = getattr(gpuconv, name), CALLS[name]
    lazy, named = arguments_of(name, in_two)
    got, want = function(*lazy, **named), function(*arguments, **options)
    assert type(got) is (da.Array if isinstance(want, np.ndarray) else type(want))
    same(got, want, close_by_rounding)


@pytest.mark.parametrize("name", CALLS)
def test_arrays_of_one_chunk_give_arrays_of_one_chunk(name):
    arguments, options = arguments_of(
        name, lambda x: da.from_array(x, -1) if isinstance(x, np.ndarray) else x
    )
    for result in listed(getattr(gpuconv, name)(*arguments, **options)):
        assert result.npartitions == 1


SIZES, SHAPES = (1, 2, 3), ((2, 4, 6, 6), (2, 4, 4, 9))
SIZED = {
    "adaptive_avg_pool2d": SIZES,
    "adaptive_max_pool2d": SIZES,
    "adaptive_avg_pool2d_backward": SHAPES,
    "global_avg_pool_backward": SHAPES,
}


@pytest.mark.parametrize("name", SIZED)
def test_results_of_other_sizes_have_other_names(name):
    x = np.arange(8.0 if name.endswith("backward") else 288.0)
    x = x.reshape(2, 4, 1, 1) if x.size == 8 else x.reshape(2, 4, 6, 6)
    lazy, function = da.from_array(x, (1, 4, -1, -1)), getattr(gpuconv, name)
    found = dask.compute(*(function(lazy, size) for size in SIZED[name]))
    for results, size in zip(found, SIZED[name], strict=True):
        for got, want in zip(listed(results), listed(function(x, size)), strict=True):
            close_by_rounding(got, want)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_computed_before_dask_is_asked(name):
    def never(block):
        raise AssertionError("computed")

    def lazy(x):
        return in_two(x).map_blocks(never, meta=x[:0]) if isinstance(x, np.ndarray) else x

    arguments, options = arguments_of(name, lazy)
    results = listed(getattr(gpuconv, name)(*arguments, **options))
    with pytest.raises(AssertionError, match="computed"):
        results[0].compute()


@pytest.mark.parametrize("dtypes", ["eee", "fde", "FfF", "dfF", "fif"])
def test_dtypes_are_those_of_whole_arrays(dtypes):
    rng = np.random.default_rng(0)
    shapes = {"dy": (4, 3, 8, 7), "x": (4, 2, 8, 7), "w": (3, 2, 3, 3)}
    dy, x, w = (
        rng.integers(-3, 4, shape).astype(t) for shape, t in zip(shapes.values(), dtypes, strict=True)
    )
    want = gpuconv.conv2d_backward(dy, x, w, padding=1)
    same(gpuconv.conv2d_backward(*map(in_two, (dy, x, w)), padding=1), want)


def test_sums_of_float16_keep_their_digits_from_block_to_block():
    ones = da.ones((3, 1, 2049), dtype=np.float16, chunks=(1, 1, 2049))  # 2049 is none of float16's numbers
    dw = gpuconv.conv1d_weight_grad(ones, ones, 1)
    db = gpuconv.conv1d_bias_grad(ones)
    assert dw.compute().item() == db.compute().item() == 6148  # the next to 6147; of thrice 2048 it were 6144


def test_sums_are_the_same_at_each_run():
    x, dy = (np.random.default_rng(i).standard_normal((8, 3, 50), np.float32) for i in range(2))
    dw = gpuconv.conv1d_weight_grad(da.from_array(dy, (2, 3, 7)), da.from_array(x, (2, 3, 7)), 3, padding=1)
    runs = [dw.compute(scheduler="threads", num_workers=4) for _ in range(5)]
    for each in runs:
        equal(each, runs[0])


# Chunks.

X = da.zeros((4, 6, 30, 20), chunks=((1, 3), 2, (10, 7, 13), 20), dtype=np.float32)
W = np.zeros((6, 6, 3, 3), np.float32)


def test_chunks_follow_those_of_x():
    assert gpuconv.conv2d(X, W, padding="same").chunks == ((1, 3), (6,), (10, 7, 13), (20,))
    assert gpuconv.conv2d(X, W).chunks == ((1, 3), (6,), (9, 7, 12), (18,))
    assert gpuconv.conv2d(X, W, stride=2, padding=1).chunks == ((1, 3), (6,), (5, 4, 6), (10,))
    y, argmax = gpuconv.max_pool2d(X, 2)
    assert y.chunks == argmax.chunks == ((1, 3), (2, 2, 2), (5, 4, 6), (10,))
    assert gpuconv.upsample(X, 3).chunks == ((1, 3), (2, 2, 2), (30, 21, 39), (60,))


def test_gradients_have_the_chunks_of_their_arrays():
    dy = da.zeros((4, 6, 15, 10), chunks=(2, 6, 4, 5), dtype=np.float32)
    dx, dw, db = gpuconv.conv2d_backward(dy, X, W, stride=2, padding=1)
    assert dx.chunks == ((1, 3), (6,), (10, 7, 13), (20,))
    assert dw.numblocks == (1, 1, 1, 1) and db.numblocks == (1,)


def test_windows_of_padding_alone_join_others():
    x, w = np.arange(4.0).reshape(1, 1, 4), np.ones((1, 1, 1))
    y = gpuconv.conv1d(da.from_array(x, (1, 1, 1)), w, padding=5, stride=2)
    assert y.chunks == ((1,), (1,), (4, 3))
    equal(y.compute(), gpuconv.conv1d(x, w, padding=5, stride=2))


@pytest.mark.parametrize("count_include_pad", [False, True])
def test_divisors_count_the_places_and_the_padding_of_the_whole(count_include_pad):
    x = np.arange(1.0, 15).reshape(1, 1, 14)
    # The last window ends beyond the padding.
    options = {"stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": count_include_pad}
    for size in (1, 3, 4, 14):
        lazy = da.from_array(x, (1, 1, size))
        y = gpuconv.avg_pool1d(x, 3, **options)
        same(gpuconv.avg_pool1d(lazy, 3, **options), y, close)
        dx = gpuconv.avg_pool1d_backward(da.from_array(y, (1, 1, size)), x.shape, 3, **options)
        same(dx, gpuconv.avg_pool1d_backward(y, x.shape, 3, **options), close)


def test_a_block_is_given_its_chunk_and_what_its_windows_reach_of_the_neighbours():
    x = da.zeros((1, 1, 1000), chunks=(1, 1, 10))
    graph = gpuconv.conv1d(x, np.ones((1, 1, 5)), padding=2).__dask_graph__()
    parts = [task for task in graph.layers.values() for task in task.values() if "getitem" in str(task)]
    assert len(parts) == 2 * 99
    assert sum(len(layer) for layer in graph.layers.values()) == 100 + 2 * 99 + 100 + len(x.dask) - 100 + 1


def test_parts_of_a_neighbour_do_not_keep_it_in_memory():
    y = gpuconv.conv1d(da.ones((1, 1, 1000), chunks=(1, 1, 500)), np.ones((1, 1, 5)), padding=2)
    graph = dict(y.__dask_graph__())
    parts = [key for key in graph if "x-part" in key[0]]
    assert len(parts) == 2
    for part in dask.get(graph, parts):
        assert part.base is None and part.size == 2


def test_a_pooling_is_computed_once_for_its_maxima_and_its_mask(monkeypatch):
    calls, pool = [], cpu.pooling.max_pool

    @wraps(pool)
    def counting(*arguments):
        calls.append(1)
        pool(*arguments)

    monkeypatch.setattr(cpu.pooling, "max_pool", counting)
    dask.compute(*gpuconv.max_pool2d(X, 2))
    assert len(calls) == X.npartitions


def test_planes_are_pooled_chunk_by_chunk_and_their_gradients_cut_to_dask_s_size(monkeypatch):
    sizes = set()
    for name in ("avg_pool", "max_pool", "max_pool_backward"):
        primitive = getattr(cpu.adaptive, name)

        @wraps(primitive)
        def noting(*arguments, primitive=primitive):
            sizes.add(max(each.nbytes for each in arguments if isinstance(each, np.ndarray)))
            primitive(*arguments)

        monkeypatch.setattr(cpu.adaptive, name, noting)
    x = da.random.default_rng(0).random((2, 3, 64, 50), chunks=(1, 2, 16, 25))
    y, argmax = gpuconv.global_max_pool(x)
    mean = gpuconv.global_avg_pool(x)
    assert y.chunks == argmax.chunks == mean.chunks == ((1, 1), (2, 1), (1,), (1,))
    with dask.config.set({"array.chunk-size": 2 * 16 * 25 * 8}):
        grads = (
            gpuconv.global_max_pool_backward(y, argmax, x.shape),
            gpuconv.global_avg_pool_backward(y, x.shape),
        )
    assert all(len(dx.chunks[2]) * len(dx.chunks[3]) >= 8 for dx in grads)
    dask.compute(y, argmax, mean, *grads)
    assert max(sizes) <= 2 * 16 * 25 * 8


def test_a_place_outside_of_its_plane_is_refused_also_where_planes_are_cut():
    dy = da.ones((1, 2, 1, 1), chunks=1)
    argmax = np.array([3, 12]).reshape(dy.shape)
    with dask.config.set({"array.chunk-size": 32}):
        dx = gpuconv.global_max_pool_backward(dy, argmax, (1, 2, 3, 4))
    assert dx.npartitions > 2
    with pytest.raises(ValueError, match=r"global_max_pool_backward: argmax holds 12, .* plane of \(3, 4\)"):
        dx.compute()


def test_gradients_of_global_means_may_be_written_to():
    dx = gpuconv.global_avg_pool_backward(da.ones((1, 1, 1, 1)), (1, 1, 2, 2)).compute()
    dx[0, 0, 0, 0] = 1
    equal(dx[0, 0], [[1, 0.25], [0.25, 0.25]])


def test_chunks_without_places_are_left_out():
    x = np.random.default_rng(0).random((2, 3, 4, 5))
    lazy = da.from_array(x, ((0, 2), (3, 0), (0, 4, 0), (2, 0, 3)))
    same(gpuconv.global_max_pool(lazy), gpuconv.global_max_pool(x))
    same(gpuconv.global_avg_pool(lazy), gpuconv.global_avg_pool(x), close)
    same(gpuconv.conv2d(lazy, np.ones((1, 3, 2, 2))), gpuconv.conv2d(x, np.ones((1, 3, 2, 2))), close)


@pytest.mark.parametrize("plane", [(1, 1), (4, 5)])
def test_gradients_of_global_poolings_leave_out_chunks_without_places_too(plane):
    dy, argmax = np.arange(6.0).reshape(2, 3, 1, 1), np.zeros((2, 3, 1, 1), np.int64)
    lazy, shape = da.from_array(dy, ((0, 2), (3, 0), (0, 1), (0, 0, 1))), (2, 3, *plane)
    same(gpuconv.global_avg_pool_backward(lazy, shape), gpuconv.global_avg_pool_backward(dy, shape), close)
    got = gpuconv.global_max_pool_backward(lazy, argmax, shape)
    same(got, gpuconv.global_max_pool_backward(dy, argmax, shape))


# Blocks, as integers.


def test_every_block_has_a_window_that_a_call_could_have():
    numbers = product(range(1, 7), (1, 2, 3), (1, 2, 4), (1, 2), (0, 1, 3), (0, 2), (False, True))
    for n, k, s, d, before, after, ceil_mode in numbers:
        options = {"ceil_mode": ceil_mode, "needs_valid": False}
        try:
            window = sliding_window("test", (n,), k, s, ((before, after),), d, **options)
        except ValueError:
            continue
        parts = [
            blocks.reading(window, 0, *block)
            for cuts in (range(1, window.out_size[0]), [window.out_size[0] // 2])
            for block in blocks.between(blocks.with_places(window, 0, cuts))
        ]
        parts += [
            blocks.reached(window, 0, *block, whole)
            for cuts in (range(1, n), [n // 2])
            for block in blocks.between(blocks.ends_of(cuts, n))
            for whole in (False, True)
        ]
        for part in parts:
            ours = blocks.window_of(window, [part])
            padding = ((part.before, part.after),)
            assert ours == sliding_window("test", ours.in_size, k, s, padding, d, **options), (window, part)
            (first, last), (a, b) = part.places, part.outputs
            assert 0 <= first < last <= n and 0 <= a < b <= window.out_size[0]
            # The window's line: its output a is the whole window's.
            assert first - part.before == a * s - before


# Where arrays lie, and where blocks are computed.


def with_settings(**chosen):
    with gpuconv.config(**chosen):
        return gpuconv.conv2d(X, W, padding=1)


def test_settings_are_those_of_the_call(monkeypatch):
    seen, forward = set(), cpu.convolution.forward

    @wraps(forward)
    def noting(*arguments):
        seen.add((gpuconv.config.algorithm, gpuconv.config.workspace_limit))
        forward(*arguments)

    monkeypatch.setattr(cpu.convolution, "forward", noting)
    y = with_settings(algorithm="gemm", workspace_limit=1 << 20)
    with gpuconv.config(algorithm="direct"):
        y.compute(scheduler="threads")
    assert seen == {("gemm", 1 << 20)}
    assert with_settings(algorithm="direct").name != y.name  # or one of them would be taken for the other
    assert with_settings(algorithm="gemm", workspace_limit=1 << 20).name == y.name


GRADS = (np.ones((4, 6, 30, 20), np.float32), X, W + 1)


def test_blocks_are_computed_by_processes():
    with gpuconv.config(algorithm="gemm"):
        dx = gpuconv.conv2d_backward(*GRADS, padding=1, needs=("x",)).dx
    close_by_rounding(
        dx.compute(scheduler="processes", num_workers=1),
        gpuconv.conv2d_input_grad(GRADS[0], W + 1, X.shape, padding=1),
    )


def test_blocks_are_computed_by_a_cluster():
    distributed = pytest.importorskip("distributed", reason="the extra `dask`")
    lazy = gpuconv.conv2d_backward(*GRADS, padding=1)
    with (
        distributed.LocalCluster(1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        got = [each.result() for each in client.compute(lazy)]
    for each, want in zip(got, gpuconv.conv2d_backward(GRADS[0], X.compute(), W + 1, padding=1), strict=True):
        close_by_rounding(each, want)


@pytest.mark.parametrize("name", ["conv2d", "conv2d_input_grad", "max_pool2d", "max_pool2d_backward"])
def test_chunks_of_cupy_stay_there(cupy, name):
    def there(x):
        if not isinstance(x, np.ndarray):
            return x
        lazy = in_two(x) if len(x) == N else da.from_array(x, -1)
        return lazy.map_blocks(cupy.asarray, meta=cupy.empty((0,) * x.ndim, x.dtype))

    arguments, options = arguments_of(name, there)
    got = listed(getattr(gpuconv, name)(*arguments, **options))
    wants = listed(getattr(gpuconv, name)(*CALLS[name][0], **CALLS[name][1]))
    for y, want in zip(got, wants, strict=True):
        assert isinstance(y._meta, cupy.ndarray)
        # Block by block: what stands for CuPy has not all that Dask needs to put them together.
        for place, block in blocks_of(y):
            assert isinstance(block, cupy.ndarray)
            close_by_rounding(block, want[place])


def test_a_mixture_of_kinds_is_refused(cupy):
    there = X.map_blocks(cupy.asarray, meta=cupy.empty((0,) * 4, X.dtype))
    with pytest.raises(TypeError, match=r"conv2d: arrays must all be .* x is a CuPy array, w is"):
        gpuconv.conv2d(there, W)


def test_an_offload_leaves_dask_arrays_where_they_are():
    with gpuconv.offload("cuda", fallback=True):
        y = gpuconv.conv2d(X, W)
    assert isinstance(y, da.Array) and isinstance(y._meta, np.ndarray)


# What is refused.

BAD = {
    "a kernel too large": lambda x: gpuconv.conv2d(x, np.zeros((6, 6, 31, 3), np.float32)),
    "channels that don't fit": lambda x: gpuconv.conv2d(x, W[:, :2]),
    "a wrong dy": lambda x: gpuconv.conv2d_backward(x, x, W),
    "a stride of 0": lambda x: gpuconv.avg_pool2d(x, 2, 0),
    "a window of padding": lambda x: gpuconv.max_pool2d(x, 2, padding=3),
    "a list": lambda x: gpuconv.conv2d(x, [[1.0]]),
    "no weights": lambda x: gpuconv.conv2d(x, None),
    "too few axes": lambda x: gpuconv.conv2d(x[0], W),
    "a dtype": lambda x: gpuconv.conv2d(x.astype("U1"), W),
    "a mask of floats": lambda x: gpuconv.max_pool2d_backward(x, x, (4, 6, 60, 40), 2),
    "an argument too few": lambda x: gpuconv.conv2d(x),
}


@pytest.mark.parametrize("what", BAD)
def test_wrong_arguments_are_refused_at_once_with_the_message_for_whole_arrays(what):
    with pytest.raises((TypeError, ValueError)) as whole:
        BAD[what](np.zeros(X.shape, X.dtype))
    with pytest.raises(whole.type) as lazy:
        BAD[what](X)
    assert str(lazy.value) == str(whole.value)


def test_layers_pass_dask_arrays_forward_only():
    layer = gpuconv.Conv2d(6, 2, 3, rng=0)
    y = layer(X)
    assert isinstance(y, da.Array)
    with pytest.raises(TypeError, match=r"Conv2d.backward: the last forward was given a Dask array"):
        layer.backward(np.ones(y.shape, y.dtype))


def test_what_dask_can_not_do_is_refused():
    with pytest.raises(TypeError, match=r"x is a masked array; fill it first: dask.array.ma.filled\(x, 0\)"):
        gpuconv.conv2d(da.ma.masked_greater(X, 2), W)
    unknown = X[X[:, 0, 0, 0] > 0]
    with pytest.raises(ValueError, match=r"x has chunks of unknown size .* x.compute_chunk_sizes\(\)"):
        gpuconv.conv2d(unknown, W)
    with pytest.raises(TypeError, match="conv2d: out can't be given with Dask arrays"):
        gpuconv.conv2d(X, W, out=np.empty((4, 6, 28, 18), np.float32))
    with pytest.raises(TypeError, match="conv2d: like can't be given with Dask arrays"):
        gpuconv.conv2d(X, W, like=X)
    with (
        dask.config.set({"array.query-planning": True}),
        pytest.raises(TypeError, match="conv2d: Dask's arrays are expressions"),
    ):
        gpuconv.conv2d(X, W)
    with pytest.raises(TypeError, match=r"x must be a NumPy or CuPy array, .*; x.compute\(\) makes one"):
        gpuconv.explain("conv2d", X, W)
    for network in (gpuconv.Conv2d(6, 2, 3), lambda x: gpuconv.conv2d(x, W)):
        with pytest.raises(TypeError, match=r"profile: x must be an array in memory, not Dask's"):
            gpuconv.profile(network, X)


# Memory.

# Without C kernels BLAS reserves 32 MB for every thread, used or not.
WHY_NOT = BACKENDS["compiled"].missing or (
    "" if sys.platform.startswith("linux") else "the system must refuse memory"
)
limited = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

LARGE = """
import re, resource, sys, threading
from pathlib import Path
import dask, dask.array as da, numpy as np, gpuconv

MB = 2**20
volume = da.random.default_rng(0).random((1280, 256, 256), np.float32, chunks=(4, 256, 256))
y = gpuconv.conv3d(volume[None, None], np.ones((1, 1, 3, 3, 3), np.float32), padding="same")
total = gpuconv.max_pool3d(y, 2, return_argmax=False).sum(dtype=np.float64)
with dask.config.set(num_workers=2):
    y[:, :, :8].sum().compute()  # the libraries
    status = Path("/proc/self/status").read_text()
    reserved = int(re.search(r"VmData:\\s*(\\d+)", status)[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (reserved + 32 * MB,) * 2)  # the volume has 320 MB
    threading.stack_size(MB // 4)
    print(total.compute())
    try:
        volume.compute()
    except MemoryError:
        print("refused")
"""


@limited
def test_a_volume_of_ten_times_the_memory_that_there_is():
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total, refused = done.stdout.split()
    assert 27 / 2 < float(total) / (640 * 128 * 128) < 27  # maxima of sums of 27 numbers below 1
    assert refused == "refused"  # so much for the limit


@limited
def test_the_example_stays_below_its_limit():
    example = str(Path(__file__).parents[1] / "docs" / "examples" / "volume.py")
    options = ["--limit", "192", "--times", "0.2"]
    done = subprocess.run([sys.executable, example, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    most = re.search(r"peak: (\d+) MB of 192 MB", done.stdout)[1]
    difference = re.search(r"difference .*: (\S+)$", done.stdout)[1]
    assert int(most) < 192 and float(difference) < 1e-6
