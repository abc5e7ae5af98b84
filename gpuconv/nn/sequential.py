"""Layers one after another."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, Self, overload

from gpuconv.nn.layer import Array, Layer
from gpuconv.nn.rectified_pooling import RectifiedPooling, pooling_behind
from gpuconv.trace import AROUND_LAYER


class Sequential(Layer):
    """Layers one after another: forward from the first to the last, backward from the last to the first.

    With a(0) = x and a(l) = layer_l(a(l-1)), `backward` computes δ(l-1) = layer_l.backward(δ(l)), which is
    the recursion that gives back-propagation its name.

    A `ReLU` right before a max pooling runs behind it: the maximum of rectified values is the rectified
    maximum, and one value a window is less work than all of them. Results and gradients of the network are
    the same bits, and the layers can be called one by one behind it; only the gradient between these two, of
    windows that hold no positive number, is found at another place.

    Parameters
    ----------
    *layers : Layer
        Each layer object at most once, as it keeps the arrays of one forward pass only. A `Sequential`
        may be one of them.

    Attributes
    ----------
    params, grads, buffers : mutable mappings
        Those of all the layers, under PyTorch's names: "0.weight" is `network[0].params["weight"]`, and
        assigning to it assigns there.

    Raises
    ------
    TypeError
        For something that is not a `Layer`.
    ValueError
        For a layer that occurs twice.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv.nn as nn
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, rng=0), nn.ReLU(), nn.MaxPool2d(2))
    >>> network
    Sequential(
      (0): Conv2d(1, 4, kernel_size=3, padding=1)
      (1): ReLU()
      (2): MaxPool2d(kernel_size=2)
    )
    >>> y = network(np.ones((5, 1, 8, 8), np.float32))
    >>> y.shape
    (5, 4, 4, 4)
    >>> network.backward(np.ones_like(y)).shape
    (5, 1, 8, 8)
    >>> list(network.grads)
    ['0.weight', '0.bias']
    >>> network[:2]
    Sequential(
      (0): Conv2d(1, 4, kernel_size=3, padding=1)
      (1): ReLU()
    )
    """

    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        for i, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(
                    f"Sequential: layers[{i}] must be a layer, not {type(layer).__name__} {layer!r}"
                )
        _check_distinct(layers)
        self._layers = layers
        self.params = _Joined(layers, "params")
        self.grads = _Joined(layers, "grads")
        self.buffers = _Joined(layers, "buffers")

    def forward(self, x: Array) -> Array:
        """Return the last layer's result."""
        for step in self._passes():
            x = step(x)
        return x

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Put every layer's gradients into its `grads` and return dx.

        Parameters
        ----------
        dy : array
            The gradient of the last `forward`'s result.
        needs_dx : bool, default True
            False ends the pass at the first layer that has parameters, which doesn't compute its dx; the
            result is None. For training, where nobody reads the gradient of the images.
        """
        passes = self._passes()
        if needs_dx:
            for step in reversed(passes):
                dy = step.backward(dy)
            return dy
        first = next((i for i, step in enumerate(_steps(self._layers).values()) if step.params), len(passes))
        for step in reversed(passes[first + 1 :]):
            dy = step.backward(dy)
        for step in passes[first : first + 1]:
            step.backward(dy, needs_dx=False)
        return None

    def train(self, mode: bool = True) -> Self:
        """Go to training mode (or, with False, to evaluation) with all layers, and return the network."""
        for layer in self._layers:
            layer.train(mode)
        return super().train(mode)

    def to(self, device: str) -> Self:
        """Move all layers to "cpu" or "cuda" and return the network."""
        for layer in self._layers:
            layer.to(device)
        return super().to(device)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all parameters and buffers, layer by layer, under PyTorch's names."""
        return {
            f"{i}.{name}": array
            for i, layer in enumerate(self._layers)
            for name, array in layer.state_dict().items()
        }

    def _passes(self) -> "tuple[Any, ...]":
        """Return what to run, one after the other."""
        steps, around = _steps(self._layers), AROUND_LAYER.get()
        return tuple(steps.values()) if around is None else _within(around, steps)

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> "Sequential": ...
    def __getitem__(self, index: int | slice) -> "Layer | Sequential":
        if isinstance(index, slice):
            return Sequential(*self._layers[index])
        return self._layers[index]

    def __repr__(self) -> str:
        lines = [f"({i}): {layer!r}".replace("\n", "\n  ") for i, layer in enumerate(self._layers)]
        return "Sequential(" + "".join(f"\n  {line}" for line in lines) + ("\n)" if lines else ")")


class _Within:
    """A layer's two passes, handed to what stands around layers (`gpuconv.trace.AROUND_LAYER`)."""

    def __init__(self, around: Callable[..., Any], i: int, layer: Layer) -> None:
        self._around, self._i, self._layer = around, i, layer

    def __call__(self, x: Array) -> Array:
        return self._around(self._layer.forward, self._i, self._layer, "forward", x)

    def backward(self, dy: Array, **named: Any) -> Array:
        return self._around(self._layer.backward, self._i, self._layer, "backward", dy, **named)


def _within(around: Callable[..., Any], steps: Mapping[int, Any]) -> tuple[Any, ...]:
    return tuple(
        step if isinstance(step, RectifiedPooling) else _Within(around, i, step) for i, step in steps.items()
    )


def _steps(layers: tuple[Layer, ...]) -> dict[int, Any]:
    """Return what to run, by the number of its first layer: the layers, but a ReLU and max pooling as one."""
    steps: dict[int, Any] = {}
    for i, layer in enumerate(layers):
        if i and steps.get(i - 1) is layers[i - 1] and pooling_behind(layers[i - 1], layer):
            steps[i - 1] = RectifiedPooling(i - 1, layers[i - 1], layer)
        else:
            steps[i] = layer
    return steps


class _Joined(MutableMapping[str, Any]):
    """The layers' dicts as one, under names with the layer's number in front; it holds nothing itself."""

    def __init__(self, layers: tuple[Layer, ...], which: str) -> None:
        self._dicts: list[MutableMapping[str, Any]] = [getattr(layer, which) for layer in layers]

    def _find(self, name: str) -> tuple[MutableMapping[str, Any], str]:
        number, _, rest = name.partition(".")
        if number.isdecimal() and int(number) < len(self._dicts) and rest in self._dicts[int(number)]:
            return self._dicts[int(number)], rest
        raise KeyError(name)

    def __getitem__(self, name: str) -> Any:
        found, rest = self._find(name)
        return found[rest]

    def __setitem__(self, name: str, value: Any) -> None:
        found, rest = self._find(name)
        found[rest] = value

    def __delitem__(self, name: str) -> None:
        found, rest = self._find(name)
        del found[rest]

    def __iter__(self) -> Iterator[str]:
        return (f"{i}.{name}" for i, names in enumerate(self._dicts) for name in names)

    def __len__(self) -> int:
        return sum(map(len, self._dicts))

    def __repr__(self) -> str:
        return repr(dict(self))


def _check_distinct(layers: tuple[Layer, ...], place: str = "", seen: dict[int, str] | None = None) -> None:
    seen = {} if seen is None else seen
    for i, layer in enumerate(layers):
        name = f"{place}{i}"
        if id(layer) in seen:
            raise ValueError(
                f"Sequential: layer {name} is the same object as layer {seen[id(layer)]} ({layer!r}); "
                "a layer keeps the arrays of one forward pass only, so make a new one for each place"
            )
        seen[id(layer)] = name
        if isinstance(layer, Sequential):
            _check_distinct(layer._layers, f"{name}.", seen)
