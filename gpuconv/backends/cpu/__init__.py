"""NumPy backend: GEMM through BLAS on bounded column buffers, threads over images and channels."""

from gpuconv.backends.cpu import columns, convolution, dense, pooling

__all__ = ["columns", "convolution", "dense", "pooling"]
