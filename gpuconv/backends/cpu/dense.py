"""The matrix product of dense layers, shared out to the threads by rows.

BLAS's own threads wait for each other in a loop: where another program holds one of the cores, a product of
0.2 ms takes 40 (two cores, three programs). Threads of ours that each compute some rows don't.
"""

from typing import Any

import numpy as np

from gpuconv.backends.cpu.threads import count, parallel
from gpuconv.backends.dispatch import accumulator

Array = np.ndarray[Any, Any]


def product(a: Array, b: Array, dtype: np.dtype[Any], bias: Array | None = None) -> Array:
    """Return a @ b for matrices of any float dtypes, plus a bias per column.

    float16 is multiplied and summed in float32, the bias included, and rounded once.
    """
    exact = accumulator(dtype)
    a, b = a.astype(exact, copy=False), b.astype(exact, copy=False)
    out = np.empty((a.shape[0], b.shape[1]), exact)
    step = max(1, -(-len(a) // count()))

    def one(row: int) -> None:
        rows = out[row : row + step]
        np.matmul(a[row : row + step], b, out=rows)
        if bias is not None:
            rows += bias

    parallel(one, range(0, len(a), step), a.size * b.shape[1], blas=True)
    return out.astype(dtype, copy=False)
