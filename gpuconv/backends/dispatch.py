"""From an argument to an array that is safe to work on, and from its type to the backend that works on it."""

import importlib
from types import ModuleType
from typing import Any

import numpy as np

FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


def backend_of(op: str, **arrays: Any) -> ModuleType:
    """Return the backend for these arrays, all of one kind.

    Raises
    ------
    TypeError
        For anything that is not an array of a known kind, and for kinds mixed in one call.
    """
    kinds = {name: _kind(op, name, value) for name, value in arrays.items()}
    kind = next(iter(kinds.values()))
    if any(other != kind for other in kinds.values()):
        listed = ", ".join(f"{name} is a {kind} array" for name, kind in kinds.items())
        raise TypeError(f"{op}: arrays must all be NumPy's or all be CuPy's, but {listed}")
    if kind == "NumPy":
        from gpuconv.backends import cpu

        return cpu
    from gpuconv.backends import cuda

    cuda.check_device(op, arrays)
    return cuda


def given(**arrays: Any) -> dict[str, Any]:
    """Return those of some optional arrays that were given."""
    return {name: x for name, x in arrays.items() if x is not None}


# Array types by kind. CuPy's joins them when first seen, so that nothing imports CuPy before.
KINDS: dict[type, str] = {np.ndarray: "NumPy"}


def _kind(op: str, name: str, value: Any) -> str:
    kind = KINDS.get(type(value))
    return kind if kind is not None else _kind_of_new_type(op, name, value)


def _kind_of_new_type(op: str, name: str, value: Any) -> str:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{op}: {name} is a masked array; fill it first: {name}.filled(0)")
    if isinstance(value, np.ndarray):
        return "NumPy"
    cls = type(value)
    if cls.__name__ == "ndarray" and cls.__module__.partition(".")[0] == "cupy":
        KINDS[cls] = "CuPy"
        return "CuPy"
    hint = f"; numpy.asarray({name}) makes one" if isinstance(value, list | tuple | np.generic) else ""
    raise TypeError(
        f"{op}: {name} must be a NumPy or CuPy array, not {cls.__module__}.{cls.__qualname__}{hint}"
    )


def check_rank(op: str, name: str, x: Any, layout: str) -> None:
    """Check the number of axes; `layout` names them, as in "[N, C, H, W]"."""
    ndim = layout.count(",") + 1
    if x.ndim != ndim:
        raise ValueError(f"{op}: {name} must have {ndim} axes {layout}, not {x.ndim} (shape {x.shape})")


def check_shape(op: str, name: str, got: tuple[int, ...], must: tuple[int, ...], because: str) -> None:
    """Check a shape that the other arguments determine."""
    if got != must:
        raise ValueError(f"{op}: {name} has shape {got}, but {because} it must be {must}")


def check_kind(op: str, name: str, x: Any, kinds: str) -> None:
    """Check that x's dtype is of one of these kinds (NumPy's letters: b, i, u, f, c)."""
    if x.dtype.kind not in kinds or x.dtype.name == "bfloat16":
        names = {"b": "bool", "i": "integers", "u": "unsigned integers", "f": "floats", "c": "complex"}
        listed = ", ".join(names[k] for k in kinds)
        raise TypeError(f"{op}: {name} has dtype {x.dtype.name}; it must be one of: {listed}")


def float_result(op: str, **arrays: Any) -> np.dtype[Any]:
    """Return the dtype that NumPy promotes these arrays to; it must be float16, float32 or float64."""
    dtypes: set[np.dtype[Any]] = {x.dtype for x in arrays.values()}
    if len(dtypes) == 1 and (same := dtypes.pop()) in FLOATS:
        return same  # the usual case; naming a dtype, below, takes microseconds
    for name, x in arrays.items():
        if x.dtype.name == "bfloat16":
            raise TypeError(f"{op}: {name} is bfloat16, which is not supported; {name}.astype(numpy.float32)")
        if x.dtype.kind not in "biuf":
            raise TypeError(f"{op}: {name} has dtype {x.dtype.name}; it must be float16, float32 or float64")
    result = np.result_type(*(x.dtype for x in arrays.values())).newbyteorder("=")
    if result not in FLOATS:
        listed = ", ".join(f"{name} is {x.dtype.name}" for name, x in arrays.items())
        raise TypeError(
            f"{op}: the arrays promote to {result.name} ({listed}), "
            "but the result must be float16, float32 or float64; convert one with .astype(numpy.float32)"
        )
    return result


def accumulator(dtype: Any) -> np.dtype[Any]:
    """Return the dtype to sum in: float16 is summed in float32."""
    return np.promote_types(dtype, np.float32)


def array_module(x: Any) -> ModuleType:
    """Return the module whose functions work on this array: numpy, or cupy once its arrays are seen."""
    if isinstance(x, np.ndarray | np.generic):
        return np
    return importlib.import_module(type(x).__module__.partition(".")[0])


def to_device(x: Any, device: str) -> Any:
    """Return an array on "cpu" or "cuda" (CuPy's current device): itself where it is there, else a copy.

    Raises
    ------
    RuntimeError
        For "cuda" where it can't be used; the message says what is missing.
    """
    if device == "cpu":
        return to_host(x)
    from gpuconv.backends.cuda import runtime

    return runtime.to_gpu(x)


def beside(x: Any, value: Any) -> Any:
    """Return a value, perhaps an array of another kind or a tensor, as an array where x is."""
    if type(value).__module__.partition(".")[0] == "cupy":
        value = to_host(value)
    return array_module(x).asarray(value)


def check_gpu() -> None:
    """Raise RuntimeError where there is no usable GPU, saying what is missing and what mends it."""
    from gpuconv.backends.cuda import runtime

    runtime.check_installed()


def to_host(x: Any) -> Any:
    """Return an array's values as a NumPy array: itself, or a CuPy array's copy, which waits for the GPU."""
    return x if array_module(x) is np else x.get()
