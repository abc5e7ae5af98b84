"""Losses: what a network's scores are worth against the targets, and the gradient that starts `backward`.

With `reduction="mean"` the gradient carries the 1/N; everything behind it only sums.
"""

from typing import Any

import numpy as np

from gpuconv.backends.dispatch import (
    accumulator,
    array_module,
    backend_of,
    check_kind,
    check_shape,
    float_result,
)
from gpuconv.nn.layer import Array


class SoftmaxCrossEntropy:
    """Softmax over each row of scores, and the cross-entropy against the target.

    For scores s of one sample and target t (a one-hot row, or any row of weights),

        p = softmax(s),   loss = -Σ t log p,   ds = p Σ t - t,

    which for a class is loss = log Σ exp(s) - s[class] and ds = p - t. Computed from s - max(s), so no score
    overflows. An empty batch has loss 0.

    Parameters
    ----------
    reduction : "mean" or "sum", default "mean"
        Mean over the batch, as in PyTorch: the step then doesn't grow with the batch. Or the
        plain sum of the samples' losses.

    Raises
    ------
    ValueError
        For another reduction.

    Examples
    --------
    >>> import numpy as np
    >>> loss = SoftmaxCrossEntropy()
    >>> scores = np.array([[2.0, 2.0], [0.0, 1000.0]])
    >>> loss(scores, np.array([0, 1])).round(4)
    np.float64(0.3466)
    >>> loss.backward()
    array([[-0.25,  0.25],
           [ 0.  ,  0.  ]])
    """

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = _reduction("SoftmaxCrossEntropy", reduction)
        self._kept: Any = None

    def forward(self, scores: Array, target: Array) -> Array:
        """Return the loss.

        Parameters
        ----------
        scores : array [N, C]
            float16 (computed in float32), float32 or float64; not yet a softmax.
        target : array [N] of integers, or [N, C]
            The class of each sample, or a row of weights each (one-hot, or probabilities).

        Returns
        -------
        loss : 0-d array

        Raises
        ------
        ValueError
            For shapes that don't fit, or a class outside 0 … C-1. A GPU's classes are not looked at, as it
            would have to be waited for: a sample of such a class has loss 0 there.
        TypeError
            For classes that are not integers, or scores that are not floats.
        """
        op = "SoftmaxCrossEntropy"
        backend_of(op, scores=scores, target=target)
        xp = array_module(scores)
        dtype = _check_scores(op, scores, target)
        s = scores.astype(accumulator(dtype), copy=False)
        s = s - s.max(axis=1, keepdims=True)
        e = xp.exp(s)
        total = e.sum(axis=1, keepdims=True)
        log_p = s - xp.log(total)
        if target.ndim == 1:
            t = target[:, None] == xp.arange(scores.shape[1])
        else:
            t = target
        each = t * xp.where(t == 0, 0, -log_p)  # so that 0 · log 0 is 0
        scale = 1 / max(len(scores), 1) if self.reduction == "mean" else 1.0
        weight = t.sum(axis=1, keepdims=True, dtype=s.dtype)
        self._kept = ((e / total * weight - t) * scale).astype(scores.dtype, copy=False)
        loss = each.sum(dtype=s.dtype) * scale
        return xp.asarray(loss, dtype)

    __call__ = forward

    def backward(self) -> Array:
        """Return the gradient of the scores, shaped and typed like them.

        Raises
        ------
        RuntimeError
            Where there was no `forward` yet.
        """
        return _recall("SoftmaxCrossEntropy", self._kept)

    def __repr__(self) -> str:
        return f"SoftmaxCrossEntropy(reduction={self.reduction!r})"


class MSE:
    """The squared error, Σ (y - t)², over all elements of y; dy = 2 (y - t).

    Parameters
    ----------
    reduction : "mean" or "sum", default "mean"
        Mean over all elements (N times the outputs per sample), as in PyTorch; or their sum.

    Raises
    ------
    ValueError
        For another reduction.

    Examples
    --------
    >>> import numpy as np
    >>> loss = MSE()
    >>> loss(np.array([1.0, 2.0]), np.array([0.0, 4.0])).item()
    2.5
    >>> loss.backward()
    array([ 1., -2.])
    """

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = _reduction("MSE", reduction)
        self._kept: Any = None

    def forward(self, scores: Array, target: Array) -> Array:
        """Return the loss.

        Parameters
        ----------
        scores : array
            The network's output, of any shape; float16 (computed in float32), float32 or float64.
        target : array
            Real numbers, shaped like the scores.

        Returns
        -------
        loss : 0-d array

        Raises
        ------
        ValueError
            For another shape of the target; nothing is broadcast.
        """
        backend_of("MSE", scores=scores, target=target)
        check_kind("MSE", "scores", scores, "f")
        check_shape("MSE", "target", target.shape, scores.shape, "as the scores' target")
        dtype = float_result("MSE", scores=scores, target=target)
        xp = array_module(scores)
        d = xp.subtract(scores, target, dtype=accumulator(dtype))
        scale = 1 / max(d.size, 1) if self.reduction == "mean" else 1.0
        self._kept = (d * (2 * scale)).astype(scores.dtype, copy=False)
        return xp.asarray(xp.square(d).sum() * scale, dtype)

    __call__ = forward

    def backward(self) -> Array:
        """Return the gradient of the scores, shaped and typed like them.

        Raises
        ------
        RuntimeError
            Where there was no `forward` yet.
        """
        return _recall("MSE", self._kept)

    def __repr__(self) -> str:
        return f"MSE(reduction={self.reduction!r})"


def _reduction(op: str, value: Any) -> str:
    if value not in ("mean", "sum"):
        raise ValueError(f'{op}: reduction must be "mean" or "sum", not {value!r}')
    return str(value)


def _recall(op: str, kept: Any) -> Array:
    if kept is None:
        raise RuntimeError(f"{op}.backward: call forward first")
    return kept


def _check_scores(op: str, scores: Array, target: Array) -> np.dtype[Any]:
    """Return the loss's dtype, after checking that the target belongs to the scores."""
    check_kind(op, "scores", scores, "f")
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(f"{op}: scores must have 2 axes [N, C], C at least 1, not shape {scores.shape}")
    if target.ndim == 2:
        check_shape(op, "target", target.shape, scores.shape, "as rows of weights")
        return float_result(op, scores=scores, target=target)
    n, classes = scores.shape
    check_shape(op, "target", target.shape, (n,), f"for scores of shape {scores.shape} (or {scores.shape})")
    if target.dtype.kind not in "iu":
        raise TypeError(f"{op}: target holds {target.dtype.name}, but classes must be integers")
    # Reading a target on a GPU would make it wait, so only the host's are checked.
    if array_module(target) is np and ((target < 0) | (target >= classes)).any():
        at = int(((target < 0) | (target >= classes)).argmax())
        raise ValueError(f"{op}: target[{at}] is {target[at]}, but the classes are 0 to {classes - 1}")
    return float_result(op, scores=scores)
