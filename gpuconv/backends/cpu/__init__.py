"""NumPy backend: GEMM through BLAS on bounded column buffers, threads over images and channels."""

from gpuconv.backends.cpu import adaptive, arrays, columns, convolution, dense, pooling

__all__ = ["adaptive", "arrays", "columns", "convolution", "dense", "pooling"]
