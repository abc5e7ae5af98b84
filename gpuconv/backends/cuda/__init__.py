"""CUDA backend: so far the kernel sources and the way to find them; nothing here runs on a GPU yet."""
