"""NumPy arrays, computed on a GPU: what the public functions do within `with gpuconv.offload("cuda"):`.

A small call moves its arrays by one copy each. A large one is cut along the batch, where the results are cut
with it: while one chunk is computed, the next is copied to the GPU, and the results of the last back,

    to the GPU      x0   x1   x2   x3
    computed             y0   y1   y2   y3
    back                      y0   y1   y2   y3

on three streams, through pinned memory. Two chunks of arguments lie on the GPU in turn, two pinned buffers
serve each direction. Sums over the batch (dw, db) are never cut: their arguments are copied in pieces, and
one call computes.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from gpuconv import geometry
from gpuconv.backends.dispatch import backend_of, check_gpu, result, several
from gpuconv.entry import PLACE, Place
from gpuconv.trace import stage

if TYPE_CHECKING:  # at run time, the backend is imported when first used
    from gpuconv.backends.cuda.staging import Lane

Array = Any
F = TypeVar("F", bound=Callable[..., Any])

# Enough for a copy to take much longer than it takes to start. A guess, and so is that two chunks are worth
# the overlap: both wait for a measurement.
CHUNK_BYTES = 16 << 20
WORTH_CUTTING = 2
# A pinned buffer holds an element at least.
LEAST_CHUNK = 64

# The public functions' parameters: arrays whose first axis is the batch, and arrays that belong to no image.
BATCHED = ("x", "dy", "y", "argmax", "col")
ARRAYS = (*BATCHED, "w", "b")
# Names of the profiler's ranges.
UP, DOWN = "copy to the GPU", "copy from the GPU"
# What a GPU holds; a call with anything else (long double, say) stays on the CPU.
MOVABLE = frozenset("?bBhHiIlLqQefdFD")


class offload:
    """Compute NumPy arrays on a GPU: in a `with` block, or in the function that it decorates.

    The public functions, and the layers that call them, take NumPy arrays there as ever, and return NumPy
    arrays; an ``out`` is filled where it lies. A call whose first array is CuPy's has its results on the GPU,
    also if others have to be moved there. What is no public function (activations, losses, optimisers) is
    computed on the CPU.

    Blocks may be nested, the innermost counts; a block holds for its thread or asyncio task, and not for
    threads that it starts. A generator that yields within a block leaves it on for its caller: don't.

    Parameters
    ----------
    device : "cuda" or "cpu", default "cuda"
        Where to compute: on CuPy's current device, or, within another block, on the CPU again.
    fallback : bool, default False
        Compute on the CPU where there is no GPU, instead of an error.
    chunk_bytes : int or None, default 16 MiB
        Calls whose arrays are at least twice as large are cut along the batch into chunks of about this size,
        so that copies and computing overlap; each direction takes two pinned buffers of this size. None: no
        call is cut. A convolution in chunks may differ by rounding from one in a piece, as cuBLAS chooses the
        order of sums by the number of images; the other functions, and gradients by w and b, do not. Chunks
        depend on shapes and dtypes alone, so results are the same at each run.

    Raises
    ------
    TypeError, ValueError
        For another argument; for a generator function to decorate.
    RuntimeError
        On entering, where a GPU can't be used and `fallback` is false; it says what is missing.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    >>> with gpuconv.offload("cuda", fallback=True) as device:  # device says which it is
    ...     y, argmax = gpuconv.max_pool2d(x, 2)
    >>> y
    array([[[[ 5.,  7.],
             [13., 15.]]]], dtype=float32)

    >>> @gpuconv.offload("cuda", fallback=True)
    ... def mean(x):
    ...     return gpuconv.global_avg_pool(x).item()
    >>> mean(x)
    7.5
    """

    def __init__(
        self,
        device: Literal["cuda", "cpu"] = "cuda",
        *,
        fallback: bool = False,
        chunk_bytes: int | None = CHUNK_BYTES,
    ) -> None:
        if not isinstance(device, str) or device not in ("cuda", "cpu"):
            raise ValueError(f'offload: device must be "cuda" or "cpu", not {device!r}')
        self._device = device
        self._fallback = geometry.flag("offload", "fallback", fallback)
        if chunk_bytes is not None:
            chunk_bytes = geometry.integer("offload", "chunk_bytes", chunk_bytes, LEAST_CHUNK)
        self._chunk_bytes = chunk_bytes

    def __enter__(self) -> str:
        device = self._device
        if device == "cuda":
            try:
                check_gpu()
            except RuntimeError:
                if not self._fallback:
                    raise
                device = "cpu"
        outer = PLACE.get()
        place = _Place(device, self._chunk_bytes, outer)
        PLACE.set(place if outer is None else outer.around(place))
        return device

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        place = PLACE.get()
        assert place is not None
        PLACE.set(place.outer)

    def __call__(self, function: F) -> F:
        """Return a function, or a coroutine function, that runs within such a block."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"offload: {function.__name__} is a generator function, which its caller runs in pieces; "
                "put a with block into it, without a yield"
            )
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def awaiting(*arguments: Any, **named: Any) -> Any:
                with self:
                    return await function(*arguments, **named)

            return awaiting  # type: ignore[return-value]

        @wraps(function)
        def calling(*arguments: Any, **named: Any) -> Any:
            with self:
                return function(*arguments, **named)

        return calling  # type: ignore[return-value]


@dataclass(frozen=True)
class _Place:
    """Where a block computes. It knows the block around it, so that an `offload` itself holds no state."""

    device: str
    chunk_bytes: int | None
    outer: Place | None

    def __call__(
        self, function: Callable[..., Any], signature: inspect.Signature, /, *arguments: Any, **named: Any
    ) -> Any:
        """Call a public function here or there."""
        if self.device == "cpu":
            return function(*arguments, **named)
        try:
            bound = signature.bind(*arguments, **named).arguments
        except TypeError:
            return function(*arguments, **named)  # it says itself what is wrong
        arrays = {name: bound[name] for name in bound if name in ARRAYS and _is_array(bound[name])}
        here = {name: x for name, x in arrays.items() if isinstance(x, np.ndarray)}
        if not here or not all(map(_movable, here.values())):
            return function(*arguments, **named)
        call = _Call(function, bound, arrays, here, self.chunk_bytes)
        there = next((x for x in arrays.values() if not isinstance(x, np.ndarray)), None)
        with nullcontext() if there is None else there.device:
            return call.run(importlib.import_module("cupy"))

    def around(self, place: Place) -> Place:
        """Return the place itself: the innermost block counts."""
        return place


class _Call:
    """One call, with arrays of NumPy's to move: `here`, among all its `arrays`."""

    def __init__(
        self,
        function: Callable[..., Any],
        bound: dict[str, Any],
        arrays: dict[str, Array],
        here: dict[str, Array],
        chunk_bytes: int | None,
    ) -> None:
        self._function, self._op = function, function.__name__
        self._out = bound.pop("out", None)
        self._bound, self._arrays, self._here = bound, arrays, here
        self._size = sys.maxsize if chunk_bytes is None else chunk_bytes
        # Results are of the first array's kind.
        self._stays = not isinstance(next(iter(arrays.values())), np.ndarray)
        self._targets: list[Array | None] = []

    def run(self, cupy: ModuleType) -> Any:
        """Move the arrays, compute, and bring the results back."""
        if not self._stays and self._is_large(*self._here.values()):
            found = self._overlapped(cupy)
        else:
            # What stays on the GPU isn't waited for, and the caller may write to what was moved.
            with stage(UP, moved=sum(x.nbytes for x in self._here.values())):
                moved = {name: cupy.asarray(x, blocking=self._stays) for name, x in self._here.items()}
            found = self._function(**self._bound | moved)
            if not self._stays and self._is_large(*_all(found)):
                with _lane(self._size) as down:
                    down.stream.wait_event(cupy.cuda.get_current_stream().record())
                    self._bring_back(found, down)
            else:
                self._bring_back(found)
        if isinstance(found, tuple):
            return getattr(found, "_make", tuple)(self._targets)  # a named tuple stays one
        return self._targets[0]

    def _is_large(self, *arrays: Array | None) -> bool:
        size: int = sum(x.nbytes for x in arrays if x is not None)
        return size >= WORTH_CUTTING * self._size

    def _overlapped(self, cupy: ModuleType) -> Any:
        """Compute with chunks of the images, or with all, and copy meanwhile; return the last results."""
        images, step = self._chunks()
        cut = [name for name in self._here if name in BATCHED] if step < images else []
        computing = cupy.cuda.get_current_stream()
        whole = {name: _like(cupy, x) for name, x in self._here.items() if name not in cut}
        turns = [{name: _like(cupy, self._here[name][:step]) for name in cut} for _ in range(2)]
        computed: list[Any] = [None, None]
        with _lane(self._size) as up, _lane(self._size) as down:
            # That stream may still have to use their memory for what had it before.
            up.stream.wait_event(computing.record())

            def copy(pairs: list[tuple[Array, Array]]) -> None:
                if pairs:
                    with stage(UP, moved=sum(host.nbytes for host, _ in pairs)):
                        for host, there in pairs:
                            up.up(host, there)

            copy([(self._here[name], there) for name, there in whole.items()])

            def load(i: int) -> Any:
                """Copy the arguments of a chunk to where those of the one before the last are."""
                if computed[i % 2] is not None:
                    up.stream.wait_event(computed[i % 2])
                parts = {name: self._here[name][i * step : (i + 1) * step] for name in turns[i % 2]}
                copy([(part, turns[i % 2][name][: len(part)]) for name, part in parts.items()])
                return up.stream.record()

            loaded = load(0)
            for i, start in enumerate(range(0, images, step)):
                n = min(step, images - start)
                arguments = self._bound | whole | {name: there[:n] for name, there in turns[i % 2].items()}
                if cut and "x_shape" in arguments:
                    arguments["x_shape"] = (n, *arguments["x_shape"][1:])
                computing.wait_event(loaded)
                found = self._function(**arguments)
                computed[i % 2] = computing.record()
                if start + n < images:  # before this chunk's results, which the CPU waits for
                    loaded = load(i + 1)
                down.stream.wait_event(computed[i % 2])
                self._bring_back(found, down, (start, images) if cut else None)
        return found

    def _chunks(self) -> tuple[int, int]:
        """Return how many images there are, and how many to a chunk; 1 and 1 where the batch must not be cut.

        It must not where results are sums over it, where an array is on the GPU already, or where numbers of
        images don't fit: the call, which says so, is made with what was given.
        """
        batched = [x for name, x in self._arrays.items() if name in BATCHED]
        total = self._here.keys() >= (self._arrays.keys() & set(BATCHED))
        counts: set[Any] = {len(x) if x.ndim else 0 for x in batched}
        x_shape = self._bound.get("x_shape")
        if x_shape is not None:
            first = x_shape[0] if isinstance(x_shape, tuple | list) and x_shape else None
            counts.add(first if isinstance(first, int | np.integer) else 0)
        if not total or _sums(self._op) or len(counts) != 1 or (images := counts.pop()) < 1:
            return 1, 1
        return images, max(1, self._size * images // max(1, sum(x.nbytes for x in batched)))

    def _bring_back(
        self, found: Any, lane: "Lane | None" = None, among: tuple[int, int] | None = None
    ) -> None:
        """Copy results to where they go: of all images, or, by `among`, from which one on of how many."""
        self._targets = self._targets or self._prepare(found, lane, among)
        for i, (y, target) in enumerate(zip(_all(found), self._targets, strict=True)):
            if y is None or y is target:
                continue
            part = target if target is None or among is None else target[among[0] : among[0] + len(y)]
            direction = DOWN if part is None or isinstance(part, np.ndarray) else "copy on the GPU"
            with stage(direction, moved=y.nbytes):
                if part is None:
                    self._targets[i] = y.get()
                elif not isinstance(part, np.ndarray):
                    part[...] = y
                elif lane is None:
                    part[...] = y.get()
                else:
                    lane.down(y, part)

    def _prepare(self, found: Any, lane: "Lane | None", among: tuple[int, int] | None) -> list[Array | None]:
        """Return where results go: to what was given, checked as the function checks it, or to new arrays.

        None where a copy makes its own.
        """
        op = self._op
        if isinstance(found, tuple):
            outs = several(op, self._out, *getattr(found, "_fields", ("y", "argmax")))
            names = [f"out[{i}]" for i in range(len(found))]
        else:
            outs, names = (self._out,), ["out"]
        others = dict(self._arrays)
        targets: list[Array | None] = []
        for y, out, name in zip(_all(found), outs, names, strict=True):
            if y is None:
                targets.append(None)
                continue
            shape = y.shape if among is None else (among[1], *y.shape[1:])
            if out is None:
                new = None if lane is None else np.empty(shape, y.dtype)
                targets.append(y if self._stays else new)
                continue
            backend, is_here = backend_of(op, **{name: out}), isinstance(out, np.ndarray)
            alike = {n: x for n, x in others.items() if isinstance(x, np.ndarray) == is_here}
            targets.append(result(op, backend, out, shape, y.dtype, name=name, **alike))
            others[name] = out
        return targets


def _lane(size: int) -> "Lane":
    from gpuconv.backends.cuda.staging import Lane

    return Lane(size)


def _all(found: Any) -> tuple[Array | None, ...]:
    """Return a function's results, one or several."""
    return found if isinstance(found, tuple) else (found,)


def _sums(op: str) -> bool:
    """Tell whether a function's results are sums over the batch, as gradients by w and b are."""
    return op.startswith("conv") and op.endswith(("_backward", "_weight_grad", "_bias_grad"))


def _is_array(x: Any) -> bool:
    return isinstance(x, np.ndarray) or type(x).__module__.partition(".")[0] == "cupy"


def _movable(x: Array) -> bool:
    return x.dtype.char in MOVABLE and not isinstance(x, np.ma.MaskedArray)


def _like(cupy: ModuleType, x: Array) -> Array:
    """Return a new array on the GPU, of the bytes' order there."""
    return cupy.empty(x.shape, x.dtype.newbyteorder("="))
