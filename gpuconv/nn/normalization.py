"""Batch normalisation."""

from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.dispatch import (
    accumulator,
    array_module,
    backend_of,
    check_rank,
    check_shape,
    float_result,
    given,
)
from gpuconv.geometry import flag, image_layout, integer
from gpuconv.nn.initializers import float_dtype
from gpuconv.nn.layer import Array, Layer
from gpuconv.nn.number import number
from gpuconv.nn.share import SHARE, Share


class BatchNorm2d(Layer):
    """Brings each channel to mean 0 and variance 1 over batch and places, then scales and shifts it.

    With μ and σ² of a channel over its m = N·H·W values,

        x̂ = (x - μ) / sqrt(σ² + eps),   y = weight x̂ + bias,
        dweight = Σ dy x̂,   dbias = Σ dy,
        dx = weight / sqrt(σ² + eps) (dy - mean(dy) - x̂ mean(dy x̂)).

    In evaluation μ and σ² are the running statistics, which are constants: the two means leave dx.

    Parameters
    ----------
    num_features : int
        Channels C.
    eps : float, default 1e-5
        Added to the variance; PyTorch's value.
    momentum : float or None, default 0.1
        Weight of the newest batch in the running statistics (PyTorch's sense and value): running = (1 -
        momentum) running + momentum new. None takes the plain average over all batches.
    affine : bool, default True
        Whether there are a weight (from 1) and a bias (from 0).
    track_running_stats : bool, default True
        False keeps no running statistics; evaluation then uses the batch's, too.
    channels_last : bool, default False
        x is [N, H, W, C] instead of [N, C, H, W].
    dtype : float16, float32 or float64, default float32
        Of parameters and running statistics. float16 images are summed in float32.

    Attributes
    ----------
    params, grads : {"weight", "bias"}, arrays [C]
    buffers : {"running_mean", "running_var", "num_batches_tracked"}
        The running variance is the unbiased one (divided by m - 1), y uses the biased, as in PyTorch.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction; in `forward`, for another
        number of channels, and in training for a single value per channel, which has no variance.

    References
    ----------
    Ioffe, Szegedy: Batch normalization, 2015, arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np
    >>> norm = BatchNorm2d(1, eps=0, dtype=np.float64)
    >>> norm(np.array([1.0, 3.0, 1.0, 3.0]).reshape(2, 1, 1, 2)).ravel()
    array([-1.,  1., -1.,  1.])
    >>> norm.buffers["running_mean"]
    array([0.2])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        channels_last: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__()
        op = "BatchNorm2d"
        c = integer(op, "num_features", num_features, 1)
        self.num_features = c
        self.eps = number(op, "eps", eps)
        self.momentum = None if momentum is None else number(op, "momentum", momentum, at_most=1)
        self.affine = flag(op, "affine", affine)
        self.track_running_stats = flag(op, "track_running_stats", track_running_stats)
        self.channels_last = flag(op, "channels_last", channels_last)
        dtype = float_dtype(op, dtype)
        if affine:
            self.params["weight"] = np.ones(c, dtype)
            self.params["bias"] = np.zeros(c, dtype)
        if track_running_stats:
            self.buffers["running_mean"] = np.zeros(c, dtype)
            self.buffers["running_var"] = np.ones(c, dtype)
            self.buffers["num_batches_tracked"] = np.zeros((), np.int64)

    def forward(self, x: Array) -> Array:
        """Return the normalised x; in training, update the running statistics."""
        w, b = self.params.get("weight"), self.params.get("bias")
        share = self._share()
        dtype = self._check(x, w, b, share)
        xp = array_module(x)
        axes, per_channel = self._layout()
        x = x.astype(accumulator(dtype), copy=False)
        m = self._values(x, share)
        by_batch = m > 0 and (self.training or not self.track_running_stats)
        if by_batch:
            mean = _mean(x, axes, m, share)
            centred = x - mean
            var = _mean(xp.square(centred), axes, m, share)
            if self.training and self.track_running_stats:
                self._track(mean.ravel(), var.ravel(), m)
        elif self.track_running_stats:
            if self.training and (batch := SHARE.get()) is not None and batch.total:
                self.buffers["num_batches_tracked"] += 1  # of a batch that counts, an empty part
            centred = x - self.buffers["running_mean"].reshape(per_channel)
            var = self.buffers["running_var"].reshape(per_channel)
        else:  # an empty batch
            centred, var = x, xp.ones((), x.dtype)
        inverse = (1 / xp.sqrt(var + self.eps)).astype(x.dtype, copy=False)
        normal = (centred * inverse).astype(x.dtype, copy=False)
        y = normal if w is None or b is None else normal * w.reshape(per_channel) + b.reshape(per_channel)
        scale = inverse if w is None else inverse * w.reshape(per_channel)
        return self._keep(
            y.astype(dtype, copy=False), (normal, scale, m if by_batch else 0, share is not None)
        )

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Put the gradients of weight and bias, summed over batch and places, into `grads` and return dx."""
        normal, scale, m, together = self._recall(dy)
        axes, _ = self._layout()
        out = dy.dtype
        dy = dy.astype(accumulator(out), copy=False)
        dw = (dy * normal).sum(axis=axes, keepdims=True)
        db = dy.sum(axis=axes, keepdims=True)
        if self.affine:
            self.grads["weight"] = dw.ravel().astype(out, copy=False)
            self.grads["bias"] = db.ravel().astype(out, copy=False)
        if not needs_dx:
            return None
        if m:
            if together:
                dw, db = _sums(dw, db)
            dy = dy - db / m - normal * (dw / m)
        return (dy * scale).astype(out, copy=False)

    def _check(self, x: Array, w: Array | None, b: Array | None, share: Share | None) -> np.dtype[Any]:
        op = "BatchNorm2d"
        backend_of(op, x=x, **given(weight=w, bias=b))
        check_rank(op, "x", x, image_layout(2, self.channels_last))
        channels = x.shape[-1 if self.channels_last else 1]
        if channels != self.num_features:
            raise ValueError(
                f"{op}: x has {channels} channels (shape {x.shape}), but num_features={self.num_features}"
            )
        for name, array in (*self.params.items(), *self.buffers.items()):
            if name != "num_batches_tracked":
                check_shape(op, name, array.shape, (channels,), f"with num_features={channels}")
        if share is not None and len(x) != share.count:
            raise ValueError(
                f"{op}: x has {len(x)} samples (shape {x.shape}), but this process's part of the batch "
                f"{share.count}; statistics of the whole batch need one for the other"
            )
        if self.training and self._values(x, share) == 1:
            raise ValueError(
                f"{op}: x has a single value per channel (shape {x.shape}), whose variance says nothing; "
                "train on more, or call eval() first"
            )
        return float_result(op, x=x, **given(weight=w, bias=b))

    def _share(self) -> Share | None:
        """Return the part of a batch that x is, where the statistics are those of the whole batch."""
        share = SHARE.get() if self.training else None
        return share if share is not None and share.sum is not None else None

    def _values(self, x: Array, share: Share | None) -> int:
        """Return m, the values of a channel in the whole batch."""
        n = len(x) if share is None else share.total
        return int(n * prod(x.shape[1:])) // self.num_features

    def _layout(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the axes to sum over, and the shape of one value per channel against x."""
        if self.channels_last:
            return (0, 1, 2), (1, 1, 1, -1)
        return (0, 2, 3), (1, -1, 1, 1)

    def _track(self, mean: Array, var: Array, m: int) -> None:
        self.buffers["num_batches_tracked"] += 1
        newest: Any = self.momentum
        if newest is None:
            newest = 1 / self.buffers["num_batches_tracked"]
        for name, value in (("running_mean", mean), ("running_var", var * (m / (m - 1)))):
            running = self.buffers[name]
            running *= 1 - newest
            running += newest * value

    def _arguments(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps:g}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        ) + (", channels_last=True" if self.channels_last else "")


def _sums(dw: Array, db: Array) -> Array:
    """Return the sums over all parts of a batch, of which these are one part's."""
    share = SHARE.get()
    if share is None or share.sum is None:
        raise RuntimeError(
            "BatchNorm2d.backward: forward was over a batch that several processes share, and backward must "
            "be, too; call DataParallel's"
        )
    both = array_module(dw).stack([dw, db])
    share.sum(both)
    return both


def _mean(x: Array, axes: tuple[int, ...], m: int, share: Share | None) -> Array:
    """Return the mean of each channel's m values."""
    if share is None or share.sum is None:
        return x.mean(axis=axes, keepdims=True)
    total = x.sum(axis=axes, keepdims=True)
    share.sum(total)
    return total / m
