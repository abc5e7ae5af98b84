"""CUDA backend: columns by our own kernels, products by cuBLAS. Nothing of CuPy is imported before its arrays."""
