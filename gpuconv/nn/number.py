"""The check of an argument that is a real number, such as a step size."""

from math import inf
from typing import Any

import numpy as np


def number(op: str, name: str, value: Any, *, below: float = inf, at_most: float = inf) -> float:
    """Return a number as a float, after checking that it is finite, not negative, and within its bound."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{op}: {name} must be a number, not {type(value).__name__} {value!r}")
    if not (0 <= value < below and value <= at_most):
        must = f"at least 0 and less than {below:g}" if at_most == inf else f"from 0 to {at_most:g}"
        raise ValueError(f"{op}: {name} must be {must}, not {value!r}")
    return float(value)
