"""What only the CUDA backend has: workspace, index width, programs, missing pieces. Run on the CPU."""

import csv
import inspect
import random
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cases import Case, draw, in_layout
from compare import assert_close
from host import compiler
from host import runtime as host_runtime
from hypothesis import given
from hypothesis import strategies as st

import gpuconv
from gpuconv import reference as define
from gpuconv.backends import cpu, cuda
from gpuconv.backends.cuda import columns, gemm, kernels, pooling, program, runtime
from gpuconv.backends.cuda import problem as problem_module
from gpuconv.backends.cuda.columns import dense
from gpuconv.backends.cuda.parts import sum_parts
from gpuconv.backends.cuda.problem import Epilogue, Problem
from gpuconv.backends.cuda.program import At, Gemm, LimitTooSmall, Matrix
from gpuconv.geometry import sliding_window

needs_kernels = pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())
MB = 1 << 20
SHAPES = Path(__file__).parents[1] / "profiling/conv_shapes.csv"


@pytest.fixture
def host():
    """The stand-in for a GPU, with a new account, and all its memory."""
    device = host_runtime.host
    device.reset()
    orders = device.orders
    yield device
    device.capacity, device.orders = None, orders


def _on_device(*arrays):
    return [host_runtime.to_device(a) for a in arrays]


def _plans(problem, limit):
    """Return the programs of an operation's three passes, for dense arrays."""
    x = dense(problem.c_in, problem.window.in_size, problem.channels_last)
    dy = dense(problem.c_out, problem.window.out_size, problem.channels_last)
    return {
        "forward": gemm.plan_forward.__wrapped__(problem, x, 16, Epilogue(False), limit),
        "input_grad": gemm.plan_input_grad.__wrapped__(problem, dy, 16, Epilogue(False), limit),
        "weight_grad": gemm.plan_weight_grad.__wrapped__(problem, x, dy, limit),
    }


def _problem(n, c, size, k, kernel, *, groups=1, dtype=np.float32, channels_last=False, **window):
    described = sliding_window("test", size, kernel, groups=groups, **window)
    return Problem(described, n, c, k, np.dtype(dtype), channels_last, "ieee")


def _shared_shapes():
    with SHAPES.open(encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


# Workspace.


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("limit", [MB, 25 * MB, 1024 * MB])
def test_programs_of_all_shared_shapes_keep_to_the_limit(limit, dtype, channels_last):
    for row in _shared_shapes():
        number = {key: int(value) for key, value in row.items() if value.isdigit()}
        problem = _problem(
            min(number["n"], 4),
            number["c_in"],
            (number["h"], number["w"]),
            number["c_out"],
            (number["kh"], number["kw"]),
            groups=number["groups"],
            stride=number["stride"],
            padding=number["padding"],
            dilation=number["dilation"],
            dtype=dtype,
            channels_last=channels_last,
        )
        for name, planned in _plans(problem, limit).items():
            assert planned.workspace <= limit, (row["name"], name)
            assert planned.steps


@needs_kernels
@pytest.mark.parametrize("channels_last", [False, True])
def test_soumith_l1_keeps_to_one_megabyte_and_gives_what_a_gigabyte_gives(host, channels_last):
    host.orders = 1  # in ascending order alone: the kernels are tried in others elsewhere
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 3, 128, 128), np.float32), rng.standard_normal((96, 3, 11, 11), np.float32)
    dy = rng.standard_normal((1, 96, 118, 118), np.float32)
    if channels_last:
        x, dy, w = np.moveaxis(x, 1, -1), np.moveaxis(dy, 1, -1), np.moveaxis(w, (0, 1), (-1, -2))
    arrays = _on_device(x, w, dy)
    results = {}
    for limit in (MB, 1024 * MB):
        host.reset()
        with gpuconv.config(workspace_limit=limit):
            y = gpuconv.conv2d(arrays[0], arrays[1], channels_last=channels_last)
            dx, dw, db = gpuconv.conv2d_backward(arrays[2], *arrays[:2], channels_last=channels_last)
        assert 0 < host.peak_workspace <= limit
        assert host.live_workspace == 0
        results[limit] = [host_runtime.to_host(a) for a in (y, dx, dw, db)]
    for small, large in zip(results[MB], results[1024 * MB], strict=True):
        assert_close(small, large, 1e-5)


@needs_kernels
@pytest.mark.parametrize("channels_last", [False, True])
def test_float16_weight_gradient_over_256_chunks_stays_near_float64(host, channels_last):
    rng = np.random.default_rng(0)
    x = rng.random((128, 16, 16, 16)).astype(np.float16)  # positive: a sum of float16 would stall
    dy = rng.random((128, 16, 16, 16)).astype(np.float16)
    exact = gpuconv.conv2d_weight_grad(dy.astype(np.float64), x.astype(np.float64), 3, padding=1)
    if channels_last:
        x, dy = np.moveaxis(x, 1, -1), np.moveaxis(dy, 1, -1)
        exact = np.moveaxis(exact, (0, 1), (-1, -2))
    x, dy = _on_device(x, dy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_runtime, "DEFAULT_WORKSPACE", 36 << 10)
        got = gpuconv.conv2d_weight_grad(dy, x, 3, padding=1, channels_last=channels_last)
    assert len(host.gemms) >= 256
    # Rounding the result once to float16 may cost 2^-11 of it.
    assert np.abs(host_runtime.to_host(got) - exact).max() <= (3e-4 + 2**-11) * exact.max()
    relative = np.linalg.norm(host_runtime.to_host(got) - exact) / np.linalg.norm(exact)
    assert relative <= 3e-4


@needs_kernels
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_pointwise_convolution_takes_no_columns(host, channels_last, groups):
    x = np.ones((2, 5, 7, 4) if channels_last else (2, 4, 5, 7), np.float32)
    w = np.ones((1, 1, 4 // groups, 6) if channels_last else (6, 4 // groups, 1, 1), np.float32)
    x, w = _on_device(x, w)
    y = gpuconv.conv2d(x, w, groups=groups, channels_last=channels_last)
    gpuconv.conv2d_input_grad(y, w, x.shape, groups=groups, channels_last=channels_last)
    gpuconv.conv2d_weight_grad(y, x, 1, groups=groups, channels_last=channels_last)
    assert host.peak_workspace == 0
    assert not host.launches
    assert host.gemms


@needs_kernels
def test_full_memory_halves_the_chunks_until_they_fit(host):
    rng = np.random.default_rng(0)
    x, w = rng.integers(-3, 4, (4, 8, 20, 20)).astype(np.float32), np.ones((8, 8, 3, 3), np.float32)
    want = gpuconv.conv2d(x, w, padding=1)
    host.capacity = 40_000  # one image's columns take 115,200 bytes
    got = gpuconv.conv2d(*_on_device(x, w), padding=1)
    np.testing.assert_array_equal(host_runtime.to_host(got), want)
    assert 0 < host.peak_workspace <= host.capacity


@needs_kernels
def test_memory_that_is_full_altogether_is_an_error_with_the_bytes_asked_for(host):
    x, w = _on_device(np.ones((1, 8, 20, 20), np.float32), np.ones((8, 8, 3, 3), np.float32))
    host.capacity = 100
    with pytest.raises(
        MemoryError, match=r"convolution: the GPU's memory is full: 115200, \d+.* were refused"
    ):
        gpuconv.conv2d(x, w, padding=1)
    assert not host.gemms


def test_a_limit_below_the_smallest_piece_names_both():
    problem = _problem(1, 4096, (64, 64), 8, 9)
    x, dy = dense(4096, (64, 64), False), dense(8, problem.window.out_size, False)
    with pytest.raises(LimitTooSmall) as caught:
        gemm.plan_weight_grad.__wrapped__(problem, x, dy, MB)
    assert caught.value.least > MB
    gemm.plan_weight_grad.__wrapped__(problem, x, dy, caught.value.least)


@needs_kernels
def test_the_users_limit_is_kept_where_nothing_fits_it(host):
    x, w = _on_device(np.ones((1, 4096, 8, 8), np.float32), np.ones((1, 4096, 8, 8), np.float32))
    with (
        gpuconv.config(workspace_limit=MB),
        pytest.raises(
            MemoryError, match=r"smallest piece takes 4194304 bytes.*config.workspace_limit allows 1048576"
        ),
    ):
        gpuconv.conv2d(x, w, padding=4)
    assert gpuconv.conv2d(x, w).item() == 4096 * 64  # the default gives way


@needs_kernels
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("axes", [1, 2, 3])
@given(rng=st.randoms(use_true_random=False))
def test_input_gradients_by_tiles_are_the_definition(axes, channels_last, rng):
    # Windows of all kinds, strides beyond the kernel among them, and pieces down to a single place of dx.
    case = draw(rng, axes=axes, free=True)
    case = Case(**{**case.__dict__, "channels_last": channels_last, "n": min(case.n, 2)})
    w = case.array("w", case.w_shape(), np.float32, whole=True)
    dy = case.array("dy", case.y_shape(), np.float32, whole=True)
    dy1, w1 = define.first(dy, channels_last), define.weights_first(w, channels_last)
    want = in_layout(case, define.conv_input_grad(dy1, w1, case.sliding(), case.groups))
    # One element from where memory is aligned: a view may begin anywhere.
    whole = host_runtime.to_device(np.concatenate([[0], dy.ravel()]).astype(np.float32))
    given_dy, limit = whole[1:].reshape(dy.shape), rng.choice([200, 600, 2000, 6000])
    device = host_runtime.host
    device.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_runtime, "DEFAULT_WORKSPACE", limit)
        got = getattr(gpuconv, f"conv{axes}d_input_grad")(
            given_dy, host_runtime.to_device(w), case.x_shape(), **case.conv()
        )
    np.testing.assert_array_equal(host_runtime.to_host(got), want)


@needs_kernels
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel, stride", [(1, 2), (1, 5), (2, 3), ((1, 2), (4, 1))])
@pytest.mark.parametrize("limit", [100, 300, 1000, 3000])
def test_tiles_that_begin_between_windows_are_zero_there(kernel, stride, limit, channels_last):
    rng = np.random.default_rng(0)
    window = sliding_window("test", (23, 21), kernel, stride, 1)
    w = rng.integers(-3, 4, (2, 3, *window.kernel)).astype(np.float32)
    dy = rng.integers(-3, 4, (1, 2, *window.out_size)).astype(np.float32)
    if channels_last:
        dy, w = np.moveaxis(dy, 1, -1), np.moveaxis(w, (0, 1), (-1, -2))
    x_shape = (1, 23, 21, 3) if channels_last else (1, 3, 23, 21)
    options = {"stride": stride, "padding": 1, "channels_last": channels_last}
    want = gpuconv.conv2d_input_grad(dy, w, x_shape, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_runtime, "DEFAULT_WORKSPACE", limit)
        got = gpuconv.conv2d_input_grad(*_on_device(dy, w), x_shape, **options)
    np.testing.assert_array_equal(host_runtime.to_host(got), want)


@needs_kernels
def test_a_bias_gradient_keeps_to_the_limit_and_ends_where_memory_is_full(host):
    dy = np.ones((3, 700, 5), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_runtime, "DEFAULT_WORKSPACE", 3000)
        db = gpuconv.conv1d_bias_grad(*_on_device(dy))
    assert host_runtime.to_host(db).tolist() == [15.0] * 700
    assert host.peak_workspace <= 3000
    host.capacity = 100
    with pytest.raises(MemoryError, match=r"bias gradient: the GPU's memory is full: 2800 bytes"):
        gpuconv.conv1d_bias_grad(*_on_device(dy))


@needs_kernels
@pytest.mark.parametrize("channels_last", [False, True])
def test_float16_weight_gradients_use_all_of_a_small_limit(host, channels_last):
    shape = (1, 3, 3, 24000) if channels_last else (1, 24000, 3, 3)
    x, dy = np.ones(shape, np.float16), np.ones((1, 1, 1, 1), np.float16)
    host.orders = 1
    with gpuconv.config(workspace_limit=7 * MB if not channels_last else MB):
        dw = gpuconv.conv2d_weight_grad(*_on_device(dy, x), 3, channels_last=channels_last)
    assert (host_runtime.to_host(dw) == 1).all()


@needs_kernels
@pytest.mark.parametrize("channels_last", [False, True])
def test_images_in_reverse_order_are_no_negative_batch(host, channels_last):
    x = np.arange(96, dtype=np.float32).reshape((4, 2, 3, 4) if channels_last else (4, 4, 2, 3))
    w = np.ones((1, 1, 4, 2) if channels_last else (2, 4, 1, 1), np.float32)
    want = gpuconv.conv2d(x[::-1], w, channels_last=channels_last)
    x, w = _on_device(x, w)
    got = gpuconv.conv2d(x[::-1], w, channels_last=channels_last)
    np.testing.assert_array_equal(host_runtime.to_host(got), want)


@needs_kernels
def test_large_batches_of_products_are_cut(host, monkeypatch):
    monkeypatch.setattr(problem_module, "MOST_BATCH", 3)
    program.forget()
    rng = np.random.default_rng(0)
    for shape, w_shape, groups in (((8, 4, 3, 3), (6, 4, 1, 1), 1), ((2, 16, 3, 3), (8, 2, 2, 2), 8)):
        x, w = (rng.integers(-3, 4, s).astype(np.float32) for s in (shape, w_shape))
        host.reset()
        y = gpuconv.conv2d(*_on_device(x, w), groups=groups)
        np.testing.assert_array_equal(host_runtime.to_host(y), gpuconv.conv2d(x, w, groups=groups))
        assert max(batch for *_, batch in host.gemms) == 3
    program.forget()


@needs_kernels
def test_a_mean_over_a_large_window_is_not_rounded_away():
    x = np.ones((1, 1, 5000, 5000), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_runtime.host, "orders", 1)
        y = gpuconv.avg_pool2d(*_on_device(x), 5000)
    assert y.item() == pytest.approx(1, rel=1e-6)


@needs_kernels
def test_elements_that_a_gpu_cannot_reach_are_refused():
    whole = host_runtime.to_device(np.zeros(1000, np.uint8))
    packed = whole[:98].view(np.uint8)[2:].view(np.dtype([("a", np.uint16), ("b", np.float32)]))["b"]
    assert packed.ctypes.data % 4 == 0
    x = whole[:64].view(np.float32).reshape(1, 1, 4, 4)
    for bad in (whole[1:65].view(np.float32), packed):
        bad = bad.reshape(1, 1, 4, 4)
        with pytest.raises(
            ValueError, match=r"^max_pool2d: x has elements of float32 at addresses that are "
        ):
            gpuconv.max_pool2d(bad, 2)
        with pytest.raises(
            ValueError, match=r"^upsample: out has elements of float32 at addresses that are "
        ):
            gpuconv.upsample(x, 1, out=bad)
    with pytest.raises(ValueError, match=r"conv2d_backward: x has elements"):  # before dx is written
        gpuconv.conv2d_backward(x, bad, x[:, :, :1, :1])


# Index width.


@pytest.mark.parametrize(
    "extents, wide",
    [
        ((), False),
        ((1,), False),
        ((2**31 - 2**24 - 1, 5), False),
        ((2**31 - 2**24,), True),  # the grid's stride is added before the comparison
        ((3, 2**31), True),
    ],
)
def test_indices_are_32_bit_only_if_every_extent_plus_the_grids_stride_fits(extents, wide):
    assert kernels.MAX_BLOCKS * kernels.THREADS == 2**24
    assert kernels.needs_wide(*extents) is wide


def _index_of(step):
    return dict(step.kernel.defines)["INDEX"]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("side, index", [(1024, "int"), (8192, "long long")])
def test_large_images_get_64_bit_kernels_and_others_32(side, index, channels_last):
    problem = _problem(2, 64, (side, side), 64, 3, channels_last=channels_last)
    plans = _plans(problem, 1024 * MB)
    del plans["input_grad"]  # by tiles: none is that large
    for planned in plans.values():
        launches = [step for step in planned.steps if not isinstance(step, Gemm)]
        assert {_index_of(step) for step in launches} == {index}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("n, index", [(4, "int"), (40, "long long")])  # of 2^26 elements
def test_large_batches_get_64_bit_kernels_where_they_are_one_launch(n, index, channels_last):
    window = sliding_window("test", (1024, 1024), 2, 2)
    x = dense(64, (1024, 1024), channels_last)
    how = (channels_last, True, None, True)
    planned = pooling._avg_pool.__wrapped__(window, n, 64, x, np.dtype(np.float32), *how)
    assert _index_of(planned.steps[0]) == index


def test_a_view_that_reaches_far_counts_by_its_extent():
    x = columns.Laid(2**30, 16, (4, 1), 16)
    for images, index in ((1, "int"), (2, "int"), (3, "long long")):
        planned = columns._im2col.__wrapped__(sliding_window("t", (4, 4), 3), images, 1, x, 4, False)
        assert _index_of(planned.steps[0]) == index


def test_the_stride_of_an_axis_of_length_1_counts_for_nothing():
    x = np.lib.stride_tricks.as_strided(np.zeros(64, np.float32), (1, 1, 8, 8), (2**40, 4, 32, 4))
    assert columns.laid(x, 64, False)[:3] == (64, 64, (8, 1))


def test_divisors_divide_exactly():
    rng = random.Random(0)
    values = [1, 2, 3, 5, 7, 10, 49, 641, 2**16 - 1, 2**16, 2**30, 2**31 - 1]
    values += [rng.randrange(1, 2**31) for _ in range(200)]
    for value in values:
        d = kernels.divisor(value, False)
        assert d["multiplier"] < 2**32
        numbers = {0, 1, value - 1, value, 2**31 - 1, value * (2**31 // value) - 1}
        numbers |= {rng.randrange(2**31) for _ in range(50)}
        for n in (n for n in numbers if 0 <= n < 2**31):
            high = (n * d["multiplier"]) >> 32
            assert high + n < 2**32
            assert (high + n) >> d["shift"] == n // value, (n, value)


# Vectors.


@pytest.mark.parametrize(
    "itemsize, multiples, vector",
    [
        (4, (), 4),
        (2, (), 8),
        (8, (), 2),
        (16, (), 1),
        (1, (), 16),
        (4, (6,), 2),
        (4, (8, 3), 1),
        (2, (4,), 4),
    ],
)
def test_an_access_moves_16_bytes_unless_a_pitch_forbids(itemsize, multiples, vector):
    assert program.lanes(itemsize, *multiples) == vector


@needs_kernels
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_view_whose_address_is_not_aligned_is_read_by_smaller_accesses(channels_last):
    whole = host_runtime.to_device(np.arange(3 * 8 * 8 * 8, dtype=np.float32).reshape(3, 8, 8, 8))
    for start in range(4):
        x = whole[..., start : start + 4]
        want = gpuconv.im2col(np.array(x, subok=False), 3, channels_last=channels_last)
        got = gpuconv.im2col(x, 3, channels_last=channels_last)
        np.testing.assert_array_equal(host_runtime.to_host(got), want)


# Programs.


@needs_kernels
def test_a_second_call_plans_nothing_and_allocates_only_its_result(host, monkeypatch):
    x, w = _on_device(np.ones((2, 4, 9, 9), np.float32), np.ones((4, 4, 3, 3), np.float32))
    first = gpuconv.conv2d(x, w)

    def planned_again(*arguments, **more):
        raise AssertionError("a cached call works nothing out")

    made = []
    empty = host.empty
    monkeypatch.setattr(host, "empty", lambda shape, dtype: made.append(shape) or empty(shape, dtype))
    for module in (columns, gemm):
        for name in ("specialise", "cut"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, planned_again)
    monkeypatch.setattr(kernels.Kernel, "text", property(planned_again))
    second = gpuconv.conv2d(x, w)
    np.testing.assert_array_equal(first, second)
    assert made[0] == (2, 4, 7, 7)
    assert len(made) == 2  # and the workspace


@needs_kernels
def test_threads_that_share_a_first_call_agree():
    x, w = np.ones((2, 3, 11, 13), np.float32), np.ones((5, 3, 3, 3), np.float32)
    want = gpuconv.conv2d(x, w)
    program.forget()
    results = []

    def call():
        results.append(host_runtime.to_host(gpuconv.conv2d(*_on_device(x, w))))

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    for got in results:
        np.testing.assert_array_equal(got, want)


def test_a_struct_must_be_filled_whole():
    kernel = sum_parts(At(1), At(0), 1, 2, np.dtype(np.float32)).kernel
    with pytest.raises(TypeError, match="items"):
        kernel.arguments(items=1)
    one = kernels.divisor(1, wide=False)
    filled = kernel.arguments(items=1, parts=2, team=1, plane=one, channels=one)
    assert not filled.flags.writeable


def test_a_kernel_is_specialised_once():
    one, other = (
        kernels.specialise("sum_parts", None, dtype, vector=1, wide=False)
        for dtype in ("float32", np.float32)
    )
    assert one is other
    assert one is not kernels.specialise("sum_parts", None, np.float32, vector=1, wide=True)


@pytest.mark.parametrize(
    "size, vector, channels_last, unroll",
    [(8, 4, 0, "256"), (7, 8, 0, "1"), (7, 8, 1, "256"), (9, 1, 0, "1"), (9, 4, 1, "1")],
)
def test_large_windows_are_not_unrolled(size, vector, channels_last, unroll):
    window = sliding_window("test", (20, 20), size)
    kernel = kernels.specialise(
        "avg_pool", window, np.float32, vector=vector, wide=False, CHANNELS_LAST=channels_last
    )
    assert dict(kernel.defines)["UNROLL"] == unroll


# What a real GPU is asked for, by a CuPy that records it.


class RecordingCublas:
    """The part of cupy_backends.cuda.libs.cublas that is called."""

    CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_COMPUTE_64F = 68, 77, 70
    CUBLAS_GEMM_DEFAULT = -1

    def __init__(self):
        self.calls = []
        self.mode = 3

    def getMathMode(self, handle):
        return self.mode

    def setMathMode(self, handle, mode):
        self.mode = mode

    def gemmStridedBatchedEx(
        self,
        handle,
        ta,
        tb,
        m,
        n,
        k,
        alpha,
        a,
        a_type,
        lda,
        sa,
        b,
        b_type,
        ldb,
        sb,
        beta,
        c,
        c_type,
        ldc,
        sc,
        batch,
        compute,
        algo,
    ):
        read = np.float64 if compute == self.CUBLAS_COMPUTE_64F else np.float32
        scalars = [
            np.ctypeslib.as_array((np.ctypeslib.as_ctypes_type(read) * 1).from_address(p))[0]
            for p in (alpha, beta)
        ]
        mode = self.mode
        self.calls.append(locals() | {"scalars": [float(s) for s in scalars]})


@pytest.fixture
def recording(monkeypatch):
    """A CupyRuntime over a CuPy that records."""
    cublas = RecordingCublas()
    launched = []

    class RawModule:
        def __init__(self, code, options):
            self.code, self.options = code, options

        def get_function(self, name):
            assert f"{name}(" in self.code

            def function(grid, block, arguments, shared_mem=0):
                launched.append((name, grid, block, arguments, shared_mem, self.options))

            return function

    cupy = SimpleNamespace(
        RawModule=RawModule,
        cuda=SimpleNamespace(
            runtime=SimpleNamespace(
                getDevice=lambda: 0,
                getDeviceCount=lambda: 1,
                is_hip=False,
                CUDARuntimeError=RuntimeError,
                cudaDevAttrL2CacheSize=38,
                deviceGetAttribute=lambda which, device: {38: 60 * MB}[which],
            ),
            device=SimpleNamespace(get_cublas_handle=lambda: 1234),
        ),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(runtime, "_import_cublas", lambda: cublas)
    return SimpleNamespace(runtime=runtime.CupyRuntime(), cublas=cublas, launched=launched)


@pytest.mark.parametrize(
    "dtype, precision, compute, c_dtype, types",
    [
        (np.float32, "ieee", 68, np.float32, (0, 0)),
        (np.float32, "tf32", 77, np.float32, (0, 0)),
        (np.float64, "tf32", 70, np.float64, (1, 1)),
        (np.float16, "ieee", 68, np.float16, (2, 2)),
        (np.float16, "tf32", 68, np.float32, (2, 0)),
    ],
)
def test_a_product_is_handed_to_cublas_as_it_counts(recording, dtype, precision, compute, c_dtype, types):
    step = Gemm(
        Matrix(At(2, 16), 7, 70),
        Matrix(At(0), 5, 50),
        Matrix(At(1), 6, 60, by_columns=True),
        (3, 4, 2),
        9,
        (np.dtype(dtype), np.dtype(c_dtype)),
        True,
        precision,
    )
    step.run(recording.runtime, [1000, 2000, 3000])
    (call,) = recording.cublas.calls
    # C (3 x 2) = A (3 x 4) B (4 x 2), by rows, is C^T = B^T A^T, by columns.
    assert (call["ta"], call["tb"], call["m"], call["n"], call["k"]) == (1, 0, 2, 3, 4)
    assert (call["a"], call["lda"], call["sa"]) == (2000, 6, 60)
    assert (call["b"], call["ldb"], call["sb"]) == (1000, 5, 50)
    assert (call["c"], call["ldc"], call["sc"]) == (3016, 7, 70)
    assert (call["a_type"], call["b_type"], call["c_type"]) == (types[0], *types)
    assert (call["batch"], call["compute"], call["algo"], call["handle"]) == (9, compute, -1, 1234)
    assert call["scalars"] == [1.0, 1.0]
    assert call["mode"] == (3 | 16 if dtype == np.float16 else 3)  # float16 is not added up in float16
    assert recording.cublas.mode == 3
    step._replace(accumulate=False).run(recording.runtime, [1000, 2000, 3000])
    assert recording.cublas.calls[1]["scalars"] == [1.0, 0.0]


def test_a_kernel_is_compiled_once_and_launched_with_pointers_and_its_struct(recording):
    step = sum_parts(At(1), At(0, 8), 1000, 3, np.dtype(np.float32))
    for _ in range(2):
        step.run(recording.runtime, [100, 200])
    assert recording.launched[0] == recording.launched[1]
    name, grid, block, (first, _, second, struct), shared, options = recording.launched[0]
    assert (name, grid, block, shared, options) == ("gpuconv_sum_parts", (4,), (256,), 1024, ("--std=c++17",))
    assert (first, second) == (200, 108)
    assert (struct["items"], struct["parts"], struct.size) == (1000, 3, 1)
    assert len(recording.runtime._functions) == 1


def test_the_default_workspace_is_half_of_the_l2(recording, monkeypatch):
    assert recording.runtime.default_workspace() == 30 * MB
    small = runtime.CupyRuntime()
    monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "deviceGetAttribute", lambda *of: 4 * MB)
    assert small.default_workspace() == 16 * MB


# Missing pieces.


class NoDriver(RuntimeError):
    pass


def _cupy_with(**runtime_attributes):
    attributes = {"is_hip": False, "CUDARuntimeError": NoDriver, "getDeviceCount": lambda: 1}
    return SimpleNamespace(cuda=SimpleNamespace(runtime=SimpleNamespace(**attributes | runtime_attributes)))


def _no_driver():
    raise NoDriver("cudaErrorInsufficientDriver")


@pytest.mark.parametrize(
    "cupy, message",
    [
        (None, r"CUDA needs CuPy.*pip install 'gpuconv\[cuda13\]'"),
        (_cupy_with(is_hip=True), r"built for ROCm.*pip install"),
        (
            _cupy_with(getDeviceCount=_no_driver),
            r"no usable NVIDIA driver \(cudaErrorInsufficientDriver\).*nvidia-smi",
        ),
        (_cupy_with(getDeviceCount=lambda: 0), r"no NVIDIA GPU is visible.*CUDA_VISIBLE_DEVICES"),
    ],
)
def test_each_missing_piece_has_its_message(monkeypatch, cupy, message):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(RuntimeError, match=message):
        runtime.check_installed()
    with pytest.raises(RuntimeError, match=message):
        gpuconv.Linear(2, 2).to("cuda")


class CompileException(Exception):
    """As cupy.cuda.compiler has it."""


@pytest.mark.parametrize(
    "error, message",
    [
        (ImportError("libnvrtc.so.13"), r"compiled by NVRTC.*pip install"),
        (RuntimeError("Failed to find CUDA headers"), r"compiled by NVRTC.*pip install"),
        (
            CompileException("nvrtc: error: identifier is undefined"),
            r"gpuconv_sum_parts doesn't compile for this device",
        ),
    ],
)
def test_a_kernel_that_cannot_be_compiled_says_why(recording, monkeypatch, error, message):
    def fail(self, name):
        raise error

    monkeypatch.setattr(sys.modules["cupy"].RawModule, "get_function", fail)
    kernel = kernels.specialise("sum_parts", None, np.float32, vector=1, wide=False)
    with pytest.raises(RuntimeError, match=message):
        recording.runtime.launch(kernel, 1, (), 0)


def test_a_missing_cublas_has_its_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", None)
    with pytest.raises(RuntimeError, match=r"convolutions need cuBLAS.*pip install"):
        runtime._import_cublas()


def test_arrays_on_two_gpus_are_an_error():
    class Device:  # as CuPy's: not hashable
        __hash__ = None

        def __init__(self, number):
            self.id = number

    one, other = _on_device(np.zeros(3), np.zeros(3))
    one.device, other.device = Device(0), Device(1)
    runtime.check_device("conv2d", {"x": one, "w": one})
    with pytest.raises(ValueError, match=r"conv2d: all arrays must be on one GPU.*x on GPU 0, w on GPU 1"):
        runtime.check_device("conv2d", {"x": one, "w": other})


def test_importing_gpuconv_imports_no_cupy():
    code = "import sys, gpuconv; assert not {'cupy', 'cupy_backends'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_operation_runs_on_its_arrays_device(host, monkeypatch):
    entered = []

    @contextmanager
    def other():
        entered.append("in")
        yield
        entered.append("out")

    x = host_runtime.to_device(np.ones((1, 1, 4, 4), np.float32))
    gpuconv.im2col(x, 2)
    assert not entered
    monkeypatch.setattr(host, "elsewhere", lambda array: other() if array is x else None)
    gpuconv.im2col(x, 2)
    assert entered == ["in", "out"] * 2  # for the result's memory, and for the launch


def test_the_device_of_an_array_is_entered_where_another_is_current(recording):
    here, there = (SimpleNamespace(device=SimpleNamespace(id=number)) for number in (0, 1))
    assert recording.runtime.elsewhere(here) is None
    assert recording.runtime.elsewhere(there) is there.device


# The same primitives on both sides.


def _primitives(package):
    modules = {name: getattr(package, name) for name in PRIMITIVES}
    return {
        f"{name}.{function}": inspect.signature(getattr(module, function))
        for name, module in modules.items()
        for function in PRIMITIVES[name]
    }


PRIMITIVES = {
    "activations": ("relu", "relu_input_grad"),
    "adaptive": ("avg_pool", "avg_pool_backward", "max_pool", "max_pool_backward"),
    "arrays": ("empty", "extent"),
    "columns": ("im2col", "col2im"),
    "convolution": ("forward", "input_grad", "weight_grad", "bias_grad"),
    "dense": ("product",),
    "pooling": (
        *("max_pool", "max_pool_backward", "argmax_to_indices", "avg_pool", "avg_pool_backward"),
        *("max_unpool", "max_unpool_backward", "lp_pool", "lp_pool_backward"),
    ),
}


def test_both_backends_have_the_same_primitives_with_the_same_parameters():
    numpy_side, cuda_side = _primitives(cpu), _primitives(cuda)
    for name, signature in numpy_side.items():
        assert list(signature.parameters) == list(cuda_side[name].parameters), name
        defaults = [p.default for p in signature.parameters.values()]
        assert defaults == [p.default for p in cuda_side[name].parameters.values()], name


def test_public_functions_call_no_other_primitives():
    called = set()
    functions = ("adaptive", "conv", "global_pool", "lp_pool", "pool", "unpool", "columns")
    for module in (*functions, "backends/dispatch", "nn/activations", "nn/dense"):
        text = (Path(gpuconv.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        called |= set(re.findall(r"backend\.(\w+\.\w+)", text))
        called |= {f"convolution.{name}" for name in re.findall(r"\bops\.(\w+)", text)}
    assert called == {f"{module}.{name}" for module, names in PRIMITIVES.items() for name in names}
