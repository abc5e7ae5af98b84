"""What every public function does before its own work: it takes arrays of other libraries, and names itself.

An array that another library holds (a PyTorch or JAX tensor, a Numba device array) is seen through DLPack or
the CUDA array interface: as a NumPy or CuPy array on the same memory.
"""

import importlib
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, Protocol, TypeVar

import numpy as np

from gpuconv.backends.dispatch import KINDS, is_dask
from gpuconv.trace import traced

F = TypeVar("F", bound=Callable[..., Any])
Array = Any

# Types that are no other library's array: most arguments are of these, and one look tells.
_OWN = {int, float, bool, str, tuple, list, type(None)}


class Place(Protocol):
    """What calls are handed to, where arrays aren't computed as they lie, or where someone watches."""

    @property
    def outer(self) -> "Place | None":
        """What calls were handed to before, and will be again."""

    def __call__(
        self, function: Callable[..., Any], signature: inspect.Signature, /, *arguments: Any, **named: Any
    ) -> Any:
        """Call the function."""

    def around(self, place: "Place") -> "Place":
        """Return what calls are handed to while another computes them."""


# `gpuconv.offload`, `gpuconv.profile`; None: nothing of the kind.
PLACE: ContextVar[Place | None] = ContextVar("gpuconv.place", default=None)

# All of them, by name.
OPERATIONS: dict[str, Callable[..., Any]] = {}

_LIKE = """    like : array, optional
        One of another library's arrays: results are then of its kind, on the same memory. Without it they are
        NumPy's or CuPy's, whatever was given.
"""


def public(function: F) -> F:
    """Make a public function of one that takes NumPy and CuPy arrays; it takes `like` besides.

    `like` joins its signature and, behind the other parameters, its docstring.
    """
    inner = traced(function)
    op = function.__name__
    signature = inspect.signature(function)
    parameters = list(signature.parameters)

    @wraps(function)
    def wrapper(*arguments: Any, like: Any = None, **named: Any) -> Any:
        run = inner if (place := PLACE.get()) is None else partial(place, inner, signature)
        for value in (*arguments, *named.values(), *(out if type(out := named.get("out")) is tuple else ())):
            kind = type(value)
            if kind not in KINDS and kind not in _OWN:
                arguments = tuple(taken(op, n, a) for n, a in zip(parameters, arguments, strict=False))
                named = {name: taken(op, name, value) for name, value in named.items()}
                if any(map(is_dask, (*arguments, *named.values()))):
                    # Where its chunks lie, whatever this place is.
                    run = partial(importlib.import_module("gpuconv.lazy").call, inner, signature, like)
                    like = None
                break
        if like is None:
            return run(*arguments, **named)
        give_back = giver(op, like)
        result = run(*arguments, **named)
        if not isinstance(result, tuple):
            return give_back(result)
        given = [each if each is None else give_back(each) for each in result]
        return getattr(result, "_make", tuple)(given)  # a named tuple stays one

    parameter = inspect.Parameter("like", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Any)
    wrapper.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), parameter]
    )
    before, heading, after = (function.__doc__ or "").partition("\n    Returns\n    -------\n")
    wrapper.__doc__ = before + _LIKE + heading + after
    OPERATIONS[op] = wrapper
    return wrapper  # type: ignore[return-value]


# DLPack's device types: memory that the host reads (pinned, too), and a GPU's (managed, too).
_HOST, _CUDA = (1, 3), (2, 13)


def taken(op: str, name: str, value: Any) -> Any:
    """Return another library's array as a NumPy or CuPy array on its memory; anything else as it is.

    Raises
    ------
    TypeError
        Where it can't be seen so: a tensor that wants gradients, a dtype or device that neither knows.
    """
    kind = type(value)
    if kind is tuple and name == "out":
        return tuple(taken(op, f"out[{i}]", each) for i, each in enumerate(value))
    if kind in KINDS or kind in _OWN or isinstance(value, np.ndarray | np.generic):
        return value
    if kind.__module__.partition(".")[0] == "cupy":
        return value
    on_gpu = False
    try:
        if hasattr(value, "__dlpack__"):
            device = value.__dlpack_device__()[0]
            if hasattr(value, "is_neg") and value.is_neg():  # in name only: PyTorch's DLPack forgets the sign
                raise BufferError("it is negated in name only, use tensor.resolve_neg()")
            if device in _HOST:
                return np.from_dlpack(value)
            if on_gpu := device in _CUDA:
                return importlib.import_module("cupy").from_dlpack(value)
            raise BufferError("it is on a device that is no CPU and no NVIDIA GPU")
        if on_gpu := hasattr(value, "__cuda_array_interface__"):
            return importlib.import_module("cupy").asarray(value)
    except (AttributeError, BufferError, ImportError, RuntimeError, TypeError, ValueError) as error:
        how = "is on a GPU, where CuPy can't see it" if on_gpu else "can't be seen through DLPack"
        raise TypeError(f"{op}: {name}, {described(value)}, {how}: {error}") from error
    return value


def giver(op: str, like: Any) -> Callable[[Array], Array]:
    """Return what makes arrays of the kind of `like` of NumPy's or CuPy's, on the same memory.

    Raises
    ------
    TypeError
        Where `like` is of no library that takes arrays through DLPack.
    """
    for kind in type(like).__mro__ if hasattr(like, "__dlpack__") else ():  # a subclass is its library's, too
        package = kind.__module__.partition(".")[0]
        library = importlib.import_module({"jaxlib": "jax.numpy"}.get(package, package))
        if hasattr(library, "from_dlpack"):
            make: Callable[[Array], Array] = library.from_dlpack
            return make
    raise TypeError(f"{op}: like must be an array that knows DLPack, not {described(like)}")


def described(value: Any) -> str:
    """Return what an object is, for messages."""
    dtype = f" of {value.dtype}" if hasattr(value, "dtype") else ""
    return f"a {type(value).__module__}.{type(value).__qualname__}{dtype}"
