"""cublasGemmStridedBatchedEx on the CPU, with its demands on the arguments."""

import ctypes

import numpy as np

from host.memory import DeviceError, memory

# (dtype of a and b, dtype of c) that cuBLAS has, with the dtype of the sums.
COMPUTE = {
    (np.dtype(a), np.dtype(c)): compute
    for a, c, compute in (
        (np.float16, np.float16, np.float32),
        (np.float16, np.float32, np.float32),
        (np.float32, np.float32, np.float32),
        (np.float64, np.float64, np.float64),
        (np.complex64, np.complex64, np.complex64),
        (np.complex128, np.complex128, np.complex128),
    )
}


def gemm(transposed, sizes, a, b, c, batch, dtypes, accumulate):
    """Compute C = op(A) op(B), or C += it; every argument is as in `Runtime.gemm`."""
    if dtypes not in COMPUTE:
        raise DeviceError(f"gemm: no product of {dtypes[0]} gives {dtypes[1]}")
    compute = COMPUTE[dtypes]
    m, n, k = sizes
    if min(m, n, k, batch) < 0 or max(m, n, k, batch) >= 2**31:
        raise DeviceError(f"gemm: m, n, k = {sizes} or batch = {batch} is no size")
    left = _matrices("A", *a, m, k, batch, dtypes[0], transposed[0])
    right = _matrices("B", *b, k, n, batch, dtypes[0], transposed[1])
    out = _matrices("C", *c, m, n, batch, dtypes[1], False)
    if out.size == 0:
        return
    _check_distinct(out)
    if np.may_share_memory(out, left) or np.may_share_memory(out, right):
        raise DeviceError("gemm: C overlaps A or B")
    with np.errstate(all="ignore"):  # infinities and NaN are no news to a GPU
        product = np.matmul(_factor(left, compute), _factor(right, compute))
        if accumulate:
            product += out
        out[...] = product


def _matrices(name, address, leading, step, rows, columns, batch, dtype, transposed):
    """Return a batch of column-major matrices as an array [batch, rows, columns] over the device's memory."""
    stored = columns if transposed else rows
    if not max(1, stored) <= leading < 2**31:
        raise DeviceError(f"gemm: {name} has a leading dimension of {leading}, but columns of {stored}")
    if step < 0:
        raise DeviceError(f"gemm: {name} has a batch stride of {step}")
    shape = (batch, rows, columns)
    strides = (step, leading, 1) if transposed else (step, 1, leading)
    if 0 in shape:
        return np.empty(shape, dtype)
    if address % dtype.itemsize:
        raise DeviceError(f"gemm: {name} at {address:#x} is not aligned to its {dtype.itemsize} bytes")
    elements = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    try:
        memory.find(address, elements * dtype.itemsize)
    except DeviceError as error:
        raise DeviceError(f"gemm: {name} leaves its memory: {error}") from None
    flat = np.ctypeslib.as_array((ctypes.c_ubyte * (elements * dtype.itemsize)).from_address(address))
    return np.ndarray(shape, dtype, buffer=flat, strides=[stride * dtype.itemsize for stride in strides])


def _factor(matrices, dtype):
    # A matrix that the whole batch shares is converted once; what BLAS can't walk through is copied.
    if matrices.shape[0] and matrices.strides[0] == 0:
        matrices = matrices[:1]
    return np.ascontiguousarray(matrices, dtype)


def _check_distinct(out):
    """No two elements of C in one place: each axis must step over the ones within."""
    reach = out.itemsize
    for stride, size in sorted((s, n) for s, n in zip(out.strides, out.shape, strict=True) if n > 1):
        if stride < reach:
            raise DeviceError(f"gemm: elements of C overlap (strides {out.strides}, shape {out.shape})")
        reach += stride * (size - 1)
