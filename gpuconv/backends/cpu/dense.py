"""The matrix product of dense layers, shared out to the threads by rows or columns.

BLAS's own threads wait for each other in a loop: where another program holds one of the cores, a product of
0.2 ms takes 40 (two cores, three programs). Threads of ours that each compute a part don't.
"""

from typing import Any

import numpy as np

from gpuconv.backends.cpu import arrays
from gpuconv.backends.cpu.threads import count, parallel
from gpuconv.backends.dispatch import accumulator

Array = np.ndarray[Any, Any]


def product(a: Array, b: Array, dtype: np.dtype[Any], bias: Array | None = None) -> Array:
    """Return a @ b for matrices of any float dtypes, plus a bias per column.

    float16 is multiplied and summed in float32, the bias included, and rounded once.
    """
    exact = accumulator(dtype)
    a, b = a.astype(exact, copy=False), b.astype(exact, copy=False)
    out = arrays.empty((a.shape[0], b.shape[1]), exact, a)
    # The longer side is cut: what all threads read, and BLAS copies for each, is the shorter one's matrix.
    by_columns = out.shape[1] > out.shape[0]
    step = max(1, -(-max(out.shape) // count()))

    def one(begin: int) -> None:
        rows, columns = slice(None), slice(begin, begin + step)
        if not by_columns:
            rows, columns = columns, rows
        part = out[rows, columns]
        np.matmul(a[rows], b[:, columns], out=part)
        if bias is not None:
            part += bias[columns]

    parallel(one, range(0, max(out.shape), step), a.size * b.shape[1], blas=True)
    return out.astype(dtype, copy=False)
