"""First values for weights, drawn from a `numpy.random.Generator`.

The fans of a weight array with `out` output channels (channels last: [*kernel, in/groups, out]):

    fan_in  = in/groups * taps        (the terms that each output sums)
    fan_out = out * taps
"""

from math import prod, sqrt
from typing import Any

import numpy as np

from gpuconv.backends.dispatch import FLOATS
from gpuconv.geometry import integer

Array = np.ndarray[Any, Any]


def he_normal(
    shape: tuple[int, ...], *, channels_last: bool = False, dtype: Any = np.float32, rng: Any = None
) -> Array:
    """Draw weights from a normal distribution of variance 2 / fan_in.

    A ReLU halves the mean square of what passes it; the factor 2 makes up for it, so that the signal's
    size neither grows nor fades from layer to layer.

    Parameters
    ----------
    shape : tuple of ints
        [C_out, C_in/groups, *kernel] or [out, in]; [*kernel, C_in/groups, C_out] where `channels_last`.
    channels_last : bool, default False
        Which end of the shape the output channels stand at.
    dtype : float16, float32 or float64, default float32
    rng : Generator, int or None, default None
        A generator, the seed of one, or None for one seeded by the system. Give one generator to all
        layers of a network: the same seed for each would give layers of one shape the same weights.

    Returns
    -------
    weights : array of the shape and dtype

    Raises
    ------
    TypeError
        For sizes that are not integers, another dtype, or an rng of another kind.
    ValueError
        For fewer than two axes, or a size below 1.

    References
    ----------
    He, Zhang, Ren, Sun: Delving deep into rectifiers, 2015, arXiv:1502.01852.

    Examples
    --------
    >>> w = he_normal((64, 32, 3, 3), rng=0)
    >>> w.shape, w.dtype.name, bool(abs(w.var() * 32 * 9 / 2 - 1) < 0.02)
    ((64, 32, 3, 3), 'float32', True)
    """
    fan_in, _ = _fans("he_normal", shape, channels_last)
    dtype = float_dtype("he_normal", dtype)
    values = generator("he_normal", rng).standard_normal(shape, dtype=_drawn(dtype))
    values *= sqrt(2 / fan_in)
    return values.astype(dtype, copy=False)


def he_uniform(
    shape: tuple[int, ...], *, channels_last: bool = False, dtype: Any = np.float32, rng: Any = None
) -> Array:
    """Draw weights evenly from ±sqrt(6 / fan_in): the variance of `he_normal` without its far values.

    Parameters
    ----------
    shape, channels_last, dtype, rng
        As in `he_normal`.

    Returns
    -------
    weights : array of the shape and dtype

    Raises
    ------
    TypeError, ValueError
        As in `he_normal`.

    Examples
    --------
    >>> bool(abs(he_uniform((8, 6), rng=0)).max() <= 1)
    True
    """
    fan_in, _ = _fans("he_uniform", shape, channels_last)
    return _uniform("he_uniform", shape, sqrt(6 / fan_in), dtype, rng)


def glorot_uniform(
    shape: tuple[int, ...], *, channels_last: bool = False, dtype: Any = np.float32, rng: Any = None
) -> Array:
    """Draw weights evenly from ±sqrt(6 / (fan_in + fan_out)), for layers before a sigmoid or tanh.

    Near zero a tanh passes its input as it is; this variance is the compromise between keeping the
    signal's size forward (1 / fan_in) and the gradient's size backward (1 / fan_out).

    Parameters
    ----------
    shape, channels_last, dtype, rng
        As in `he_normal`.

    Returns
    -------
    weights : array of the shape and dtype

    Raises
    ------
    TypeError, ValueError
        As in `he_normal`.

    References
    ----------
    Glorot, Bengio: Understanding the difficulty of training deep feedforward neural networks, 2010.

    Examples
    --------
    >>> bool(abs(glorot_uniform((2, 4), rng=0)).max() <= 1)
    True
    """
    fans = _fans("glorot_uniform", shape, channels_last)
    return _uniform("glorot_uniform", shape, sqrt(6 / sum(fans)), dtype, rng)


def generator(op: str, rng: Any) -> np.random.Generator:
    """Return the generator that `rng` is, or that it seeds."""
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is None or (isinstance(rng, int | np.integer) and not isinstance(rng, bool) and rng >= 0):
        return np.random.default_rng(rng)
    raise TypeError(
        f"{op}: rng must be a numpy.random.Generator, an int >= 0 to seed one, or None, "
        f"not {type(rng).__name__} {rng!r}"
    )


def float_dtype(op: str, dtype: Any) -> np.dtype[Any]:
    """Return `dtype` as a NumPy dtype; it must be one that parameters can have."""
    for known in FLOATS:
        if dtype is not None and dtype == known:  # None is float64 to NumPy
            return known
    raise TypeError(f"{op}: dtype must be float16, float32 or float64, not {dtype!r}")


def _uniform(op: str, shape: tuple[int, ...], bound: float, dtype: Any, rng: Any) -> Array:
    dtype = float_dtype(op, dtype)
    values = generator(op, rng).random(shape, dtype=_drawn(dtype))
    values *= 2 * bound
    values -= bound
    return values.astype(dtype, copy=False)


def _drawn(dtype: np.dtype[Any]) -> Any:
    """Return the dtype to draw in: generators know no float16."""
    return np.float64 if dtype == np.float64 else np.float32


def _fans(op: str, shape: tuple[int, ...], channels_last: bool) -> tuple[int, int]:
    if not isinstance(shape, tuple | list) or len(shape) < 2:
        raise ValueError(f"{op}: shape must have at least two axes, not {shape!r}")
    shape = tuple(integer(op, f"shape[{i}]", size, 1) for i, size in enumerate(shape))
    c_out, c_in, taps = shape[0], shape[1], prod(shape[2:])
    if channels_last:
        c_out, c_in, taps = shape[-1], shape[-2], prod(shape[:-2])
    return c_in * taps, c_out * taps
