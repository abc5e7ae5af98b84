"""Dask arrays: a backend whose primitives lay out graphs of blocks, in which the other backends compute.

A public function is called with a `Later` in the place of each array: it checks its arguments and describes
its windows as ever, and the primitives that it calls cut their results into blocks (see `graph`).
"""

from collections.abc import Callable
from inspect import signature
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from dask.array import Array as DaskArray
from dask.array import map_blocks

from gpuconv.backends import cpu, dispatch
from gpuconv.backends.dask import graph, whole_planes
from gpuconv.backends.dispatch import accumulator, backend_of
from gpuconv.config import config
from gpuconv.geometry import Window, spatial_sizes

Array = Any
Shape = tuple[int, ...]
Turn = Callable[[DaskArray], DaskArray]


class Call(NamedTuple):
    """A public function's name, and the chunks of its arguments, which results of the same shape have too."""

    op: str
    chunks: dict[Shape, graph.Chunks]


class Later:
    """What public functions see of a Dask array: of one that they are given, or one that they write to.

    Attributes
    ----------
    array
        The Dask array; None until a primitive has laid it out.
    """

    def __init__(
        self, shape: Shape, dtype: Any, call: Call, written: Callable[[DaskArray], None] | None = None
    ) -> None:
        self.shape, self.dtype, self.call = shape, np.dtype(dtype), call
        self.array: Any = None
        self._written = written

    @classmethod
    def of(cls, array: DaskArray, call: Call) -> "Later":
        """Return what is seen of an array that is given."""
        later = cls(array.shape, array.dtype, call)
        later.array = array
        return later

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def real(self) -> "Later":
        """The real parts."""
        return self._read(self.array.real)

    def conj(self) -> "Later":
        """Return the conjugate."""
        return self._read(self.array.conj())

    def reshape(self, shape: Shape) -> "Later":
        """Return it in another shape; what is written there is written here."""
        if self.array is not None:
            return self._read(self.array.reshape(shape))
        return self._view(shape, lambda array: array.reshape(self.shape))

    def __getitem__(self, index: Any) -> "Later":
        """Return it turned round; what is written there is written here, turned back by the same index."""
        if self.array is not None:
            return self._read(self.array[index])
        return self._view(self.shape, lambda array: array[index])

    def __setitem__(self, index: Any, value: "Later") -> None:
        self.become(value.array)

    def become(self, array: DaskArray) -> None:
        """Be this array from now on, and what this is a view of as well."""
        self.array = array
        if self._written is not None:
            self._written(array)

    def _read(self, array: DaskArray) -> "Later":
        return Later.of(array, self.call)

    def _view(self, shape: Shape, back: Turn) -> "Later":
        return Later(shape, self.dtype, self.call, lambda array: self.become(back(array)))


# The primitives, with the names and parameters of NumPy's.


class _Primitives:
    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., None]:
        parameters = signature(getattr(self._module, name)).parameters

        def lay_out(*arguments: Any) -> None:
            results = [each for each in arguments if isinstance(each, Later) and each.array is None]
            named = dict(zip(parameters, map(_in_graph, arguments), strict=True))
            found = self._laid_out(name, named, results[0].call)
            for result, array in zip(results, found, strict=True):
                result.become(array)

        return lay_out

    def _laid_out(self, name: str, named: dict[str, Any], call: Call) -> list[DaskArray]:
        """Return a primitive's results."""
        primitive = f"{self._module.__name__.rpartition('.')[2]}.{name}"
        return graph.Layout(primitive, named, call.chunks).arrays(call.op)


class _Convolution(_Primitives):
    def weight_grad(self, dy: Later, x: Later, dw: Later, window: Window, channels_last: bool) -> None:
        """Lay out each block's gradient, and their sum: a tree that is the same at each run."""
        of_blocks = Later(dw.shape, accumulator(dw.dtype), dw.call)
        self.__getattr__("weight_grad")(dy, x, of_blocks, window, channels_last)
        dw.become(of_blocks.array.sum(axis=0, dtype=of_blocks.dtype).astype(dw.dtype))

    def bias_grad(self, dy: Later, db: Later, channels_last: bool) -> None:
        """Lay out the sum over images and places."""
        axes = tuple(axis for axis in range(dy.ndim) if axis != (dy.ndim - 1 if channels_last else 1))
        db.become(dy.array.sum(axis=axes, dtype=accumulator(db.dtype)).astype(db.dtype))


class _Adaptive(_Primitives):
    def _laid_out(self, name: str, named: dict[str, Any], call: Call) -> list[DaskArray]:
        """Cut planes that are one window; images with several are whole in their task."""
        small = named["dy"] if name.endswith("backward") else named["y"]
        if set(spatial_sizes(small.shape, named["channels_last"])) != {1}:
            return super()._laid_out(name, named, call)
        found: list[DaskArray] = getattr(whole_planes, name)(call.op, **named)
        return found


def _in_graph(argument: Any) -> Any:
    if not isinstance(argument, Later):
        return argument
    return graph.Result(argument.shape, argument.dtype) if argument.array is None else argument.array


columns, pooling = map(_Primitives, (cpu.columns, cpu.pooling))
adaptive, convolution = _Adaptive(cpu.adaptive), _Convolution(cpu.convolution)


def _empty(shape: Shape, dtype: Any, beside: Later) -> Later:
    return Later(shape, dtype, beside.call)


def _relu_input_grad(dy: Later, y: Later) -> Later:
    settings = graph.settings()
    through = map_blocks(
        _rectified, dy.array, y.array.rechunk(dy.array.chunks), settings=settings, meta=dy.array._meta
    )
    return Later.of(through, dy.call)


def _rectified(dy: Array, y: Array, settings: dict[str, Any]) -> Array:
    with config(**settings):
        return backend_of("relu_input_grad", dy=dy, y=y).activations.relu_input_grad(dy, y)


arrays = SimpleNamespace(empty=_empty)
activations = SimpleNamespace(relu_input_grad=_relu_input_grad)

dispatch.KINDS[Later] = dispatch.DASK
