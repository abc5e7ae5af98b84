"""Copies between NumPy arrays and a GPU, through pinned memory, beside what the GPU computes.

A copy of other memory holds up the program, and the driver copies it once more. So the CPU copies a piece to
a pinned buffer, and the GPU from there, on a stream of its own, while the CPU fills the other buffer.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpuconv.backends.cpu import threads

Array = Any


class Lane:
    """Copies in one direction, one after another: a stream, and two pinned buffers in turn.

    What is on the GPU may be used once `stream` has done its copies; at the end of the `with` block all are.
    """

    def __init__(self, size: int) -> None:
        import cupy

        # Another stream would wait for all that the default one does, and make it wait.
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self._size = size
        pinned = cupy.cuda.alloc_pinned_memory
        self._buffers = [np.frombuffer(pinned(size), np.uint8, size) for _ in range(2)]
        # Of each buffer's last copy: the event after it, the array on the GPU, which must live on, and where
        # to copy from the buffer.
        self._last: list[tuple[Any, Array, tuple[Array, Array] | None] | None] = [None, None]
        self._turn = 0

    def up(self, host: Array, device: Array) -> None:
        """Copy a NumPy array to one on the GPU, which is in row-major order; host may change thereafter."""
        for piece, part in _pieces(host, device, self._size):
            buffer = self._next(part)
            _copy(buffer, piece)
            part.set(buffer, stream=self.stream)
            self._last[self._turn] = self.stream.record(), part, None

    def down(self, device: Array, host: Array) -> None:
        """Copy an array on the GPU, in row-major order, to one of NumPy's, filled at the block's end."""
        for piece, part in _pieces(host, device, self._size):
            buffer = self._next(part)
            part.get(stream=self.stream, out=buffer, blocking=False)
            self._last[self._turn] = self.stream.record(), part, (piece, buffer)

    def __enter__(self) -> "Lane":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error, too, nothing may be freed that is still copied.
        self.stream.synchronize()
        if kind is None:
            for i in (1 - self._turn, self._turn):
                self._complete(i)

    def _next(self, part: Array) -> Array:
        """Return the other buffer, free again, as an array like `part`."""
        self._turn = 1 - self._turn
        self._complete(self._turn)
        return self._buffers[self._turn][: part.nbytes].view(part.dtype).reshape(part.shape)

    def _complete(self, i: int) -> None:
        if (last := self._last[i]) is not None:
            copied, _, then = last
            copied.synchronize()
            if then is not None:
                _copy(*then)
            self._last[i] = None


def _pieces(host: Array, device: Array, size: int) -> Iterator[tuple[Array, Array]]:
    """Cut an array and its twin on the GPU into pieces of at most so many bytes."""
    if host.flags.c_contiguous:
        host, device = host.reshape(-1), device.reshape(-1)
    row = device.nbytes // max(1, len(host))
    if row > size:
        for pair in zip(host, device, strict=True):
            yield from _pieces(*pair, size)
    elif row:
        step = size // row
        for i in range(0, len(host), step):
            yield host[i : i + step], device[i : i + step]


def _copy(target: Array, source: Array) -> None:
    """Copy between NumPy arrays, on all threads where that pays."""
    if (n := threads.workers(source.size)) == 1:
        np.copyto(target, source)
        return
    step = -(-len(source) // n)
    parts = [slice(i, i + step) for i in range(0, len(source), step)]
    threads.parallel(lambda part: np.copyto(target[part], source[part]), parts, source.size)
