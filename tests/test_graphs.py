"""CUDA graphs: which calls can be captured, as plans say it, and that those are replayed as they were."""

import contextlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import BACKENDS
from every_op import CALLS, listed
from host import compiler
from host.runtime import host, to_device

import gpuconv
from gpuconv.backends.cuda import choice, runtime
from gpuconv.measure import ceilings

OPS = sorted(CALLS)
# Of what has several algorithms, each.
WAYS = [(op, name) for op in OPS for name in ("auto", *(choice.ALGORITHMS if op.startswith("conv") else ()))]
needs_kernels = pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())
on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(BACKENDS["cupy"].missing), reason=BACKENDS["cupy"].missing),
]
GUIDE = Path(__file__).parents[1] / "docs" / "gpu.md"


def moved(op, to_array):
    """Return an operation's arguments, arrays brought elsewhere."""

    def there(value):
        return to_array(value) if isinstance(value, np.ndarray) else value

    arguments, options = CALLS[op]
    return [there(value) for value in arguments], {name: there(value) for name, value in options.items()}


@needs_kernels
@pytest.mark.parametrize("op, algorithm", WAYS)
def test_what_a_plan_calls_capturable_runs_while_a_stream_is_captured(op, algorithm, monkeypatch):
    monkeypatch.setattr(host, "launch", lambda *launch: None)  # a captured stream runs nothing either
    arguments, options = moved(op, to_device)
    with gpuconv.config(algorithm=algorithm):
        plan = gpuconv.explain(op, *arguments, **options)
        monkeypatch.setattr(host, "capturing", True)
        refused = contextlib.nullcontext() if plan.capturable else pytest.raises(NotImplementedError)
        with refused:
            getattr(gpuconv, op)(*arguments, **options)


def test_all_but_convolutions_by_cublas_is_capturable():
    for op in OPS:
        arguments, options = moved(op, lambda a: a)
        plan = gpuconv.explain(op, *arguments, device="cuda", **options)
        assert plan.capturable == ("gemm" not in plan.algorithm.split(", "))
        assert plan.capturable or op.startswith("conv")
        assert not gpuconv.explain(op, *arguments, device="cpu", **options).capturable
    shapes = (8, 64, 28, 28), (64, 64, 3, 3)
    assert not gpuconv.explain("conv2d", *shapes, device="cuda").capturable
    with gpuconv.config(algorithm="implicit"):
        assert gpuconv.explain("conv2d", *shapes, device="cuda").capturable


def test_a_plan_says_it_in_json(monkeypatch):
    monkeypatch.setattr(ceilings, "present", lambda *of: None)
    assert gpuconv.explain("max_pool2d", (1, 1, 4, 4), 2, device="cuda").as_dict()["capturable"] is True


def test_cublas_in_a_captured_stream_is_refused_with_what_helps(monkeypatch):
    def refuse(*arguments):
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")

    names = ("CUBLAS_COMPUTE_32F", "CUBLAS_OP_N", "CUBLAS_OP_T", "CUBLAS_GEMM_DEFAULT")
    cublas = SimpleNamespace(gemmStridedBatchedEx=refuse, **dict.fromkeys(names, 0))
    device = SimpleNamespace(get_cublas_handle=lambda: 1)
    found = SimpleNamespace(getDevice=lambda: 0, getDeviceCount=lambda: 1, is_hip=False)
    found.CUDARuntimeError = RuntimeError
    cupy = SimpleNamespace(cuda=SimpleNamespace(device=device, runtime=found))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(runtime, "_import_cublas", lambda: cublas)
    f32, matrix = np.dtype(np.float32), (0, 1, 1)
    with pytest.raises(NotImplementedError, match=r'config\.algorithm = "implicit".*\.capturable'):
        runtime.CupyRuntime().gemm(
            (False, False), (1, 1, 1), matrix, matrix, matrix, 1, (f32, f32), False, "ieee"
        )


def _guide():
    """Return the guide's program."""
    section = GUIDE.read_text(encoding="utf-8").partition("## CUDA graphs")[2]
    return re.search(r"```text\n(import cupy.*?)```", section, re.DOTALL)[1]


def test_the_guide_s_program_is_one():
    compile(_guide(), "docs/gpu.md", "exec")


# On a GPU.


@pytest.fixture
def gpu():
    from gpuconv.measure.gpu import Gpu

    return Gpu()


@pytest.mark.parametrize("op, algorithm", [pytest.param(*way, marks=on_a_gpu) for way in WAYS])
def test_what_is_capturable_is_replayed_on_a_gpu(op, algorithm, gpu):
    there = BACKENDS["cupy"]
    arguments, options = moved(op, there.to_array)
    with gpuconv.config(algorithm=algorithm):
        plan = gpuconv.explain(op, *arguments, **options)
        captured = gpu.captured(lambda: getattr(gpuconv, op)(*arguments, **options))
        assert (captured is not None) == plan.capturable
        if captured is None:
            return
        result, launch = captured
        want = getattr(gpuconv, op)(*arguments, **options)
    for y in listed(result):
        y.fill(1)
    gpu.synchronize()
    launch()
    gpu.synchronize()
    for got, must in zip(listed(result), listed(want), strict=True):
        np.testing.assert_array_equal(there.to_numpy(got), there.to_numpy(must))


@pytest.mark.parametrize("program", [pytest.param("the guide's", marks=on_a_gpu)])
def test_the_guide_s_program_replays_a_weight_gradient(program):
    names = {}
    exec(compile(_guide(), "docs/gpu.md", "exec"), names)
    want = gpuconv.conv2d_weight_grad(names["dy"], names["x"], 3, padding=1, groups=64)
    np.testing.assert_array_equal(names["dw"].get(), want.get())
