"""Arrays without values, and a backend that computes nothing: it notes which primitives it is asked for.

A public function called with such arrays checks its arguments, describes its windows and returns results that
have no values either. What it would have computed is then known, primitive by primitive, whatever the size.
"""

from collections.abc import Callable
from contextvars import ContextVar
from inspect import signature
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backends import addresses, cpu, dispatch

Array = Any

# What CuPy's memory pool gives: addresses are multiples of it. Any would do, but 0.
ADDRESS = 512


class Note(NamedTuple):
    """What would have been done: a primitive ("convolution.forward") or a part of one, and with what."""

    what: str
    arguments: dict[str, Any]


_NOTES: ContextVar[list[Note]] = ContextVar("gpuconv.unmade")


def noted(function: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, list[Note]]:
    """Call a function with arrays without values; return its results and what it would have done."""
    notes: list[Note] = []
    token = _NOTES.set(notes)
    try:
        return function(*arguments, **named), notes
    finally:
        _NOTES.reset(token)


def note(what: str, **arguments: Any) -> None:
    """Add a note to those of the call of `noted` that is under way."""
    _NOTES.get().append(Note(what, arguments))


class Unmade:
    """An array without values: a shape, a dtype, strides and an address, which nobody reads.

    Attributes
    ----------
    layout
        A NumPy array with the same addresses, to take views of; anything else would touch memory.
    origin
        The array that this is a view of, or a copy with other values.
    """

    device = SimpleNamespace(id=0)

    def __init__(self, layout: np.ndarray[Any, Any], origin: "Unmade | None" = None) -> None:
        self.layout = layout
        self.origin: Unmade = self if origin is None else origin

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(self.layout.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """What elements would be."""
        dtype: np.dtype[Any] = self.layout.dtype
        return dtype

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from an element to the next along each axis."""
        return self.layout.strides

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.layout.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.layout.size

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.layout.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.layout.nbytes

    @property
    def address(self) -> int:
        """Address of the first element."""
        return int(self.layout.__array_interface__["data"][0])

    @property
    def flags(self) -> Any:
        """Whether elements lie in order, as NumPy tells it."""
        return self.layout.flags

    @property
    def real(self) -> "Unmade":
        """The real parts: a view."""
        return Unmade(self.layout.real, self.origin)

    def __len__(self) -> int:
        return len(self.layout)

    def __getitem__(self, index: Any) -> "Unmade":
        return Unmade(self.layout[index], self.origin)

    def __setitem__(self, index: Any, value: Any) -> None:
        written = self.layout[index]
        note("copy" if isinstance(value, Unmade) else "fill", bytes=written.nbytes)

    def reshape(self, shape: tuple[int, ...]) -> "Unmade":
        """Return a view, where there is one of this shape."""
        return Unmade(self.layout.reshape(shape, copy=False), self.origin)

    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> "Unmade":
        """Return the array itself, or what a copy of it would be."""
        if not copy and self.dtype == dtype:
            return self
        return self._copy(dtype)

    def conj(self) -> "Unmade":
        """Return what a copy would be."""
        return self._copy(self.dtype)

    def _copy(self, dtype: Any) -> "Unmade":
        made = empty(self.shape, dtype)
        note("copy", bytes=made.nbytes)
        return Unmade(made.layout, self.origin)


def empty(shape: tuple[int, ...], dtype: Any, beside: Any = None, *, address: int = ADDRESS) -> Unmade:
    """Return a new array without values, in row-major order."""
    dtype = np.dtype(dtype)
    strides, inside = [], dtype.itemsize
    for size in reversed(shape):
        strides.append(inside)
        inside *= max(1, size)
    if inside >= 2**63:
        raise ValueError(f"an array of {shape} {dtype.name} has more bytes than there are addresses")
    return Unmade(addresses.at(address, shape, tuple(reversed(strides)), dtype))


def like(x: Array, address: int = ADDRESS) -> Unmade:
    """Return an array that lies as another does, at an address of its own."""
    return Unmade(addresses.at(address, x.shape, x.strides, x.dtype))


# The backend. Its primitives are those of NumPy's, whose signatures tell the arguments' names.


class _Primitives:
    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., None]:
        described = signature(getattr(self._module, name))
        what = f"{self._module.__name__.rpartition('.')[2]}.{name}"

        def primitive(*arguments: Any) -> None:
            note(what, **described.bind(*arguments).arguments)

        return primitive


adaptive, columns, convolution, pooling = map(
    _Primitives, (cpu.adaptive, cpu.columns, cpu.convolution, cpu.pooling)
)
arrays = SimpleNamespace(empty=empty)


def _relu_input_grad(dy: Unmade, y: Unmade) -> Unmade:
    note("activations.relu_input_grad", dy=dy, y=y)
    return Unmade(empty(dy.shape, dy.dtype).layout, dy.origin)


activations = SimpleNamespace(relu_input_grad=_relu_input_grad)

dispatch.KINDS[Unmade] = dispatch.UNMADE
