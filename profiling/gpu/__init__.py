"""The parts of `profiling/gpu_check.py`, a file each."""
