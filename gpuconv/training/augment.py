"""Small random changes to pictures, so that a network doesn't learn them by heart."""

from typing import Any

import numpy as np

from gpuconv.backends.dispatch import array_module
from gpuconv.geometry import integer


def random_shifts(x: Any, most: int, rng: np.random.Generator) -> Any:
    """Move each picture by its own random step, up, down or sideways, and fill the gap with zeros.

    Parameters
    ----------
    x
        `[N, C, H, W]`.
    most
        Largest step along either axis, in pixels; every step of `-most` to `most` is as likely.
    rng
        Draws the steps: two integers a picture.

    Returns
    -------
    array
        Like `x`; a new one.

    Examples
    --------
    >>> x = np.arange(1.0, 5.0).reshape(1, 1, 2, 2)
    >>> random_shifts(x, 1, np.random.default_rng(0))[0, 0]
    array([[0., 0.],
           [1., 2.]])
    """
    most = integer("random_shifts", "most", most, 0)
    return shifted(x, most, rng.integers(-most, most + 1, (2, len(x))))


def shifted(x: Any, most: int, steps: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
    """Move each picture by its steps down and right, `[2, N]`, each of `-most` to `most`."""
    xp = array_module(x)
    n, _, height, width = x.shape
    down, right = xp.asarray(steps)
    padded = xp.pad(x, ((0, 0), (0, 0), (most, most), (most, most)))
    image = xp.arange(n)[:, None, None]
    row = (xp.arange(height) + most - down[:, None])[:, :, None]
    column = (xp.arange(width) + most - right[:, None])[:, None, :]
    # Indices on both sides of the whole channel axis put it last: back to its place.
    return xp.ascontiguousarray(xp.moveaxis(padded[image, :, row, column], -1, 1))
