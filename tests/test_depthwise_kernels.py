"""Small groups by the CUDA kernels: tiles, phases, vectors, memory around arrays, what is chosen."""

import random

import numpy as np
import pytest
from cases import Case, draw
from host import compiler
from host import runtime as host_runtime
from hypothesis import given, settings
from hypothesis import strategies as st
from passes import check, check_nothing_around_is_read, problem_of

import gpuconv
from gpuconv import reference as define
from gpuconv.backends.cuda import choice, depthwise
from gpuconv.backends.cuda.columns import dense
from gpuconv.backends.cuda.parts import TEAM, sum_parts
from gpuconv.backends.cuda.problem import Epilogue, Problem
from gpuconv.backends.cuda.program import At
from gpuconv.geometry import sliding_window
from gpuconv.measure.shapes import conv_shapes

needs_kernels = pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True])
PASSES = ("plan_forward", "plan_input_grad", "plan_weight_grad")


def drawn(rng, channels_last):
    """Draw a convolution of small groups whose images are several tiles wide and high."""
    case = draw(rng, axes=rng.choice([1, 2, 2, 2, 3]), free=rng.random() < 0.3)
    cg, og = rng.choice([(1, 1), (1, 1), (1, 1), (1, 2), (1, 3), (2, 1), (2, 4), (4, 2)])
    groups, larger = rng.choice([1, 3, 4, 8]), rng.choice([0, 4, 8, 15])
    changes = {
        "n": max(1, case.n), "c_in": groups * cg, "c_out": groups * og, "groups": groups,
        "in_size": tuple(size + larger for size in case.in_size), "channels_last": channels_last,
    }  # fmt: skip
    return Case(**{**case.__dict__, **changes})


@LAYOUTS
@settings(max_examples=12)
@given(rng=st.randoms(use_true_random=False))
def test_small_groups_are_exactly_the_definition_on_whole_numbers(gpu, channels_last, rng):
    case, dtype = drawn(rng, channels_last), rng.choice([np.float16, np.float32, np.float64])
    check(case, "direct", dtype, gpu)


@needs_kernels
@LAYOUTS
@settings(max_examples=8)
@given(rng=st.randoms(use_true_random=False))
def test_nothing_around_an_array_is_read(channels_last, rng):
    check_nothing_around_is_read(drawn(rng, channels_last), "direct", rng)


@needs_kernels
@LAYOUTS
def test_an_infinity_in_the_corner_spoils_the_last_tap_alone(channels_last):
    # 17 x 6 outputs, so that tiles of 2 x 8 and of 2 x 4 reach beyond the end both ways
    x = np.ones((1, 19, 8, 4) if channels_last else (1, 4, 19, 8), np.float32)
    dy = np.ones((1, 17, 6, 4) if channels_last else (1, 4, 17, 6), np.float32)
    x[(0, 18, 7, 2) if channels_last else (0, 2, 18, 7)] = np.inf
    dw = gpuconv.conv2d_weight_grad(
        *map(host_runtime.to_device, (dy, x)), 3, groups=4, channels_last=channels_last
    )
    want = np.full((4, 1, 3, 3), 17 * 6.0)
    want[2, 0, 2, 2] = np.inf
    np.testing.assert_array_equal(define.weights_first(host_runtime.to_host(dw), channels_last), want)


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize("kernel, stride, padding", [(3, 1, 1), ((3, 2), 2, (1, 2))])
def test_tiles_whose_sizes_are_compiled_in_are_the_same(kernel, stride, padding, channels_last, monkeypatch):
    window = {"stride": stride, "padding": padding, "channels_last": channels_last, "groups": 8}
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (1, 15, 20, 8) if channels_last else (1, 8, 15, 20)).astype(np.float32)
    size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    w = rng.integers(-3, 4, (*size, 1, 8) if channels_last else (8, 1, *size)).astype(np.float32)
    y = gpuconv.conv2d(x, w, **window)
    want = y, *gpuconv.conv2d_backward(y, x, w, needs=("x", "w"), **window)
    monkeypatch.setattr(host_runtime.host, "exact", True)
    x, w, dy = map(host_runtime.to_device, (x, w, y))
    got = gpuconv.conv2d(x, w, **window), *gpuconv.conv2d_backward(dy, x, w, needs=("x", "w"), **window)
    for ours, must in zip(got, want, strict=True):
        if must is not None:
            np.testing.assert_array_equal(host_runtime.to_host(ours), must)


@needs_kernels
@pytest.mark.parametrize(
    "size, kernel, stride", [((9, 14), (5, 5), 2), ((6, 10), (3, 7), 1), ((3, 4, 6), 3, 1)]
)
def test_threads_share_the_taps_of_a_weight_gradient_that_are_too_many(size, kernel, stride):
    op, rng = f"conv{len(size)}d_weight_grad", np.random.default_rng(0)
    options = {"stride": stride, "padding": "same", "groups": 12, "channels_last": True}
    x = rng.integers(-3, 4, (2, *size, 12)).astype(np.float32)
    dy = rng.integers(-3, 4, (2, *(-(-n // stride) for n in size), 12)).astype(np.float32)
    there = [host_runtime.to_device(a) for a in (dy, x)]
    got = getattr(gpuconv, op)(*there, kernel, **options)
    want = getattr(gpuconv, op)(dy.astype(np.float64), x.astype(np.float64), kernel, **options)
    np.testing.assert_array_equal(host_runtime.to_host(got), want)
    window = sliding_window("test", size, kernel, stride, "same", groups=12)
    problem = Problem(window, 2, 12, 12, np.dtype("f4"), True, "ieee")
    x_laid, dy_laid = dense(12, window.in_size, True), dense(12, window.out_size, True)
    plan = depthwise.plan_weight_grad(problem, x_laid, dy_laid, 16 << 20)
    assert ("SPLIT", "1") in plan.steps[0].kernel.defines


@needs_kernels
def test_a_transposed_convolution_adds_its_bias_where_no_window_is():
    x, w, b = np.ones((1, 4, 2, 2), np.float32), np.ones((4, 1, 1, 1), np.float32), np.arange(4, dtype="f")
    y = gpuconv.conv_transpose2d(
        *map(host_runtime.to_device, (x, w, b)), stride=3, output_padding=2, groups=4
    )
    want = np.broadcast_to(b.reshape(1, 4, 1, 1), y.shape).copy()
    want[:, :, ::3, ::3] += 1
    np.testing.assert_array_equal(host_runtime.to_host(y), want)


@needs_kernels
@LAYOUTS
def test_an_image_alone_gives_the_bits_that_it_gives_in_a_batch(channels_last):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 15, 20, 4) if channels_last else (3, 4, 15, 20)).astype(np.float32)
    w = rng.standard_normal((3, 3, 1, 4) if channels_last else (4, 1, 3, 3)).astype(np.float32)
    x, w = map(host_runtime.to_device, (x, w))
    options = {"padding": 1, "groups": 4, "channels_last": channels_last}
    batch, alone = gpuconv.conv2d(x, w, **options), gpuconv.conv2d(x[1:2], w, **options)
    np.testing.assert_array_equal(batch[1:2], alone)


@needs_kernels
@pytest.mark.parametrize("parts", [1, 33, 1000])
def test_parts_are_added_up_by_one_thread_or_a_team(parts):
    host, items = host_runtime.host, 37
    sums = np.random.default_rng(0).integers(-3, 4, (parts, items)).astype(np.float32)
    there, out = host_runtime.to_device(sums), host.empty((items,), np.float32)
    step = sum_parts(At(0), At(1), items, parts, np.dtype(np.float32))
    assert step.struct["team"] == {1: 1, 33: 2, 1000: TEAM}[parts]
    step.run(host, [host.address(there), host.address(out)])
    np.testing.assert_array_equal(out, sums.sum(axis=0))


@needs_kernels
@LAYOUTS
def test_weight_gradients_keep_to_the_limit_in_fewer_parts(channels_last, monkeypatch):
    device = host_runtime.host
    shape = (16, 24, 24, 2) if channels_last else (16, 2, 24, 24)
    x = np.random.default_rng(0).integers(-3, 4, shape).astype(np.float32)
    monkeypatch.setattr(depthwise, "TILES", 1)
    results = []
    for limit in (100, 16 << 20):
        monkeypatch.setattr(host_runtime, "DEFAULT_WORKSPACE", limit)
        depthwise.plan_weight_grad.cache_clear()
        device.reset()
        there = host_runtime.to_device(x)
        dw = gpuconv.conv2d_weight_grad(there, there, 3, padding=1, groups=2, channels_last=channels_last)
        results.append((host_runtime.to_host(dw), device.peak_workspace))
    depthwise.plan_weight_grad.cache_clear()
    (small, little), (large, much) = results
    np.testing.assert_array_equal(small, large)
    assert 2 * 9 * 4 == little < much


# What is chosen.


@LAYOUTS
def test_groups_of_one_input_channel_are_computed_directly_unless_columns_are_asked_for(channels_last):
    for shape in conv_shapes():
        problem = problem_of(shape, np.float32, channels_last)
        small = max(problem.cg, problem.og) <= depthwise.MOST_CHANNELS and problem.window.taps <= 64
        assert (choice.choose(problem, "forward").name == "direct") == (small and problem.cg == 1), shape.name
        with gpuconv.config(algorithm="direct"):
            assert (choice.choose(problem, "forward").name == "direct") == small, shape.name
        with gpuconv.config(algorithm="gemm"):
            assert choice.choose(problem, "forward").name == "gemm"


@LAYOUTS
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_depthwise_layers_of_known_networks_move_several_elements_at_once(dtype, channels_last):
    for shape in conv_shapes():
        if shape.kind != "depthwise":
            continue
        p = problem_of(shape, dtype, channels_last)
        x = dense(p.c_in, p.window.in_size, channels_last)
        y = dense(p.c_out, p.window.out_size, channels_last)
        plans = {
            "forward": depthwise.plan_forward(p, x, 16, Epilogue(False), 0),
            "input_grad": depthwise.plan_input_grad(p, y, 16, Epilogue(False), 0),
            "weight_grad": depthwise.plan_weight_grad(p, x, y, 16 << 20),
        }
        # channels first, as many as both widths are a multiple of
        width = min(size[-1] & -size[-1] for size in (p.window.in_size, p.window.out_size))
        for name, plan in plans.items():
            vector = int(dict(plan.steps[0].kernel.defines)["VECTOR"])
            assert vector >= (4 if channels_last else min(width, 4)), (shape.name, name)


@needs_kernels
@LAYOUTS
def test_a_draw_of_every_kind_reaches_the_kernels(channels_last):
    rng, seen = random.Random(0), set()
    for _ in range(60):
        case = drawn(rng, channels_last)
        window = sliding_window(
            "test", case.in_size, case.kernel, case.stride, case.padding, case.dilation, groups=case.groups
        )
        p = Problem(window, case.n, case.c_in, case.c_out, np.dtype("f4"), channels_last, "ieee")
        x = dense(p.c_in, window.in_size, channels_last)
        for step in depthwise.plan_forward(p, x, 16, Epilogue(False), 0).steps:
            defines = dict(step.kernel.defines)
            seen |= {(name, defines[name]) for name in ("VECTOR", "ROWS", "AXES", "IN", "OUT")}
    assert {
        ("ROWS", "1"),
        ("ROWS", "2"),
        ("VECTOR", "1"),
        ("VECTOR", "4"),
        ("AXES", "3"),
        ("IN", "2"),
    } <= seen
