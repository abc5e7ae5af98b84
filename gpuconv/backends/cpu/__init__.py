"""NumPy backend: GEMM through BLAS on bounded column buffers, threads over images and channels."""

from gpuconv.backends.cpu import activations, adaptive, arrays, columns, convolution, dense, pooling

__all__ = ["activations", "adaptive", "arrays", "columns", "convolution", "dense", "pooling"]
