"""CUDA backend: columns, pooling and bias by our own kernels, matrix products by cuBLAS.

`conv2d` goes convolution.py (which products on which columns) -> columns.py (how im2col is launched) ->
kernels.py (what is compiled) -> cuda/im2col.cu. Nothing of CuPy is imported before its arrays are seen.
"""

from gpuconv.backends.cuda import activations, adaptive, arrays, columns, convolution, dense, pooling
from gpuconv.backends.cuda.runtime import check_device

__all__ = ["activations", "adaptive", "arrays", "check_device", "columns", "convolution", "dense", "pooling"]
