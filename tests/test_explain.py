"""`gpuconv.explain`: its plans, against what runs."""

import inspect
import json
import time
import tracemalloc
from collections import Counter
from math import prod

import numpy as np
import pytest
from every_op import CALLS, listed

import gpuconv
from gpuconv import entry
from gpuconv.backends.cuda import runtime
from gpuconv.measure import ceilings
from gpuconv.measure.cpu import Cpu
from gpuconv.measure.work import work_of

OPS = sorted(CALLS)


def bound(op):
    arguments, options = CALLS[op]
    return inspect.signature(getattr(gpuconv, op)).bind(*arguments, **options).arguments


def shapes_of(op):
    """Return a function's arguments with shapes in the arrays' place."""
    return {name: x.shape if isinstance(x, np.ndarray) else x for name, x in bound(op).items()}


def described(results):
    return [(y.shape, y.dtype.name) for y in listed(results) if y is not None]


def test_every_public_function_is_called_here():
    assert set(CALLS) == set(entry.OPERATIONS)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("op", OPS)
def test_results_are_those_of_the_function_from_arrays_and_from_shapes(op, device):
    arguments, options = CALLS[op]
    want = described(getattr(gpuconv, op)(*arguments, **options))
    of_arrays = gpuconv.explain(op, *arguments, device=device, **options)
    of_shapes = gpuconv.explain(getattr(gpuconv, op), **shapes_of(op), device=device)
    assert of_arrays == of_shapes
    assert list(of_arrays.results) == want
    assert (of_arrays.flops, of_arrays.least_bytes) == work_of(op, bound(op))
    assert of_arrays.device == device
    assert of_arrays.steps
    assert of_arrays.why


def test_chunks_of_a_weight_gradient_are_its_products():
    for n in (4, 16):  # one product of several images a chunk, whose dy is copied, by im2col's kernel, too
        plan = gpuconv.explain(
            "conv2d_weight_grad", (n, 64, 28, 28), (n, 64, 28, 28), 3, padding=1, device="cuda"
        )
        repeats = Counter()
        for step in plan.steps:
            repeats[step.what] += step.repeats
        assert repeats == {"im2col": 2 * plan.chunks, "gemm": plan.chunks}
        assert plan.chunks == -(-n // 8)


LARGE = {
    "conv2d": {"x": (4, 32, 96, 96), "w": (48, 32, 3, 3), "padding": 1},
    "conv2d depthwise": {"x": (8, 64, 96, 96), "w": (64, 1, 3, 3), "padding": 1, "groups": 64},
    "conv2d depthwise last": {
        "x": (8, 96, 96, 64), "w": (3, 3, 1, 64), "padding": 1, "groups": 64, "channels_last": True
    },
    "conv2d_input_grad": {
        "dy": (4, 64, 48, 48), "w": (64, 64, 3, 3), "x_shape": (4, 64, 96, 96), "stride": 2, "padding": 1
    },
    "conv2d_input_grad columns": {
        "dy": (4, 64, 96, 96), "w": (64, 4, 3, 3), "x_shape": (4, 4, 96, 96), "padding": 1
    },
    "conv2d_weight_grad": {"dy": (8, 48, 96, 96), "x": (8, 32, 96, 96), "kernel_size": 3, "padding": 1},
    "conv2d_weight_grad depthwise": {
        "dy": (8, 64, 96, 96), "x": (8, 64, 96, 96), "kernel_size": 3, "padding": 1, "groups": 64
    },
    "max_pool2d": {"x": (8, 64, 96, 96), "kernel_size": 3, "stride": 2},
    "avg_pool2d": {"x": (8, 64, 96, 96), "kernel_size": 3, "stride": 2},
    "avg_pool2d_backward": {"dy": (8, 64, 48, 48), "x_shape": (8, 64, 96, 96), "kernel_size": 2},
    "max_pool2d_backward": {
        "dy": (8, 64, 32, 32), "argmax": (8, 64, 32, 32), "x_shape": (8, 64, 96, 96), "kernel_size": 3
    },
    "max_pool2d_backward overlapping": {
        "dy": (8, 64, 94, 94), "argmax": (8, 64, 94, 94), "x_shape": (8, 64, 96, 96), "kernel_size": 3,
        "stride": 1,
    },
    "max_unpool2d_backward": {"dy": (8, 64, 96, 96), "argmax": (8, 64, 48, 48), "kernel_size": 2},
    "lp_pool2d": {"x": (8, 64, 96, 96), "norm_type": 2, "kernel_size": 2},
    "adaptive_avg_pool2d": {"x": (8, 64, 96, 96), "output_size": 48},
    "adaptive_max_pool2d": {"x": (8, 64, 96, 96), "output_size": 48},
    "col2im": {"col": (8, 64 * 9, 48 * 48), "x_shape": (8, 64, 50, 50), "kernel_size": 3},
}  # fmt: skip
ARRAYS = ("x", "w", "dy", "col", "argmax")


# Python's own objects, of a call by C kernels, whose buffers are smaller still. Each job is a row of numbers.
OBJECTS = 32 << 10


@pytest.mark.parametrize("compiled", [False, True], ids=["NumPy", "C kernels"])
@pytest.mark.parametrize("case", LARGE)
def test_the_workspace_on_a_cpu_is_about_what_numpy_allocates(case, compiled, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # several need not have all of theirs at once
    monkeypatch.setattr(gpuconv.config, "compiled", compiled)
    op, arguments = case.partition(" ")[0], LARGE[case]
    plan = gpuconv.explain(op, device="cpu", **arguments)
    made = {
        name: np.ones(value, np.uint8 if name == "argmax" else np.float32) if name in ARRAYS else value
        for name, value in arguments.items()
    }
    getattr(gpuconv, op)(**made)  # the first call in a process may read and load the kernels
    _, taken = Cpu().workspace(lambda: getattr(gpuconv, op)(**made))
    assert plan.workspace == pytest.approx(taken, rel=0.15, abs=OBJECTS if compiled else 0)


# Shapes beyond memory.

HUGE = [
    ("max_pool2d", {"x": (512, 64, 1024, 1024), "kernel_size": 2}),
    ("conv2d", {"x": (16, 3, 4096, 4096), "w": (64, 3, 3, 3), "padding": 1}),
    ("conv2d_backward", {"dy": (256, 256, 256, 256), "x": (256, 512, 256, 256), "w": (256, 512, 1, 1)}),
    ("global_avg_pool", {"x": (128, 2048, 256, 256)}),
]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("op, arguments", HUGE, ids=[op for op, _ in HUGE])
def test_shapes_beyond_memory_are_planned_at_once_and_take_none(op, arguments, device):
    gpuconv.explain("conv2d", (1, 1, 3, 3), (1, 1, 3, 3), device=device)  # what is imported at first
    tracemalloc.start()
    start = time.process_time()
    plan = gpuconv.explain(op, **arguments, device=device)
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(prod(shape) for shape, _ in plan.results) + plan.least_bytes > 1 << 34
    assert peak < 64 << 20
    assert seconds < 10  # traced, on a busy machine; alone a tenth


def test_more_bytes_than_addresses_are_an_error():
    with pytest.raises(ValueError, match="more bytes than there are addresses"):
        gpuconv.explain("max_pool2d", (1 << 30, 1 << 30, 64, 64), 2)


# What is asked, and where.


def test_strides_count():
    x = np.ones((2, 8, 6, 6), np.float32)
    w = np.ones((4, 8, 1, 1), np.float32)
    in_order = gpuconv.explain("conv2d", x, w, device="cuda")
    assert [step.what for step in in_order.steps] == ["gemm"]
    strided = gpuconv.explain("conv2d", x[:, :, :, ::-1], w, device="cuda")
    assert [step.what for step in strided.steps] == ["im2col", "gemm"]


def test_a_weight_that_must_be_copied_is_a_step():
    w = np.ones((3, 3, 8, 4), np.float32).transpose(3, 2, 0, 1)
    plan = gpuconv.explain("conv2d", np.ones((2, 8, 6, 6), np.float32), w, device="cuda")
    assert ("copy", {"bytes": w.nbytes}, 1, "") in plan.steps


def test_shapes_alone_are_planned_for_the_cpu_where_there_is_no_gpu(monkeypatch):
    def missing():
        raise RuntimeError("none")

    monkeypatch.setattr(runtime, "check_installed", missing)
    assert gpuconv.explain("max_pool2d", (1, 1, 4, 4), 2).device == "cpu"


def test_the_workspace_limit_holds_for_a_plan():
    shapes = (8, 64, 56, 56), (64, 64, 3, 3)
    with gpuconv.config(workspace_limit=2 << 20):
        plan = gpuconv.explain("conv2d", *shapes, padding=1, device="cuda")
        with pytest.raises(MemoryError, match="the smallest piece takes"):
            gpuconv.explain("conv2d", (1, 1 << 16, 9, 9), (1, 1 << 16, 9, 9), device="cuda")
    assert plan.workspace <= 2 << 20
    assert plan.chunks == 32


def test_gradients_that_are_not_needed_are_not_planned():
    shapes = (2, 4, 6, 6), (2, 3, 8, 8), (4, 3, 3, 3)
    plan = gpuconv.explain("conv2d_backward", *shapes, needs=("w",), device="cuda")
    assert {step.result for step in plan.steps} == {"dw"}
    assert [shape for shape, _ in plan.results] == [(4, 3, 3, 3)]
    nothing = gpuconv.explain("conv2d_backward", *shapes, needs=(), device="cuda")
    assert (nothing.algorithm, nothing.steps, nothing.flops) == ("none", (), 0)
    assert "nothing" in str(nothing)


def test_dtype_is_that_of_shapes_and_a_norm_of_complex_numbers_is_real():
    shapes = (2, 3, 3, 3), (2, 3, 6, 6), (2, 3, 3, 3)
    plan = gpuconv.explain("lp_pool2d_backward", *shapes, 2, 2, dtype=np.complex64)
    assert plan.results == (((2, 3, 6, 6), "complex64"),)
    assert (
        gpuconv.explain("conv2d", (1, 3, 8, 8), (4, 3, 3, 3), dtype="float16").results[0].dtype == "float16"
    )


X = (1, 3, 8, 8)


@pytest.mark.parametrize(
    "error, message, op, arguments, options",
    [
        (ValueError, "near it: conv2d", "conv_2d", (X,), {}),
        (ValueError, r"array.*; gpuconv\.__all__ lists", np.matmul, (X,), {}),
        (TypeError, "conv2d: missing a required argument: 'w'", "conv2d", (X,), {}),
        (ValueError, "conv2d: w has 4 input", "conv2d", (X, (4, 4, 3, 3)), {}),
        (ValueError, "global_max_pool: x must", "global_max_pool", ((4, 4),), {}),
        (ValueError, r"conv2d: x\[1\] must be", "conv2d", ((1, -3, 8, 8), (4, 3, 3, 3)), {}),
        (TypeError, "conv2d: x must be a NumPy", "conv2d", (4, (4, 3, 3, 3)), {}),
        (ValueError, "device must be", "max_pool2d", (X, 2), {"device": "tpu"}),
        (TypeError, "dtype must be", "max_pool2d", (X, 2), {"dtype": "float31"}),
        (TypeError, "out makes no", "max_pool2d", (X, 2), {"out": None}),
        (TypeError, "max_pool2d: x has dtype", "max_pool2d", (X, 2), {"dtype": "complex64"}),
    ],
)
def test_what_is_wrong_is_said_before_any_work(error, message, op, arguments, options):
    with pytest.raises(error, match=message):
        gpuconv.explain(op, *arguments, **options)


def test_the_least_time_is_the_slower_of_bytes_and_operations(monkeypatch):
    monkeypatch.setattr(ceilings, "present", lambda *of: ceilings.Ceiling(1e10, 1e12))
    slow = gpuconv.explain("conv2d", (8, 512, 28, 28), (512, 512, 3, 3), padding=1)
    assert slow.least_seconds == slow.flops / 1e12
    pooled = gpuconv.explain("avg_pool2d", (8, 512, 28, 28), 2)
    assert pooled.least_seconds == pooled.least_bytes / 1e10
    assert "ms at least" in str(slow)


def test_a_plan_is_json_and_text(monkeypatch):
    monkeypatch.setattr(ceilings, "present", lambda *of: None)
    plan = gpuconv.explain("conv2d", (8, 64, 56, 56), (64, 64, 3, 3), padding=1, device="cuda")
    assert json.loads(json.dumps(plan.as_dict())) == plan.as_dict()
    assert plan.as_dict()["least_seconds"] is None
    text = str(plan)
    assert text.startswith("conv2d on cuda: gemm\n")
    assert "m 64, k 576, n 3136, batch 2" in text
    assert "1.85 GFLOP" in text
    assert "float32 [8, 64, 56, 56]" in text
