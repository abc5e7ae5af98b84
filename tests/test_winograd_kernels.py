"""Winograd's convolution by the CUDA kernels: borders, groups, strides, what isn't finite, what is chosen."""

from dataclasses import replace

import numpy as np
import pytest
from cases import draw
from host import compiler
from host import runtime as host_runtime
from hypothesis import given, settings
from hypothesis import strategies as st
from passes import arrays, computed, defined

import gpuconv
from gpuconv import reference as define
from gpuconv.backends.cuda import choice, kernels, winograd
from gpuconv.backends.cuda.columns import dense
from gpuconv.backends.cuda.problem import Epilogue, Problem
from gpuconv.backends.cuda.program import LimitTooSmall
from gpuconv.backends.unmade import empty
from gpuconv.geometry import sliding_window

needs_kernels = pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True])
PADDINGS = (0, 1, 1, 1, 2, 5, "same", ((0, 3), (2, 1)), ((4, 0), (1, 7)))


def drawn(rng, channels_last):
    """Draw a convolution whose images are some tiles, and whose channels may be more than a block's."""
    case = draw(rng)
    groups = rng.choice([1, 1, 2, 3])
    padding = rng.choice(PADDINGS)
    least = 3 if padding == 0 else 2
    return replace(
        case,
        n=rng.choice([1, 2, 3, 5]),
        c_in=groups * rng.randint(1, 10),
        c_out=groups * rng.choice([1, 2, 5, 8, 33, 66]),
        groups=groups,
        in_size=(rng.randint(least, 9), rng.choice([least, 5, 6, 16, 23])),
        kernel=(3, 3),
        stride=(1, 1),
        dilation=(1, 1),
        padding=padding,
        channels_last=channels_last,
    )


def both(case, *arrays):
    """Return y and dx; dw is the affair of another algorithm."""
    return computed(case, "winograd", *arrays)[:2]


def shaped(channels_last, n, c, h, w):
    return (n, h, w, c) if channels_last else (n, c, h, w)


def weights_shaped(channels_last, c_out, c_in):
    return (3, 3, c_in, c_out) if channels_last else (c_out, c_in, 3, 3)


@LAYOUTS
@settings(max_examples=25)
@given(rng=st.randoms(use_true_random=False))
def test_results_are_exactly_the_definition_on_whole_numbers(gpu, channels_last, rng):
    case = drawn(rng, channels_last)
    given_arrays = arrays(case, np.float32)
    found = both(case, *map(gpu.to_array, given_arrays))
    for got, must in zip(found, defined(case, *given_arrays)[:2], strict=True):
        np.testing.assert_array_equal(gpu.to_numpy(got), must.astype(np.float32))


# As for the CPU's: errors relative to the largest result, and of 2-norms.
DRAWN = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "uniform": lambda rng, size: rng.random(size),
    "relu": lambda rng, size: np.maximum(0, rng.standard_normal(size)),
    "offset": lambda rng, size: 100 + rng.standard_normal(size),
}


@LAYOUTS
@pytest.mark.parametrize("distribution", DRAWN)
def test_float32_is_exact_to_1e_5(gpu, distribution, channels_last):
    rng = np.random.default_rng(0)
    x = DRAWN[distribution](rng, shaped(channels_last, 1, 128, 10, 11)).astype(np.float32)
    w = rng.standard_normal(weights_shaped(channels_last, 70, 128)).astype(np.float32)
    want = gpuconv.conv2d(x.astype(np.float64), w.astype(np.float64), padding=1, channels_last=channels_last)
    with gpuconv.config(algorithm="winograd"):
        y = gpuconv.conv2d(gpu.to_array(x), gpu.to_array(w), padding=1, channels_last=channels_last)
    error = gpu.to_numpy(y) - want
    assert 0 < np.abs(error).max() < 1e-5 * np.abs(want).max()
    assert np.linalg.norm(error) < 1e-5 * np.linalg.norm(want)


@needs_kernels
@LAYOUTS
@settings(max_examples=15)
@given(rng=st.randoms(use_true_random=False))
def test_nothing_around_an_array_is_read(channels_last, rng):
    case = drawn(rng, channels_last)
    given_arrays = arrays(case, np.float32)
    alone = both(case, *map(host_runtime.to_device, given_arrays))
    within = [host_runtime.within_nan(rng, a) for a in given_arrays]
    for got, must in zip(both(case, *within), alone, strict=True):
        np.testing.assert_array_equal(host_runtime.to_host(got), host_runtime.to_host(must))


@LAYOUTS
@pytest.mark.parametrize("step", [(1, 1, 1, 2), (1, -1, 2, -1), (-2, 1, -1, 1), (1, 3, -1, -2)])
def test_images_of_any_strides_are_taken_read_only_or_not(gpu, step, channels_last):
    rng = np.random.default_rng(0)
    size = shaped(channels_last, 2, 6, 7, 9)
    whole = rng.integers(-3, 4, [3 * n for n in size]).astype(np.float32)
    w = rng.integers(-3, 4, weights_shaped(channels_last, 6, 6)).astype(np.float32)

    def view(array):
        return array[tuple(slice(None, None, s) for s in step)][tuple(slice(0, n) for n in size)]

    there = view(gpu.to_array(whole))
    options = {"padding": 1, "channels_last": channels_last}
    if isinstance(there, np.ndarray):  # CuPy's have no such flag
        there.flags.writeable = False
    with gpuconv.config(algorithm="winograd"):
        y = gpuconv.conv2d(there, gpu.to_array(w), **options)
        dx = gpuconv.conv2d_input_grad(there, gpu.to_array(w), size, **options)
    x = np.ascontiguousarray(view(whole), np.float64)
    np.testing.assert_array_equal(gpu.to_numpy(y), gpuconv.conv2d(x, w, **options))
    np.testing.assert_array_equal(gpu.to_numpy(dx), gpuconv.conv2d_input_grad(x, w, size, **options))


@needs_kernels
@LAYOUTS
def test_a_row_shared_by_all_images_is_taken(channels_last):
    row = host_runtime.to_device(np.arange(8, dtype=np.float32).reshape((8, 1) if channels_last else 8))
    x = np.broadcast_to(row, shaped(channels_last, 3, 4, 5, 8), subok=True)
    w = host_runtime.to_device(np.ones(weights_shaped(channels_last, 2, 4), np.float32))
    with gpuconv.config(algorithm="winograd"):
        y = host_runtime.to_host(gpuconv.conv2d(x, w, channels_last=channels_last))
    want = np.broadcast_to(4 * 3 * 3 * np.arange(1.0, 7.0), (3, 2, 3, 6))
    np.testing.assert_array_equal(define.first(y, channels_last), want)


# What isn't finite.


def beside_numpy(gpu, x, w, dy, **options):
    """Return y and dx by the kernels, and in float32 by products of columns in NumPy."""
    with gpuconv.config(algorithm="gemm", compiled=False), np.errstate(all="ignore"):
        want = gpuconv.conv2d(x, w, **options), gpuconv.conv2d_input_grad(dy, w, x.shape, **options)
    x, w, dy = map(gpu.to_array, (x, w, dy))
    with gpuconv.config(algorithm="winograd"):
        got = gpuconv.conv2d(x, w, **options), gpuconv.conv2d_input_grad(dy, w, x.shape, **options)
    return zip(map(gpu.to_numpy, got), want, strict=True)


@LAYOUTS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(1, 2, 4, 4), (0, 0, 0, 0), (2, 5, 8, 9), (1, 3, 5, 6)])
def test_what_is_not_finite_spoils_only_the_windows_that_read_it(gpu, place, value, channels_last):
    rng = np.random.default_rng(0)
    x = rng.integers(1, 4, (3, 6, 9, 10)).astype(np.float32)
    x[place] = value
    x = np.ascontiguousarray(in_layout_of(x, channels_last))
    w = rng.integers(1, 4, weights_shaped(channels_last, 6, 6)).astype(np.float32)
    w[(0, 2, 1, 3) if channels_last else (3, 1, 0, 2)] = -2
    for got, want in beside_numpy(gpu, x, w, x, padding=1, channels_last=channels_last):
        np.testing.assert_array_equal(got, want)
        assert not np.isfinite(want).all()


def in_layout_of(x, channels_last):
    return x.transpose(0, 2, 3, 1) if channels_last else x


@LAYOUTS
def test_weights_that_are_not_finite_spoil_only_what_they_make(gpu, channels_last):
    rng = np.random.default_rng(0)
    x = rng.integers(1, 4, shaped(channels_last, 2, 6, 8, 10)).astype(np.float32)
    w = rng.integers(1, 4, weights_shaped(channels_last, 6, 6)).astype(np.float32)
    w[(1, 1, 2, 4) if channels_last else (4, 2, 1, 1)] = np.inf
    w[(0, 2, 5, 1) if channels_last else (1, 5, 0, 2)] = -np.inf
    for got, want in beside_numpy(gpu, x, w, x, channels_last=channels_last, padding=1):
        np.testing.assert_array_equal(got, want)
        assert np.isinf(want).any()
        assert np.isfinite(want).any()


@LAYOUTS
def test_sums_that_overflow_only_in_between_do_not_spoil_the_result(gpu, channels_last):
    rng = np.random.default_rng(0)
    x = rng.integers(1, 4, shaped(channels_last, 2, 3, 9, 9)).astype(np.float32)
    x[1] *= np.float32(1.1e38)
    x[1, ::2] *= -1
    w = np.zeros(weights_shaped(channels_last, 3, 3), np.float32)
    w[(1, 1) if channels_last else (..., 1, 1)] = 0.25 * np.eye(3)
    for got, want in beside_numpy(gpu, x, w, x, channels_last=channels_last, padding=1):
        assert np.isfinite(want).all()
        np.testing.assert_allclose(got, want, rtol=1e-6)


@LAYOUTS
@pytest.mark.parametrize("bias", [False, True])
def test_a_rectified_result_is_0_where_negative_and_nan_stays(gpu, bias, channels_last):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, shaped(channels_last, 2, 5, 6, 7)).astype(np.float32)
    x[(0, 2, 3, 1) if channels_last else (0, 1, 2, 3)] = np.nan
    x[(1, 4, 3, 1) if channels_last else (1, 1, 4, 3)] = -np.inf
    w = rng.integers(1, 4, weights_shaped(channels_last, 9, 5)).astype(np.float32)
    b = rng.integers(-9, 10, 9).astype(np.float32) if bias else None
    options = {"padding": 1, "channels_last": channels_last}
    with np.errstate(invalid="ignore"):
        want = gpuconv.conv2d(x, w, b, **options)
    there = [None if a is None else gpu.to_array(a) for a in (x, w, b)]
    with gpuconv.config(algorithm="winograd"):
        y = gpu.to_numpy(gpuconv.conv2d(*there, **options, activation="relu"))
    np.testing.assert_array_equal(y, np.maximum(want, 0))
    assert np.isnan(want).any()
    assert np.isneginf(want).any()


# What does not change the bits.


@needs_kernels
@LAYOUTS
def test_an_image_alone_gives_the_bits_that_it_gives_in_a_batch(channels_last):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shaped(channels_last, 5, 7, 5, 6)).astype(np.float32)
    w = rng.standard_normal(weights_shaped(channels_last, 5, 7)).astype(np.float32)
    x, w = map(host_runtime.to_device, (x, w))
    with gpuconv.config(algorithm="winograd"):
        batch = gpuconv.conv2d(x, w, padding=1, channels_last=channels_last)
        for n in range(5):
            alone = gpuconv.conv2d(x[n : n + 1], w, padding=1, channels_last=channels_last)
            np.testing.assert_array_equal(batch[n : n + 1], alone)


@needs_kernels
@LAYOUTS
def test_windows_that_are_compiled_in_give_the_same_bits(channels_last, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shaped(channels_last, 2, 6, 7, 8)).astype(np.float32)
    w = rng.standard_normal(weights_shaped(channels_last, 6, 6)).astype(np.float32)
    x, w = map(host_runtime.to_device, (x, w))
    with gpuconv.config(algorithm="winograd"):
        want = gpuconv.conv2d(x, w, padding=1, channels_last=channels_last)
        monkeypatch.setattr(host_runtime.host, "exact", True)
        got = gpuconv.conv2d(x, w, padding=1, channels_last=channels_last)
    np.testing.assert_array_equal(got, want)


@needs_kernels
@LAYOUTS
def test_weights_beyond_the_limit_are_transformed_block_by_block(channels_last, monkeypatch):
    rng, device = np.random.default_rng(0), host_runtime.host
    x = rng.standard_normal(shaped(channels_last, 2, 10, 5, 6)).astype(np.float32)
    w = rng.standard_normal(weights_shaped(channels_last, 140, 5)).astype(np.float32)
    there = host_runtime.to_device(x), host_runtime.to_device(w)
    block, results = 16 * 8 * winograd.KERNELS * 4, []
    for limit in (block, 2 * block, 16 << 20):
        monkeypatch.setattr(host_runtime, "DEFAULT_WORKSPACE", limit)
        device.reset()
        with gpuconv.config(algorithm="winograd"):
            y = gpuconv.conv2d(*there, groups=2, channels_last=channels_last)
        results.append((host_runtime.to_host(y), device.peak_workspace, len(device.launches)))
    for y, _, _ in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
    # of the 4 blocks that 2 groups of 70 channels have
    assert [(peak // block, launches) for _, peak, launches in results] == [(1, 8), (2, 4), (4, 2)]


def problem_of(**changes):
    window = sliding_window(
        "test", (8, 8), changes.pop("kernel", (3, 3)), changes.pop("stride", 1), 2, changes.pop("dilation", 1)
    )
    usual = Problem(window, 2, 16, 16, np.dtype(np.float32), False, "ieee")
    return usual._replace(**changes)


def test_a_limit_below_one_block_is_refused_with_the_bytes_of_it():
    block = 16 * 16 * winograd.KERNELS * 4
    for plan in (winograd.plan_forward, winograd.plan_input_grad):
        with pytest.raises(LimitTooSmall) as refused:
            plan(problem_of(), dense(16, (8, 8), False), 4, Epilogue(False), block - 1)
        assert refused.value.least == block


def test_places_in_the_padding_count_for_the_width_of_indices(monkeypatch):
    monkeypatch.setattr(kernels, "NARROW", 2**31)  # whatever the backend in turn has
    rows_apart = 320 << 20  # of 2 rows; with a tile's reach 2^31 numbers and more
    x = dense(16, (2, 8), False)
    for place, index in (((8, 1), "int"), ((rows_apart, 1), "long long")):
        window = sliding_window("test", (2, 8), (3, 3), 1, 1)
        plan = winograd.plan_forward.__wrapped__(
            problem_of(window=window), x._replace(place=place), 4, Epilogue(True), 16 << 20
        )
        assert {dict(step.kernel.defines)["INDEX"] for step in plan.steps} == {index}


# What is chosen.


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": np.dtype(np.float64)},
        {"dtype": np.dtype(np.float16)},
        {"dtype": np.dtype(np.complex64)},
        {"precision": "tf32"},
        {"stride": 2},
        {"stride": (1, 2)},
        {"dilation": (2, 1)},
        {"kernel": (5, 3)},
    ],
)
def test_what_the_kernels_do_not_compute_is_not_taken(changes):
    for which in ("forward", "input_grad"):
        assert winograd.takes(problem_of(), which)
        assert not winograd.takes(problem_of(**changes), which)
    assert not winograd.takes(problem_of(), "weight_grad")


@pytest.mark.parametrize("algorithm", ["auto", "gemm", "direct"])
def test_it_is_taken_only_when_it_is_asked_for(algorithm):
    with gpuconv.config(algorithm=algorithm):
        for which in ("forward", "input_grad"):
            assert choice.choose(problem_of(), which).name != "winograd"


@pytest.mark.parametrize("axes", [1, 3])
def test_other_axes_than_two_are_computed_otherwise(axes):
    x, w = empty((2, 4, *(8,) * axes), np.dtype("f4")), empty((4, 4, *(3,) * axes), np.dtype("f4"))
    with gpuconv.config(algorithm="winograd"):
        assert gpuconv.explain(f"conv{axes}d", x, w, device="cuda").algorithm == "gemm"


def test_a_plan_says_winograd_its_kernels_and_its_workspace():
    x, w = empty((8, 64, 56, 56), np.dtype("f4")), empty((128, 64, 3, 3), np.dtype("f4"))
    with gpuconv.config(algorithm="winograd"):
        plan = gpuconv.explain("conv2d", x, w, padding=1, device="cuda")
    assert (plan.algorithm, plan.workspace) == ("winograd", 16 * 64 * 128 * 4)
    assert plan.why == 'config.algorithm is "winograd"'
    assert [step.what for step in plan.steps] == ["winograd_weights", "winograd"]
    assert gpuconv.explain("conv2d", x, w, padding=1, device="cuda").algorithm == "gemm"


@LAYOUTS
def test_a_batch_may_be_empty(gpu, channels_last):
    x = gpu.to_array(np.zeros(shaped(channels_last, 0, 5, 6, 6), np.float32))
    w = gpu.to_array(np.zeros(weights_shaped(channels_last, 4, 5), np.float32))
    with gpuconv.config(algorithm="winograd"):
        y = gpuconv.conv2d(x, w, channels_last=channels_last)
        dx = gpuconv.conv2d_input_grad(y, w, x.shape, channels_last=channels_last)
    assert (y.shape, dx.shape) == (shaped(channels_last, 0, 4, 4, 4), x.shape)


@LAYOUTS
def test_a_transposed_convolution_adds_its_bias(gpu, channels_last):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, shaped(channels_last, 2, 6, 5, 7)).astype(np.float32)
    w = rng.integers(-3, 4, weights_shaped(channels_last, 6, 5)).astype(np.float32)
    b = np.arange(5, dtype=np.float32)
    want = gpuconv.conv_transpose2d(x, w, b, padding=1, channels_last=channels_last)
    with gpuconv.config(algorithm="winograd"):
        y = gpuconv.conv_transpose2d(*map(gpu.to_array, (x, w, b)), padding=1, channels_last=channels_last)
    np.testing.assert_array_equal(gpu.to_numpy(y), want)


@needs_kernels
def test_draws_reach_every_kind_of_kernel_and_block():
    import random

    rng, seen = random.Random(0), set()
    for _ in range(100):
        case = drawn(rng, bool(rng.randint(0, 1)))
        window = sliding_window("test", case.in_size, (3, 3), 1, case.padding, groups=case.groups)
        p = Problem(window, case.n, case.c_in, case.c_out, np.dtype("f4"), case.channels_last, "ieee")
        x = dense(p.c_in, window.in_size, p.channels_last)
        _, step = winograd.plan_forward(p, x, 4, Epilogue(True), 16 << 20).steps
        seen.add(("VECTOR", dict(step.kernel.defines)["VECTOR"], p.channels_last))
        seen |= {("slices", min(3, int(step.struct["slices"]))), ("blocks", min(3, step.blocks))}
    assert {("VECTOR", vector, last) for vector in "12" for last in (False, True)} < seen
    assert {(what, number) for what in ("slices", "blocks") for number in (1, 2, 3)} < seen
