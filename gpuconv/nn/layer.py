"""What every layer has: parameters and gradients by name, a mode, and a state that can be saved.

A layer's backward holds only that layer's own derivative: activations are layers of their own, so the chain
rule is nothing but one `backward` after another. Parameter gradients are sums over the batch; where the loss
is a mean, its gradient already carries the 1/N.
"""

import os
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from gpuconv.backends.dispatch import (
    backend_of,
    beside,
    check_shape,
    float_result,
    inexact_result,
    is_dask,
    to_device,
)
from gpuconv.files import read_weights, write_weights
from gpuconv.geometry import Ints, Padding, sliding_window

Array = Any  # a NumPy or CuPy array


class Layer:
    """Base class of all layers, and of yours.

    A layer of your own sets its parameters in `__init__`, keeps in `forward` what `backward` needs, and
    puts the parameters' gradients into `grads` under the parameters' names.

    Attributes
    ----------
    params : dict of arrays
        The parameters by name. The layer reads them from here at every `forward`, so writing into an array
        and putting another array in its place both take effect.
    grads : dict of arrays
        The gradients of the last `backward`, by the parameters' names; empty before. A new `backward`
        replaces them: there is nothing to set to zero.
    buffers : dict of arrays
        State that is saved with the parameters but not trained (running statistics).
    training : bool
        Set by `train` and `eval`. Only `Dropout` and `BatchNorm2d` do something else in evaluation.

    Notes
    -----
    A layer keeps references to the arrays that `backward` needs (mostly its input), also in evaluation. Don't
    write into them between `forward` and `backward`. `params`, `grads` and `buffers` stay the same dicts
    over the layer's life.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.nn import Layer
    >>> class Scale(Layer):
    ...     def __init__(self, factor):
    ...         super().__init__()
    ...         self.params["factor"] = np.array(factor)
    ...     def forward(self, x):
    ...         self.x = x
    ...         return self.params["factor"] * x
    ...     def backward(self, dy, *, needs_dx=True):
    ...         self.grads["factor"] = np.sum(dy * self.x)
    ...         return self.params["factor"] * dy if needs_dx else None
    >>> from gpuconv.testing import check_gradients
    >>> check_gradients(Scale(3.0), np.arange(4.0)).passed
    True
    """

    def __init__(self) -> None:
        self.params: MutableMapping[str, Array] = {}
        self.grads: MutableMapping[str, Array] = {}
        self.buffers: MutableMapping[str, Array] = {}
        self.training = True
        self._kept: Any = None
        self._y_shape: tuple[int, ...] | None = None
        self._y_is_complex = False
        self._y_is_dask = False

    def forward(self, x: Array) -> Array:
        """Return y, and keep what `backward` will need."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, dy: Array, *, needs_dx: bool = True) -> Array:
        """Put the parameters' gradients into `grads` and return dx, the gradient of the input.

        Parameters
        ----------
        dy : array
            The gradient of the last `forward`'s result, shaped like it.
        needs_dx : bool, default True
            False says that nobody will read dx: a layer with parameters then returns None and saves the
            work (the first convolution of a network need not know what its images should have been). A
            layer without parameters may return dx all the same.

        Raises
        ------
        RuntimeError
            Where there was no `forward` yet.
        """
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def __call__(self, x: Array) -> Array:
        """Return `forward(x)`."""
        return self.forward(x)

    def train(self, mode: bool = True) -> Self:
        """Go to training mode (or, with False, to evaluation) and return the layer."""
        self.training = mode
        return self

    def eval(self) -> Self:
        """Go to evaluation mode and return the layer."""
        return self.train(False)

    def to(self, device: str) -> Self:
        """Move the parameters and buffers to "cpu" or "cuda" and return the layer.

        What the last forward and backward left is dropped. Make the optimiser afterwards: what it keeps for
        each parameter lies where the parameters lay.

        Raises
        ------
        ValueError
            For any other name of a device.
        RuntimeError
            For "cuda" where it can't be used; the message says what is missing.
        """
        if device not in ("cpu", "cuda"):
            raise ValueError(f'{type(self).__name__}.to: device must be "cpu" or "cuda", not {device!r}')
        for arrays in (self.params, self.buffers):
            for name, array in arrays.items():
                arrays[name] = to_device(array, device)
        self.grads.clear()
        self._kept = self._y_shape = None
        return self

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters and buffers under PyTorch's names ("0.weight").

        They are copies, so that a state kept from the best epoch stays what it was.
        """
        return {name: array.copy() for name, array in (*self.params.items(), *self.buffers.items())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Write a saved state into the parameters and buffers, in place.

        Parameters
        ----------
        state : mapping of arrays
            As `state_dict` gives it; PyTorch's, too (CPU tensors are read as arrays).

        Raises
        ------
        ValueError
            Where a name is missing or unexpected, a shape differs, or one of the layer's arrays is read-only;
            nothing is written then.
        TypeError
            Where `state` is no mapping, or a value's dtype doesn't fit the parameter's without loss.
        """
        self._write(f"{type(self).__name__}.load_state_dict", state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters and buffers into a safetensors file, under PyTorch's names ("0.weight").

        PyTorch reads it with ``model.load_state_dict(safetensors.torch.load_file(path))``, if the model has
        the same layers in the same order.

        Parameters
        ----------
        path : str or path
            At every moment the file is either what it was or the new one, whole.

        Raises
        ------
        ModuleNotFoundError
            Without the package safetensors (the extra of this name).
        OSError
            Where the file can't be written; what was there before still is.
        TypeError
            Where the format has no such dtype (complex128).

        Examples
        --------
        >>> import tempfile, pathlib
        >>> import numpy as np
        >>> import gpuconv.nn as nn
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, rng=0), nn.ReLU())
        >>> other = nn.Sequential(nn.Conv2d(1, 4, 3, rng=1), nn.ReLU())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "weights.safetensors"
        ...     network.save(path)
        ...     other.load(path)
        >>> x = np.ones((1, 1, 8, 8), np.float32)
        >>> bool((network(x) == other(x)).all())
        True
        """
        write_weights(f"{type(self).__name__}.save", Path(path), self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read a safetensors file into the parameters and buffers, in place, wherever they are.

        The network is there already: the file has arrays and names, but no layers. `save` writes such a file,
        and PyTorch's side does with ``safetensors.torch.save_file(model.state_dict(), path)``.

        Parameters
        ----------
        path : str or path
            The file.

        Raises
        ------
        ModuleNotFoundError
            Without the package safetensors (the extra of this name).
        OSError
            Where there is no such file.
        ValueError
            Where it isn't a safetensors file, is truncated, or is of a dtype that NumPy doesn't have
            (bfloat16); and as `load_state_dict`. Nothing is written then.
        TypeError
            As `load_state_dict`.
        """
        op = f"{type(self).__name__}.load"
        self._write(f"{op}: {path}", read_weights(op, Path(path)))

    def _write(self, op: str, state: Mapping[str, Any]) -> None:
        own = {**self.params, **self.buffers}
        check_state(op, state)
        check_names(op, state, own)
        values = {name: saved_array(op, name, state[name], array) for name, array in own.items()}
        for name, array in own.items():
            value = values[name]
            check_shape(op, f'"{name}"', value.shape, array.shape, "to fit the layer")
            if not np.can_cast(value.dtype, array.dtype):
                raise TypeError(
                    f'{op}: "{name}" is {value.dtype.name}, but the layer\'s is {array.dtype.name}, which '
                    "can't hold it without loss; convert it with .astype first"
                )
            if not getattr(array.flags, "writeable", True):  # CuPy's arrays always are
                raise ValueError(f'{op}: the layer\'s "{name}" is read-only; put a copy in its place first')
        for name, array in own.items():
            array[...] = values[name]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._arguments()})"

    def _arguments(self) -> str:
        """Return the constructor's arguments as `repr` shows them."""
        return ""

    def _keep(self, y: Array, kept: Any) -> Array:
        """Keep what backward needs beside y's shape; return y."""
        self._kept = kept
        self._y_shape = y.shape
        self._y_is_complex = y.dtype.kind == "c"
        self._y_is_dask = is_dask(y)
        return y

    def _recall(self, dy: Array) -> Any:
        """Return what `_keep` kept, after checking that dy belongs to it."""
        op = f"{type(self).__name__}.backward"
        if self._y_shape is None:
            raise RuntimeError(f"{op}: call forward first; its input is needed for the gradient")
        if self._y_is_dask:
            raise TypeError(f"{op}: the last forward was given a Dask array, which layers pass forward only")
        backend_of(op, dy=dy)
        (inexact_result if self._y_is_complex else float_result)(op, dy=dy)
        check_shape(op, "dy", dy.shape, self._y_shape, "to match the y of the last forward")
        return self._kept


def saved_array(op: str, name: str, value: Any, array: Array) -> Array:
    """Return what a saved state has under a name as an array where the layer's lies."""
    try:
        return beside(array, value)
    except (RuntimeError, TypeError) as error:  # a tensor that wants gradients, or is bfloat16
        raise TypeError(f'{op}: "{name}" can\'t be seen as an array: {error}') from error


def check_state(op: str, state: Any) -> None:
    """Check that a saved state is a mapping."""
    if not isinstance(state, Mapping):
        raise TypeError(f"{op}: state is {state!r:.60}, but must be a mapping, as state_dict gives it")


def check_names(op: str, given: Iterable[str], expected: Iterable[str]) -> None:
    """Check that a saved state has the expected names, no fewer and no more."""
    given, expected = set(given), set(expected)
    faults = []
    if missing := sorted(expected - given):
        faults.append(f"is missing {', '.join(missing)}")
    if unexpected := sorted(given - expected):
        faults.append(f"has the unexpected {', '.join(unexpected)}")
    if faults:
        raise ValueError(f"{op}: the state {' and '.join(faults)}")


def check_window(op: str, axes: int, kernel: Ints, stride: Ints, padding: Padding, dilation: Ints) -> None:
    """Find wrong arguments when a layer is made: an image this large fits any kernel that memory holds."""
    sliding_window(op, (1 << 40,) * axes, kernel, stride, padding, dilation)


def unusual(**arguments: tuple[Any, Any]) -> str:
    """Return the (value, default) pairs that differ, as they'd stand in a call."""
    return "".join(f", {name}={value!r}" for name, (value, usual) in arguments.items() if value != usual)
