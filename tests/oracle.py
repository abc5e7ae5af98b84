"""What the comparisons with PyTorch share: draws, dtypes, and its side of the calls.

PyTorch computes on the CPU, in float64 or complex128, what ours computes in the drawn dtypes; the dtype of
the result sets how near it must come (`compare.assert_close`).
"""

import random

import numpy as np
import pytest

import gpuconv
from gpuconv import reference as define

torch = pytest.importorskip("torch", reason="PyTorch is the oracle here (extra `oracle`)")
F = torch.nn.functional

AXES = (1, 2, 2, 3)
ROUNDS = range(6)
FLOATS = ("f2", "f4", "f8")
INTEGERS = ("i1", "u1", "i2", "i4", "i8", "?")
COMPLEX = ("c8", "c16")


def draws(backend, number, count):
    """Yield a source of random numbers for each draw of a round: `count` times, on kernels a quarter of that.

    The arrays are small: PyTorch's threads would only wait for each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    rng = random.Random(number)
    try:
        for _ in range(count if backend.is_numpy else count // 4):
            yield rng
    finally:
        torch.set_num_threads(before)


def own_padding(pads):
    """Return the padding as PyTorch takes it, or None where it can't."""
    return tuple(p for p, _ in pads) if all(before == after for before, after in pads) else None


def tensor(x):
    """Return a tensor of the same numbers that gathers a gradient."""
    wide = np.promote_types(x.dtype, np.float64)
    return torch.tensor(np.ascontiguousarray(x, wide), requires_grad=True)


def images(case, x):
    """Return images of the case's layout as a tensor, channels first."""
    return tensor(define.first(x, case.channels_last))


def backward(y, dy, channels_last):
    """Let PyTorch compute the gradients for dy, an array in our layout."""
    y.backward(tensor(define.first(dy, channels_last)).detach().to(y.dtype))


def padded(x, pads, value=0.0):
    """Pad the spatial axes, or cut where negative; PyTorch begins with the last."""
    return F.pad(x, [p for pair in reversed(pads) for p in pair], value=value)


def ours(name, case):
    """Return the public function of the case's rank."""
    return getattr(gpuconv, name.format(len(case.kernel)))


def theirs(name, case):
    """Return PyTorch's function of the case's rank."""
    return getattr(F, name.format(len(case.kernel)))
