"""Gradients in a few large arrays, each summed over the processes as soon as it is full.

One message of megabytes costs less than hundreds of kilobytes each, and one that begins while the backward
pass still computes costs, where the network is good enough, nothing.
"""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from itertools import groupby
from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.dispatch import accumulator, array_module, check_shape
from gpuconv.distributed.communicator import Communicator, Pending
from gpuconv.nn.layer import Array, Layer
from gpuconv.nn.sequential import Sequential
from gpuconv.trace import AROUND_LAYER

Arrays = MutableMapping[str, Array]


class Buckets:
    """The gradients of a network, in the order in which its backward pass produces them: last layer first.

    A gradient is copied into its bucket when its layer's backward returns, which `Sequential` tells; in the
    end the layers' `grads` are views of the buckets. Sums are in float32 at least.
    """

    def __init__(self, network: Layer, comm: Communicator, most_bytes: int) -> None:
        self._comm = comm
        self._buckets: list[_Bucket] = []
        self._of_layer: dict[int, list[tuple[_Bucket, int]]] = {}
        self._layers = list(_backwards(network))
        wanted = [(layer, name, p) for layer in self._layers for name, p in layer.params.items()]
        for (xp, dtype), group in groupby(wanted, lambda item: _kind(item[2])):
            bucket = None
            for layer, name, p in group:
                if bucket is None or bucket.nbytes >= most_bytes:
                    bucket = _Bucket(xp, dtype)
                    self._buckets.append(bucket)
                self._of_layer.setdefault(id(layer), []).append((bucket, bucket.add(layer.grads, name, p)))

    @property
    def nbytes(self) -> list[int]:
        """The buckets' sizes, in the order in which they are sent."""
        return [bucket.nbytes for bucket in self._buckets]

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Around a backward pass: sums begin as buckets fill, and are there in the end."""
        for bucket in self._buckets:
            bucket.begin()
        done: set[int] = set()
        before = AROUND_LAYER.get()

        def around(function: Any, i: int, layer: Layer, which: str, *arguments: Any, **named: Any) -> Any:
            if before is None:
                result = function(*arguments, **named)
            else:
                result = before(function, i, layer, which, *arguments, **named)
            if which == "backward" and id(layer) not in done:
                done.add(id(layer))
                self._produced(layer)
            return result

        token = AROUND_LAYER.set(around)
        try:
            yield
        finally:
            AROUND_LAYER.reset(token)
        for layer in self._layers:
            if id(layer) not in done:  # of a network that isn't a `Sequential`
                self._produced(layer)
        for bucket in self._buckets:
            bucket.finish()

    def _produced(self, layer: Layer) -> None:
        for bucket, slot in self._of_layer.get(id(layer), ()):
            bucket.fill(slot, self._comm)
        for bucket in self._buckets:
            bucket.advance()


class _Bucket:
    """One flat array, with a place for each of some gradients."""

    def __init__(self, xp: Any, dtype: np.dtype[Any]) -> None:
        self._xp, self._dtype = xp, dtype
        self._slots: list[tuple[Arrays, str, tuple[int, ...]]] = []
        self._views: list[Array] = []
        self._last: list[Array] = []  # those of the backward pass before
        self._flat: Array = None
        self._missing = 0
        self._pending: Pending | None = None

    @property
    def nbytes(self) -> int:
        return self._dtype.itemsize * sum(prod(shape) for *_, shape in self._slots)

    def add(self, grads: Arrays, name: str, p: Array) -> int:
        self._slots.append((grads, name, p.shape))
        return len(self._slots) - 1

    def _allocate(self) -> None:
        self._flat, self._views = self._xp.empty(self.nbytes // self._dtype.itemsize, self._dtype), []
        start = 0
        for *_, shape in self._slots:
            self._views.append(self._flat[start : start + prod(shape)].reshape(shape))
            start += prod(shape)

    def begin(self) -> None:
        self._last = self._views or [None] * len(self._slots)
        self._allocate()  # anew: who keeps the last gradients keeps them as they were
        self._missing = len(self._slots)
        self._pending = None

    def fill(self, slot: int, comm: Communicator) -> None:
        grads, name, shape = self._slots[slot]
        found = grads.get(name, 0)
        if name in grads:
            check_shape("DataParallel.backward", f"the gradient of {name}", found.shape, shape, "as before")
        # Not written since the last backward: it is a sum already, and rank 0's alone counts.
        old = comm.rank > 0 and found is self._last[slot]
        self._views[slot][...] = 0 if old else found
        self._missing -= 1
        if not self._missing:
            self._pending = comm.start_sum(self._flat)

    def advance(self) -> None:
        if self._pending is not None:
            self._pending.advance()

    def finish(self) -> None:
        if self._pending is not None:
            self._pending.wait()
        for (grads, name, _), view in zip(self._slots, self._views, strict=True):
            if name in grads:  # a layer that gives none, as one process, leaves none
                grads[name] = view


def _backwards(layer: Layer) -> Iterator[Layer]:
    """Yield the layers that hold parameters of their own, last first."""
    if isinstance(layer, Sequential):
        for inner in reversed(tuple(layer)):
            yield from _backwards(inner)
    else:
        yield layer


def _kind(p: Array) -> tuple[Any, np.dtype[Any]]:
    return array_module(p), accumulator(p.dtype)
