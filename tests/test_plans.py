"""Plans of calls, against what runs: kernels and products on a GPU's stand-in, jobs of NumPy's threads."""

import inspect
import sys
from collections import Counter
from math import prod

import numpy as np
import pytest
from cases import draw
from conftest import BACKENDS
from every_op import CALLS, listed
from host import runtime as host_runtime
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuconv
from gpuconv.backends import cpu
from gpuconv.backends.cpu import threads

OPS = sorted(CALLS)


def bound(op):
    arguments, options = CALLS[op]
    return inspect.signature(getattr(gpuconv, op)).bind(*arguments, **options).arguments


def described(results):
    return [(y.shape, y.dtype.name) for y in listed(results) if y is not None]


def _passes(case, dtype):
    """Return the three passes of a convolution, and a max and an average pooling's, as (op, arguments)."""
    x, w, dy = (
        case.array(n, s, dtype)
        for n, s in zip("xwy", (case.x_shape(), case.w_shape(), case.y_shape()), strict=True)
    )
    options = case.conv()
    b = case.array("b", (case.c_out,), dtype)
    yield "conv2d", {"x": x, "w": w, "b": b} | options
    yield "conv2d", {"x": x, "w": w, "b": b, "activation": "relu"} | options
    yield "conv2d_backward", {"dy": dy, "x": x, "w": w} | options
    yield "conv2d_backward", {"dy": dy, "x": x, "w": w, "activation": "relu", "y": dy} | options
    yield "conv2d_input_grad", {"dy": dy, "w": w, "x_shape": x.shape} | options
    yield "conv2d_weight_grad", {"dy": dy, "x": x, "kernel_size": case.kernel} | options


@pytest.fixture(scope="module")
def kernels(backend):
    """The stand-in for a GPU, in whole and in small pieces."""
    if backend.is_numpy or backend is BACKENDS["cupy"]:
        pytest.skip("for the kernels run on the CPU")
    return host_runtime.host


def _launched(host):
    """Return what the stand-in for a GPU ran, as steps are written; to cuBLAS matrices are transposed."""
    found = Counter((name, (("blocks", blocks),)) for name, blocks in host.launches)
    return found + Counter(
        ("gemm", (("m", m), ("k", k), ("n", n), ("batch", batch))) for n, m, k, batch in host.gemms
    )


def _planned(plan):
    steps = Counter()
    for step in plan.steps:
        if step.what not in ("copy", "fill", "relu_input_grad"):  # what is not the kernels'
            steps[step.what, tuple(step.sizes.items())] += step.repeats
    return steps


def _compare_on_kernels(host, op, arguments):
    there = {k: host_runtime.to_device(x) if isinstance(x, np.ndarray) else x for k, x in arguments.items()}
    host.reset()
    results = getattr(gpuconv, op)(**there)
    plan = gpuconv.explain(op, **there)
    assert plan.device == "cuda"
    assert list(plan.results) == described(results)
    assert _planned(plan) == _launched(host), op
    assert plan.workspace == host.peak_workspace
    return plan


def test_plans_for_a_gpu_are_what_the_kernels_backend_launches(kernels):
    for op in OPS:
        _compare_on_kernels(kernels, op, bound(op))


@settings(max_examples=25)
@given(st.randoms(use_true_random=False))
def test_a_drawn_plan_for_a_gpu_is_what_the_kernels_backend_launches(kernels, rng):
    case = draw(rng)
    for op, arguments in _passes(case, rng.choice([np.float16, np.float32])):
        plan = _compare_on_kernels(kernels, op, arguments)
        launched = Counter(name for name, _ in kernels.launches)
        if op == "conv2d_input_grad":
            assert plan.chunks == max(1, launched["col2im"])
        if op == "conv2d":
            assert plan.chunks == max(1, launched["im2col"])


# What NumPy runs: jobs given to the threads, and products.


@pytest.fixture
def run_by_numpy(monkeypatch):
    """What was run: jobs of each call of `parallel` or `run`, the most threads, and products."""
    jobs, most, products = [], [1], []
    parallel, run, matmul = threads.parallel, cpu.jobs.run, np.matmul

    def note(number, work):
        jobs.append(number)
        most.append(threads.used(number, work))

    def noting_parallel(task, items, work=float("inf"), **options):
        items = list(items)
        note(len(items), work)
        return parallel(task, items, work, **options)

    def noting_run(kernels, name, rows, work, own=None, begins=None):
        if name != "pack":  # weights, for all jobs
            note(len(begins) - 1 if begins else len(rows), work)
        return run(kernels, name, rows, work, own, begins)

    def noting_matmul(a, b, **options):
        out = matmul(a, b, **options)
        products.append((*sorted((a.shape[-2], b.shape[-1])), a.shape[-1], prod(out.shape[:-2])))
        return out

    for path, module in list(sys.modules.items()):
        if path.startswith(cpu.__name__ + ".") and module not in (threads, cpu.jobs):
            for name, real, noting in (("parallel", parallel, noting_parallel), ("run", run, noting_run)):
                if getattr(module, name, None) is real:
                    monkeypatch.setattr(module, name, noting)
    monkeypatch.setattr(np, "matmul", noting_matmul)

    def clear():
        for noted in (jobs, most, products):
            noted.clear()

    clear()
    return jobs, most, products, clear


def _compare_on_numpy(ran, op, arguments):
    jobs, most, products, clear = ran
    clear()
    getattr(gpuconv, op)(**arguments)
    plan = gpuconv.explain(op, **arguments)
    found = Counter(products)
    planned = Counter()
    for what, sizes, repeats, _ in plan.steps:
        if what == "gemm":
            planned[(*sorted((sizes["m"], sizes["n"])), sizes["k"], sizes["batch"])] += repeats
    assert plan.device == "cpu"
    assert planned == found, op
    if jobs:
        assert plan.chunks == sum(jobs)
        assert plan.threads == max(most)
    return plan


def test_plans_for_the_cpu_are_what_numpy_runs(backend, run_by_numpy):
    if not backend.is_numpy:
        pytest.skip("for NumPy")
    for op in OPS:
        _compare_on_numpy(run_by_numpy, op, bound(op))


def test_a_drawn_plan_for_the_cpu_is_what_numpy_runs(backend, run_by_numpy):
    if not backend.is_numpy:
        pytest.skip("for NumPy")

    @given(st.randoms(use_true_random=False))
    def compare(rng):
        case = draw(rng)
        for op, arguments in _passes(case, rng.choice([np.float16, np.float32, np.float64])):
            if case.n:
                _compare_on_numpy(run_by_numpy, op, arguments)

    compare()
