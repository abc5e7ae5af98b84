"""The dense layer, and what stands around it: flattening and dropout."""

from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from gpuconv.backends.dispatch import accumulator, array_module, backend_of, check_shape, float_result, given
from gpuconv.geometry import flag, integer
from gpuconv.nn.initializers import float_dtype, generator, he_normal
from gpuconv.nn.layer import Array, Layer, unusual
from gpuconv.nn.share import SHARE


class Linear(Layer):
    """A dense layer, y = x Wᵀ + b; dx = dy W, dW = dyᵀ x, db = Σ dy.

    dW and db are summed over the batch (all axes but the last).

    Parameters
    ----------
    in_features, out_features : int
        Size of the last axis of x and of y; the weight is [out_features, in_features], as in PyTorch.
    bias : bool, default True
    dtype : float16, float32 or float64, default float32
        Of the parameters; float16 is multiplied and summed in float32.
    rng : Generator, int or None, default None
        Where the weights come from. They are drawn by `he_normal` (variance 2 / in_features), which keeps the
        signal's size through layers with ReLU; the bias starts at zero.

    Attributes
    ----------
    params : {"weight", "bias"}
    grads : {"weight", "bias"}

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or an impossible value, on construction; for an x whose last axis
        is not in_features long, in `forward`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> dense = nn.Linear(2, 1, dtype=np.float64)
    >>> dense.params["weight"] = np.array([[3.0, 4.0]])
    >>> dense(np.array([[1.0, 1.0], [0.0, 2.0]]))
    array([[7.],
           [8.]])
    >>> dense.backward(np.array([[1.0], [10.0]]))
    array([[ 3.,  4.],
           [30., 40.]])
    >>> dense.grads["weight"], dense.grads["bias"]
    (array([[ 1., 21.]]), array([11.]))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__()
        self.in_features = integer("Linear", "in_features", in_features, 1)
        self.out_features = integer("Linear", "out_features", out_features, 1)
        dtype = float_dtype("Linear", dtype)
        self.bias = flag("Linear", "bias", bias)
        self.params["weight"] = he_normal(
            (self.out_features, self.in_features), dtype=dtype, rng=generator("Linear", rng)
        )
        if bias:
            self.params["bias"] = np.zeros(self.out_features, dtype)

    def forward(self, x: Array) -> Array:
        """Return x Wᵀ + b."""
        w, b = self.params["weight"], self.params.get("bias")
        backend = backend_of("Linear", x=x, weight=w, **given(bias=b))
        dtype = float_result("Linear", x=x, weight=w, **given(bias=b))
        if x.ndim == 0 or x.shape[-1] != w.shape[1]:
            raise ValueError(
                f"Linear: x has shape {x.shape}, but its last axis must be {w.shape[1]} long, as weight has "
                f"shape {w.shape}"
            )
        if b is not None:
            check_shape("Linear", "bias", b.shape, w.shape[:1], f"weight has shape {w.shape}, so")
        y = backend.dense.product(x.reshape(prod(x.shape[:-1]), w.shape[1]), w.T, dtype, b)
        return self._keep(y.reshape(*x.shape[:-1], w.shape[0]), (x, w))

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Put dW and db, summed over the batch, into `grads` and return dx = dy W."""
        x, w = self._recall(dy)
        op = "Linear.backward"
        product = backend_of(op, dy=dy, x=x, weight=w).dense.product
        rows = prod(x.shape[:-1])
        dy, x2 = dy.reshape(rows, w.shape[0]), x.reshape(rows, w.shape[1])
        self.grads["weight"] = product(dy.T, x2, float_result(op, dy=dy, x=x))
        if "bias" in self.params:
            self.grads["bias"] = dy.sum(axis=0, dtype=accumulator(dy.dtype)).astype(dy.dtype, copy=False)
        if not needs_dx:
            return None
        return product(dy, w, float_result(op, dy=dy, weight=w)).reshape(x.shape)

    def _arguments(self) -> str:
        return f"{self.in_features}, {self.out_features}" + unusual(bias=(self.bias, True))


class Flatten(Layer):
    """The axes from `start_dim` to `end_dim` as one, between convolutions and dense layers.

    Parameters
    ----------
    start_dim, end_dim : int, default 1 and -1
        First and last of the axes to join, both included; all but the batch by default.

    Notes
    -----
    The order within the joined axis is the memory's order: (C, H, W), or (H, W, C) with channels last. So the
    weights of a dense layer behind it belong to one layout.

    Examples
    --------
    >>> import numpy as np
    >>> flatten = Flatten()
    >>> flatten(np.zeros((2, 3, 4, 5))).shape
    (2, 60)
    >>> flatten.backward(np.zeros((2, 60))).shape
    (2, 3, 4, 5)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = integer("Flatten", "start_dim", start_dim, -32)
        self.end_dim = integer("Flatten", "end_dim", end_dim, -32)

    def forward(self, x: Array) -> Array:
        """Return x with the axes joined."""
        backend_of("Flatten", x=x)
        start, end = (d + x.ndim if d < 0 else d for d in (self.start_dim, self.end_dim))
        if not 0 <= start <= end < x.ndim:
            raise ValueError(
                f"Flatten: x has {x.ndim} axes (shape {x.shape}), but start_dim={self.start_dim} "
                f"and end_dim={self.end_dim} must name two of them in order"
            )
        shape = (*x.shape[:start], prod(x.shape[start : end + 1]), *x.shape[end + 1 :])
        return self._keep(x.reshape(shape), x.shape)

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Return dy in the shape of x."""
        x_shape = self._recall(dy)
        return dy.reshape(x_shape)

    def _arguments(self) -> str:
        return unusual(start_dim=(self.start_dim, 1), end_dim=(self.end_dim, -1)).removeprefix(", ")


class Dropout(Layer):
    """In training, zeroes each element with probability p and scales the rest by 1 / (1 - p).

    y = m ⊙ x and dx = m ⊙ dy, where the mask m, drawn anew in each `forward`, holds 0 with probability p
    and else 1 / (1 - p): so y's expectation is x, and evaluation, where y = x, needs no scaling.

    Parameters
    ----------
    p : float, default 0.5
        Probability of a zero, from 0 to 1.
    rng : Generator, int or None, default None
        Where the masks come from: a generator, the seed of one, or None for one seeded by the system.

    Attributes
    ----------
    rng : numpy.random.Generator
        Gives one number to each `forward` in training, from which the mask is computed where x is: a seed
        gives the same masks on every device. To resume a training exactly, save and restore
        `rng.bit_generator.state`.

    Raises
    ------
    ValueError
        For a p outside 0 to 1.

    References
    ----------
    Srivastava et al.: Dropout, a simple way to prevent neural networks from overfitting, 2014.

    Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014 (SplitMix64, for the masks).

    Examples
    --------
    >>> import numpy as np
    >>> dropout = Dropout(0.5, rng=0)
    >>> dropout(np.ones(6))
    array([0., 2., 2., 2., 0., 2.])
    >>> dropout.backward(np.ones(6))
    array([0., 2., 2., 2., 0., 2.])
    >>> dropout.eval()(np.ones(6))
    array([1., 1., 1., 1., 1., 1.])
    """

    def __init__(self, p: float = 0.5, *, rng: Any = None) -> None:
        super().__init__()
        if isinstance(p, bool) or not isinstance(p, int | float | np.number) or not 0 <= p <= 1:
            raise ValueError(f"Dropout: p must be a number from 0 to 1, not {p!r}")
        self.p = float(p)
        self.rng = generator("Dropout", rng)

    def forward(self, x: Array) -> Array:
        """Return m ⊙ x with a new mask, or x itself in evaluation."""
        backend_of("Dropout", x=x)
        dtype = float_result("Dropout", x=x)
        if not self.training:
            return self._keep(x, None)
        scale = 1 / (1 - self.p) if self.p < 1 else 0.0
        seed = self.rng.integers(1 << 64, dtype=np.uint64)
        share = SHARE.get()
        first = 0 if share is None else share.start * prod(x.shape[1:])
        bits = _random_bits(array_module(x), seed, first, prod(x.shape)).reshape(x.shape)
        mask = (bits >= np.uint64(self.p * 2**BITS)) * dtype.type(scale)
        return self._keep(x * mask, mask)

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Return m ⊙ dy with the mask of the last forward."""
        mask = self._recall(dy)
        return dy if mask is None else dy * mask

    def _arguments(self) -> str:
        return f"p={self.p:g}"


BITS = 53  # of each random number: those of a float, p


def _random_bits(xp: ModuleType, seed: np.uint64, first: int, count: int) -> Array:
    """Return whole numbers from 0 to 2^BITS - 1: SplitMix64's from the `first` on, as an array of `xp`.

    Its n-th number is a function of seed and n alone, so no state lies on a GPU, to be saved or moved, and
    each process can draw those of its own part of a batch.
    """
    z = xp.arange(first, first + count, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += seed
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    z >>= np.uint64(64 - BITS)
    return z
