"""Checking gradients by finite differences, for this package's tests and for layers of your own.

For a function y = f(a) and any dy, the analytic gradient da of Σ dy · y is compared with

    (f(a + h e) - f(a - h e)) · dy / 2h        for a unit vector e,

which differs from <da, e> by about h² and a rounding error of about 1e-16 / h: with h = 1e-6 and float64 ten
digits remain.
"""

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpuconv.backends.dispatch import array_module, backend_of, check_kind

Array = Any

# Arrays up to this size are checked element by element, larger ones along random directions: two forward
# passes each.
_EVERY = 256
_DIRECTIONS = 16


@dataclass
class GradientReport:
    """What `check_gradients` found: for each array the number of comparisons and the largest differences.

    Attributes
    ----------
    compared : dict of int
        Number of comparisons for "x" (or "inputs[0]", …) and each parameter.
    difference : dict of float
        Largest absolute difference between analytic and numeric.
    passed : bool
        Always True: where a gradient is wrong, an AssertionError is raised instead.
    """

    compared: dict[str, int] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=dict)
    passed: bool = True

    def __str__(self) -> str:
        lines = (
            f"{name}: {n} compared, largest difference {self.difference[name]:.1e}"
            for name, n in self.compared.items()
        )
        return "\n".join(lines)


def check_gradients(
    layer_or_function: Any,
    *inputs: Array,
    backward: Callable[..., Any] | None = None,
    rng: np.random.Generator | None = None,
    step: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-7,
) -> GradientReport:
    """Compare analytic gradients with central differences in float64.

    Arrays of up to 256 elements are compared element by element, larger ones along 16 random directions.

    Parameters
    ----------
    layer_or_function : layer or callable
        A layer is anything with `forward(x)`, `backward(dy)` and, where it has parameters, the dicts `params`
        and `grads`. It is left as it was found, but for `grads`: parameters and buffers get their values back.
        A function takes the inputs and returns y.
    *inputs : arrays
        A layer's x, or a function's arguments, each of which is differentiated. They are copied to float64.
    backward : callable, for a function only
        `backward(dy, *inputs)` returns the gradient of the input, or a tuple with one for each; None in the
        tuple is skipped.
    rng : numpy.random.Generator, optional
        Draws dy and the directions; by default with a fixed seed, so that a failure comes back.
    step : float, default 1e-6
        h, relative for values beyond 1.
    rtol, atol : float, default 1e-5 and 1e-7
        Allowed is atol + rtol |numeric|: a hundred times the error to expect at that step.

    Returns
    -------
    GradientReport
        Printable.

    Raises
    ------
    AssertionError
        Where a gradient differs: with the array, index, and both numbers, and whether a kink lies there.
    TypeError
        Where an input is no real array.
    ValueError
        Where the check can't be made: y changes from one call to the next (a `Dropout` that draws new masks),
        y is not float64, or a gradient is missing or has another shape.

    Notes
    -----
    Functions with kinks (`ReLU` at 0, a maximum with equal values in its window) have no derivative there, and
    the two sides differ. Choose x away from kinks, by more than the step: random real numbers are, zeros and
    small integers are not.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> rng = np.random.default_rng(0)
    >>> report = check_gradients(nn.Conv2d(2, 3, 3, padding=1, rng=rng), rng.standard_normal((2, 2, 4, 4)))
    >>> report.compared
    {'x': 64, 'weight': 54, 'bias': 3}
    >>> report = check_gradients(np.sin, rng.standard_normal(5), backward=lambda dy, x: dy * np.cos(x))
    >>> check_gradients(np.sin, np.zeros(1), backward=lambda dy, x: 2 * dy)
    Traceback (most recent call last):
        ...
    AssertionError: check_gradients: sin: x[0]: analytic 0.25146, numeric 0.12573 (difference 1.3e-01, allowed 1.4e-06; 1 of 1 comparisons failed, this one worst)
    """  # noqa: E501
    rng = np.random.default_rng(0) if rng is None else rng
    arrays = [_float64(i, a) for i, a in enumerate(inputs)]
    if not arrays:
        raise ValueError("check_gradients: needs at least one input array")
    if hasattr(layer_or_function, "forward") and backward is None:
        if len(arrays) != 1:
            raise ValueError(f"check_gradients: a layer takes one input, not {len(arrays)}")
        with _in_float64(layer_or_function):
            return _check_layer(layer_or_function, arrays[0], rng, step, rtol, atol)
    if backward is None:
        raise ValueError("check_gradients: a function needs its gradient, backward=...")
    name = getattr(layer_or_function, "__name__", type(layer_or_function).__name__)
    check = _Check(name, lambda: layer_or_function(*arrays), rng, step, rtol, atol)
    grads = backward(check.dy, *arrays)
    grads = tuple(grads) if isinstance(grads, tuple | list) else (grads,)
    if len(grads) != len(arrays):
        raise ValueError(f"check_gradients: {name}: {len(arrays)} inputs, but backward gave {len(grads)}")
    for i, (array, grad) in enumerate(zip(arrays, grads, strict=True)):
        if grad is not None:
            check(f"inputs[{i}]" if len(arrays) > 1 else "x", array, grad)
    return check.report


def _check_layer(
    layer: Any, x: Array, rng: np.random.Generator, step: float, rtol: float, atol: float
) -> GradientReport:
    check = _Check(type(layer).__name__, lambda: layer.forward(x), rng, step, rtol, atol)
    dx = layer.backward(check.dy)
    params = getattr(layer, "params", {})
    grads = {}
    for name in params:
        if name not in layer.grads:
            raise ValueError(f"check_gradients: {check.name}: backward left no grads[{name!r}]")
        grads[name] = layer.grads[name]
    check("x", x, dx)
    for name, grad in grads.items():
        check(name, params[name], grad)
    return check.report


class _Check:
    """One function of arrays that are changed in place, and a dy to weigh its result with."""

    def __init__(
        self,
        name: str,
        function: Callable[[], Array],
        rng: np.random.Generator,
        step: float,
        rtol: float,
        atol: float,
    ) -> None:
        self.name, self.function, self.rng = name, function, rng
        self.step, self.rtol, self.atol = step, rtol, atol
        self.report = GradientReport()
        first, y = function(), function()
        if y.dtype != np.float64:
            raise ValueError(
                f"check_gradients: {name}: y is {y.dtype.name} though all inputs are float64: the function "
                "converts it, or a layer keeps a parameter elsewhere than in params"
            )
        if not bool((first == y).all()):
            raise ValueError(f"check_gradients: {name}: y changes from one call to the next, or holds NaN")
        self.y = y.copy()
        xp = array_module(y)
        self.dy = xp.empty_like(y)  # of y's own kind
        self.dy[...] = xp.asarray(rng.standard_normal(y.shape))

    def __call__(self, name: str, array: Array, grad: Array) -> None:
        """Compare `grad` with the differences that changes of `array` make."""
        if grad is None or grad.shape != array.shape:
            got = None if grad is None else grad.shape
            raise ValueError(
                f"check_gradients: {self.name}: the gradient of {name} has shape {got}, not {array.shape}"
            )
        worst: tuple[float, str] = (0.0, "")
        failed = compared = 0
        difference = 0.0
        for where, direction in _directions(array, self.rng):
            analytic = float((grad * direction).sum())
            numeric = self._slope(array, direction, 1, -1)
            allowed = self.atol + self.rtol * abs(numeric)
            off = abs(analytic - numeric)
            compared += 1
            difference = max(difference, off)
            if off <= allowed:
                continue
            failed += 1
            excess = off / allowed if off == off else float("inf")  # NaN is as wrong as can be
            if excess > worst[0]:
                kink = self._kink(array, direction, allowed)
                worst = (
                    excess,
                    (
                        f"{name}{where}: analytic {analytic:.5g}, numeric {numeric:.5g} "
                        f"(difference {off:.1e}, allowed {allowed:.1e}{kink}"
                    ),
                )
        self.report.compared[name] = compared
        self.report.difference[name] = difference
        if failed:
            raise AssertionError(
                f"check_gradients: {self.name}: {worst[1]}; {failed} of {compared} comparisons failed, "
                "this one worst)"
            )

    def _slope(self, array: Array, direction: Array, up: int, down: int) -> float:
        """Return the change of Σ dy·y from `down` to `up` steps, by step."""
        saved = array.copy()
        h = self.step * max(1.0, float(abs(saved * (direction != 0)).max()))
        results = []
        for sign in (up, down):
            array += sign * h * direction
            results.append(self.function().copy() if sign else self.y)  # it may reuse one array for y
            array[...] = saved
        # The difference before the sum: the digits that the two results share cancel exactly.
        return float(((results[0] - results[1]) * self.dy).sum()) / ((up - down) * h)

    def _kink(self, array: Array, direction: Array, allowed: float) -> str:
        right, left = self._slope(array, direction, 1, 0), self._slope(array, direction, 0, -1)
        if abs(right - left) <= max(100 * allowed, 1e-3 * max(abs(right), abs(left))):
            return ""
        return f"; the slope is {left:.5g} on one side and {right:.5g} on the other: a kink lies here"


def _directions(array: Array, rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    """Yield what to change and by how much: one element of a small array, a random vector of a large one."""
    xp = array_module(array)
    if array.size <= _EVERY:
        for index in np.ndindex(array.shape):
            direction = xp.zeros(array.shape)
            direction[index] = 1
            yield (f"[{', '.join(map(str, index))}]" if index else ""), direction
    else:
        for i in range(_DIRECTIONS):
            direction = xp.asarray(rng.standard_normal(array.shape))
            yield f" along random direction {i}", direction / xp.sqrt(xp.square(direction).sum())


def _float64(i: int, array: Array) -> Array:
    name = f"inputs[{i}]"
    backend_of("check_gradients", **{name: array})
    check_kind("check_gradients", name, array, "biuf")  # astype would leave imaginary parts out
    return array.astype(np.float64)


def _writeable(array: Array) -> bool:
    return bool(getattr(array.flags, "writeable", True))  # CuPy's arrays always are


@contextmanager
def _in_float64(layer: Any) -> Iterator[None]:
    """Give the layer float64 parameters and buffers to play with, and its own back at the end."""
    own: list[tuple[MutableMapping[str, Array], str, Array, Array]] = []
    for which in ("params", "buffers"):
        arrays: MutableMapping[str, Array] = getattr(layer, which, {})
        own += [(arrays, name, array, array.copy()) for name, array in arrays.items()]
    try:
        for arrays, name, array, _ in own:
            if array.dtype.kind == "f" and (array.dtype != np.float64 or not _writeable(array)):
                arrays[name] = array.astype(np.float64)
        yield
    finally:
        for arrays, name, array, values in own:
            if _writeable(array):
                array[...] = values
            arrays[name] = array
