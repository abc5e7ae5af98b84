"""A network whose gradients are those of a batch that several processes share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np

from gpuconv.backends.dispatch import accumulator, array_module
from gpuconv.distributed.buckets import Buckets
from gpuconv.distributed.communicator import Communicator, any_of, check_alike
from gpuconv.distributed.shards import part
from gpuconv.geometry import flag, integer
from gpuconv.nn.layer import Array, Layer
from gpuconv.nn.share import SHARE, Share

# Between a few processes worth its latency; between hundreds, more is: docs/distributed.md.
BUCKET_BYTES = 4 << 20


class DataParallel(Layer):
    r"""A network that several processes train together, each on its part of every batch.

    With :math:`n_r` samples on rank r, :math:`n = \sum_r n_r`, and the mean loss :math:`J_r` of a part,

    .. math:: J = \sum_r \frac{n_r}{n} J_r, \quad
        \frac{\partial J}{\partial w} = \sum_r \frac{n_r}{n} \frac{\partial J_r}{\partial w}:

    `backward` leaves the gradients of the whole batch in `grads`, so any optimiser made for this layer, or
    for the network in it, makes the same step on every rank. Parts may be of different sizes, and empty.

    Parameters
    ----------
    network : Layer
        The same on every rank, but for its values: rank 0's are taken.
    comm : Communicator
        From `gpuconv.distributed.world`.
    sync_batch_norm : bool, default False
        Whether `BatchNorm2d` takes mean and variance over all parts: the result is then one process's, for
        two small sums a layer forward and one backward. Else each part is normalised by itself, and the
        running statistics are the parts' means.
    reduction : "mean" or "sum", default "mean"
        That of the loss. With "sum" the parts' gradients are added as they are.
    bucket_bytes : int, default 4 MiB
        Gradients are summed in messages of about this size.

    Attributes
    ----------
    network, comm
        As given.
    params, buffers
        The network's own.
    grads
        The network's own; after `backward` these are views of that pass's buckets. Those of float16
        parameters are float32.

    Raises
    ------
    TypeError
        For a network that is no layer.
    ValueError
        Where a rank's network has other parameters; for another reduction or bucket size.

    Notes
    -----
    `forward` in training, and `backward`, are collective: every rank must call them, also where its part is
    empty. Evaluation is each rank's own affair. Dropout draws its part of the whole batch's mask, which is
    one mask where its `rng` was the same on each rank: a run then doesn't depend on their number.

    Examples
    --------
    >>> import gpuconv.nn as nn
    >>> from gpuconv import distributed
    >>> with distributed.world() as comm:       # a single process here; the same lines run under mpirun
    ...     network = distributed.DataParallel(nn.Linear(3, 2, rng=0), comm)
    ...     y = network(np.ones((4, 3), np.float32))
    ...     dx = network.backward(np.ones_like(y))
    >>> network.grads["weight"].shape
    (2, 3)
    """

    def __init__(
        self,
        network: Layer,
        comm: Communicator,
        *,
        sync_batch_norm: bool = False,
        reduction: str = "mean",
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        super().__init__()
        if not isinstance(network, Layer):
            raise TypeError(f"DataParallel: network must be a layer, not {type(network).__name__}")
        if reduction not in ("mean", "sum"):
            raise ValueError(f'DataParallel: reduction must be "mean" or "sum", not {reduction!r}')
        self.sync_batch_norm = flag("DataParallel", "sync_batch_norm", sync_batch_norm)
        self.bucket_bytes = integer("DataParallel", "bucket_bytes", bucket_bytes, 1)
        self.network, self.comm, self.reduction = network, comm, reduction
        self.params, self.grads, self.buffers = network.params, network.grads, network.buffers
        self.training = network.training
        self._buckets: Buckets | None = None
        self._weight: float | None = None  # of this rank's part, in the last forward
        self._share: Share | None = None
        self._agreed: set[int] = set()  # sizes of batches that all ranks have cut alike
        self._take_over()

    def forward(self, x: Array, *, batch: int | None = None) -> Array:
        """Return the network's result for this rank's part of the batch.

        Parameters
        ----------
        x : array
            This rank's part.
        batch : int, optional
            Samples of the whole batch, where x is the part of it that `part_of_batch` gives, and every rank
            says the same: what `fit` does. Without it the ranks ask each other at each step, which costs a
            small message; with it they ask when a size comes for the first time.

        Raises
        ------
        ValueError
            Where x is no such part.
        """
        self._weight = None
        if not self.training:
            return self.network.forward(x)
        start, total = self._place(len(x), batch)
        self._weight = len(x) / max(total, 1)
        self._share = Share(start, len(x), total, self.comm.sum if self.sync_batch_norm else None)
        with self._sharing():
            return self.network.forward(x)

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Put the whole batch's gradients into `grads` and return dx, this part's share in that of J.

        Parameters
        ----------
        dy : array
            The gradient of this part's loss.
        needs_dx : bool, default True
            As for every layer.
        """
        if self._weight is None:  # no forward in training: there is no batch to share
            if self.comm.size > 1:
                raise RuntimeError(
                    "DataParallel.backward: the last forward was in evaluation, in which nothing is shared; "
                    "call train(), and eval() of single layers of `network` to freeze them. Gradients of "
                    "this process's part alone are those of `network`"
                )
            return self.network.backward(dy, needs_dx=needs_dx)
        if self._buckets is None:
            self._buckets = Buckets(self.network, self.comm, self.bucket_bytes)
        if self.reduction == "mean":
            dy = dy * self._weight
        finish = self._start_averaging(self._weight)
        with self._sharing(), self._buckets.filling():
            dx = self.network.backward(dy, needs_dx=needs_dx)
        finish()
        return dx

    def part_of_batch(self, start: int, stop: int) -> slice:
        """Return which places of a batch, from start to stop, are this rank's: what `fit` asks."""
        return part(start, stop, self.comm.rank, self.comm.size)

    def any_rank(self, answer: bool) -> bool:
        """Tell whether any rank's answer is True; all must ask: what `fit` does with a callback's."""
        return any_of(self.comm, answer)

    def check_alike(self, op: str, **given: Any) -> None:
        """Refuse what isn't the same on every rank; all must ask: what `fit` does with its arguments."""
        check_alike(self.comm, op, **given)

    def train(self, mode: bool = True) -> Self:
        """Go to training mode (or, with False, to evaluation) and return the layer."""
        self.network.train(mode)
        return super().train(mode)

    def to(self, device: str) -> Self:
        """Move the network to "cpu" or "cuda" and return the layer."""
        self.network.to(device)
        self._buckets = self._weight = self._share = None
        return self

    def state_dict(self) -> dict[str, Array]:
        """Return the network's state, under its own names."""
        return self.network.state_dict()

    def _place(self, count: int, batch: int | None) -> tuple[int, int]:
        """Return where in the batch this rank's samples begin, and how many the batch has."""
        if batch is not None:
            batch = integer("DataParallel.forward", "batch", batch, 0)
            if batch in self._agreed:  # nobody asks
                self._check_part(batch, self.comm.rank, count)
                return self.part_of_batch(0, batch).start, batch
        counts = np.zeros(self.comm.size, np.int64)
        counts[self.comm.rank] = count
        self.comm.sum(counts)
        if batch is not None:
            for rank, n in enumerate(counts.tolist()):
                self._check_part(batch, rank, n)
            self._agreed.add(batch)
        return int(counts[: self.comm.rank].sum()), int(counts.sum())

    def _check_part(self, batch: int, rank: int, n: int) -> None:
        """Check that a rank's samples are as many as its part of the batch has."""
        its = part(0, batch, rank, self.comm.size)
        size = its.stop - its.start
        if n != size:
            raise ValueError(
                f"DataParallel.forward: batch={batch} gives rank {rank} a part of {size}, but its x has "
                f"{n} samples; leave batch out where parts are cut otherwise"
            )

    def _take_over(self) -> None:
        """Check that the ranks' networks are of one kind, and take rank 0's values."""
        arrays = [*self.params.values(), *self.buffers.values()]
        names = [*self.params, *self.buffers]
        own = [(name, x.shape, x.dtype.str) for name, x in zip(names, arrays, strict=True)]
        first, *others = self.comm.everyone(own)
        for rank, other in enumerate(others, 1):
            if other != first:
                raise ValueError(
                    f"DataParallel: network must have the same parameters on every rank, but rank {rank} has "
                    f"{_listed(other, first)} where rank 0 has {_listed(first, other)}"
                )
        for dtype in dict.fromkeys(x.dtype for x in arrays):
            alike = [x for x in arrays if x.dtype == dtype]
            flat = _joined(alike)
            self.comm.broadcast(flat)
            _parted(flat, alike)

    @contextmanager
    def _sharing(self) -> Iterator[None]:
        """Let the layers know which part of the batch they have."""
        token = SHARE.set(self._share)
        try:
            yield
        finally:
            SHARE.reset(token)

    def _start_averaging(self, weight: float) -> Callable[[], None]:
        """Begin to average running statistics over the parts; return what ends it."""
        if self.sync_batch_norm:
            return _nothing  # they are the same already
        floats = [x for x in self.buffers.values() if x.dtype.kind == "f"]
        if not floats:
            return _nothing
        flat = _joined([x.astype(accumulator(x.dtype)) * weight for x in floats])
        pending = self.comm.start_sum(flat)

        def finish() -> None:
            pending.wait()
            _parted(flat, floats)

        return finish

    def _arguments(self) -> str:
        return f"{self.network!r}, rank {self.comm.rank} of {self.comm.size}"


def _nothing() -> None:
    """End what has not begun."""


def _joined(arrays: list[Array]) -> Array:
    """Return all values of some arrays as one."""
    return array_module(arrays[0]).concatenate([x.ravel() for x in arrays])


def _parted(flat: Array, arrays: list[Array]) -> None:
    """Write back what `_joined` joined."""
    start = 0
    for x in arrays:
        x[...] = flat[start : start + x.size].reshape(x.shape)
        start += x.size


def _listed(own: list[Any], other: list[Any]) -> str:
    """Return those parameters that the other network doesn't have."""
    only = [f"{name} {shape} {dtype}" for name, shape, dtype in own if (name, shape, dtype) not in other]
    return ", ".join(only) or "nothing"
