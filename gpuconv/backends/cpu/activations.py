"""The rectifier on NumPy arrays, by C where the elements lie side by side."""

from typing import Any

import numpy as np

from gpuconv.backends.cpu import arrays, compiled
from gpuconv.backends.cpu.compiled import address
from gpuconv.backends.cpu.jobs import run
from gpuconv.backends.cpu.threads import used
from gpuconv.backends.plans import Account, Part

Array = np.ndarray[Any, Any]

# Elements that a job takes: what it reads and writes stays in a core's own cache for the next layer.
BLOCK = 1 << 16


def relu(x: Array) -> Array:
    """Return max(x, 0); NaN stays."""
    y = arrays.empty(x.shape, x.dtype, x)
    if kernels := _kernels(x, y):
        _blocks(kernels, "relu", x, y)
    else:
        _maximum(x, y)
    return y


def rectify(y: Array) -> None:
    """Write max(y, 0) over y; NaN stays."""
    if kernels := _kernels(y):
        _blocks(kernels, "rectify", y)
    else:
        _maximum(y, y)


def _maximum(x: Array, y: Array) -> None:
    np.maximum(x, 0, out=y)
    y += 0  # of float16's -0 and 0, NumPy takes -0


def relu_input_grad(dy: Array, y: Array) -> Array:
    """Return dy, but 0 where y <= 0."""
    dx = arrays.empty(dy.shape, dy.dtype, dy)
    if kernels := _kernels(dy, y, dx):
        _blocks(kernels, "relu_input_grad", dy, y, dx)
        return dx
    # By bits, all or none: an infinite dy times 0 would be NaN, and choosing by a mask takes ten times as
    # long, as no branch of it can be foreseen.
    bits = f"i{dy.dtype.itemsize}"
    passes = dx.view(bits)
    passes[...] = y <= 0
    passes -= 1
    passes &= dy.view(bits)
    return dx


def plan_rectify(y: Array, account: Account) -> tuple[int, int]:
    """Add what `rectify` would do to an account; return how many jobs there are, and threads."""
    account.step("relu", bytes=y.nbytes)
    return _plan(y)


def plan_relu_input_grad(dy: Array, y: Array) -> Part:
    """Return how `relu_input_grad` would compute."""
    account = Account()
    account.step("relu_input_grad", bytes=dy.nbytes)
    return account.part("", "", *_plan(dy, y))


def _plan(*given: Array) -> tuple[int, int]:
    jobs = 0 if _kernels(*given) is None else -(-given[0].size // BLOCK)
    return jobs, used(jobs, given[0].size)


def _kernels(*given: Array) -> compiled.Kernels | None:
    beside = all(x.flags.c_contiguous for x in given)
    return compiled.kernels(*given, part="relu") if beside and given[0].size else None


def _blocks(kernels: compiled.Kernels, name: str, *given: Array) -> None:
    size, item, starts = given[0].size, given[0].itemsize, [address(x) for x in given]
    rows = [
        (min(BLOCK, size - begin), *(start + begin * item for start in starts))
        for begin in range(0, size, BLOCK)
    ]
    run(kernels, name, rows, size)
