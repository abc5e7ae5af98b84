"""Convolution and its gradients: which algorithm computes them, and with what it is called.

An algorithm is a module: `takes` tells what it can compute, and `plan_forward`, `plan_input_grad` and
`plan_weight_grad` return programs. `choice` says which is taken, and why; or `autotune`, which measures.
"""

from functools import partial
from math import prod
from types import ModuleType
from typing import Any

from gpuconv.backends.cuda import autotune, bias, gemm
from gpuconv.backends.cuda import runtime as runtimes
from gpuconv.backends.cuda.columns import aligned, laid
from gpuconv.backends.cuda.problem import Epilogue, Problem
from gpuconv.backends.cuda.program import run_within_limit
from gpuconv.config import config
from gpuconv.geometry import Window

Array = Any


@runtimes.on_device("y")
def forward(
    x: Array,
    w: Array,
    b: Array | None,
    y: Array,
    window: Window,
    channels_last: bool,
    activation: str | None,
) -> None:
    """Write conv(x, w) + b to y, rectified where the activation is "relu"."""
    runtime, dtype = runtimes.of(x), y.dtype
    x, w = x.astype(dtype, copy=False), _contiguous(w, dtype)
    b = None if b is None else _contiguous(b, dtype)
    if y.size:
        problem = describe(window, x, y, dtype, channels_last)
        source, alignment = laid(x, runtime.address(x), channels_last), aligned(w, runtime.address(w))
        epilogue = Epilogue(b is not None, activation == "relu")

        def by(algorithm: ModuleType) -> None:
            plan = partial(algorithm.plan_forward, problem, source, alignment, epilogue)
            run_within_limit("convolution", runtime, plan, _addresses(runtime, x, w, b, y))

        autotune.compute(runtime, problem, "forward", by)


@runtimes.on_device("dx")
def input_grad(dy: Array, w: Array, b: Array | None, dx: Array, window: Window, channels_last: bool) -> None:
    """Write dx, the gradient by x of sum(dy * conv(x, w)); plus b, as a transposed convolution has it."""
    runtime, dtype = runtimes.of(dy), dx.dtype
    dy, w = dy.astype(dtype, copy=False), _contiguous(w, dtype)
    b = None if b is None else _contiguous(b, dtype)
    if dx.size:
        problem = describe(window, dx, dy, dtype, channels_last)

        def by(algorithm: ModuleType) -> None:
            from_dy = _contiguous(dy, dtype) if algorithm is gemm else dy
            source = laid(from_dy, runtime.address(from_dy), channels_last)
            alignment = aligned(w, runtime.address(w))
            plan = partial(algorithm.plan_input_grad, problem, source, alignment, Epilogue(b is not None))
            run_within_limit("input gradient", runtime, plan, _addresses(runtime, from_dy, w, b, dx))

        autotune.compute(runtime, problem, "input_grad", by)


@runtimes.on_device("dw")
def weight_grad(dy: Array, x: Array, dw: Array, window: Window, channels_last: bool) -> None:
    """Write dw, the gradient by w of sum(dy * conv(x, w)): summed over the batch, never averaged."""
    runtime, dtype = runtimes.of(dy), dw.dtype
    dy, x = dy.astype(dtype, copy=False), x.astype(dtype, copy=False)
    if len(x):
        problem = describe(window, x, dy, dtype, channels_last)

        def by(algorithm: ModuleType) -> None:
            from_dy = _contiguous(dy, dtype) if algorithm is gemm else dy
            source, gradient = (laid(a, runtime.address(a), channels_last) for a in (x, from_dy))
            plan = partial(algorithm.plan_weight_grad, problem, source, gradient)
            run_within_limit("weight gradient", runtime, plan, _addresses(runtime, from_dy, x, None, dw))

        autotune.compute(runtime, problem, "weight_grad", by)
    else:
        dw[...] = 0


bias_grad = bias.grad


def _addresses(
    runtime: runtimes.Runtime, left: Array, right: Array, b: Array | None, result: Array
) -> list[int]:
    """Return the addresses in the order of the slots; the workspace's comes behind."""
    return [0 if array is None else runtime.address(array) for array in (left, right, b, result)]


def describe(window: Window, x: Array, y: Array, dtype: Any, channels_last: bool) -> Problem:
    """Describe a convolution of x to y, or its gradients: x may be dx, y may be dy."""
    if not channels_last and max(prod(window.in_size), window.places) >= 2**31:
        raise ValueError(
            f"channels first, a plane must have fewer than 2^31 places on a GPU (cuBLAS), but x has "
            f"{window.in_size} and y {window.out_size}"
        )
    c_in, c_out = (a.shape[-1 if channels_last else 1] for a in (x, y))
    return Problem(window, len(x), c_in, c_out, dtype, channels_last, config.fp32_precision)


def _contiguous(x: Array, dtype: Any) -> Array:
    """Return an array that a product can take as a matrix: of this dtype, in row-major order."""
    return x if x.dtype == dtype and x.flags.c_contiguous else x.astype(dtype, order="C")
