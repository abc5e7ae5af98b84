"""Which part of a batch this process has, where several train on one: what some layers must know."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Share:
    """A part of a batch.

    Attributes
    ----------
    start
        Samples of the batch that come before this part.
    count
        Samples of this part.
    total
        Samples of the whole batch.
    sum
        Adds an array up over all parts, in place; None where each part is normalised by itself.
    """

    start: int
    count: int
    total: int
    sum: Callable[[Any], None] | None


# Set around a network's forward and backward in training; None: the batch is this process's alone.
SHARE: ContextVar[Share | None] = ContextVar("gpuconv.share", default=None)
