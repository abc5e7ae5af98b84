"""Implicit matrix products by the CUDA kernels: tiles, phases, tables, parts, what is chosen."""

import random
from itertools import product
from math import prod

import numpy as np
import pytest
from cases import Case, draw
from conftest import BACKENDS
from host import compiler
from host import runtime as host_runtime
from hypothesis import given, settings
from hypothesis import strategies as st
from passes import arrays, check, check_nothing_around_is_read, problem_of

import gpuconv
from gpuconv.backends.cuda import choice, implicit
from gpuconv.backends.cuda.columns import dense
from gpuconv.backends.cuda.problem import Epilogue, Problem
from gpuconv.geometry import sliding_window
from gpuconv.measure.shapes import conv_shapes

needs_kernels = pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True])


def drawn(rng, channels_last):
    """Draw a convolution whose groups and terms fill a slice or a tile, or don't."""
    case = draw(rng, axes=rng.choice([1, 2, 2, 2, 3]), free=rng.random() < 0.3)
    groups, cg, og = rng.choice([1, 1, 2, 3]), rng.choice([1, 3, 8, 20]), rng.choice([1, 4, 18, 33, 40])
    changes = {
        "n": max(1, case.n), "c_in": groups * cg, "c_out": groups * og, "groups": groups,
        "channels_last": channels_last,
    }  # fmt: skip
    return Case(**{**case.__dict__, **changes})


def programs(p, limit=16 << 20):
    """Return the programs of the three passes, for dense arrays."""
    x, y = (
        dense(c, size, p.channels_last)
        for c, size in ((p.c_in, p.window.in_size), (p.c_out, p.window.out_size))
    )
    return {
        "forward": implicit.plan_forward(p, x, 16, Epilogue(True), limit),
        "input_grad": implicit.plan_input_grad(p, y, 16, Epilogue(False), limit),
        "weight_grad": implicit.plan_weight_grad(p, x, y, limit),
    }


def case_of(channels_last, c_in, c_out, in_size, kernel, **options):
    """Return a configuration; what isn't named is as plain as can be."""
    ones = (1,) * len(kernel)
    plain = {"n": 1, "groups": 1, "stride": ones, "dilation": ones, "padding": 1, "seed": 0}
    unused = {"ceil_mode": False, "count_include_pad": True}
    sizes = {"c_in": c_in, "c_out": c_out, "in_size": in_size, "kernel": kernel}
    return Case(**{**plain, **unused, **sizes, **options}, channels_last=channels_last)


@pytest.fixture
def chosen(monkeypatch):
    """Let a test choose the `tile`, or how many parts there are, `count_parts`, of y and dx."""

    def choose(**choices):
        for name, value in choices.items():
            monkeypatch.setattr(implicit, name, lambda *of, value=value: value)
        forget()

    yield choose
    monkeypatch.undo()
    forget()


def check_here(case, dtype=np.float32):
    check(case, "implicit", dtype, BACKENDS["kernels"])


def forget():
    for plan in (implicit.plan_forward, implicit.plan_input_grad, implicit.plan_weight_grad):
        plan.cache_clear()


@LAYOUTS
@settings(max_examples=15)
@given(rng=st.randoms(use_true_random=False))
def test_all_passes_are_exactly_the_definition_on_whole_numbers(gpu, channels_last, rng):
    case, dtype = drawn(rng, channels_last), rng.choice([np.float16, np.float32, np.float32, np.float64])
    check(case, "implicit", dtype, gpu)


@needs_kernels
@LAYOUTS
@settings(max_examples=8)
@given(rng=st.randoms(use_true_random=False))
def test_nothing_around_an_array_is_read(channels_last, rng):
    dtype = rng.choice([np.float16, np.float32])
    check_nothing_around_is_read(drawn(rng, channels_last), "implicit", rng, dtype)


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize(
    "tile", [*implicit.SINGLE, implicit.SMALL], ids=lambda tile: f"{tile.channels}x{tile.places}"
)
def test_every_tile_is_filled_and_overflows(tile, channels_last, chosen):
    chosen(tile=tile)
    check_here(case_of(channels_last, 5, tile.channels + 5, (13, 16), (3, 2), n=2, stride=(1, 2)))


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize("products", [1, 3])
@pytest.mark.parametrize(
    "tile", [*implicit.TENSOR, implicit.SMALL], ids=lambda tile: f"{tile.channels}x{tile.places}"
)
def test_every_tile_of_tensor_cores_is_filled_and_overflows(tile, products, channels_last, chosen):
    chosen(tile=tile._replace(tensor=products))  # whole numbers this small are TF32's, too
    check_here(case_of(channels_last, 3, tile.channels + 3, (9, 8), (3, 2), n=2, stride=(1, 2)))


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize("deeper", [1, 2])
@pytest.mark.parametrize(
    "tile", [*implicit.TENSOR, implicit.SMALL], ids=lambda tile: f"{tile.channels}x{tile.places}"
)
def test_every_tile_of_float16_is_filled_and_overflows(tile, deeper, channels_last, chosen):
    chosen(tile=tile._replace(tensor=1, depth=max(16, tile.depth * deeper)))
    options = {"n": 2, "stride": (1, 2)}
    for c_in, more in ((3, 3), (8, 8)):  # copied one by one, and in vectors
        case = case_of(channels_last, c_in, tile.channels + more, (9, 8), (3, 2), **options)
        check_here(case, np.float16)


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize("precision, bound", [("ieee", 2**-22), ("3xtf32", 2**-20), ("tf32", 2**-10)])
@pytest.mark.parametrize("channels", [20, 19])
def test_factors_are_rounded_as_the_precision_says(channels, precision, bound, channels_last):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 6, 7, channels) if channels_last else (1, channels, 6, 7)).astype(np.float32)
    w = rng.standard_normal((3, 3, channels, 6) if channels_last else (6, channels, 3, 3)).astype(np.float32)
    options = {"padding": 1, "channels_last": channels_last}
    with gpuconv.config(algorithm="implicit", fp32_precision=precision):
        y = host_runtime.to_host(gpuconv.conv2d(*map(host_runtime.to_device, (x, w)), **options))
    want, size = (gpuconv.conv2d(f(x.astype(float)), f(w.astype(float)), **options) for f in (np.array, abs))
    worst = (abs(y - want) / size).max()
    assert bound / 300 < worst < bound


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize("parts", [1, 2])
def test_sums_of_float16_are_of_float32_and_rounded_once(channels_last, parts, chosen):
    # 4096 + 1 - 4096: in float16, which has only even numbers there, the 1 would be lost.
    chosen(count_parts=parts)
    shape = (1, 3, 3, 24) if channels_last else (1, 24, 3, 3)
    x, w = np.zeros(shape, np.float16), np.ones((1, 1, 24, 2) if channels_last else (2, 24, 1, 1), np.float16)
    channel = [x[0, 1, 1] if channels_last else x[0, :, 1, 1]][0]
    channel[[0, 3, 19]] = 4096, 1, -4096
    there, options = [host_runtime.to_device(a) for a in (x, w)], {"channels_last": channels_last}
    with gpuconv.config(algorithm="implicit"):
        y = host_runtime.to_host(gpuconv.conv2d(*there, **options))
    assert y.sum() == 2 and y.dtype == np.float16


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize(
    "stride, dilation, parts", [(1, 1, 1), (2, 1, 1), (3, 2, 1), (2, 2, 1), (1, 1, 2), (2, 1, 2)]
)
def test_sums_of_many_terms_go_through_several_tables(stride, dilation, parts, channels_last, chosen):
    # 9 * 70 terms forward and 9 * 66 backward, of which some phases have a quarter or none
    chosen(count_parts=parts)
    window = {"stride": (stride,) * 2, "dilation": (dilation,) * 2, "padding": ((2, 1), (0, 3))}
    check_here(case_of(channels_last, 70, 66, (9, 10), (3, 3), **window))


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize("kernel", [(8, 8), (1, 64), (40,)])
def test_every_bit_of_a_mask_is_a_tap(kernel, channels_last):
    check_here(case_of(channels_last, 2, 3, tuple(k + 3 for k in kernel), kernel, padding=2))


@needs_kernels
@LAYOUTS
def test_constants_that_are_compiled_in_change_nothing(channels_last, monkeypatch):
    monkeypatch.setattr(host_runtime.host, "exact", True)
    options = {"stride": (2, 1), "dilation": (1, 2), "groups": 2, "n": 2}
    check_here(case_of(channels_last, 6, 18, (9, 12), (3, 2), **options))


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_weight_gradients_of_many_parts_keep_to_the_limit(channels_last, dtype, monkeypatch):
    device = host_runtime.host
    shape = (4, 24, 24, 5) if channels_last else (4, 5, 24, 24)
    x = np.random.default_rng(0).integers(-3, 4, shape).astype(dtype)
    results = []
    for limit in (100, 2000, 16 << 20):
        monkeypatch.setattr(host_runtime, "DEFAULT_WORKSPACE", limit)
        device.reset()
        there = host_runtime.to_device(x)
        with gpuconv.config(algorithm="implicit"):
            dw = gpuconv.conv2d_weight_grad(there, there, 3, padding=1, channels_last=channels_last)
        results.append((host_runtime.to_host(dw), device.peak_workspace))
    (one, none), (two, some), (most, much) = results
    np.testing.assert_array_equal(one, most)
    np.testing.assert_array_equal(two, most)
    assert none == 0 and some <= 2000 < much and some == 2 * 4 * one.size


# Sums of y and dx in parts.


def check_in_parts(case, dtype=np.float32):
    device = host_runtime.host
    device.reset()
    check_here(case, dtype)
    assert [name for name, _ in device.launches][:4] == ["implicit_gemm", "sum_parts"] * 2


# Fewer slices than parts, as many as not; phases without taps.
GROUPED = (3, 3), (6, 7), {"groups": 2, "n": 2}
IN_PARTS = [
    (np.float16, *GROUPED),
    (np.float32, *GROUPED),
    (np.float64, *GROUPED),
    (np.float32, (5,), (17,), {"stride": (2,), "dilation": (3,), "padding": 2}),
    (np.float32, (3, 2), (9, 8), {"stride": (2, 3), "dilation": (2, 1)}),
    (np.float32, (2, 3, 2), (4, 5, 6), {"stride": (1, 2, 1), "groups": 2}),
    (np.float32, (1, 1), (7, 6), {"stride": (2, 2), "padding": 0}),
]


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize("dtype, kernel, in_size, options", IN_PARTS)
def test_parts_add_up_to_exactly_the_definition(dtype, kernel, in_size, options, channels_last, chosen):
    chosen(count_parts=5)
    check_in_parts(case_of(channels_last, 22, 18, in_size, kernel, **options), dtype)


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize("precision", ["tf32", "3xtf32"])
def test_parts_are_multiplied_by_tensor_cores_too(precision, channels_last, chosen):
    chosen(count_parts=3)
    with gpuconv.config(fp32_precision=precision):
        check_in_parts(case_of(channels_last, 24, 20, (6, 7), (3, 3), n=2))


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_parts_get_one_bias_and_are_rectified_together(channels_last, dtype, chosen):
    case = case_of(channels_last, 12, 10, (5, 6), (3, 3), n=2, groups=2)
    x, w, b, dy = arrays(case, dtype)
    want = np.maximum(gpuconv.conv2d(x, w, b, **case.conv()), 0)
    up = gpuconv.conv_transpose2d(dy, w, np.arange(12, dtype=dtype), **case.conv())
    chosen(count_parts=4)
    there = [host_runtime.to_device(a) for a in (x, w, b, dy, np.arange(12, dtype=dtype))]
    with gpuconv.config(algorithm="implicit"):
        y = gpuconv.conv2d(*there[:3], activation="relu", **case.conv())
        transposed = gpuconv.conv_transpose2d(there[3], there[1], there[4], **case.conv())
    np.testing.assert_array_equal(host_runtime.to_host(y), want)
    np.testing.assert_array_equal(host_runtime.to_host(transposed), up)
    assert (want > 0).any() and (want == 0).any()


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize("activation", [None, "relu"])
def test_what_is_not_finite_goes_through_parts(channels_last, activation, chosen):
    x = np.ones((1, 4, 4, 40) if channels_last else (1, 40, 4, 4), np.float32)
    w = np.ones((1, 1, 40, 3) if channels_last else (3, 40, 1, 1), np.float32)
    pixels = x[0] if channels_last else x[0].transpose(1, 2, 0)
    pixels[0, 0, [0, 39]] = np.inf, -np.inf  # of the first and the last part
    pixels[1, 1, 20], pixels[2, 2, 20], pixels[3, 3, 39] = np.nan, np.inf, -np.inf
    options = {"channels_last": channels_last, "activation": activation}
    with np.errstate(invalid="ignore"):
        want = gpuconv.conv2d(x, w, **options)
    chosen(count_parts=3)
    with gpuconv.config(algorithm="implicit"):
        y = gpuconv.conv2d(*map(host_runtime.to_device, (x, w)), **options)
    np.testing.assert_array_equal(host_runtime.to_host(y), want)
    assert np.isnan(want).sum() == 2 * 3


@needs_kernels
@LAYOUTS
def test_parts_of_what_is_no_whole_number_give_the_same_bits_again(channels_last):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 4, 5, 64) if channels_last else (1, 64, 4, 5)).astype(np.float32)
    w = rng.standard_normal((3, 3, 64, 8) if channels_last else (8, 64, 3, 3)).astype(np.float32)
    there = [host_runtime.to_device(a) for a in (x, w)]
    results, options = [], {"padding": 1, "channels_last": channels_last}
    for _ in range(2):
        host_runtime.host.reset()
        with gpuconv.config(algorithm="implicit"):
            results.append(host_runtime.to_host(gpuconv.conv2d(*there, **options)))
        assert host_runtime.host.launches == [("implicit_gemm", 4), ("sum_parts", 1)]
    np.testing.assert_array_equal(*results)
    np.testing.assert_allclose(results[0], gpuconv.conv2d(x, w, **options), rtol=0, atol=1e-4)


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_parts_keep_to_the_limit_and_to_the_memory_that_is_there(channels_last, dtype, monkeypatch):
    device = host_runtime.host
    case = case_of(channels_last, 64, 64, (4, 5), (3, 3))
    x, w, _, dy = map(host_runtime.to_device, arrays(case, dtype))
    part = 64 * 20 * 4

    def both(limit, capacity):
        """Return y and dx, and the most workspace that either took."""
        monkeypatch.setattr(host_runtime, "DEFAULT_WORKSPACE", limit)
        monkeypatch.setattr(device, "capacity", capacity)
        device.reset()
        with gpuconv.config(algorithm="implicit"):
            y = gpuconv.conv2d(x, w, **case.conv())
            dx = gpuconv.conv2d_input_grad(dy, w, case.x_shape(), **case.conv())
        return np.stack([host_runtime.to_host(y), host_runtime.to_host(dx)]), device.peak_workspace

    whole, most = both(16 << 20, None)
    assert most == (2 if dtype == np.float16 and channels_last else 4) * part
    for limit, capacity, taken in (
        (part, None, 0),
        (2 * part + 1, None, 2 * part),
        (16 << 20, most - 1, most // 2 if most > 2 * part else 0),
    ):
        got, peak = both(limit, capacity)
        np.testing.assert_array_equal(got, whole)
        assert peak == taken


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize("parts", [1, 3])
def test_an_image_alone_gives_the_bits_that_it_gives_in_a_batch_in_as_many_parts(
    channels_last, parts, chosen
):
    chosen(count_parts=parts)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 15, 20, 6) if channels_last else (3, 6, 15, 20)).astype(np.float32)
    w = rng.standard_normal((3, 3, 6, 9) if channels_last else (9, 6, 3, 3)).astype(np.float32)
    x, w = map(host_runtime.to_device, (x, w))
    options = {"padding": 1, "channels_last": channels_last}
    with gpuconv.config(algorithm="implicit"):
        batch, alone = gpuconv.conv2d(x, w, **options), gpuconv.conv2d(x[1:2], w, **options)
    np.testing.assert_array_equal(batch[1:2], alone)


@needs_kernels
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_infinities_arrive_where_they_should_and_nowhere_else(precision):
    x, w = np.ones((1, 3, 6, 6), np.float32), np.ones((4, 3, 3, 3), np.float32)
    x[0, 1, 5, 5], x[0, 2, 0, 0] = np.inf, np.nan
    with gpuconv.config(algorithm="implicit", fp32_precision=precision):
        y = host_runtime.to_host(gpuconv.conv2d(*map(host_runtime.to_device, (x, w)), padding=1))
    np.testing.assert_array_equal(y, gpuconv.conv2d(x, w, padding=1))
    assert np.isinf(y).sum() == np.isnan(y).sum() == 4 * 4


@needs_kernels
@LAYOUTS
def test_a_dy_that_reads_nothing_but_padding_still_counts(channels_last):
    x, dy = (np.ones((1, *s, 1) if channels_last else (1, 1, *s), np.float32) for s in ((2, 2), (5, 5)))
    dy[0, :1, :1, :1] = np.nan
    with gpuconv.config(algorithm="implicit"):
        there = host_runtime.to_device(dy), host_runtime.to_device(x)
        dw = gpuconv.conv2d_weight_grad(*there, 2, padding=2, channels_last=channels_last)
    assert np.isnan(host_runtime.to_host(dw)).all()


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize("stride, dilation", [((5, 1), (1, 1)), ((100, 7), (1, 1)), ((3, 3), (2**30, 2))])
def test_there_are_no_more_phases_than_places(stride, dilation, channels_last):
    case = case_of(
        channels_last, 3, 4, (4, 6), (1, 2), stride=stride, dilation=dilation, padding=((0, 0), (1, 1))
    )
    check_here(case)
    dx = implicit.plan_input_grad(
        Problem(sliding_window("test", (4, 6), (1, 2), stride, ((0, 0), (1, 1)), dilation), 1, 3, 4,
                np.dtype("f4"), channels_last, "ieee"),
        dense(4, case.sliding().out_size, channels_last), 16, Epilogue(False), 0,
    )  # fmt: skip
    assert dx.steps[0].blocks == min(stride[0], 4) * min(stride[1], 6)


@needs_kernels
@LAYOUTS
def test_slices_are_filled_up_with_nothing_that_an_infinity_would_spoil(channels_last):
    x = np.ones((1, 5, 5, 3) if channels_last else (1, 3, 5, 5), np.float32)  # 27 terms, and 9 places
    w = np.ones((3, 3, 3, 2) if channels_last else (2, 3, 3, 3), np.float32)
    dy = np.ones((1, 3, 3, 2) if channels_last else (1, 2, 3, 3), np.float32)
    x[0, 0, 0, 0] = w[0, 0, 0, 0] = dy[0, 0, 0, 0] = np.inf
    with gpuconv.config(algorithm="implicit"):
        there = [host_runtime.to_device(a) for a in (x, w, dy)]
        y = gpuconv.conv2d(*there[:2], channels_last=channels_last)
        dw = gpuconv.conv2d_weight_grad(there[2], there[0], 3, channels_last=channels_last)
    assert not np.isnan(host_runtime.to_host(y)).any() and not np.isnan(host_runtime.to_host(dw)).any()


@needs_kernels
def test_a_transposed_convolution_adds_its_bias_where_no_window_is():
    x, w, b = np.ones((1, 4, 2, 2), np.float32), np.ones((4, 5, 1, 1), np.float32), np.arange(5, dtype="f")
    with gpuconv.config(algorithm="implicit"):
        y = gpuconv.conv_transpose2d(*map(host_runtime.to_device, (x, w, b)), stride=3, output_padding=2)
    want = np.broadcast_to(b.reshape(1, 5, 1, 1), y.shape).copy()
    want[:, :, ::3, ::3] += 4
    np.testing.assert_array_equal(host_runtime.to_host(y), want)


# What is chosen.


@LAYOUTS
def test_it_waits_to_be_asked_for(channels_last):
    for shape, which in product(conv_shapes(), ("forward", "input_grad", "weight_grad")):
        p = problem_of(shape, np.float32, channels_last)
        assert choice.choose(p, which).name != "implicit"
        with gpuconv.config(algorithm="implicit"):
            assert (choice.choose(p, which).name == "implicit") == (p.window.taps <= 64)
            assert choice.choose(p._replace(dtype=np.dtype(np.complex64)), which).name != "implicit"


@LAYOUTS
@pytest.mark.parametrize("dtype, precision", [("f2", "ieee"), ("f4", "ieee"), ("f4", "tf32"), ("f8", "ieee")])
def test_only_sums_in_parts_take_workspace_and_no_more_than_they_may(channels_last, dtype, precision):
    for shape in conv_shapes():
        p = problem_of(shape, dtype, channels_last)._replace(precision=precision)
        if implicit.takes(p, "forward"):
            found = programs(p, 8 << 20)
            for program in found.values():
                assert (program.workspace > 0) == (len(program.steps) == 2), shape.name
                assert program.workspace <= 8 << 20, shape.name
            assert all(step.shared <= 48 << 10 for program in found.values() for step in program.steps)


@LAYOUTS
def test_layers_of_known_networks_are_copied_and_written_in_vectors(channels_last):
    for shape in conv_shapes():
        p = problem_of(shape, np.float32, channels_last)
        if shape.kind != "dense" or not implicit.takes(p, "forward"):
            continue
        vectors = {
            name: int(dict(plan.steps[0].kernel.defines)["VECTOR"]) for name, plan in programs(p).items()
        }
        if channels_last:
            forward = dict(programs(p)["forward"].steps[0].kernel.defines)
            assert forward["WEIGHTS_WIDTH"] == "4" or shape.c_out % 4
            assert vectors["forward"] == 4 or shape.c_out % 4, shape.name
        elif p.window.places % 4 == 0:
            assert vectors["forward"] == 4, shape.name
        assert vectors["weight_grad"] == 4 or (p.c_out if channels_last else p.rows) % 4, shape.name


def test_float16_is_copied_sixteen_bytes_at_a_time_channels_last():
    for shape in conv_shapes():
        p = problem_of(shape, np.float16, True)
        if shape.kind != "dense" or p.cg % 8 or p.og % 8 or not implicit.takes(p, "forward"):
            continue
        for name, program in programs(p).items():
            defines = dict(program.steps[0].kernel.defines)
            widths = {value for key, value in defines.items() if key.endswith("_WIDTH")}
            assert widths == {"8"}, (shape.name, name)


def test_tiles_leave_few_channels_idle_and_are_many():
    single = Problem(conv_shapes()[0].window(), 1, 1, 1, np.dtype(np.float32), False, "ieee")
    chosen = {c: implicit.tile(single, c, 1 << 20).channels for c in (3, 16, 24, 32, 64, 96, 128, 192, 512)}
    assert chosen == {3: 16, 16: 16, 24: 32, 32: 32, 64: 64, 96: 32, 128: 128, 192: 64, 512: 128}
    assert implicit.tile(single, 512, 49 * 32) == implicit.SMALL
    assert implicit.tile(single, 20, 49) == implicit.SINGLE[2]


RESNET_C5 = (512, 7, 7), (512, 512, 3, 3)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("n, parts", [(1, 33), (2, 16), (8, 4), (16, 2), (32, 1)])
def test_a_layer_of_few_tiles_is_cut_into_parts_and_a_large_batch_is_not(n, parts, dtype):
    image, w = RESNET_C5
    x, blocks = (n, *image), 8 * -(-n * 49 // 64)
    with gpuconv.config(algorithm="implicit"):
        y = gpuconv.explain("conv2d", x, w, padding=1, dtype=dtype, device="cuda")
        dx = gpuconv.explain("conv2d_input_grad", x, w, x, padding=1, dtype=dtype, device="cuda")
    for plan in (y, dx):
        first, *last = plan.steps
        assert (first.what, first.sizes["blocks"]) == ("implicit_gemm", blocks * parts)
        assert [step.what for step in last] == ["sum_parts"] * (parts > 1)
        assert plan.workspace == (parts > 1) * parts * n * 512 * 49 * 4
        assert plan.capturable


@LAYOUTS
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_blocks_of_parts_are_no_more_than_enough_and_parts_not_too_short(channels_last, dtype):
    seen = set()
    for shape, n in product(conv_shapes(), (1, 2, 3, 7, 16)):
        p = problem_of(shape, dtype, channels_last)._replace(images=n)
        if not implicit.takes(p, "forward"):
            continue
        for name, terms in (("forward", p.rows), ("input_grad", p.og * p.window.taps)):
            first, *last = programs(p)[name].steps
            parts, depth = int(first.struct["parts"]), int(dict(first.kernel.defines)["DEPTH"])
            assert len(last) == (parts > 1)
            if parts > 1:
                assert terms // depth >= parts * implicit.LEAST_SLICES, (shape.name, n)
                # of phases without taps, blocks don't count
                assert first.blocks <= implicit.ENOUGH_BLOCKS * prod(p.window.stride), (shape.name, n)
            seen.add((name, parts > 1))
    assert len(seen) == 4


@pytest.mark.parametrize("kernel, parts", [(1, 4), (3, 9)])
def test_of_phases_those_that_read_count_with_their_mean_of_terms(kernel, parts):
    # Of four phases one has 512 terms and the others none; or they have 9 * 512 together.
    window = sliding_window("test", (14, 14), kernel, 2, kernel // 2)
    p = Problem(window, 1, 256, 512, np.dtype("f4"), False, "ieee")
    first, _ = programs(p)["input_grad"].steps
    assert (first.struct["parts"], first.blocks) == (parts, 4 * 4 * parts)


@needs_kernels
@LAYOUTS
def test_a_draw_of_every_kind_reaches_the_kernels(channels_last):
    rng, seen = random.Random(0), set()
    for _ in range(60):
        case = drawn(rng, channels_last)
        options = case.stride, case.padding, case.dilation
        window = sliding_window("test", case.in_size, case.kernel, *options, groups=case.groups)
        p = Problem(window, case.n, case.c_in, case.c_out, np.dtype("f4"), channels_last, "ieee")
        for program in programs(p).values():
            defines = dict(program.steps[0].kernel.defines)
            seen |= {(name, defines.get(name)) for name in ("VECTOR", "AXES", "WEIGHTS_WIDTH", "BACKWARD")}
    want = {("VECTOR", "1"), ("VECTOR", "4"), ("BACKWARD", "0"), ("BACKWARD", "1")}
    want |= {("AXES", str(n)) for n in (1, 2, 3)} | (
        {("WEIGHTS_WIDTH", "1"), ("WEIGHTS_WIDTH", "4")} if channels_last else set()
    )
    assert want <= seen


@LAYOUTS
def test_the_tile_that_would_spill_is_not_taken(channels_last):
    window = sliding_window("test", (28, 28), 1)
    p = Problem(window, 32, 256, 256, np.dtype("f4"), channels_last, "ieee")
    found = {name: dict(program.steps[0].kernel.defines) for name, program in programs(p).items()}
    assert found["input_grad"]["COLUMNS"] == ("64" if channels_last else "128")
    assert found["forward"]["COLUMNS"] == found["input_grad"]["ROWS"] == "128"
