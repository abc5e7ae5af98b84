"""Convolution, its input gradient and its weight gradient: which algorithm computes them, and on what views.

    forward           y  = conv(x, w) + b
    input gradient    dx = conv(pad(dy), rot180(w)), a convolution for each phase of the stride
    weight gradient   dw = sum over images and places of dy, times what each tap of w reads of x

An algorithm is a module that has these three, or some; what it can't do, `gemm` does:

    direct     C kernels of the extra `fast`, which multiply shifted runs of a padded image
    winograd   3x3 kernels in a quarter of the multiplications
    filters    every channel filtered alone, by C kernels
    depthwise  the same, by NumPy
    gemm       columns, multiplied by BLAS
    rows       the same, where a kernel's rows need no copies

They work on canonical views: arrays channels first, whatever their layout, and weights
[groups, C_out/groups, C_in/groups, *kernel].
"""

from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.cpu import activations, bias, compiled, depthwise, direct, filters, gemm, rows, winograd
from gpuconv.backends.cpu.columns import channels_first
from gpuconv.backends.dispatch import accumulator
from gpuconv.backends.plans import Account, Part
from gpuconv.config import config
from gpuconv.geometry import Window

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


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
    source, target = channels_first(x, channels_last), channels_first(y, channels_last)
    _convolve(source, weights_by_group(w, window.groups, channels_last), b, window, target, channels_last)
    if activation == "relu":
        activations.rectify(y)


def input_grad(dy: Array, w: Array, b: Array | None, dx: Array, window: Window, channels_last: bool) -> None:
    """Write dx, the gradient by x of sum(dy * conv(x, w)); plus b, as a transposed convolution has it."""
    weights = weights_by_group(w, window.groups, channels_last)
    source, target = channels_first(dy, channels_last), channels_first(dx, channels_last)
    if (c := _filters(source, weights, b, window, target)) is not None:
        filters.input_grad(c, source, weights[:, 0], b, window, target)
        return
    if _by_columns(source, weights, b, window, target):
        gemm.input_grad(source, weights, b, window, target, channels_last)
        return
    for places, taps, phase in window.adjoint():
        part = target[:, :, *places]
        if phase.taps:
            _convolve(source, turned(weights, taps), b, phase, part, channels_last)
        else:
            part[...] = 0 if b is None else b.reshape(-1, *(1,) * window.axes)


def weight_grad(dy: Array, x: Array, dw: Array, window: Window, channels_last: bool) -> None:
    """Write dw, the gradient by w of sum(dy * conv(x, w)): summed over the batch, never averaged."""
    target = weights_by_group(dw, window.groups, channels_last)
    gradient, source = channels_first(dy, channels_last), channels_first(x, channels_last)
    if (c := _filters(gradient, target, None, window, source)) is not None:
        filters.weight_grad(c, gradient, source, window, target[:, 0])
        return
    how = _choose_weight_grad(gradient, source, target, window)
    if how == "depthwise":
        total = np.zeros(target.shape, accumulator(dw.dtype))
        depthwise.weight_grad(gradient, source, window, total[:, 0], channels_last)
        target[...] = total
        return
    c = _kernels(gradient, source, target) if how == "direct" else None
    # Where it isn't finite, an infinity of x may have met the 0 of a place without an output.
    if c is None or not direct.weight_grad(c, gradient, source, window, target):
        gemm.weight_grad(gradient, source, window, target, channels_last)


bias_grad = bias.grad


def _convolve(x: Array, w: Array, b: Array | None, window: Window, y: Array, channels_last: bool) -> None:
    """Write conv(x, w) + b to y by the algorithm that suits."""
    if (c := _filters(x, w, b, window, y)) is not None:
        filters.forward(c, x, w[:, 0], b, window, y)
        return
    how = _choose(x, w, b, window, y)
    if how == "winograd":
        # It spoils whole tiles where something isn't finite.
        winograd.forward(x, w, b, window, y, lambda x, y: _otherwise(x, w, b, window, y, channels_last))
    elif how == "depthwise":
        depthwise.forward(x, w[:, 0], b, window, y, channels_last)
    elif how == "direct":
        _otherwise(x, w, b, window, y, channels_last)
    else:
        _by_blas(x, w, b, window, y, channels_last)


def _otherwise(x: Array, w: Array, b: Array | None, window: Window, y: Array, channels_last: bool) -> None:
    if (c := _kernels(x, w, y, b)) is not None:
        direct.forward(c, x, w, b, window, y)
    else:
        _by_blas(x, w, b, window, y, channels_last)


def _by_blas(x: Array, w: Array, b: Array | None, window: Window, y: Array, channels_last: bool) -> None:
    if not channels_last and rows.pays(x, w.shape, window):
        rows.forward(x, w, b, window, y)
    else:
        gemm.forward(x, w, b, window, y, channels_last)


def _kernels(*arrays: Array | None) -> compiled.Kernels | None:
    """Return the C kernels, if they may and can compute with these arrays."""
    return compiled.kernels(*(x for x in arrays if x is not None))


def _filters(x: Array, w: Array, b: Array | None, window: Window, y: Array) -> compiled.Kernels | None:
    """Return the C kernels where they filter every channel alone, of x to y or of a gradient."""
    if config.algorithm != "auto" or w.shape[1] != 1:
        return None
    return filters.kernels(w[:, 0].shape, window, x, w, b, y)


def _choose(x: Array, w: Array, b: Array | None, window: Window, y: Array) -> str:
    """Return the algorithm for a convolution: the one that is asked for where it can, else the fastest."""
    wanted = config.algorithm
    arrays = [array for array in (x, w, b, y) if array is not None]
    alike = x.dtype in compiled.SUFFIXES and all(array.dtype == x.dtype for array in arrays)
    if wanted == "gemm":
        return "gemm"
    if wanted == "winograd" and alike and winograd.fits(window):
        return "winograd"
    direct_can = _kernels(*arrays) is not None
    if wanted == "direct" and direct_can:
        return "direct"
    if _is_depthwise(w.shape, window):
        return "depthwise"
    if alike and winograd.pays(x, w.shape, window, y):
        return "winograd"
    return "direct" if direct_can else "gemm"


def _choose_weight_grad(dy: Array, x: Array, dw: Array, window: Window) -> str:
    """Return the algorithm for a weight gradient; dw is [groups, C_out/groups, C_in/groups, *kernel]."""
    if config.algorithm == "gemm":
        return "gemm"
    if _is_depthwise(dw.shape, window) and config.algorithm != "direct":
        return "depthwise"
    return "gemm" if _kernels(dy, x, dw) is None else "direct"


def _is_depthwise(w_shape: Shape, window: Window) -> bool:
    return w_shape[1:3] == (1, 1) and window.groups > 1 and window.axes > 1


# How many times more columns the turned kernel may need until col2im is faster.
TURNED_COST = 3


def _by_columns(dy: Array, w: Array, b: Array | None, window: Window, dx: Array) -> bool:
    """Tell whether an input gradient gathers columns: those of dy are C_out high, those of dx C_in."""
    og, cg = w.shape[1:3]
    return og > TURNED_COST * cg and all(
        _choose(dy, turned(w, taps), b, phase, dx[:, :, *places]) == "gemm"
        for places, taps, phase in window.adjoint()
        if phase.taps
    )


def turned(w: Array, taps: tuple[slice, ...]) -> Array:
    """View these taps of weights as those of an input gradient: turned by 180 degrees, in and out swapped."""
    back = (slice(None, None, -1),) * (w.ndim - 3)
    return w[:, :, :, *taps].swapaxes(1, 2)[:, :, :, *back]


def weights_by_group(w: Array, groups: int, channels_last: bool) -> Array:
    """View weights as [groups, C_out/groups, C_in/groups, *kernel]."""
    canonical = w.transpose(w.ndim - 1, w.ndim - 2, *range(w.ndim - 2)) if channels_last else w
    return canonical.reshape(groups, canonical.shape[0] // groups, *canonical.shape[1:], copy=False)


# What the functions above would do, on arrays that are only viewed.


def plan_forward(
    x: Array,
    w: Array,
    b: Array | None,
    y: Array,
    window: Window,
    channels_last: bool,
    activation: str | None,
) -> Part:
    """Return how `forward` would compute."""
    account, weights = Account(), weights_by_group(w, window.groups, channels_last)
    source, target = channels_first(x, channels_last), channels_first(y, channels_last)
    algorithm, why, jobs, threads, shared = _plan(source, weights, b, window, target, channels_last, account)
    if activation == "relu":
        more, most = activations.plan_rectify(y, account)
        jobs, threads = jobs + more, max(threads, most)
    return account.part(algorithm, why, jobs, threads, shared)


def plan_input_grad(
    dy: Array, w: Array, b: Array | None, dx: Array, window: Window, channels_last: bool
) -> Part:
    """Return how `input_grad` would compute."""
    account, weights = Account(), weights_by_group(w, window.groups, channels_last)
    source, target = channels_first(dy, channels_last), channels_first(dx, channels_last)
    if _filters(source, weights, b, window, target) is not None:
        return account.part(
            "depthwise", filters.WHY, *filters.plan_input_grad(source, target, window, account)
        )
    if _by_columns(source, weights, b, window, target):
        jobs, threads = gemm.plan_input_grad(source, weights.shape, target, window, account)
        why = "dy has so many more channels than x that W^T dY, gathered by col2im, has the fewest columns"
        return account.part("gemm", why, jobs, threads)
    chunks, threads, shared, algorithm, how = 0, 1, 0, "fill", "no tap reads any place"
    for places, taps, phase in window.adjoint():
        if phase.taps:
            part = target[:, :, *places]
            algorithm, how, jobs, most, kept = _plan(
                source, turned(weights, taps), b, phase, part, channels_last, account
            )
            chunks, threads, shared = chunks + jobs, max(threads, most), max(shared, kept)
        else:
            account.step("fill", places=prod(phase.out_size))
    why = f"dx is a convolution of dy with turned kernels, one for each phase of the stride: {how}"
    return account.part(algorithm, why, chunks, threads, shared)


def plan_weight_grad(dy: Array, x: Array, dw: Array, window: Window, channels_last: bool) -> Part:
    """Return how `weight_grad` would compute."""
    account, target = Account(), weights_by_group(dw, window.groups, channels_last)
    gradient, source = channels_first(dy, channels_last), channels_first(x, channels_last)
    if _filters(gradient, target, None, window, source) is not None:
        return account.part(
            "depthwise", filters.WHY, *filters.plan_weight_grad(gradient, source, window, account)
        )
    algorithm = _choose_weight_grad(gradient, source, target, window)
    if algorithm == "depthwise":
        jobs, threads, shared = depthwise.plan_weight_grad(
            gradient, source, window, accumulator(dw.dtype), channels_last, account
        )
        return account.part("depthwise", depthwise.why(channels_last), jobs, threads, shared)
    if algorithm == "direct":
        jobs, threads, shared = direct.plan_weight_grad(gradient, source, window, target, account)
        return account.part("direct", direct.WHY, jobs, threads, shared)
    jobs, threads, shared = gemm.plan_weight_grad(gradient, source, target, window, account)
    why = f"{jobs} sums of products with columns, always in the same order"
    return account.part("gemm", why, jobs, threads, shared)


plan_bias_grad = bias.plan_grad


def _plan(
    x: Array, w: Array, b: Array | None, window: Window, y: Array, channels_last: bool, account: Account
) -> tuple[str, str, int, int, int]:
    """Add what `_convolve` would do; return algorithm, why, jobs, threads and the bytes that they share."""
    if _filters(x, w, b, window, y) is not None:
        return "depthwise", filters.WHY, *filters.plan_forward(x, y, window, account), 0
    algorithm = _choose(x, w, b, window, y)
    if algorithm == "winograd":
        return algorithm, winograd.why(x, y), *winograd.plan_forward(x, w.shape, window, y, account)
    if algorithm == "depthwise":
        jobs, threads = depthwise.plan_forward(x, window, y, channels_last, account)
        return algorithm, depthwise.why(channels_last), jobs, threads, 0
    if algorithm == "direct":
        return algorithm, direct.WHY, *direct.plan_forward(x, w.shape, window, account)
    if not channels_last and rows.pays(x, w.shape, window):
        return "gemm", rows.WHY, *rows.plan_forward(x, w, window, y, account)
    jobs, threads = gemm.plan_forward(x, w.shape, window, y, channels_last, account)
    # Turned kernels aren't a matrix until they are copied.
    copied = 0 if gemm.matrices_of(w, channels_last) is not None else w.nbytes
    return "gemm", gemm.why(window), jobs, threads, copied
