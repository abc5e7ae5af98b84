"""The matrix product of dense layers."""

from typing import Any

import numpy as np

from gpuconv.backends.cuda import runtime as runtimes
from gpuconv.backends.cuda.program import At, Gemm, Matrix, Program, run
from gpuconv.config import config

Array = Any


@runtimes.on_device()
def product(a: Array, b: Array, dtype: np.dtype[Any], bias: Array | None = None) -> Array:
    """Return a @ b + bias for matrices of any float dtypes; float16 is multiplied and summed in float32."""
    runtime = runtimes.of(a)
    a, b = a.astype(dtype, copy=False), b.astype(dtype, copy=False)
    (rows, inner), columns = a.shape, b.shape[1]
    c = runtime.empty((rows, columns), dtype)
    if bias is not None:
        c[...] = bias
    elif not inner:
        c[...] = 0
    if rows and inner and columns:
        (a, left), (b, right) = _matrix(a, At(0)), _matrix(b, At(1))
        step = Gemm(
            Matrix(At(2), columns),
            left,
            right,
            (rows, inner, columns),
            1,
            (dtype, dtype),
            bias is not None,
            config.fp32_precision,
        )
        run(runtime, Program((step,)), [runtime.address(array) for array in (a, b, c)])
    return c


def _matrix(x: Array, at: At) -> tuple[Array, Matrix]:
    """Return the array, or a copy that BLAS can take: one axis side by side, the other a whole row apart."""
    for by_columns in (False, True):
        outer, inner = x.strides if not by_columns else x.strides[::-1]
        length = x.shape[0 if by_columns else 1]
        if (inner == x.itemsize or length == 1) and outer >= length * x.itemsize and not outer % x.itemsize:
            return x, Matrix(at, outer // x.itemsize, 0, by_columns)
    x = x.astype(x.dtype, order="C")
    return x, Matrix(at, x.shape[1])
