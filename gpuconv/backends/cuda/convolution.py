"""Convolution and its gradients as matrix products (cuBLAS) on columns (our kernels).

With X_col the columns of some output places ([C_in/groups * taps, places]) and W the weights as a matrix
([C_out/groups, C_in/groups * taps]), for each group

    forward           Y  = W X_col + b
    input gradient    dX = col2im(W^T dY)                       (input_grad.py)
    weight gradient   dW = sum over chunks of dY X_col^T        (weight_grad.py)

Channels first, matrices are as above: an image's columns lie side by side, and the products of several images
or groups are one batched call. Channels last everything is transposed: Y = X_col W, with a row for each place
that holds one group after another, so that all images are one matrix. Columns live in the workspace, as many
at a time as its limit allows. A 1x1 kernel's columns are x itself.
"""

from functools import partial
from math import prod
from typing import Any

from gpuconv.backends.cuda import bias, depthwise
from gpuconv.backends.cuda import runtime as runtimes
from gpuconv.backends.cuda.columns import ColumnStrides, Laid, aligned, channel_lanes, laid
from gpuconv.backends.cuda.input_grad import plan_input_grad
from gpuconv.backends.cuda.problem import (
    LEFT,
    RESULT,
    RIGHT,
    WORK,
    Chunk,
    Problem,
    Steps,
    batches,
    channel_pitch,
    cut,
    round_up,
    row_pitch,
    unfold,
    whole_rows,
)
from gpuconv.backends.cuda.program import At, Matrix, Program, lanes, planned, run, run_within_limit
from gpuconv.backends.cuda.weight_grad import plan_weight_grad
from gpuconv.config import config
from gpuconv.geometry import Window

Array = Any


@runtimes.on_device("y")
def forward(x: Array, w: Array, b: Array | None, y: Array, window: Window, channels_last: bool) -> None:
    """Write conv(x, w) + b to y."""
    runtime, dtype = runtimes.of(x), y.dtype
    x, w = x.astype(dtype, copy=False), _contiguous(w, dtype)
    if y.size:
        problem, source = _problem(window, x, y, channels_last), laid(x, runtime.address(x), channels_last)
        if depthwise.chosen(problem):
            b = None if b is None else _contiguous(b, dtype)
            program = depthwise.plan_forward(problem, source, aligned(w, runtime.address(w)), b is not None)
            run(runtime, program, _addresses(runtime, x, w, b, y))
            return
        if b is not None:
            bias.fill(y, b.astype(dtype, copy=False), channels_last)
        plan = partial(_plan_forward, problem, source, b is not None)
        run_within_limit("convolution", runtime, plan, _addresses(runtime, x, w, None, y))


@runtimes.on_device("dx")
def input_grad(dy: Array, w: Array, b: Array | None, dx: Array, window: Window, channels_last: bool) -> None:
    """Write dx, the gradient by x of sum(dy * conv(x, w)); plus b, as a transposed convolution has it."""
    runtime, dtype = runtimes.of(dy), dx.dtype
    dy, w = dy.astype(dtype, copy=False), _contiguous(w, dtype)
    if dx.size:
        problem = _problem(window, dx, dy, channels_last)
        b = None if b is None else _contiguous(b, dtype)
        if depthwise.chosen(problem):
            source, alignment = laid(dy, runtime.address(dy), channels_last), aligned(w, runtime.address(w))
            program = depthwise.plan_input_grad(problem, source, alignment, b is not None)
            run(runtime, program, _addresses(runtime, dy, w, b, dx))
            return
        dy = _contiguous(dy, dtype)
        if b is not None and window.is_pointwise:
            bias.fill(dx, b, channels_last)
        plan = partial(plan_input_grad, problem, aligned(dy, runtime.address(dy)), b is not None)
        run_within_limit("input gradient", runtime, plan, _addresses(runtime, dy, w, b, dx))


@runtimes.on_device("dw")
def weight_grad(dy: Array, x: Array, dw: Array, window: Window, channels_last: bool) -> None:
    """Write dw, the gradient by w of sum(dy * conv(x, w)): summed over the batch, never averaged."""
    runtime, dtype = runtimes.of(dy), dw.dtype
    dy, x = dy.astype(dtype, copy=False), x.astype(dtype, copy=False)
    if len(x):
        problem, source = _problem(window, x, dy, channels_last), laid(x, runtime.address(x), channels_last)
        if depthwise.chosen(problem):
            gradient = laid(dy, runtime.address(dy), channels_last)
            plan = partial(depthwise.plan_weight_grad, problem, source, gradient)
        else:
            dy = _contiguous(dy, dtype)
            plan = partial(plan_weight_grad, problem, source)
        run_within_limit("weight gradient", runtime, plan, _addresses(runtime, dy, x, None, dw))
    else:
        dw[...] = 0


bias_grad = bias.grad


def _addresses(
    runtime: runtimes.Runtime, left: Array, right: Array, b: Array | None, result: Array
) -> list[int]:
    """Return the addresses in the order of the slots; the workspace's comes behind."""
    return [0 if array is None else runtime.address(array) for array in (left, right, b, result)]


def _problem(window: Window, x: Array, y: Array, channels_last: bool) -> Problem:
    """Describe a convolution of x to y, or its gradients: x may be dx, y may be dy."""
    if not channels_last and max(prod(window.in_size), window.places) >= 2**31:
        raise ValueError(
            f"channels first, a plane must have fewer than 2^31 places on a GPU (cuBLAS), but x has "
            f"{window.in_size} and y {window.out_size}"
        )
    c_in, c_out = (a.shape[-1 if channels_last else 1] for a in (x, y))
    return Problem(window, len(x), c_in, c_out, x.dtype, channels_last, config.fp32_precision)


def _contiguous(x: Array, dtype: Any) -> Array:
    """Return an array that a product can take as a matrix: of this dtype, in row-major order."""
    return x if x.dtype == dtype and x.flags.c_contiguous else x.astype(dtype, order="C")


@planned
def _plan_forward(problem: Problem, x: Laid, accumulate: bool, limit: int) -> Program:
    """Y = W X_col, added to what Y holds where `accumulate` (the bias)."""
    plan = _rows_of_places if problem.channels_last else _rows_of_channels
    return plan(problem, x, accumulate, limit)


def _rows_of_channels(p: Problem, x: Laid, accumulate: bool, limit: int) -> Program:
    """Channels first: Y = W X_col with columns [images, G, C, taps, places]."""
    window, rows, og, places = p.window, p.rows, p.og, p.window.places
    step = lanes(p.itemsize)
    direct = channel_pitch(x, window) if window.is_pointwise else None
    if direct is None:
        chunks = cut(p.images, range(window.groups), places, rows * p.itemsize, limit, step)
    else:
        chunks = [Chunk(0, p.images, 0, window.groups, 0, places)]
    steps: Steps = []
    for chunk in chunks:
        if direct is None:
            slot, pitch = WORK, round_up(chunk.places, step)
            image = chunk.groups * rows * pitch
            col = ColumnStrides(image=image, channel=window.taps * pitch, tap=pitch)
            steps.append(unfold(p, x, LEFT, chunk, col, At(WORK), step))
        else:
            slot, pitch, image = LEFT, direct, x.image
        for n, g, batch, by_image in batches(chunk):
            group, whole = chunk.g0 + g, (chunk.n0 + n) * p.c_out * places
            a = Matrix(p.at(RIGHT, group * og * rows), rows, 0 if by_image else og * rows)
            b_at, b_step = n * image + g * rows * pitch, image if by_image else rows * pitch
            b = Matrix(p.at(slot, b_at), pitch, b_step)
            c_step = (p.c_out if by_image else og) * places
            c = Matrix(p.at(RESULT, whole + group * og * places + chunk.o0), places, c_step)
            steps.append(p.gemm(c, a, b, (og, rows, chunk.places), batch, accumulate=accumulate))
    workspace = 0 if direct else max(chunk.columns(step) for chunk in chunks) * rows * p.itemsize
    return Program(tuple(steps), workspace)


def _rows_of_places(p: Problem, x: Laid, accumulate: bool, limit: int) -> Program:
    """Channels last: Y = X_col W with columns [places, G, taps, C], images one after another."""
    window, rows, og = p.window, p.rows, p.og
    total = p.images * window.places
    direct = row_pitch(x, window, p.c_in) if window.is_pointwise else None
    if direct is None:
        chunks = cut(1, range(window.groups), total, rows * p.itemsize, limit, 1)
    else:
        chunks = whole_rows(p)
    vector = channel_lanes(p.itemsize, p.cg, x)
    steps: Steps = []
    for chunk in chunks:
        if direct is None:
            col = ColumnStrides(group=rows, tap=p.cg, place=chunk.groups * rows)
            steps.append(unfold(p, x, LEFT, chunk, col, At(WORK), vector))
            a = Matrix(At(WORK), chunk.groups * rows, rows)
        else:
            a = Matrix(p.at(LEFT, chunk.o0 * direct), direct, p.cg)
        b = Matrix(p.at(RIGHT, chunk.g0 * og), p.c_out, og)
        c = Matrix(p.at(RESULT, chunk.o0 * p.c_out + chunk.g0 * og), p.c_out, og)
        steps.append(p.gemm(c, a, b, (chunk.places, rows, og), chunk.groups, accumulate=accumulate))
    workspace = 0 if direct else max(chunk.columns(1) for chunk in chunks) * rows * p.itemsize
    return Program(tuple(steps), workspace)
