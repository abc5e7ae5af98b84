"""Optimisers: from gradients to new parameters, by PyTorch's rules.

A step changes the parameters' arrays in place and finds them by name each time, so parameters that were
reassigned since are the ones it trains.
"""

from collections.abc import Iterator, Mapping
from math import inf, sqrt
from typing import Any, ClassVar

import numpy as np

from gpuconv.backends.dispatch import accumulator, array_module, check_kind, check_shape
from gpuconv.geometry import integer
from gpuconv.nn.layer import Array, Layer, check_names, check_state, saved_array
from gpuconv.nn.number import number


class _Optimizer:
    """A network, a step count, and arrays of state per parameter in named slots."""

    _numbers: ClassVar[dict[str, float]]  # the settings, and what each must be less than

    def __init__(self, network: Layer) -> None:
        if not (hasattr(network, "params") and hasattr(network, "grads")):
            raise TypeError(
                f"{type(self).__name__}: network must be a layer, with params and grads, "
                f"not {type(network).__name__}"
            )
        self.network = network
        self.steps = 0
        self._slots: dict[str, Array] = {}

    def step(self) -> None:
        """Update every parameter of the network in place from its gradient.

        Raises
        ------
        RuntimeError
            Where a parameter has no gradient yet; nothing is updated then.
        TypeError, ValueError
            Where a gradient's shape is not the parameter's, or a parameter is read-only or of integers, or,
            for `Adam`, complex; nothing is updated then, either.
        """
        op = f"{type(self).__name__}.step"
        pairs = []
        for name, p in self.network.params.items():
            if name not in self.network.grads:
                raise RuntimeError(f"{op}: {name} has no gradient yet; call forward and backward first")
            g = self.network.grads[name]
            check_shape(op, f"the gradient of {name}", g.shape, p.shape, "as the parameter's")
            self._check(op, name, p)
            pairs.append((name, p, g))
        self.steps += 1
        for name, p, g in pairs:
            # float16 has no room for eps or the square of a gradient; the parameter itself is rounded once.
            self._update(name, p, g.astype(accumulator(p.dtype), copy=False))

    def state_dict(self) -> dict[str, Any]:
        """Return the settings and the step count as numbers, and copies of the arrays of state.

        With the network's `state_dict` that is enough to go on exactly where training stopped.
        """
        state: dict[str, Any] = {name: getattr(self, name) for name in ("steps", *self._numbers)}
        return state | {key: array.copy() for key, array in self._slots.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state, settings included.

        Parameters
        ----------
        state : mapping
            As `state_dict` gives it; the numbers may have become 0-d arrays on the way.

        Raises
        ------
        ValueError
            Where a name is missing or unexpected, a shape differs, or a setting is one that the constructor
            would refuse; nothing is changed then.
        TypeError
            Where `state` is no mapping, a setting no number, or an array's numbers are not of the parameter's
            kind.
        """
        op = f"{type(self).__name__}.load_state_dict"
        check_state(op, state)
        check_names(op, (key for key in state if "." not in key), ("steps", *self._numbers))
        numbers = {name: self._number(op, name, _plain(state[name])) for name in self._numbers}
        steps = integer(op, "steps", _plain(state["steps"]), 0)
        slots: dict[str, Array] = {}
        for slot in self._slot_names(steps, numbers):
            for name, p in self.network.params.items():
                slots[f"{slot}.{name}"] = p
        check_names(op, (key for key in state if "." in key), slots)
        for key, p in slots.items():
            value, dtype = saved_array(op, key, state[key], p), accumulator(p.dtype)
            check_shape(op, f'"{key}"', value.shape, p.shape, "to fit the network")
            if not np.can_cast(value.dtype, dtype, "same_kind"):
                raise TypeError(
                    f'{op}: "{key}" is {value.dtype.name}, but to fit the network it must be {dtype}'
                )
            slots[key] = value.astype(dtype)
        self.steps = steps
        self._slots = slots
        for name, setting in numbers.items():
            setattr(self, name, setting)

    def _number(self, op: str, name: str, value: Any, argument: str = "") -> float:
        """Check one of the settings; `argument` is its name where it was given by another."""
        return number(op, argument or name, value, below=self._numbers[name])

    def _slot(self, slot: str, name: str, p: Array) -> Array:
        """Return this parameter's array in a slot; zeros at first."""
        key = f"{slot}.{name}"
        if key not in self._slots:
            self._slots[key] = array_module(p).zeros_like(p, dtype=accumulator(p.dtype))
        return self._slots[key]

    def _check(self, op: str, name: str, p: Array) -> None:
        """Check that a parameter can be updated in place."""
        check_kind(op, f'"{name}"', p, "fc")
        if not getattr(p.flags, "writeable", True):  # CuPy's arrays always are
            raise ValueError(f'{op}: "{name}" is read-only; put a copy in its place first')

    def _update(self, name: str, p: Array, g: Array) -> None:
        raise NotImplementedError

    def _slot_names(self, steps: int, numbers: Mapping[str, float]) -> Iterator[str]:
        """Yield the slots that are filled after this many steps with these settings."""
        raise NotImplementedError

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={getattr(self, name):g}" for name in self._numbers)
        return f"{type(self).__name__}({settings})"


class SGD(_Optimizer):
    """Gradient descent, with momentum and weight decay where asked for.

    With g the gradient of p, step by step:

        g = g + weight_decay p,   v = momentum v + g,   p = p - lr v.

    Parameters
    ----------
    network : Layer
        Anything with `params` and `grads`: a layer or a `Sequential`, also a part of one.
    lr : float
        Step size α; an attribute, which may be changed between steps. With a mean loss it doesn't depend
        on the batch; with a sum it multiplies the sum.
    momentum : float, default 0
        How much of the last step's v goes on; 0 is the plain gradient descent of the textbooks.
    weight_decay : float, default 0
        Pull towards zero, added to the gradient.

    Raises
    ------
    ValueError
        For a negative number.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> dense = nn.Linear(1, 1, bias=False, dtype=np.float64)
    >>> dense.params["weight"] = np.array([[1.0]])
    >>> optimizer = nn.SGD(dense, lr=0.5)
    >>> y = dense(np.array([[3.0]]))
    >>> dx = dense.backward(np.array([[1.0]]))
    >>> optimizer.step()
    >>> dense.params["weight"]
    array([[-0.5]])
    """

    _numbers: ClassVar = {"lr": inf, "momentum": inf, "weight_decay": inf}

    def __init__(
        self, network: Layer, lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(network)
        self.lr = self._number("SGD", "lr", lr)
        self.momentum = self._number("SGD", "momentum", momentum)
        self.weight_decay = self._number("SGD", "weight_decay", weight_decay)

    def _update(self, name: str, p: Array, g: Array) -> None:
        if self.weight_decay:
            g = g + self.weight_decay * p
        if self.momentum:
            v = self._slot("momentum_buffer", name, p)
            v *= self.momentum
            v += g
            g = v
        p -= float(self.lr) * g

    def _slot_names(self, steps: int, numbers: Mapping[str, float]) -> Iterator[str]:
        if steps and numbers["momentum"]:
            yield "momentum_buffer"


class Adam(_Optimizer):
    """Adam: steps of about lr in each parameter, whatever its gradient's size.

    With g the gradient of p at step t,

        g = g + weight_decay p,
        m = β1 m + (1 - β1) g,   v = β2 v + (1 - β2) g²,
        p = p - lr / (1 - β1^t) · m / (sqrt(v / (1 - β2^t)) + eps).

    Parameters
    ----------
    network : Layer
        Anything with `params` and `grads`: a layer or a `Sequential`, also a part of one.
    lr : float
        Step size; an attribute, which may be changed between steps. 1e-3 is the paper's.
    betas : (float, float), default (0.9, 0.999)
        β1 and β2, the memory of m and v; the paper's values.
    eps : float, default 1e-8
        Keeps the division finite; the paper's value.
    weight_decay : float, default 0
        Pull towards zero, added to the gradient (not AdamW's).

    Raises
    ------
    ValueError
        For a negative number, or a β of 1 or more.

    References
    ----------
    Kingma, Ba: Adam, a method for stochastic optimization, 2015, arXiv:1412.6980.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> dense = nn.Linear(1, 1, bias=False, dtype=np.float64)
    >>> dense.params["weight"] = np.array([[1.0]])
    >>> optimizer = nn.Adam(dense, lr=0.5)
    >>> y = dense(np.array([[3.0]]))
    >>> dx = dense.backward(np.array([[1.0]]))
    >>> optimizer.step()
    >>> dense.params["weight"].round(6)
    array([[0.5]])
    """

    _numbers: ClassVar = {"lr": inf, "beta1": 1, "beta2": 1, "eps": inf, "weight_decay": inf}

    def __init__(
        self,
        network: Layer,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(network)
        self.lr = self._number("Adam", "lr", lr)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"Adam: betas must be two numbers, not {betas!r}")
        self.beta1 = self._number("Adam", "beta1", betas[0], "betas[0]")
        self.beta2 = self._number("Adam", "beta2", betas[1], "betas[1]")
        self.eps = self._number("Adam", "eps", eps)
        self.weight_decay = self._number("Adam", "weight_decay", weight_decay)

    def _check(self, op: str, name: str, p: Array) -> None:
        if p.dtype.kind == "c":
            raise TypeError(f'{op}: "{name}" is {p.dtype.name}, but it takes real parameters; SGD takes both')
        super()._check(op, name, p)

    def _update(self, name: str, p: Array, g: Array) -> None:
        xp = array_module(p)
        if self.weight_decay:
            g = g + self.weight_decay * p
        m, v = self._slot("exp_avg", name, p), self._slot("exp_avg_sq", name, p)
        m += (1 - self.beta1) * (g - m)
        v *= self.beta2
        v += (1 - self.beta2) * xp.square(g)
        divisor = xp.sqrt(v)
        divisor /= sqrt(1 - self.beta2**self.steps)
        divisor += self.eps
        p -= float(self.lr) / (1 - self.beta1**self.steps) * m / divisor

    def _slot_names(self, steps: int, numbers: Mapping[str, float]) -> Iterator[str]:
        if steps:
            yield from ("exp_avg", "exp_avg_sq")


def _plain(value: Any) -> Any:
    """Return the number in a 0-d array; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () else value
