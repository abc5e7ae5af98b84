"""Give back the memory that calls on NumPy arrays keep for the next ones."""

from gpuconv.backends.cpu import arrays, threads


def release_buffers() -> None:
    """Give back the memory that calls on NumPy arrays keep for the next ones.

    Fresh pages take longer than many a small layer. So each thread keeps what its calls needed beside their
    arguments and results, up to 16 MiB for each kind of it; and the memory of large results that nobody
    refers to any more is kept for the next ones of their size, up to 64 MiB. (Such a result doesn't own its
    memory: its ``base`` is not None.) Calls under way keep theirs until they end; results don't change.
    CuPy's memory is given back by its own pool: ``cupy.get_default_memory_pool().free_all_blocks()``.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> y = gpuconv.conv2d(np.ones((8, 64, 32, 32), np.float32), np.ones((64, 64, 3, 3), np.float32))
    >>> gpuconv.release_buffers()
    """
    threads.release_buffers()
    arrays.release()
