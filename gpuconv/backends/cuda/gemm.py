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

from gpuconv.backends.cuda import activations, bias
from gpuconv.backends.cuda.columns import ColumnStrides, Laid, channel_lanes
from gpuconv.backends.cuda.input_grad import plan_input_grad
from gpuconv.backends.cuda.problem import (
    LEFT,
    RESULT,
    RIGHT,
    WORK,
    Chunk,
    Epilogue,
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
from gpuconv.backends.cuda.program import At, Matrix, Program, lanes, planned
from gpuconv.backends.cuda.weight_grad import plan_weight_grad

__all__ = ["plan_forward", "plan_input_grad", "plan_weight_grad", "takes"]


def takes(problem: Problem, which: str) -> bool:
    """Tell whether it can compute this: it can compute everything."""
    return True


@planned
def plan_forward(problem: Problem, x: Laid, alignment: int, epilogue: Epilogue, limit: int) -> Program:
    """Return the program for x (LEFT), w (RIGHT), b (BIAS) and y: Y = W X_col, added to b."""
    p = problem
    plan = _rows_of_places if p.channels_last else _rows_of_channels
    steps, workspace = plan(p, x, epilogue.bias, limit)
    if epilogue.bias:
        steps = (bias.fill(p.images, p.c_out, p.window.out_size, p.dtype, p.channels_last), *steps)
    if epilogue.relu:
        steps = (*steps, activations.rectify(p.images * p.c_out * p.window.places, p.dtype))
    return Program(steps, workspace)


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
