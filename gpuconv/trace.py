"""Profiling ranges: what a program spends its time on, for tools that listen to NVTX, such as Nsight Systems.

All are of the domain "gpuconv", nested as the calls are: an epoch and its steps, layers by their place in
the network, public operations with their shapes, and an operation's stages. `config.ranges` says how deep.
Where no tool listens, a decorator hands its function back as it is, and contexts are one that does nothing.
"""

import inspect
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any, TypeVar

from gpuconv.config import RANGES, config

F = TypeVar("F", bound=Callable[..., Any])

try:
    from nvtx import enabled, get_domain
except ImportError:  # nvtx has wheels for Linux and Windows only
    _domain: Any = None
else:
    # nvtx gives a stand-in without a handle where no tool listens. Asked once: tools attach at the start.
    _domain = get_domain("gpuconv") if enabled() else None
    _domain = _domain if hasattr(_domain, "handle") else None

LISTENING = _domain is not None

_DEPTH = {name: depth for depth, name in enumerate(RANGES)}
_LAYERS, _OPERATIONS, _STAGES = (_DEPTH[name] for name in ("layers", "operations", "stages"))

# What a range does, by its name: of an operation, a kernel, or a layer's class.
_CATEGORIES = {
    "gemm": re.compile("gemm|linear"),
    "copy": re.compile("copy"),
    "pool": re.compile("pool|argmax"),
    "conv": re.compile("conv|im2col|col2im|depthwise|bias|sum_parts"),
}

# A registered string lives as long as the process: where there are more different sizes than this (images of
# every size, say), the ranges of new ones bear the name alone. As many ranges are kept made.
MOST_SIZES = 4096
_with_sizes: set[str] = set()

_QUIET: AbstractContextManager[None] = nullcontext()


class _Range:
    """A range from its entry to its exit, by an exception too."""

    __slots__ = ("_attributes",)

    def __init__(self, attributes: Any) -> None:
        self._attributes = attributes

    def __enter__(self) -> None:
        _domain.push_range(self._attributes)

    def __exit__(self, *error: object) -> None:
        _domain.pop_range()


def traced(function: F) -> F:
    """Mark each call of an operation as a range: its name and its arrays' shapes; the payload is their bytes.

    Where no tool listens, the function itself is returned.
    """
    if not LISTENING:
        return function
    op, parameters = function.__name__, tuple(inspect.signature(function).parameters)

    @wraps(function)
    def marked(*arguments: Any, **named: Any) -> Any:
        if _DEPTH[config.ranges] < _OPERATIONS:
            return function(*arguments, **named)
        given = (*zip(parameters, arguments, strict=False), *named.items())
        arrays = tuple((name, x.shape, x.nbytes) for name, x in given if _is_array(x))
        with _Range(_operation(op, arrays)):
            return function(*arguments, **named)

    return marked  # type: ignore[return-value]


def stage(name: str, sizes: str = "", *, moved: int | None = None) -> AbstractContextManager[None]:
    """Return a context that is a stage of an operation; the payload of a copy is the bytes moved."""
    if not LISTENING or _DEPTH[config.ranges] < _STAGES:
        return _QUIET
    return _Range(_attributes(name, sizes, _category(name), moved))


def training(name: str, number: int | None = None) -> AbstractContextManager[None]:
    """Return a context that is a part of training; the payload is its number, counted from 1."""
    if not LISTENING or _DEPTH[config.ranges] < _LAYERS:
        return _QUIET
    return _Range(_attributes(name, "", "train", number))


def part_of_training(name: str) -> Callable[[F], F]:
    """Mark each call of a function as a part of training; the payload is its argument `number`, if any.

    Where no tool listens, the function itself is returned: for what is called at every step.
    """

    def mark(function: F) -> F:
        if not LISTENING:
            return function

        @wraps(function)
        def marked(*arguments: Any, **named: Any) -> Any:
            with training(name, named.get("number")):
                return function(*arguments, **named)

        return marked  # type: ignore[return-value]

    return mark


def _around_layer(
    function: Callable[..., Any], i: int, layer: object, which: str, *arguments: Any, **named: Any
) -> Any:
    """Make a layer's pass a range, named by the layer's place and class: "3.conv2d", "3.conv2d backward"."""
    if _DEPTH[config.ranges] < _LAYERS:
        return function(*arguments, **named)
    place = f"{_place.get()}{i}."
    kind = type(layer).__name__.lower()
    name = place + kind if which == "forward" else f"{place}{kind} {which}"
    size = sum(int(x.nbytes) for x in arguments if _is_array(x))
    token = _place.set(place)
    try:
        with _Range(_attributes(name, "", _category(kind), size)):
            return function(*arguments, **named)
    finally:
        _place.reset(token)


# The place of the layer whose pass is under way, with a dot behind: "2." in the third, itself a `Sequential`.
_place: ContextVar[str] = ContextVar("gpuconv.place_in_network", default="")

# What `Sequential` hands each pass of a layer to: the layer's method, its number, the layer, "forward" or
# "backward", and the method's arguments. None: the layer is called. Who sets it calls the one before.
AROUND_LAYER: ContextVar[Callable[..., Any] | None] = ContextVar(
    "gpuconv.around_layer", default=_around_layer if LISTENING else None
)


@lru_cache(MOST_SIZES)
def _attributes(name: str, sizes: str, category: str | None, payload: int | None) -> Any:
    message = name + sizes
    if sizes and message not in _with_sizes:
        if len(_with_sizes) < MOST_SIZES:
            _with_sizes.add(message)
        else:
            message = name
    return _domain.get_event_attributes(message=message, category=category, payload=payload)


@lru_cache(MOST_SIZES)
def _operation(op: str, arrays: tuple[tuple[str, tuple[int, ...], int], ...]) -> Any:
    """Return the attributes of an operation on arrays of these names, shapes and bytes."""
    shapes = "".join(f" {name}[{','.join(map(str, shape))}]" for name, shape, _ in arrays)
    return _attributes(op, shapes, _category(op), sum(int(nbytes) for *_, nbytes in arrays))


def _category(name: str) -> str | None:
    return next((category for category, names in _CATEGORIES.items() if names.search(name)), None)


def _is_array(x: Any) -> bool:
    return type(getattr(x, "shape", None)) is tuple and hasattr(x, "nbytes")
